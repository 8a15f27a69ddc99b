package ikev2_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
)

// connected is a pair that has finished its handshake.
func connected(t testing.TB, seed uint64, change func(web, db *iketest.Side)) (*iketest.Net, *iketest.Host, *iketest.Host) {
	t.Helper()
	n, web, db := iketest.Pair(t, seed, change)
	web.Connect("rule", nil)
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	return n, web, db
}

func mustBeUp(t testing.TB, n *iketest.Net, web, db *iketest.Host) {
	t.Helper()
	if err := errors.Join(iketest.Agree(web, db), iketest.Deliverable(web, db), iketest.Deliverable(db, web)); err != nil {
		t.Fatalf("%v\nweb: %+v\ndb: %+v\n%s", err, web.Failures, db.Failures, n.LadderText(0))
	}
}

// mustBeEmpty checks that nothing is left over: no machine, no SA in a worker.
func mustBeEmpty(t testing.TB, hosts ...*iketest.Host) {
	t.Helper()
	for _, h := range hosts {
		if len(h.Machines) != 0 || len(h.SAs) != 0 {
			t.Errorf("%s is left with %d machines and %d SAs", h.Name, len(h.Machines), len(h.SAs))
		}
	}
}

// RFC 7296 §1.2: four messages make an IKE SA and its first CHILD SA.
func TestFourMessagesMakeAnIKESAAndAChildSA(t *testing.T) {
	n, web, db := connected(t, 1, nil)
	want := `web -> db IKE_SA_INIT request 0 { SA(aes128gcm16-prfsha256-x25519) KE(x25519) N(32) N(NAT_DETECTION_SOURCE_IP) N(NAT_DETECTION_DESTINATION_IP) N(IKEV2_FRAGMENTATION_SUPPORTED) }
db -> web IKE_SA_INIT response 0 { SA(aes128gcm16-prfsha256-x25519) KE(x25519) N(32) N(NAT_DETECTION_SOURCE_IP) N(NAT_DETECTION_DESTINATION_IP) N(IKEV2_FRAGMENTATION_SUPPORTED) N(CHILDLESS_IKEV2_SUPPORTED) }
web -> db IKE_AUTH request 1 { IDi(web) IDr(db) AUTH(psk) N(SET_WINDOW_SIZE) SA(aes128gcm16-esn-noesn) TSi(10.1.0.0/16) TSr(10.2.0.0/16) }
db -> web IKE_AUTH response 1 { IDr(db) AUTH(psk) N(SET_WINDOW_SIZE) SA(aes128gcm16-esn) TSi(10.1.0.0/16) TSr(10.2.0.0/16) }
`
	if got := n.LadderText(0); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for _, h := range []*iketest.Host{web, db} {
		i := h.Machine().Info()
		if i.State != "established" || i.NAT != "none" || len(i.Children) != 1 || len(h.Up) != 1 || len(h.Failures) != 0 {
			t.Errorf("%s: %+v, up %d, failures %v", h.Name, i, len(h.Up), h.Failures)
		}
	}
	sa := web.SAs[0]
	if sa.Direction != ipsec.Inbound || sa.ReplayWindow != 1024 || sa.Rule != "rule" || sa.Peer != "peer" || sa.Child != web.Up[0].ID || !sa.Suite.ESN ||
		sa.Local != web.Addr || sa.Remote != db.Addr || sa.Encap != nil || sa.Lease != (ipsec.Lease{}) {
		t.Errorf("inbound SA: %+v", sa)
	}
}

