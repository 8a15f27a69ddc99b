package ikev2_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

var (
	byCert = ipsec.AuthMethod{Certificate: &ipsec.CertificateAuth{Trust: []string{"file:ca.pem"}, Credential: "file:own"}}
	byPSK  = ipsec.AuthMethod{PSK: "file:psk"}
	byNull = ipsec.AuthMethod{Null: true}
)

func on(side ipsec.AuthSide, a ipsec.AuthMethod) ipsec.AuthMethod { a.Side = side; return a }

// certified is a Pair whose ends have certificates of one CA, with keys of a kind.
func certified(t testing.TB, seed uint64, webKey, dbKey string, change func(web, db *iketest.Side)) (*iketest.Net, *iketest.Host, *iketest.Host) {
	n, web, db := iketest.Pair(t, seed, func(w, d *iketest.Side) {
		w.Auth, d.Auth = []ipsec.AuthMethod{byCert}, []ipsec.AuthMethod{byCert}
		if change != nil {
			change(w, d)
		}
	})
	ca := iketest.NewCA(t, "fleet")
	web.Credentials["file:own"], db.Credentials["file:own"] = ca.Issue(t, webKey, "web"), ca.Issue(t, dbKey, "db")
	web.Anchors["file:ca.pem"], db.Anchors["file:ca.pem"] = ca, ca
	return n, web, db
}

// withoutNotify takes a notify out of unprotected messages, as somebody in the
// middle can.
func withoutNotify(n *iketest.Net, mark string, t wire.NotifyType) func(iketest.Packet) []iketest.Packet {
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if h, ps, err := wire.Parse(p.Data); err == nil && strings.Contains(p.Text, mark) {
			var rest []wire.Payload
			for _, x := range ps {
				if n, ok := x.(*wire.Notify); !ok || n.Message != t {
					rest = append(rest, x)
				}
			}
			p.Data = wire.AppendMessage(nil, h, rest)
		}
		return []iketest.Packet{p}
	}
	return n.Hook
}

// RFC 7427 §3, RFC 8420: keys of every kind, each end with its own.
func TestSignatureSchemes(t *testing.T) {
	want := map[string]string{"rsa": "rsa-pss-sha256", "p256": "ecdsa-sha256", "p384": "ecdsa-sha384", "p521": "ecdsa-sha512", "ed25519": "ed25519"}
	for _, pair := range [][2]string{{"rsa", "p256"}, {"p256", "ed25519"}, {"ed25519", "p384"}, {"p384", "p521"}, {"p521", "rsa"}} {
		t.Run(pair[0]+" and "+pair[1], func(t *testing.T) {
			n, web, db := certified(t, 1, pair[0], pair[1], nil)
			web.Connect("rule", nil)
			n.Run(5 * time.Second)
			mustBeUp(t, n, web, db)
			i, r := web.Machine().Info(), db.Machine().Info()
			if i.LocalAuth != want[pair[0]] || i.RemoteAuth != want[pair[1]] || r.LocalAuth != i.RemoteAuth || r.RemoteAuth != i.LocalAuth {
				t.Errorf("the initiator says %s and %s, the responder %s and %s", i.LocalAuth, i.RemoteAuth, r.LocalAuth, r.RemoteAuth)
			}
			if web.Needs["verification"] != 1 || web.Needs["signature"] != 1 || web.Needs["psk"] != 0 {
				t.Errorf("asked for %v", web.Needs)
			}
			web.Do(ike.RekeyIKE{})
			n.Run(5 * time.Second)
			if got := web.Machine("established").Info(); got.LocalAuth != i.LocalAuth || got.RemoteAuth != i.RemoteAuth {
				t.Errorf("after a rekey: %+v", got)
			}
		})
	}
}

