package ikev2_test

import (
	"bytes"
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
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// RFC 7296 §2.23: with a NAT on the way, all that follows IKE_SA_INIT goes over
// port 4500, and ESP travels in UDP.
func TestNATMovesToPort4500(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { d.AnyRemote = true })
	web.NAT = &iketest.NAT{Public: netip.MustParseAddr("192.0.2.1")}
	web.Connect("rule", nil)
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	if i := web.Machine().Info(); i.NAT != "local" || i.Path.Local.Port() != 4500 || i.Path.Remote.Port() != 4500 {
		t.Errorf("web: %+v", i)
	}
	if i := db.Machine().Info(); i.NAT != "remote" || i.Path.Local.Port() != 4500 || i.Path.Remote.Addr() != web.NAT.Public {
		t.Errorf("db: %+v", i)
	}
	out := db.SAs[1]
	if out.Encap == nil || out.Remote != web.NAT.Public || out.Encap.RemotePort < 20000 {
		t.Errorf("db's outbound SA: %+v", out)
	}

	// "a host that ... is not behind a NAT SHOULD send all packets to the IP
	// address and port in the validated packet": the NAT changes its mapping.
	old := db.Machine().Info().Path.Remote
	web.NAT.Rebind()
	web.Do(ike.CheckPeer{})
	n.Run(time.Second)
	if i := db.Machine().Info(); i.Path.Remote == old {
		t.Errorf("db still sends to %s", old)
	}
	if len(db.Moves) != 1 || db.SAs[1].Encap.RemotePort == out.Encap.RemotePort {
		t.Errorf("moves: %+v", db.Moves)
	}
	db.Do(ike.CheckPeer{})
	n.Run(time.Second)
	if len(db.Failures) != 0 || db.Machine().Info().State != "established" {
		t.Errorf("db cannot reach web any more: %+v", db.Failures)
	}
}

// RFC 7296 §2.23: to a peer behind a NAT "SHOULD send all packets [...] to the IP address
// and port in the validated packet", of IKE or ESP.
// Not with MOBIKE (RFC 4555 §3.8), nor to another of our own addresses.
func TestESPTellsOfAnotherMapping(t *testing.T) {
	for _, mobike := range []bool{false, true} {
		n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { d.AnyRemote, w.Mobike, d.Mobike = true, mobike, mobike })
		web.NAT = &iketest.NAT{Public: netip.MustParseAddr("192.0.2.1")}
		web.Connect("rule", nil)
		n.Run(time.Second)
		mustBeUp(t, n, web, db)
		before := db.Machine().Info().Path
		other := before
		other.Local = netip.AddrPortFrom(netip.MustParseAddr("10.0.0.99"), 4500)
		other.Remote = netip.AddrPortFrom(before.Remote.Addr(), 30000)
		db.Do(ike.PeerMoved{Path: other})
		if p := db.Machine().Info().Path; p != before {
			t.Errorf("db follows what came to another address to %v", p)
		}
		other.Local = before.Local
		db.Do(ike.PeerMoved{Path: other})
		if followed := db.Machine().Info().Path == other; followed == mobike {
			t.Errorf("MOBIKE %t: db is at %v", mobike, db.Machine().Info().Path)
		}
		for _, sa := range db.SAs {
			if (sa.Encap.RemotePort == 30000) == mobike {
				t.Errorf("MOBIKE %t: %+v", mobike, sa)
			}
		}
		web.Do(ike.PeerMoved{Path: ike.Path{Node: "web", Local: web.Machine().Info().Path.Local, Remote: netip.MustParseAddrPort("192.0.2.9:4500")}})
		if len(web.Moves) != 0 {
			t.Error("the one behind the NAT follows the other")
		}
	}
}

// The address changes while an outbound SA is held back during a rekey: it goes
// to the new address when it is installed.
func TestAddressUpdateReachesAHeldSA(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { d.AnyRemote = true })
	web.NAT = &iketest.NAT{Public: netip.MustParseAddr("192.0.2.1")}
	web.Connect("rule", nil)
	n.Run(time.Second)
	moved := false
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if strings.Contains(p.Text, "CREATE_CHILD_SA response") && !moved {
			moved = true
			web.NAT.Rebind() // the response is lost, and what follows leaves from another port
		}
		return []iketest.Packet{p}
	}
	web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
	n.Run(20 * time.Second)
	mustBeUp(t, n, web, db)
	for _, sa := range db.SAs {
		if sa.Direction == ipsec.Outbound && sa.Encap.RemotePort != db.Machine().Info().Path.Remote.Port() {
			t.Errorf("db sends to port %d, the peer is at %s", sa.Encap.RemotePort, db.Machine().Info().Path.Remote)
		}
	}
}