// RFC 7296 §1.2, §2.9 and the rule "inbound first": each side installs inbound
// before outbound, and the responder answers only when its worker has.
func TestInboundIsInstalledBeforeThePeerMaySend(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	var held ike.Event
	db.Answer = func(e ike.Effect, ev ike.Event) ike.Event {
		if in, ok := e.(ike.Install); ok && in.SAs[0].Direction == ipsec.Inbound {
			held = ev
			return nil
		}
		return ev
	}
	m := web.Connect("rule", nil)
	n.Run(500 * time.Millisecond)
	if len(n.Ladder) != 3 || m.Info().State != "connecting" {
		t.Fatalf("the responder answered before its worker did:\n%s", n.LadderText(0))
	}
	db.Do(held)
	n.Run(500 * time.Millisecond)
	mustBeUp(t, n, web, db)
	for _, h := range []*iketest.Host{web, db} {
		if !strings.HasPrefix(h.Log[0], "install in") || !strings.HasPrefix(h.Log[1], "install out") {
			t.Errorf("%s: %v", h.Name, h.Log)
		}
	}
}

// RFC 7296 §2.14 to §2.17, for each algorithm in the table: both ends derive the
// same keys, in IKE_AUTH and in CREATE_CHILD_SA.
func TestEverySuiteNegotiates(t *testing.T) {
	var ikes, esps []string
	for _, e := range ipsec.Algorithms() {
		if e.Standing == ipsec.StandingLegacy || e.Type != ipsec.TransformENCR || e.ID == ipsec.EncrNULL {
			continue
		}
		for _, i := range ipsec.Algorithms() {
			if e.AEAD || i.Type == ipsec.TransformINTEG && i.Standing != ipsec.StandingLegacy {
				suffix := ""
				if !e.AEAD {
					suffix = "-" + i.Name
				}
				if e.Use&ipsec.UseIKE != 0 && (e.AEAD || i.Use&ipsec.UseIKE != 0) {
					ikes = append(ikes, e.Name+suffix+"-prfsha256-x25519")
				}
				if e.Use&ipsec.UseESP != 0 && (e.AEAD || i.Use&ipsec.UseESP != 0) {
					esps = append(esps, e.Name+suffix)
				}
				if e.AEAD {
					break
				}
			}
		}
	}
	for _, a := range ipsec.Algorithms() {
		if a.Standing == ipsec.StandingLegacy {
			continue
		}
		switch a.Type {
		case ipsec.TransformPRF:
			ikes = append(ikes, "aes128gcm16-"+a.Name+"-x25519")
		case ipsec.TransformKE:
			if a.PostQuantum() {
				ikes = append(ikes, "aes128gcm16-prfsha256-x25519-ke1_"+a.Name)
				esps = append(esps, "aes128gcm16-x25519-ke3_"+a.Name)
			} else {
				ikes = append(ikes, "aes128gcm16-prfsha256-"+a.Name)
			}
			esps = append(esps, "aes128gcm16-"+a.Name)
		}
	}
	for i := range max(len(ikes), len(esps)) {
		k, e := ikes[i%len(ikes)], esps[i%len(esps)]
		t.Run(k+"/"+e, func(t *testing.T) {
			n, web, db := connected(t, uint64(i), func(w, d *iketest.Side) {
				w.IKE, d.IKE, w.ESP, d.ESP = []string{k}, []string{k}, []string{e}, []string{e}
			})
			if got := web.Machine().Info().Suite.String(); !strings.HasPrefix(k, strings.Split(got, "-")[0]) {
				t.Errorf("got suite %s, want %s", got, k)
			}
			web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
			db.Do(ike.RekeyIKE{})
			n.Run(20 * time.Second)
			mustBeUp(t, n, web, db)
			if len(web.Up) != 2 {
				t.Errorf("CHILD SAs that came up: %d, want 2\n%s", len(web.Up), n.LadderText(0))
			}
			if len(web.Failures)+len(db.Failures) != 0 {
				t.Errorf("failures: %+v %+v", web.Failures, db.Failures)
			}
		})
	}
}