// RFC 4754: a peer without RFC 7427 gets the classic methods, which for RSA means
// SHA-1, and that needs allowLegacy.
func TestClassicMethodsForPeersWithoutRFC7427(t *testing.T) {
	legacy := ipsec.AuthMethod{Certificate: &ipsec.CertificateAuth{Trust: byCert.Certificate.Trust, Credential: "file:own", AllowLegacy: true}}
	for _, tc := range []struct{ key, want string }{{"p256", "ecdsa-256"}, {"p384", "ecdsa-384"}, {"p521", "ecdsa-521"}, {"rsa", "rsa-sha1"}} {
		t.Run(tc.key, func(t *testing.T) {
			run := func(a ipsec.AuthMethod) (*iketest.Host, *iketest.Host, *iketest.Net) {
				n, web, db := certified(t, 1, tc.key, tc.key, func(w, d *iketest.Side) { w.Auth, d.Auth = []ipsec.AuthMethod{a}, []ipsec.AuthMethod{a} })
				strip := withoutNotify(n, "IKE_SA_INIT request", wire.SignatureHashAlgorithms)
				n.Hook = func(p iketest.Packet) []iketest.Packet {
					p = strip(p)[0]
					if strings.HasPrefix(p.Text, "IKE_SA_INIT request") {
						web.Machine().WithoutHashesForTest(p.Data)
					}
					return []iketest.Packet{p}
				}
				web.Connect("rule", nil)
				n.Run(40 * time.Second)
				return web, db, n
			}
			web, db, n := run(legacy)
			mustBeUp(t, n, web, db)
			if i := web.Machine().Info(); i.LocalAuth != tc.want || i.RemoteAuth != tc.want {
				t.Errorf("authenticated with %s and %s", i.LocalAuth, i.RemoteAuth)
			}
			if web, db, _ = run(byCert); tc.key == "rsa" {
				mustBeEmpty(t, web, db)
				if f := web.Failure(); f.Why != "NO_CREDENTIAL" || !strings.Contains(f.Detail, "takes no signature") {
					t.Errorf("without allowLegacy: %+v", f)
				}
			}
		})
	}
}

// A response that is dropped for its key exchange, which AUTH does not cover, says
// nothing about how the peer wants to be shown who we are.
func TestDroppedResponsesDoNotChooseTheMethod(t *testing.T) {
	n, web, db := certified(t, 1, "p256", "p256", func(w, d *iketest.Side) {
		w.Auth, d.Auth = []ipsec.AuthMethod{byPSK, byNull}, []ipsec.AuthMethod{byPSK, byNull}
	})
	forged := false
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if h, ps, err := wire.Parse(p.Data); err == nil && !forged && strings.HasPrefix(p.Text, "IKE_SA_INIT response") {
			forged = true
			rest := []wire.Payload{wire.AnnounceNotify([]wire.Announcement{{Method: wire.AuthNull}})}
			for _, x := range ps {
				switch x := x.(type) {
				case *wire.KE:
					rest = append(rest, &wire.KE{Method: x.Method, Data: make([]byte, len(x.Data))})
				case *wire.SA, *wire.Nonce:
					rest = append(rest, x)
				}
			}
			first := p
			first.Data = wire.AppendMessage(nil, h, rest)
			return []iketest.Packet{first, p}
		}
		return []iketest.Packet{p}
	}
	web.Connect("rule", nil)
	n.Run(10 * time.Second)
	mustBeUp(t, n, web, db)
	if i := web.Machine().Info(); !forged || i.LocalAuth != "psk" {
		t.Errorf("forged %t: we prove ourselves with %s", forged, i.LocalAuth)
	}
}

// allowLegacy is of one method: it opens no other one's trust anchors.
func TestAllowLegacyIsOfOneMethod(t *testing.T) {
	old := ipsec.AuthMethod{Certificate: &ipsec.CertificateAuth{Trust: []string{"file:old.pem"}, AllowLegacy: true}}
	legacy := ipsec.AuthMethod{Certificate: &ipsec.CertificateAuth{Trust: byCert.Certificate.Trust, Credential: "file:own", AllowLegacy: true}}
	for _, strict := range []bool{true, false} {
		n, web, db := certified(t, 1, "rsa", "rsa", func(w, d *iketest.Side) {
			w.Auth, d.Auth = []ipsec.AuthMethod{legacy}, []ipsec.AuthMethod{legacy}
			if strict {
				d.Auth = []ipsec.AuthMethod{on(ipsec.AuthRemote, old), byCert}
			}
		})
		db.Anchors["file:old.pem"] = iketest.NewCA(t, "old")
		strip := withoutNotify(n, "IKE_SA_INIT request", wire.SignatureHashAlgorithms)
		n.Hook = func(p iketest.Packet) []iketest.Packet {
			p = strip(p)[0]
			if strings.HasPrefix(p.Text, "IKE_SA_INIT request") {
				web.Machine().WithoutHashesForTest(p.Data)
			}
			return []iketest.Packet{p}
		}
		web.Connect("rule", nil)
		n.Run(40 * time.Second)
		for _, i := range db.Machines {
			if auth := i.Info().RemoteAuth; strict && auth != "" {
				t.Errorf("db accepts %s by a chain of a method without allowLegacy", auth)
			}
		}
		for _, f := range db.Failures {
			if strict && f.Why != "PEER_NOT_AUTHENTICATED" || !strict {
				t.Errorf("%+v", f)
			}
		}
	}
}