// "A host behind a NAT SHOULD NOT do this type of dynamic address update", and
// none is done for a replayed packet.
func TestAddressUpdateNeedsANewPacketAndANAT(t *testing.T) {
	n, web, db := connected(t, 1, nil)
	before := db.Machine().Info().Path
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		p.Src = netip.MustParseAddrPort("203.0.113.9:500")
		return []iketest.Packet{p}
	}
	web.Do(ike.CheckPeer{})
	n.Run(100 * time.Millisecond)
	if db.Machine().Info().Path != before || len(db.Moves) != 0 {
		t.Errorf("db follows a peer that is not behind a NAT to %v", db.Machine().Info().Path)
	}

	n, web, db = iketest.Pair(t, 1, func(w, d *iketest.Side) { d.AnyRemote = true })
	web.NAT = &iketest.NAT{Public: netip.MustParseAddr("192.0.2.1")}
	web.Connect("rule", nil)
	var last iketest.Packet
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if p.From == web {
			last = p
		}
		return []iketest.Packet{p}
	}
	n.Run(time.Second)
	before = db.Machine().Info().Path
	last.Src, last.At = netip.MustParseAddrPort("203.0.113.9:4500"), time.Time{}
	n.Inject(last)
	n.Run(time.Second)
	if db.Machine().Info().Path != before || db.Drops["retransmitted"] != 1 {
		t.Errorf("db follows a replayed packet to %v; drops %v", db.Machine().Info().Path, db.Drops)
	}
}

// Policy can force UDP encapsulation without a NAT, from either side.
func TestForcedEncapsulation(t *testing.T) {
	for _, side := range []string{"web", "db"} {
		t.Run(side, func(t *testing.T) {
			_, web, db := connected(t, 1, func(w, d *iketest.Side) { w.Encap, d.Encap = side == "web", side == "db" })
			for _, h := range []*iketest.Host{web, db} {
				if p := h.Machine().Info().Path; h.SAs[0].Encap == nil || p.Local.Port() != 4500 {
					t.Errorf("%s: %+v, %+v", h.Name, h.SAs[0].Encap, p)
				}
			}
		})
	}
}

// RFC 7296 §2.23.1: transport mode through a NAT substitutes the addresses of
// the traffic selectors with those that each end sees.
func TestTransportModeThroughNAT(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) {
		w.Mode, d.Mode = ipsec.ModeTransport, ipsec.ModeTransport
		w.Local, w.Remote = "10.0.0.0/24", "10.0.0.0/24"
		d.Local, d.Remote = "10.0.0.0/24", "192.0.2.0/24"
		d.AnyRemote = true
	})
	web.NAT = &iketest.NAT{Public: netip.MustParseAddr("192.0.2.1")}
	web.Connect("rule", nil)
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	if s := web.SAs[0].Selectors[0]; s.Local != ipsec.AddrSelector(web.Addr) || s.Remote != ipsec.AddrSelector(db.Addr) {
		t.Errorf("web: %s", s)
	}
	if s := db.SAs[0].Selectors[0]; s.Local != ipsec.AddrSelector(db.Addr) || s.Remote != ipsec.AddrSelector(web.NAT.Public) {
		t.Errorf("db: %s", s)
	}
}

// RFC 7296 §2.1: "the initiator MUST retransmit the request until it receives a
// corresponding response", and the responder repeats its response.
func TestLosingEveryNthMessage(t *testing.T) {
	for every := 3; every <= 7; every++ { // every second one is one direction
		for first := range every {
			t.Run(fmt.Sprintf("%d of %d", first, every), func(t *testing.T) {
				n, web, db := iketest.Pair(t, uint64(every), nil)
				count := 0
				n.Hook = func(p iketest.Packet) []iketest.Packet {
					if count++; count%every == first {
						return nil
					}
					return []iketest.Packet{p}
				}
				web.Connect("rule", nil)
				n.Run(60 * time.Second)
				mustBeUp(t, n, web, db)
				web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
				n.Run(60 * time.Second)
				db.Do(ike.RekeyIKE{})
				n.Run(90 * time.Second)
				mustBeUp(t, n, web, db)
				if len(web.Children()) != 1 || web.Children()[0].Rekeyed != 1 {
					t.Errorf("%+v\n%s", web.Children(), n.LadderText(0))
				}
			})
		}
	}
}

