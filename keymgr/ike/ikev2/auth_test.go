package ikev2_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// RFC 7296 §2.21.2: an authentication failure is answered by
// AUTHENTICATION_FAILED, whatever was wrong.
func TestAuthenticationFailures(t *testing.T) {
	tests := []struct {
		name      string
		change    func(web, db *iketest.Side)
		why       string
		responder bool // the responder refuses
	}{
		{"wrong secret", func(w, d *iketest.Side) { d.Secrets = []string{"another"} }, "PEER_NOT_AUTHENTICATED", true},
		{"unknown initiator", func(w, d *iketest.Side) { d.RemoteID = "app" }, "PEER_IDENTITY", true},
		{"wrong responder asked for", func(w, d *iketest.Side) { d.LocalID = "cache" }, "PEER_IDENTITY", true},
		{"no secret at the responder", func(w, d *iketest.Side) { d.Secrets = nil }, "NO_CREDENTIAL", true},
		{"no secret at the initiator", func(w, d *iketest.Side) { w.Secrets = nil }, "NO_CREDENTIAL", false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			n, web, db := iketest.Pair(t, 1, tc.change)
			web.Connect("rule", nil)
			n.Run(40 * time.Second)
			mustBeEmpty(t, web, db)
			at, other := db, web
			if !tc.responder {
				at, other = web, db
			}
			if f := at.Failures[0]; f.Why != tc.why || f.Detail == "" || f.Advice == "" || f.Exchange != "IKE_AUTH" {
				t.Errorf("%s reports %+v, want %s", at.Name, f, tc.why)
			}
			if tc.responder && other.Failure().Why != "AUTHENTICATION_FAILED" {
				t.Errorf("the initiator reports %+v", other.Failure())
			}
			if web.Installed+db.Installed != 0 {
				t.Errorf("SAs were installed: %v %v", web.Log, db.Log)
			}
		})
	}
}

// RFC 7296 §2.15: the initiator checks the responder's AUTH and identity before
// it uses anything, and may tell it so in an INFORMATIONAL exchange (§2.21.2).
func TestInitiatorDoesNotTrustAWrongResponder(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	db.Policy.Peers[0].LocalID = ipsec.Identity{} // answers with its address
	web.Connect("rule", nil)
	n.Run(time.Second)
	if f := web.Failure(); f.Why != "PEER_IDENTITY" || !strings.Contains(f.Detail, "10.0.0.2") {
		t.Errorf("the initiator reports %+v", f)
	}
	mustBeEmpty(t, web, db)
	if web.Installed != 0 {
		t.Errorf("the initiator installed %v", web.Log)
	}
}

// edit changes the payloads inside of the first message whose text has a mark.
func edit(n *iketest.Net, mark string, change func([]wire.Payload) []wire.Payload) {
	done := false
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if done || !strings.Contains(p.Text, mark) {
			return []iketest.Packet{p}
		}
		done = true
		for _, m := range p.From.Machines {
			b := m.(*ikev2.Machine).ResealForTest(p.Data, func(first wire.PayloadType, inner []byte) (wire.PayloadType, []byte) {
				ps, err := wire.ParsePayloads(first, inner)
				if err != nil {
					n.TB.Fatal(err)
				}
				ps = change(ps)
				return wire.First(ps), wire.AppendPayloads(nil, ps)
			})
			if b != nil {
				p.Data = b
			}
		}
		return []iketest.Packet{p}
	}
}

func without(t wire.PayloadType) func([]wire.Payload) []wire.Payload {
	return func(ps []wire.Payload) []wire.Payload {
		return slices.DeleteFunc(ps, func(p wire.Payload) bool { return p.Type() == t })
	}
}

// RFC 7296 §2.16: a request without AUTH asks for EAP. It and certificates get
// AUTHENTICATION_FAILED, and a report that says why.
func TestOtherAuthenticationMethodsAreRefusedByName(t *testing.T) {
	method := func(ps []wire.Payload) []wire.Payload {
		for _, p := range ps {
			if a, ok := p.(*wire.Auth); ok {
				a.Method = wire.AuthSignature
			}
		}
		return ps
	}
	tests := []struct {
		name, mark string
		change     func([]wire.Payload) []wire.Payload
		at, why    string
	}{
		{"EAP", "IKE_AUTH request", without(wire.TypeAUTH), "db", "asks for EAP"},
		{"signature", "IKE_AUTH request", method, "db", "authenticates with signature"},
		{"signature by the responder", "IKE_AUTH response", method, "web", "authenticates with signature"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			n, web, db := iketest.Pair(t, 1, nil)
			edit(n, tc.mark, tc.change)
			web.Connect("rule", nil)
			n.Run(40 * time.Second)
			mustBeEmpty(t, web, db)
			h := web
			if tc.at == "db" {
				h = db
			}
			if f := h.Failures[0]; f.Why != "NOT_SUPPORTED" || !strings.Contains(f.Detail, tc.why) {
				t.Errorf("%s reports %+v", tc.at, f)
			}
		})
	}
}