// RFC 7296 §2.7: NO_PROPOSAL_CHOSEN, and the report shows what to change.
func TestNoProposalChosenShowsTheNearestFix(t *testing.T) {
	t.Run("IKE", func(t *testing.T) {
		n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) {
			w.IKE = []string{"aes256-sha256-ecp256", "aes256gcm16-prfsha256-x25519"}
		})
		web.Connect("rule", nil)
		n.Run(40 * time.Second)
		mustBeEmpty(t, web, db)
		f := db.Failures[0]
		if f.Why != "NO_PROPOSAL_CHOSEN" || len(f.Ours) != 1 || len(f.Theirs) != 2 || f.Advice != "add aes256gcm16 to a suite of our policy, or one of ours to the peer's" {
			t.Errorf("got %+v", f)
		}
		if f.Nearest != "aes256gcm16-prfsha256-x25519" {
			t.Errorf("the nearest suite is %q", f.Nearest)
		}
		for _, d := range f.Diff {
			if d.Matches != (d.Type != "ENCR") {
				t.Errorf("diff: %+v", d)
			}
		}
		if f := web.Failure(); f.Why != "NO_PROPOSAL_CHOSEN" || len(f.Ours) != 2 {
			t.Errorf("the initiator reports %+v", f)
		}
	})
	t.Run("ESP", func(t *testing.T) {
		// RFC 7296 §2.21.2: the IKE SA stands without the CHILD SA.
		n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { w.ESP = []string{"aes256gcm16"} })
		web.Connect("rule", nil)
		n.Run(time.Second)
		for _, h := range []*iketest.Host{web, db} {
			if i := h.Machine().Info(); i.State != "established" || len(i.Children) != 0 || len(h.SAs) != 0 {
				t.Errorf("%s: %+v", h.Name, i)
			}
			if f := h.Failure(); f.Why != "NO_PROPOSAL_CHOSEN" || f.Rule != "rule" {
				t.Errorf("%s reports %+v", h.Name, f)
			}
		}
	})
}

// RFC 7296 §1.2: the responder names the group it wants with INVALID_KE_PAYLOAD,
// and "the initiator MUST retry the IKE_SA_INIT with the corrected group".
func TestInvalidKEPayloadIsRetried(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) {
		w.IKE, d.IKE = []string{"aes128gcm16-prfsha256-x25519-ecp256"}, []string{"aes128gcm16-prfsha256-ecp256"}
	})
	n.Hook = func(p iketest.Packet) []iketest.Packet { return []iketest.Packet{p, p} } // repeated answers are no refusal
	web.Connect("rule", nil)
	n.Run(20 * time.Second)
	mustBeUp(t, n, web, db)
	if len(web.Failures) != 0 {
		t.Errorf("%+v", web.Failures)
	}
	if !strings.Contains(n.LadderText(0), "N(INVALID_KE_PAYLOAD)") || web.Machine().Info().Suite.KE.ID != ipsec.KEP256 {
		t.Errorf("%s", n.LadderText(0))
	}
	// §1.3: the same in CREATE_CHILD_SA, of a CHILD SA and of the IKE SA.
	n, web, db = connected(t, 1, func(w, d *iketest.Side) {
		w.ESP, d.ESP = []string{"aes128gcm16-x25519-ecp256"}, []string{"aes128gcm16-ecp256"}
		w.IKE, d.IKE = []string{"aes128gcm16-prfsha256-x25519-ecp256"}, []string{"aes128gcm16-prfsha256-ecp256-x25519"}
	})
	web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
	n.Run(10 * time.Second)
	mustBeUp(t, n, web, db)
	if c := web.Children(); len(c) != 1 || c[0].Suite.KE.ID != ipsec.KEP256 || c[0].Rekeyed != 1 {
		t.Errorf("%+v\n%s", c, n.LadderText(0))
	}
}

// A forged refusal must not end a negotiation: RFC 7296 §2.21.1, "the recipient
// should continue trying for some time before giving up".
func TestForgedRefusalIsNotBelieved(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if p.From != db || p.At.IsZero() || n.Ladder == nil || !strings.Contains(p.Text, "IKE_SA_INIT response") {
			return []iketest.Packet{p}
		}
		forged := p
		forged.Data = slices.Clone(p.Data[:28])
		clear(forged.Data[8:16])
		forged.Data[16] = 41
		forged.Data = append(forged.Data, 0, 0, 0, 8, 0, 0, 0, 14)
		forged.Data[26], forged.Data[27] = 0, 36
		forged.At = p.At.Add(-time.Millisecond)
		return []iketest.Packet{forged, p}
	}
	web.Connect("rule", nil)
	n.Run(5 * time.Second)
	mustBeUp(t, n, web, db)
	if len(web.Failures) != 0 {
		t.Errorf("got %+v", web.Failures)
	}
}

