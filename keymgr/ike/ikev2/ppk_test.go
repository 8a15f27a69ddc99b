package ikev2_test

import (
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// RFC 8784 §3, Table 1, and its mirror at the initiator: who has a PPK, whose, and
// who requires it.
func TestPPK(t *testing.T) {
	key := func(id string, required bool) *ipsec.PPK {
		return &ipsec.PPK{ID: id, Secret: "file:ppk-" + id, Required: required}
	}
	tests := []struct {
		name     string
		web, db  *ipsec.PPK
		used     bool
		fails    string // who refuses, "" for nobody
		why      string
		otherKey bool // the same identifier, another key
	}{
		{name: "both, optional", web: key("a", false), db: key("a", false), used: true},
		{name: "both, required", web: key("a", true), db: key("a", true), used: true},
		{name: "required by the initiator", web: key("a", true), db: key("a", false), used: true},
		{name: "required by the responder", web: key("a", false), db: key("a", true), used: true},
		{name: "the initiator only, optional", web: key("a", false)},
		{name: "the initiator only, required", web: key("a", true), fails: "web", why: "PPK"},
		{name: "the responder only, optional", db: key("a", false)},
		{name: "the responder only, required", db: key("a", true), fails: "db", why: "PPK"},
		{name: "another one, optional", web: key("a", false), db: key("b", false)},
		{name: "another one, required by the initiator", web: key("a", true), db: key("b", false), fails: "db", why: "PPK"},
		{name: "another one, required by the responder", web: key("a", false), db: key("b", true), fails: "db", why: "PPK"},
		{name: "another key of the same name", web: key("a", true), db: key("a", true), otherKey: true, fails: "db", why: "PEER_NOT_AUTHENTICATED"},
	}
	for _, tc := range tests {
		for _, auth := range []ipsec.AuthMethod{byPSK, byCert} {
			t.Run(tc.name+" by "+auth.Name(), func(t *testing.T) {
				n, web, db := certified(t, 1, "p256", "p256", func(w, d *iketest.Side) { w.Auth, d.Auth = []ipsec.AuthMethod{auth}, []ipsec.AuthMethod{auth} })
				web.Policy.Peers[0].PPK, db.Policy.Peers[0].PPK = tc.web, tc.db
				for _, h := range []*iketest.Host{web, db} {
					h.Secrets["file:ppk-a"], h.Secrets["file:ppk-b"] = []string{"postquantum a"}, []string{"postquantum b"}
				}
				if tc.otherKey {
					db.Secrets["file:ppk-a"] = []string{"another"}
				}
				web.Connect("rule", nil)
				n.Run(40 * time.Second)
				if tc.fails != "" {
					mustBeEmpty(t, web, db)
					h := map[string]*iketest.Host{"web": web, "db": db}[tc.fails]
					if len(h.Failures) == 0 || h.Failures[0].Why != tc.why || h.Failures[0].Advice == "" {
						t.Errorf("%s reports %+v, want %s\n%s", tc.fails, h.Failures, tc.why, n.LadderText(0))
					}
					return
				}
				mustBeUp(t, n, web, db)
				want := ""
				if tc.used {
					want = "a"
				}
				for _, h := range []*iketest.Host{web, db} {
					if got := h.Machine().Info().PPK; got != want {
						t.Errorf("%s says that PPK %q is used, want %q", h.Name, got, want)
					}
				}
				db.Do(ike.RekeyIKE{})
				n.Run(5 * time.Second)
				if got := web.Machine("established").Info().PPK; got != want {
					t.Errorf("after a rekey: %q", got)
				}
			})
		}
	}
}

// A PPK that cannot be had keeps an optional one from being used, and a required
// one from being done without.
func TestPPKThatIsAway(t *testing.T) {
	for _, required := range []bool{false, true} {
		n, web, db := iketest.Pair(t, 1, nil)
		p := &ipsec.PPK{ID: "a", Secret: "file:ppk"}
		q := *p
		q.Required = required
		web.Policy.Peers[0].PPK, db.Policy.Peers[0].PPK = p, &q
		web.Secrets["file:ppk"] = []string{"postquantum"}
		web.Connect("rule", nil)
		n.Run(40 * time.Second)
		if required {
			mustBeEmpty(t, web, db)
			if f := db.Failure(); f.Why != "NO_CREDENTIAL" || !strings.Contains(f.Advice, "ppk") {
				t.Errorf("%+v", f)
			}
			continue
		}
		mustBeUp(t, n, web, db)
		if got := web.Machine().Info().PPK + db.Machine().Info().PPK; got != "" {
			t.Errorf("PPK %q is used", got)
		}
	}
}

// RFC 8784 §3: an initiator that does not have its PPK does not say USE_PPK. An optional
// one must not stop the negotiation, a required one must.
func TestPPKThatTheInitiatorCannotRead(t *testing.T) {
	for _, required := range []bool{false, true} {
		n, web, db := iketest.Pair(t, 1, nil)
		p, q := ipsec.PPK{ID: "a", Secret: "file:ppk", Required: required}, ipsec.PPK{ID: "a", Secret: "file:ppk"}
		web.Policy.Peers[0].PPK, db.Policy.Peers[0].PPK = &p, &q
		db.Secrets["file:ppk"] = []string{"postquantum"}
		web.Connect("rule", nil)
		n.Run(40 * time.Second)
		if required {
			mustBeEmpty(t, web, db)
			if f := web.Failure(); f.Why != "NO_CREDENTIAL" || !strings.Contains(f.Advice, "ppk") || len(db.Failures) != 0 {
				t.Errorf("%+v, %+v", f, db.Failures)
			}
			continue
		}
		mustBeUp(t, n, web, db)
		if got := web.Machine().Info().PPK + db.Machine().Info().PPK; got != "" || strings.Contains(n.LadderText(0), "USE_PPK") {
			t.Errorf("PPK %q is used\n%s", got, n.LadderText(0))
		}
	}
}

// Somebody in the middle who takes USE_PPK away, so that the keys lack it, changes
// messages that AUTH covers; a required PPK is not even tried without.
func TestPPKDowngradeIsNoticed(t *testing.T) {
	for _, mark := range []string{"IKE_SA_INIT request", "IKE_SA_INIT response"} {
		for _, required := range []bool{false, true} {
			n, web, db := iketest.Pair(t, 1, nil)
			p := &ipsec.PPK{ID: "a", Secret: "file:ppk", Required: required}
			web.Policy.Peers[0].PPK, db.Policy.Peers[0].PPK = p, p
			web.Secrets["file:ppk"], db.Secrets["file:ppk"] = []string{"postquantum"}, []string{"postquantum"}
			withoutNotify(n, mark, wire.UsePPK)
			web.Connect("rule", nil)
			n.Run(60 * time.Second)
			mustBeEmpty(t, web, db)
			if web.Installed+db.Installed != 0 {
				t.Errorf("SAs were installed: %v %v", web.Log, db.Log)
			}
		}
	}
}