// RFC 7296 §3.6: the certificates between ours and the anchor are sent along.
func TestChainIsSentWithIntermediates(t *testing.T) {
	n, web, db := certified(t, 1, "p256", "p256", nil)
	root := iketest.NewCA(t, "root")
	between := root.Intermediate(t, "between")
	c := between.Issue(t, "p256", "web")
	c.Chain = append(c.Chain, between.Cert.Raw)
	web.Credentials["file:own"] = c
	db.Anchors["file:ca.pem"] = root
	web.Connect("rule", nil)
	n.Run(5 * time.Second)
	mustBeUp(t, n, web, db)
}

// Each end may prove itself in its own way.
func TestMixedMethods(t *testing.T) {
	t.Run("we by certificate, the peer by secret", func(t *testing.T) {
		n, web, db := certified(t, 1, "p256", "p256", func(w, d *iketest.Side) {
			w.Auth = []ipsec.AuthMethod{on(ipsec.AuthLocal, byCert), on(ipsec.AuthRemote, byPSK)}
			d.Auth = []ipsec.AuthMethod{on(ipsec.AuthRemote, byCert), on(ipsec.AuthLocal, byPSK)}
		})
		web.Connect("rule", nil)
		n.Run(5 * time.Second)
		mustBeUp(t, n, web, db)
		if i := web.Machine().Info(); i.LocalAuth != "ecdsa-sha256" || i.RemoteAuth != "psk" {
			t.Errorf("authenticated with %s and %s", i.LocalAuth, i.RemoteAuth)
		}
		db.Do(ike.Terminate{Why: "test"})
		n.Run(5 * time.Second)
		db.Connect("rule", nil)
		n.Run(5 * time.Second)
		mustBeUp(t, n, web, db)
		if i := db.Machine().Info(); i.LocalAuth != "psk" || i.RemoteAuth != "ecdsa-sha256" {
			t.Errorf("the other way round: authenticated with %s and %s", i.LocalAuth, i.RemoteAuth)
		}
	})
	t.Run("a peer without certificates gets a secret", func(t *testing.T) {
		for _, first := range []string{"web", "db"} {
			n, web, db := certified(t, 1, "p256", "p256", func(w, d *iketest.Side) {
				w.Auth, d.Auth = []ipsec.AuthMethod{byCert, byPSK}, []ipsec.AuthMethod{byPSK}
			})
			h := map[string]*iketest.Host{"web": web, "db": db}[first]
			h.Connect("rule", nil)
			n.Run(5 * time.Second)
			mustBeUp(t, n, web, db)
			if len(web.Failures)+len(db.Failures) != 0 {
				t.Errorf("%+v %+v", web.Failures, db.Failures)
			}
		}
	})
}

// RFC 9593: what the responder announces decides between our methods, where
// nothing else would tell.
func TestAnnouncedMethodsAreFollowed(t *testing.T) {
	n, web, db := certified(t, 1, "p256", "p256", func(w, d *iketest.Side) {
		w.Auth = []ipsec.AuthMethod{byPSK, byCert}
		d.Auth = []ipsec.AuthMethod{on(ipsec.AuthRemote, byCert), on(ipsec.AuthLocal, byPSK)}
	})
	web.Connect("rule", nil)
	n.Run(5 * time.Second)
	mustBeUp(t, n, web, db)
	if i := web.Machine().Info(); i.LocalAuth != "ecdsa-sha256" || len(web.Failures) != 0 {
		t.Errorf("authenticated with %s, failures %+v", i.LocalAuth, web.Failures)
	}
}