// RFC 7296 §2.6: the initiator repeats the request with the COOKIE first and all
// else unchanged.
func TestCookie(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	db.Cookies = ipsec.NewSecret([]byte("cookie secret of the responder"))
	web.Connect("rule", nil)
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	if !strings.Contains(n.Ladder[2], "{ N(COOKIE) SA(") {
		t.Errorf("%s", n.LadderText(0))
	}
	// §2.6.1: with an INVALID_KE_PAYLOAD in the same negotiation.
	n, web, db = iketest.Pair(t, 1, func(w, d *iketest.Side) {
		w.IKE, d.IKE = []string{"aes128gcm16-prfsha256-x25519-ecp256"}, []string{"aes128gcm16-prfsha256-ecp256"}
	})
	db.Cookies = ipsec.NewSecret([]byte("cookie secret of the responder"))
	web.Connect("rule", nil)
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
}

// RFC 7296 §2.9: the responder narrows, and the initiator accepts any subset.
func TestNarrowing(t *testing.T) {
	tests := []struct {
		name            string
		local, remote   string // db's rule
		want            string // what web ends up with
		packet          *ipsec.Flow
		tsUnacceptable  bool
		remoteSelectors int
	}{
		{name: "responder is narrower", local: "10.2.3.0/24", remote: "10.1.0.0/16", want: "10.1.0.0/16 <-> 10.2.3.0/24"},
		{name: "responder is wider", local: "10.0.0.0/8", remote: "10.0.0.0/8", want: "10.1.0.0/16 <-> 10.2.0.0/16"},
		{name: "both overlap", local: "10.2.128.0/17", remote: "10.1.1.0/24", want: "10.1.1.0/24 <-> 10.2.128.0/17"},
		{name: "the packet goes first and is covered", local: "10.2.0.0/16", remote: "10.1.0.0/16", want: "10.1.0.0/16 <-> 10.2.0.0/16",
			packet: &ipsec.Flow{Local: netip.MustParseAddr("10.1.0.5"), Remote: netip.MustParseAddr("10.2.0.5"), Protocol: 6, LocalPort: 40000, RemotePort: 443}},
		{name: "nothing in common", local: "10.9.0.0/16", remote: "10.1.0.0/16", tsUnacceptable: true},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { d.Local, d.Remote = tc.local, tc.remote })
			web.Connect("rule", tc.packet)
			n.Run(time.Second)
			if tc.tsUnacceptable {
				if f := db.Failure(); f.Why != "TS_UNACCEPTABLE" || len(f.Ours) != 1 || len(f.Theirs) != 1 {
					t.Errorf("db reports %+v", f)
				}
				if f := web.Failure(); f.Why != "TS_UNACCEPTABLE" || f.Rule != "rule" {
					t.Errorf("web reports %+v", f)
				}
				if len(web.SAs)+len(db.SAs) != 0 || len(web.Machines) != 1 {
					t.Errorf("SAs %d %d", len(web.SAs), len(db.SAs))
				}
				return
			}
			mustBeUp(t, n, web, db)
			if got := fmt.Sprint(web.SAs[0].Selectors); got != "["+tc.want+"]" {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// A rule for ESP comes before one for everything, and both overlap what either end
// proposes: without a packet to tell, a request is for the rule that covers it whole.
func TestARequestIsForTheRuleThatCoversIt(t *testing.T) {
	for _, rule := range []string{"rule", "esp"} {
		t.Run(rule, func(t *testing.T) {
			n, web, db := iketest.Pair(t, 1, nil)
			for _, h := range []*iketest.Host{web, db} {
				outer := h.Policy.Rules[0]
				outer.Name = "esp"
				outer.Selector.Local.Protocol, outer.Selector.Remote.Protocol = 50, 50
				h.Policy.Rules = slices.Insert(h.Policy.Rules, 0, outer)
			}
			web.Connect(rule, nil)
			n.Run(time.Second)
			mustBeUp(t, n, web, db)
			if got := db.SAs[0]; got.Rule != rule {
				t.Errorf("db has an SA of rule %s for %s, want rule %s", got.Rule, got.Selectors, rule)
			}
		})
	}
}

// RFC 7296 §1.3.1: USE_TRANSPORT_MODE is agreed or refused; "if this is
// unacceptable to the initiator, the initiator MUST delete the SA".
func TestTransportMode(t *testing.T) {
	transport := func(s *iketest.Side) {
		s.Mode, s.Local, s.Remote = ipsec.ModeTransport, "10.0.0.0/24", "10.0.0.0/24"
	}
	t.Run("agreed", func(t *testing.T) {
		_, web, db := connected(t, 1, func(w, d *iketest.Side) { transport(w); transport(d) })
		for _, h := range []*iketest.Host{web, db} {
			if s := h.SAs[0]; s.Mode != ipsec.ModeTransport || s.Selectors[0].Local != ipsec.AddrSelector(h.Addr) {
				t.Errorf("%s: %s %v", h.Name, s.Mode, s.Selectors)
			}
		}
	})
	t.Run("refused by the responder", func(t *testing.T) {
		n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { transport(w); d.Local, d.Remote = "10.0.0.0/24", "10.0.0.0/24" })
		web.Connect("rule", nil)
		n.Run(time.Second)
		if len(web.SAs)+len(db.SAs) != 0 || len(web.Children())+len(db.Children()) != 0 {
			t.Errorf("left over: %v %v", web.Children(), db.Children())
		}
		if f := web.Failure(); f.Why != "MODE" || f.Rule != "rule" {
			t.Errorf("web reports %+v", f)
		}
	})
	t.Run("not asked for", func(t *testing.T) {
		n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { transport(d); w.Local, w.Remote = "10.0.0.0/24", "10.0.0.0/24" })
		web.Connect("rule", nil)
		n.Run(time.Second)
		if f := db.Failure(); f.Why != "MODE" {
			t.Errorf("db reports %+v", f)
		}
		if f := web.Failure(); f.Why != "NO_PROPOSAL_CHOSEN" {
			t.Errorf("web reports %+v", f)
		}
	})
}