// RFC 7296 §2.1, §2.3: a repeated message changes nothing, whenever it comes.
func TestDuplicatedAndReplayedMessagesChangeNothing(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	var all []iketest.Packet
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		all = append(all, p)
		late := p
		late.At = p.At.Add(700 * time.Microsecond)
		return []iketest.Packet{p, p, late}
	}
	web.Connect("rule", nil)
	n.Run(time.Second)
	web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
	n.Run(20 * time.Second)
	mustBeUp(t, n, web, db)
	if len(web.Up) != 2 || len(db.Up) != 2 || len(web.Children()) != 1 {
		t.Errorf("up %d %d", len(web.Up), len(db.Up))
	}
	n.Hook = nil
	webSAs, dbSAs := fmt.Sprint(web.SAs), fmt.Sprint(db.SAs)
	for _, p := range all {
		p.At = time.Time{}
		n.Inject(p)
	}
	n.Run(time.Second)
	if fmt.Sprint(web.SAs) != webSAs || fmt.Sprint(db.SAs) != dbSAs {
		t.Errorf("replay changed the SAs")
	}
	n.Run(40 * time.Second) // a replayed IKE_SA_INIT makes a half-open responder, no more
	mustBeUp(t, n, web, db)
}

// An IKE message that did not come from the peer changes nothing, at any state:
// RFC 7296 §2.21.4. Each message is damaged in each octet, and arrives first.
func TestDamagedMessagesAreDroppedAtEveryState(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	sent := 0
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		var out []iketest.Packet
		h, _ := wire.ParseHeader(p.Data)
		if h.Exchange != wire.IKESAInit { // not protected: see below
			for i := range p.Data {
				bad := p
				bad.Data = bytes.Clone(p.Data)
				bad.Data[i] ^= 0x41
				bad.At = p.At.Add(-time.Millisecond)
				out = append(out, bad)
				sent++
			}
			for _, cut := range []int{0, 4, 27, 28, 32, len(p.Data) - 1} {
				bad := p
				bad.Data = p.Data[:cut]
				bad.At = p.At.Add(-time.Millisecond)
				out = append(out, bad)
			}
		}
		return append(out, p)
	}
	web.Connect("rule", nil)
	n.Run(900 * time.Millisecond)
	web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
	n.Run(900 * time.Millisecond)
	db.Do(ike.RekeyIKE{})
	n.Run(40 * time.Second)
	mustBeUp(t, n, web, db)
	if sent < 1000 || len(web.Failures)+len(db.Failures) != 0 || len(web.Up) != 2 {
		t.Errorf("sent %d, failures %+v %+v", sent, web.Failures, db.Failures)
	}
}

// A peer that stops at any step leaves nothing behind, on either side.
func TestPeerStopsAtEveryStep(t *testing.T) {
	for step := 1; step < 14; step++ {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { w.DPD, d.DPD = 30*time.Second, 30*time.Second })
			count := 0
			n.Hook = func(p iketest.Packet) []iketest.Packet {
				if count++; count > step {
					return nil
				}
				return []iketest.Packet{p}
			}
			web.Connect("rule", nil)
			n.Run(time.Second)
			if c := web.Children(); len(c) == 1 {
				web.Do(ike.RekeyChild{Child: c[0].ID})
			}
			n.Run(time.Second)
			if m := db.Machine("established"); m != nil {
				db.Tell(m, ike.RekeyIKE{})
			}
			n.Run(10 * time.Minute)
			mustBeEmpty(t, web, db)
			if f := web.Failure(); step < 4 && (f.Why != "TIMEOUT" || f.Detail == "" || f.Advice == "") {
				t.Errorf("got %+v", f)
			}
		})
	}
}

// A responder that never sees IKE_AUTH forgets the negotiation after 30 s.
func TestHalfOpenExpires(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if p.From == db {
			return nil
		}
		return []iketest.Packet{p}
	}
	web.Connect("rule", nil)
	n.Run(29 * time.Second)
	if len(db.Machines) != 1 {
		t.Fatalf("db has %d machines", len(db.Machines))
	}
	web.Do(ike.Terminate{Why: "test"})
	n.Run(2 * time.Second)
	mustBeEmpty(t, web, db)
	if db.Failure().Why != "HALF_OPEN_EXPIRED" {
		t.Errorf("%+v", db.Failure())
	}
}