// RFC 7619: only where the policy names it, on the side that it names.
func TestNullAuthentication(t *testing.T) {
	t.Run("by name", func(t *testing.T) {
		n, web, db := certified(t, 1, "p256", "p256", func(w, d *iketest.Side) {
			w.Auth = []ipsec.AuthMethod{on(ipsec.AuthLocal, byNull), on(ipsec.AuthRemote, byCert)}
			d.Auth = []ipsec.AuthMethod{on(ipsec.AuthRemote, byNull), on(ipsec.AuthLocal, byCert)}
			d.RemoteID = "nobody"
		})
		web.Connect("rule", nil)
		n.Run(5 * time.Second)
		mustBeUp(t, n, web, db)
		if i := db.Machine().Info(); i.RemoteAuth != "null" || i.LocalAuth != "ecdsa-sha256" {
			t.Errorf("authenticated with %s and %s", i.LocalAuth, i.RemoteAuth)
		}
	})
	for name, theirs := range map[string]ipsec.AuthMethod{"psk": byPSK, "certificate": byCert} {
		t.Run("refused by a policy of "+name, func(t *testing.T) {
			n, web, db := certified(t, 1, "p256", "p256", func(w, d *iketest.Side) {
				w.Auth, d.Auth = []ipsec.AuthMethod{byNull}, []ipsec.AuthMethod{theirs}
			})
			web.Connect("rule", nil)
			n.Run(40 * time.Second)
			mustBeEmpty(t, web, db)
			if f := db.Failure(); f.Why != "NOT_SUPPORTED" || !strings.Contains(f.Detail, "authenticates with null") {
				t.Errorf("%+v", f)
			}
		})
	}
	t.Run("bound to the exchange", func(t *testing.T) {
		n, web, db := certified(t, 1, "p256", "p256", func(w, d *iketest.Side) { w.Auth, d.Auth = []ipsec.AuthMethod{byNull}, []ipsec.AuthMethod{byNull} })
		edit(n, "IKE_AUTH request", func(ps []wire.Payload) []wire.Payload {
			for _, p := range ps {
				if a, ok := p.(*wire.Auth); ok {
					a.Data = bytes.Repeat([]byte{0}, len(a.Data))
				}
			}
			return ps
		})
		web.Connect("rule", nil)
		n.Run(40 * time.Second)
		mustBeEmpty(t, web, db)
	})
}