// RFC 7296 §2.4: INITIAL_CONTACT says that there is no other IKE SA.
func TestInitialContact(t *testing.T) {
	for want, alone := range []bool{false, true} {
		n, web, db := iketest.Pair(t, 1, nil)
		web.Alone = alone
		web.Connect("rule", nil)
		n.Run(time.Second)
		mustBeUp(t, n, web, db)
		if db.Contacts != want {
			t.Errorf("alone %t: db saw %d", alone, db.Contacts)
		}
	}
}

// RFC 7296 §1.3.1: more CHILD SAs on the same IKE SA.
func TestMoreChildSAs(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	for _, h := range []*iketest.Host{web, db} {
		r := h.Policy.Rules[0]
		r.Name = "second"
		r.Selector.Local = ipsec.PrefixSelector(netip.MustParsePrefix("172.16.0.0/16"))
		r.Selector.Remote = r.Selector.Local
		h.Policy.Rules = append(h.Policy.Rules, r)
	}
	m := web.Connect("rule", nil)
	web.Tell(m, ike.CreateChild{Rule: "second"})
	web.Tell(m, ike.CreateChild{Rule: "second"}) // the acquire of another packet
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	if len(web.Children()) != 2 || db.Children()[1].Rule != "second" {
		t.Errorf("%+v", db.Children())
	}
	// An acquire that crossed the negotiation is answered by what is there.
	web.Do(ike.CreateChild{Rule: "second"})
	if len(web.Up) != 3 || web.Up[2].ID != web.Up[1].ID {
		t.Errorf("%+v", web.Up)
	}
}