// RFC 7296 §2.7, §2.9: what a responder must not answer is not accepted, and the
// CHILD SA that it believes in is deleted.
func TestInitiatorChecksTheResponder(t *testing.T) {
	tests := []struct {
		name   string
		change func([]wire.Payload) []wire.Payload
		why    string
	}{
		{"wider selectors", func(ps []wire.Payload) []wire.Payload {
			for _, p := range ps {
				if ts, ok := p.(*wire.TS); ok && ts.PayloadType == wire.TypeTSr {
					ts.Selectors = []ipsec.TrafficSelector{ipsec.PrefixSelector(netip.MustParsePrefix("0.0.0.0/0"))}
				}
			}
			return ps
		}, "TS_UNACCEPTABLE"},
		{"a transform that was not offered", func(ps []wire.Payload) []wire.Payload {
			for _, p := range ps {
				if sa, ok := p.(*wire.SA); ok {
					sa.Proposals[0].Transforms[0].KeyBits = 256
				}
			}
			return ps
		}, "NO_PROPOSAL_CHOSEN"},
		{"two transforms of a type", func(ps []wire.Payload) []wire.Payload {
			for _, p := range ps {
				if sa, ok := p.(*wire.SA); ok {
					sa.Proposals[0].Transforms = append(sa.Proposals[0].Transforms, sa.Proposals[0].Transforms[0])
				}
			}
			return ps
		}, "NO_PROPOSAL_CHOSEN"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			n, web, db := iketest.Pair(t, 1, nil)
			edit(n, "IKE_AUTH response", tc.change)
			web.Connect("rule", nil)
			n.Run(40 * time.Second)
			if len(web.SAs)+len(db.SAs) != 0 || len(web.Children())+len(db.Children()) != 0 {
				t.Errorf("left over: %+v %+v\n%s", web.Children(), db.Children(), n.LadderText(0))
			}
			if f := web.Failure(); f.Why != tc.why || f.Rule != "rule" {
				t.Errorf("web reports %+v", f)
			}
		})
	}
}

// RFC 7296 §3.3.6: a transform with an attribute that we do not know is not
// chosen; an unknown transform type makes its proposal unacceptable.
func TestUnknownTransformsAreNotChosen(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	edit(n, "IKE_AUTH request", func(ps []wire.Payload) []wire.Payload {
		for _, p := range ps {
			if sa, ok := p.(*wire.SA); ok {
				bad := sa.Proposals[0]
				bad.Transforms = slices.Clone(bad.Transforms)
				bad.Transforms[0].Unknown = []wire.Attribute{{Type: 77, Short: 1}}
				worse := sa.Proposals[0]
				worse.Number = 2
				worse.Transforms = append(slices.Clone(worse.Transforms), wire.Transform{Transform: ipsec.Transform{Type: 200, ID: 1}})
				sa.Proposals = []wire.Proposal{bad, worse}
			}
		}
		return ps
	})
	web.Connect("rule", nil)
	n.Run(time.Second)
	f := db.Failure()
	if f.Why != "NO_PROPOSAL_CHOSEN" || len(f.Theirs) != 2 || !strings.Contains(f.Theirs[0], "aes128gcm16+attribute77") || !strings.Contains(f.Theirs[1], "TYPE-200-1") {
		t.Errorf("%+v", f)
	}
}

// The factory takes profiles by name, and says which it does not know.
func TestMachinesByName(t *testing.T) {
	_, web, _ := iketest.Pair(t, 1, nil)
	var f ikev2.Machines
	if m, err := f.Initiator(ike.Env{}, web.Policy, "peer", ike.Path{}); err != nil || m.Info().Peer != "peer" {
		t.Errorf("%v %v", m, err)
	}
	if _, err := f.Responder(ike.Env{}, web.Policy, []string{"x", "peer"}, ike.Path{}); err != nil {
		t.Error(err)
	}
	if _, err := f.Initiator(ike.Env{}, web.Policy, "x", ike.Path{}); err == nil || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("got %v", err)
	}
	if _, err := f.Responder(ike.Env{}, web.Policy, []string{"x"}, ike.Path{}); err == nil {
		t.Error("no error for an unknown peer")
	}
}

// Several secrets during a rotation: whoever verifies tries each.
func TestSecretRotation(t *testing.T) {
	t.Run("the responder has both", func(t *testing.T) {
		_, web, _ := connected(t, 1, func(w, d *iketest.Side) { w.Secrets, d.Secrets = []string{"old"}, []string{"new", "old"} })
		if len(web.Failures) != 0 {
			t.Errorf("failures: %+v", web.Failures)
		}
	})
	t.Run("the responder has the old one only", func(t *testing.T) {
		n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { w.Secrets, d.Secrets = []string{"new", "old"}, []string{"old"} })
		web.Connect("rule", nil)
		n.Run(40 * time.Second)
		mustBeUp(t, n, web, db)
		if f := web.Failure(); f.Why != "AUTHENTICATION_FAILED" || !strings.Contains(f.Advice, "tried next") {
			t.Errorf("got %+v", f)
		}
	})
}