// What is wrong with a certificate or a signature is AUTHENTICATION_FAILED to the
// peer and a sentence to the operator, and nothing is installed.
func TestCertificateFailures(t *testing.T) {
	type hosts struct{ web, db *iketest.Host }
	other := func(hosts) *iketest.CA { return iketest.NewCA(t, "other") }
	tests := []struct {
		name   string
		change func(h hosts)
		edit   func([]wire.Payload) []wire.Payload // of the request
		at     string                              // who refuses
		why    string
		detail string
	}{
		{name: "another CA at the responder", change: func(h hosts) { h.db.Anchors["file:ca.pem"] = other(h) }, at: "db", why: "PEER_NOT_AUTHENTICATED", detail: "unknown authority"},
		{name: "another CA at the initiator", change: func(h hosts) { h.web.Anchors["file:ca.pem"] = other(h) }, at: "web", why: "PEER_NOT_AUTHENTICATED", detail: "unknown authority"},
		{name: "a certificate that names somebody else", change: func(h hosts) {
			ca := iketest.NewCA(t, "fleet")
			h.web.Anchors["file:ca.pem"], h.db.Anchors["file:ca.pem"] = ca, ca
			h.web.Credentials["file:own"], h.db.Credentials["file:own"] = ca.Issue(t, "p256", "mallory"), ca.Issue(t, "p256", "db")
		}, at: "db", why: "PEER_NOT_AUTHENTICATED", detail: "names [mallory]"},
		{name: "no credential at the initiator", change: func(h hosts) { delete(h.web.Credentials, "file:own") }, at: "web", why: "NO_CREDENTIAL", detail: "no credential file:own"},
		{name: "no credential at the responder", change: func(h hosts) { delete(h.db.Credentials, "file:own") }, at: "db", why: "NO_CREDENTIAL", detail: "no credential file:own"},
		{name: "no certificate", edit: without(wire.TypeCERT), at: "db", why: "PEER_NOT_AUTHENTICATED", detail: "no X.509 certificate"},
		{name: "hash-and-url", edit: func(ps []wire.Payload) []wire.Payload {
			for _, p := range ps {
				if c, ok := p.(*wire.Cert); ok {
					c.Encoding, c.Data = wire.CertHashAndURL, append(make([]byte, 20), "http://10.0.0.9/"...)
				}
			}
			return ps
		}, at: "db", why: "PEER_NOT_AUTHENTICATED", detail: "no X.509 certificate"},
		{name: "garbage for a certificate", edit: func(ps []wire.Payload) []wire.Payload {
			for _, p := range ps {
				if c, ok := p.(*wire.Cert); ok {
					c.Data = c.Data[:len(c.Data)/2]
				}
			}
			return ps
		}, at: "db", why: "PEER_NOT_AUTHENTICATED", detail: "malformed"},
		{name: "a signature changed", edit: func(ps []wire.Payload) []wire.Payload {
			for _, p := range ps {
				if a, ok := p.(*wire.Auth); ok {
					a.Data[len(a.Data)-1] ^= 1
				}
			}
			return ps
		}, at: "db", why: "PEER_NOT_AUTHENTICATED", detail: "does not verify"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			n, web, db := certified(t, 1, "p256", "p256", nil)
			if tc.change != nil {
				tc.change(hosts{web, db})
			}
			if tc.edit != nil {
				edit(n, "IKE_AUTH request", tc.edit)
			}
			web.Connect("rule", nil)
			n.Run(40 * time.Second)
			mustBeEmpty(t, web, db)
			h := map[string]*iketest.Host{"web": web, "db": db}[tc.at]
			if len(h.Failures) == 0 || h.Failures[0].Why != tc.why || !strings.Contains(h.Failures[0].Detail, tc.detail) || h.Failures[0].Advice == "" {
				t.Errorf("%s reports %+v", tc.at, h.Failures)
			}
			if tc.at == "db" && web.Failure().Why != "AUTHENTICATION_FAILED" {
				t.Errorf("the initiator reports %+v", web.Failure())
			}
			if h.Installed != 0 {
				t.Errorf("%s has installed %v", tc.at, h.Log)
			}
		})
	}
}

// What keeps a certificate away is no reason to fail while the policy has another
// method, and is in the report when it has none.
func TestNextMethodWhenTheCredentialIsAway(t *testing.T) {
	n, web, db := certified(t, 1, "p256", "p256", func(w, d *iketest.Side) {
		w.Auth, d.Auth = []ipsec.AuthMethod{byCert, byPSK}, []ipsec.AuthMethod{byCert, byPSK}
	})
	delete(web.Credentials, "file:own")
	web.Connect("rule", nil)
	n.Run(5 * time.Second)
	mustBeUp(t, n, web, db)
	if i := web.Machine().Info(); i.LocalAuth != "psk" || i.RemoteAuth != "ecdsa-sha256" {
		t.Errorf("authenticated with %s and %s", i.LocalAuth, i.RemoteAuth)
	}
}

// Trust anchors that cannot be had are no reason to be silent: the peer is not
// asked for a certificate, and may have one all the same.
func TestAuthoritiesThatAreAway(t *testing.T) {
	n, web, db := certified(t, 1, "p256", "p256", nil)
	db.Answer = func(e ike.Effect, ev ike.Event) ike.Event {
		if a, ok := ev.(ike.Authorities); ok {
			return ike.Authorities{ID: a.ID, Err: errors.New("Vault is away")}
		}
		return ev
	}
	web.Connect("rule", nil)
	n.Run(5 * time.Second)
	mustBeUp(t, n, web, db)
}

// An identity nobody knows costs an outsider as much as a known one: it is
// checked as if it were known, and the answer is the same.
func TestStrangersLearnNoIdentities(t *testing.T) {
	n, web, db := certified(t, 1, "p256", "p256", func(w, d *iketest.Side) { d.RemoteID = "app" })
	web.Connect("rule", nil)
	n.Run(40 * time.Second)
	mustBeEmpty(t, web, db)
	if db.Needs["verification"] != 1 || db.Failure().Why != "PEER_IDENTITY" || web.Failure().Why != "AUTHENTICATION_FAILED" {
		t.Errorf("%v %+v %+v", db.Needs, db.Failure(), web.Failure())
	}
}