// RFC 7296 §2.3: what lies outside of the window is dropped.
func TestRequestsOutsideTheWindowAreDropped(t *testing.T) {
	n, web, db := connected(t, 1, nil)
	var keep []iketest.Packet
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		keep = append(keep, p)
		if len(keep) == 1 {
			return nil // the first liveness request never arrives ...
		}
		return []iketest.Packet{p}
	}
	web.Do(ike.CheckPeer{})
	n.Run(10 * time.Millisecond)
	m := web.Machine()
	forged := m.SealForTest(wire.Informational, 9, false, nil)
	n.Inject(iketest.Packet{From: web, To: db, Src: keep[0].Src, Dst: keep[0].Dst, Data: forged})
	n.Run(50 * time.Millisecond)
	if db.Drops["message-id-out-of-window"] != 1 {
		t.Errorf("drops: %v", db.Drops)
	}
	n.Run(10 * time.Second)
	mustBeUp(t, n, web, db)
}

// RFC 7296 §2.5: an unknown critical payload gets UNSUPPORTED_CRITICAL_PAYLOAD,
// an unknown exchange or syntax INVALID_SYNTAX, which is fatal to both ends
// (§2.21.3).
func TestAuthenticatedNonsense(t *testing.T) {
	inject := func(n *iketest.Net, web, db *iketest.Host, b []byte) {
		p := web.Machine().Info().Path
		n.Inject(iketest.Packet{From: web, To: db, Src: p.Local, Dst: p.Remote, Data: b})
		n.Run(3 * time.Second)
	}
	t.Run("unknown critical payload", func(t *testing.T) {
		n, web, db := connected(t, 1, nil)
		inject(n, web, db, web.Machine().SealRawForTest(wire.Informational, 2, 200, []byte{0, 0x80, 0, 4}))
		if db.Failure().Why != "UNSUPPORTED_CRITICAL_PAYLOAD" || db.Machine().Info().State != "established" {
			t.Errorf("%+v", db.Failure())
		}
	})
	t.Run("unknown payload, not critical", func(t *testing.T) {
		n, web, db := connected(t, 1, nil)
		inject(n, web, db, web.Machine().SealRawForTest(wire.Informational, 2, 200, []byte{0, 0, 0, 4}))
		if len(db.Failures) != 0 {
			t.Errorf("%+v", db.Failure())
		}
	})
	t.Run("bad syntax", func(t *testing.T) {
		n, web, db := connected(t, 1, nil)
		inject(n, web, db, web.Machine().SealRawForTest(wire.Informational, 2, wire.TypeDelete, []byte{0, 0, 0, 99}))
		if db.Failure().Why != "INVALID_SYNTAX" || len(db.Machines)+len(db.SAs) != 0 {
			t.Errorf("%+v", db.Failure())
		}
	})
	t.Run("unknown status notify", func(t *testing.T) {
		n, web, db := connected(t, 1, nil)
		inject(n, web, db, web.Machine().SealForTest(wire.Informational, 2, false, []wire.Payload{&wire.Notify{Message: 40000}}))
		if len(db.Failures) != 0 || db.Machine().Info().State != "established" {
			t.Errorf("%+v", db.Failure())
		}
	})
}

// A worker that does not install is no reason to believe in an SA.
func TestWorkerRefusesToInstall(t *testing.T) {
	for _, at := range []string{"web in", "web out", "db in", "db out"} {
		t.Run(at, func(t *testing.T) {
			n, web, db := iketest.Pair(t, 1, nil)
			for _, h := range []*iketest.Host{web, db} {
				h.Answer = func(e ike.Effect, ev ike.Event) ike.Event {
					if in, ok := e.(ike.Install); ok && at == h.Name+" "+in.SAs[0].Direction.String() {
						return ike.Installed{ID: in.ID, Err: errors.New("no room")}
					}
					return ev
				}
			}
			web.Connect("rule", nil)
			n.Run(2 * time.Minute)
			if len(web.SAs)+len(db.SAs) != 0 || len(web.Children())+len(db.Children()) != 0 {
				t.Errorf("left over: %v %v", web.SAs, db.SAs)
			}
			if !slices.ContainsFunc(append(web.Failures, db.Failures...), func(f ike.Failure) bool { return f.Why == "INSTALL_FAILED" }) {
				t.Errorf("%+v %+v", web.Failures, db.Failures)
			}
		})
	}
}

// No key material in what operators see.
func TestNothingPrintsKeys(t *testing.T) {
	_, web, _ := connected(t, 1, nil)
	key := string(web.SAs[0].EncrKey.Reveal())
	for _, s := range []string{fmt.Sprintf("%+v", web.Machine().Info()), fmt.Sprintf("%+v", web.SAs), fmt.Sprintf("%v %+v", web.Up, web.Failures)} {
		if strings.Contains(s, key) || strings.Contains(s, fmt.Sprintf("%x", key)) || strings.Contains(s, fmt.Sprint([]byte(key))) {
			t.Errorf("key material in %s", s)
		}
	}
}