// Somebody in the middle who takes SIGNATURE_HASH_ALGORITHMS away makes the ends
// choose a classic method; both sign the messages as they saw them, and the
// difference shows.
func TestMethodDowngradeIsNoticed(t *testing.T) {
	for _, mark := range []string{"IKE_SA_INIT request", "IKE_SA_INIT response", "IKE_SA_INIT"} {
		for _, key := range []string{"p256", "rsa"} {
			t.Run(mark+" "+key, func(t *testing.T) {
				legacy := ipsec.AuthMethod{Certificate: &ipsec.CertificateAuth{Trust: byCert.Certificate.Trust, Credential: "file:own", AllowLegacy: true}}
				n, web, db := certified(t, 1, key, key, func(w, d *iketest.Side) { w.Auth, d.Auth = []ipsec.AuthMethod{legacy}, []ipsec.AuthMethod{legacy} })
				withoutNotify(n, mark, wire.SignatureHashAlgorithms)
				web.Connect("rule", nil)
				n.Run(60 * time.Second)
				mustBeEmpty(t, web, db)
				if web.Installed+db.Installed != 0 {
					t.Errorf("SAs were installed: %v %v", web.Log, db.Log)
				}
			})
		}
	}
}

// The announcements of RFC 9593 and CERTREQ are covered by the signatures too.
func TestAnnouncementsCannotBeTakenAway(t *testing.T) {
	n, web, db := certified(t, 1, "p256", "p256", func(w, d *iketest.Side) {
		w.Auth, d.Auth = []ipsec.AuthMethod{byCert, byPSK}, []ipsec.AuthMethod{byCert, byPSK}
	})
	withoutNotify(n, "IKE_SA_INIT response", wire.SupportedAuthMethods)
	web.Connect("rule", nil)
	n.Run(60 * time.Second)
	mustBeEmpty(t, web, db)
}

// Identity misbinding: what one peer has signed, another sends as its own, with
// its own certificate or its own identity. AUTH covers the identity, and the
// certificate must name it.
func TestIdentityMisbinding(t *testing.T) {
	ca := iketest.NewCA(t, "fleet")
	mallory := ca.Issue(t, "p256", "mallory")
	tests := map[string]func([]wire.Payload) []wire.Payload{
		"another certificate of the fleet": func(ps []wire.Payload) []wire.Payload {
			for _, p := range ps {
				if c, ok := p.(*wire.Cert); ok {
					c.Data = mallory.Chain[0]
				}
			}
			return ps
		},
		"another identity": func(ps []wire.Payload) []wire.Payload {
			for _, p := range ps {
				if id, ok := p.(*wire.ID); ok && id.PayloadType == wire.TypeIDi {
					id.Identity.Data = "mallory"
				}
			}
			return ps
		},
		"another certificate and identity": func(ps []wire.Payload) []wire.Payload {
			for _, p := range ps {
				if id, ok := p.(*wire.ID); ok && id.PayloadType == wire.TypeIDi {
					id.Identity.Data = "mallory"
				}
				if c, ok := p.(*wire.Cert); ok {
					c.Data = mallory.Chain[0]
				}
			}
			return ps
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			n, web, db := certified(t, 1, "p256", "p256", func(w, d *iketest.Side) { d.AnyRemote = true })
			db.Policy.Peers[0].RemoteID = ipsec.Identity{} // anyone of the fleet
			web.Anchors["file:ca.pem"], db.Anchors["file:ca.pem"] = ca, ca
			web.Credentials["file:own"], db.Credentials["file:own"] = ca.Issue(t, "p256", "web"), ca.Issue(t, "p256", "db")
			edit(n, "IKE_AUTH request", change)
			web.Connect("rule", nil)
			n.Run(40 * time.Second)
			mustBeEmpty(t, web, db)
			if db.Installed != 0 {
				t.Errorf("db installed %v", db.Log)
			}
		})
	}
}

// A pattern decides which of several profiles for any address a peer gets.
func TestPeerIdentityPatternChoosesTheProfile(t *testing.T) {
	n, web, db := certified(t, 1, "p256", "p256", func(w, d *iketest.Side) { d.AnyRemote = true })
	p := db.Policy.Peers[0]
	p.RemoteID = ipsec.Identity{}
	a, b := p, p
	a.Name = "others"
	a.Auth = []ipsec.AuthMethod{{Certificate: &ipsec.CertificateAuth{Trust: byCert.Certificate.Trust, Credential: "file:own", PeerIdentity: "*.other.example"}}}
	b.Auth = []ipsec.AuthMethod{{Certificate: &ipsec.CertificateAuth{Trust: byCert.Certificate.Trust, Credential: "file:own", PeerIdentity: "web"}}}
	db.Policy.Peers = []ipsec.Peer{a, b}
	web.Connect("rule", nil)
	n.Run(5 * time.Second)
	mustBeUp(t, n, web, db)
	if got := db.Machine().Info().Peer; got != "peer" {
		t.Errorf("the profile is %s", got)
	}
}

// A flood of certificates: more than a chain may have, or larger, is refused
// before any of it is read, and does not reach the engine.
func TestCertificateFloodsAreNotJudged(t *testing.T) {
	many := func(ps []wire.Payload) []wire.Payload {
		for _, p := range ps {
			if c, ok := p.(*wire.Cert); ok {
				for range wire.MaxCerts {
					ps = append(ps, c)
				}
				break
			}
		}
		return ps
	}
	huge := func(ps []wire.Payload) []wire.Payload {
		return append(ps, &wire.Cert{Encoding: wire.CertX509Signature, Data: make([]byte, wire.MaxCertOctets-10)})
	}
	for name, change := range map[string]func([]wire.Payload) []wire.Payload{"many": many, "huge": huge} {
		t.Run(name, func(t *testing.T) {
			n, web, db := certified(t, 1, "p256", "p256", nil)
			edit(n, "IKE_AUTH request", change)
			web.Connect("rule", nil)
			n.Run(40 * time.Second)
			mustBeEmpty(t, web, db)
			if f := db.Failure(); db.Needs["verification"] != 0 || !strings.Contains(f.Detail, "at most 8 of 32768 are read") {
				t.Errorf("%v %+v", db.Needs, f)
			}
		})
	}
}

// A CA with more keys than fit a message is asked for without naming them.
func TestManyAuthoritiesAreNotNamed(t *testing.T) {
	n, web, db := certified(t, 1, "p256", "p256", nil)
	db.Answer = func(e ike.Effect, ev ike.Event) ike.Event {
		if a, ok := ev.(ike.Authorities); ok {
			a.Keys = make([][20]byte, 1000)
			return a
		}
		return ev
	}
	web.Connect("rule", nil)
	n.Run(5 * time.Second)
	mustBeUp(t, n, web, db)
	if s := n.LadderText(0); !strings.Contains(s, "CERTREQ(x509 0)") {
		t.Error(s)
	}
}

// While the engine works for it, and after, a machine takes no second message.
func TestRetransmissionsWhileTheEngineWorks(t *testing.T) {
	n, web, db := certified(t, 1, "rsa", "rsa", nil)
	n.AnswerDelay = func() time.Duration { return 2 * time.Second }
	web.Connect("rule", nil)
	n.Run(2 * time.Minute)
	mustBeUp(t, n, web, db)
	if web.Needs["verification"] != 1 || db.Needs["verification"] != 1 || db.Needs["signature"] != 1 {
		t.Errorf("asked for %v and %v", web.Needs, db.Needs)
	}
}

// An answer that never comes leaves a half-open responder that ends by itself.
func TestEngineThatNeverAnswers(t *testing.T) {
	for _, effect := range []string{"Authorities", "Signed", "Verified"} {
		t.Run(effect, func(t *testing.T) {
			n, web, db := certified(t, 1, "p256", "p256", nil)
			db.Answer = func(_ ike.Effect, ev ike.Event) ike.Event {
				if strings.HasSuffix(fmt.Sprintf("%T", ev), effect) {
					return nil
				}
				return ev
			}
			web.Connect("rule", nil)
			n.Run(3 * time.Minute)
			mustBeEmpty(t, web, db)
		})
	}
}
