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
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

func mobile(t *testing.T, change func(web, db *iketest.Side)) (*iketest.Net, *iketest.Host, *iketest.Host) {
	return connected(t, 1, func(w, d *iketest.Side) {
		w.Mobike, d.Mobike = true, true
		if change != nil {
			change(w, d)
		}
	})
}

// between reports whether the IKE SA and all SAs of both hosts join two addresses.
func between(t *testing.T, n *iketest.Net, web, db *iketest.Host, w, d string) {
	t.Helper()
	wa, da := netip.MustParseAddr(w), netip.MustParseAddr(d)
	for _, x := range []struct {
		h             *iketest.Host
		local, remote netip.Addr
	}{{web, wa, da}, {db, da, wa}} {
		m := x.h.Machine()
		if m == nil {
			t.Fatalf("%s has no IKE SA: %v %+v\n%s", x.h.Name, x.h.Done, x.h.Failures, n.LadderText(0))
		}
		if p := m.Info().Path; p.Local.Addr() != x.local || p.Remote.Addr() != x.remote {
			t.Errorf("%s: the IKE SA goes %s ... %s, want %s ... %s\n%s", x.h.Name, p.Local, p.Remote, x.local, x.remote, n.LadderText(0))
		}
		for _, sa := range x.h.SAs {
			if sa.Local != x.local || sa.Remote != x.remote {
				t.Errorf("%s: %s SA goes %s ... %s, want %s ... %s\n%s", x.h.Name, sa.Direction, sa.Local, sa.Remote, x.local, x.remote, n.LadderText(0))
			}
		}
	}
}

// RFC 4555 §3.3: with MOBIKE on both sides, port 4500 also without a NAT; ESP
// stays directly over IP.
func TestMobikeMovesToPort4500(t *testing.T) {
	_, web, db := mobile(t, nil)
	for _, h := range []*iketest.Host{web, db} {
		if p := h.Machine().Info().Path; p.Local.Port() != 4500 || p.Remote.Port() != 4500 {
			t.Errorf("%s: %+v, want port 4500 on both ends", h.Name, p)
		}
		for _, sa := range h.SAs {
			if sa.Encap != nil {
				t.Errorf("%s: %+v, want no UDP encapsulation", h.Name, sa.Encap)
			}
		}
	}
}

// RFC 4555 §3.5: the initiator's address goes, another one comes.
func TestInitiatorMoves(t *testing.T) {
	for _, known := range []bool{true, false} {
		n, web, db := mobile(t, func(_, d *iketest.Side) { d.AnyRemote = !known })
		if known {
			db.Policy.Peers[0].Remote = append(db.Policy.Peers[0].Remote, netip.MustParseAddr("10.0.9.1"))
			db.Tell(db.Machine(), ike.PolicyChanged{Policy: db.Policy})
		}
		n.Ladder = nil
		web.Readdress("10.0.9.1")
		n.Run(time.Second)
		between(t, n, web, db, "10.0.9.1", "10.0.0.2")
		// An address that the policy lists needs no return routability check (§3.7).
		checks := 0
		for _, l := range n.Ladder {
			if strings.HasPrefix(l, "db") && strings.Contains(l, "COOKIE2") && strings.Contains(l, "request") {
				checks++
			}
		}
		if want := map[bool]int{true: 0, false: 1}[known]; checks != want {
			t.Errorf("listed %t: %d return routability checks, want %d\n%s", known, checks, want, n.LadderText(0))
		}
		// What follows happens at the new addresses.
		web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
		n.Run(10 * time.Second)
		web.Do(ike.RekeyIKE{})
		n.Run(10 * time.Second)
		between(t, n, web, db, "10.0.9.1", "10.0.0.2")
		// The right to decide outlives a rekey by the other side (§2.1).
		db.Do(ike.RekeyIKE{})
		n.Run(10 * time.Second)
		web.Readdress("10.0.0.1")
		n.Run(time.Second)
		between(t, n, web, db, "10.0.0.1", "10.0.0.2")
	}
}

// RFC 4555 §3.6: the responder loses its address, and says so from another one
// to the initiator, which then moves.
func TestResponderMoves(t *testing.T) {
	n, web, db := mobile(t, nil)
	db.Readdress("10.0.8.2", "10.0.7.2")
	n.Run(3 * time.Second)
	between(t, n, web, db, "10.0.0.1", "10.0.8.2")
}

// A path that is dead without either end's address going away is found by
// requests that are not answered (RFC 4555 §3.5, §3.12).
func TestInitiatorLeavesADeadPath(t *testing.T) {
	n, web, db := mobile(t, func(w, _ *iketest.Side) { w.DPD = 30 * time.Second })
	db.Policy.Peers[0].Remote = append(db.Policy.Peers[0].Remote, netip.MustParseAddr("10.0.9.1"))
	db.Tell(db.Machine(), ike.PolicyChanged{Policy: db.Policy})
	web.Readdress("10.0.0.1", "10.0.9.1")
	n.Run(time.Second)
	between(t, n, web, db, "10.0.0.1", "10.0.0.2")
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if a := netip.MustParseAddr("10.0.0.1"); p.Src.Addr() == a || p.Dst.Addr() == a {
			return nil
		}
		return []iketest.Packet{p}
	}
	n.Run(50 * time.Second)
	between(t, n, web, db, "10.0.9.1", "10.0.0.2")
}

// RFC 4555 §3.5: "If a new address change occurs while waiting for the response,
// starts again from the first step".
func TestAnAddressThatChangesAgainBeforeTheAnswer(t *testing.T) {
	n, web, db := mobile(t, func(_, d *iketest.Side) { d.AnyRemote = true })
	web.Readdress("10.0.9.1")
	n.Run(7 * time.Millisecond) // the request has arrived, its answer has not
	web.Readdress("10.0.10.1")
	n.Run(5 * time.Second)
	between(t, n, web, db, "10.0.10.1", "10.0.0.2")
}

// RFC 4555 §3.8: an initiator behind a NAT learns of a new mapping by what its
// liveness check brings back.
func TestALivenessCheckFindsANewNATMapping(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) {
		w.Mobike, d.Mobike, d.AnyRemote = true, true, true
		w.DPD = 30 * time.Second
	})
	web.NAT = &iketest.NAT{Public: netip.MustParseAddr("192.0.2.1")}
	web.Connect("rule", nil)
	n.Run(time.Second)
	web.Do(ike.CheckPeer{}) // what the peer sees of us is remembered
	n.Run(time.Second)
	web.NAT.Rebind()
	web.Do(ike.CheckPeer{})
	n.Run(5 * time.Second)
	i := slices.IndexFunc(db.SAs, func(s ipsec.SA) bool { return s.Direction == ipsec.Outbound })
	if got, want := db.SAs[i].Encap.RemotePort, db.Machine().Info().Path.Remote.Port(); got != want || len(db.Moves) == 0 {
		t.Errorf("ESP goes to port %d, IKE comes from port %d, moves %+v\n%s", got, want, db.Moves, n.LadderText(0))
	}
}

// RFC 4555 §3.8: "an INFORMATIONAL exchange that does not contain
// UPDATE_SA_ADDRESSES does not cause any changes".
func TestOnlyAnUpdateMovesAMobileIKESA(t *testing.T) {
	n, web, db := mobile(t, func(_, d *iketest.Side) { d.AnyRemote = true })
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if p.From == web {
			p.Src = netip.AddrPortFrom(netip.MustParseAddr("198.51.100.66"), 4500) // somebody on the way
		}
		return []iketest.Packet{p}
	}
	web.Do(ike.CheckPeer{})
	n.Run(10 * time.Millisecond)
	if p := db.Machine().Info().Path; p.Remote.Addr() != netip.MustParseAddr("10.0.0.1") || len(db.Moves) != 0 {
		t.Errorf("moved to %s by a liveness check, %+v", p.Remote, db.Moves)
	}
}

// An attacker who redirects an update does not get the traffic: the return
// routability check fails to come back from where nobody knows the keys (§3.7).
func TestARedirectedUpdateMovesNoTraffic(t *testing.T) {
	n, web, db := mobile(t, func(_, d *iketest.Side) { d.AnyRemote = true })
	attacker := netip.AddrPortFrom(netip.MustParseAddr("198.51.100.66"), 4500)
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		switch {
		case p.From == web:
			p.Src = attacker
		case p.Dst == attacker:
			return nil
		}
		return []iketest.Packet{p}
	}
	web.Readdress("10.0.9.1")
	n.Run(20 * time.Second)
	if len(db.Moves) != 0 {
		t.Errorf("moved %+v", db.Moves)
	}
}

func TestMobikeOddities(t *testing.T) {
	notify := func(t wire.NotifyType, data ...byte) *wire.Notify { return &wire.Notify{Message: t, Data: data} }
	for _, c := range []struct {
		name string
		off  bool // without MOBIKE
		send []wire.Payload
		want string // in the answer
		not  string
	}{
		{"COOKIE2 is returned as it came", false, []wire.Payload{notify(wire.Cookie2, 1, 2, 3, 4, 5, 6, 7, 8)}, "COOKIE2", ""},
		{"and also without MOBIKE", true, []wire.Payload{notify(wire.Cookie2, 1, 2, 3, 4, 5, 6, 7, 8)}, "COOKIE2", ""},
		{"one that is too long is not", false, []wire.Payload{notify(wire.Cookie2, make([]byte, 65)...)}, "", "COOKIE2"},
		{"a NAT that was not to be there (3.9)", false, []wire.Payload{notify(wire.UpdateSAAddresses), notify(wire.NoNATsAllowed, make([]byte, 12)...)}, "UNEXPECTED_NAT_DETECTED", ""},
		{"an update without MOBIKE", true, []wire.Payload{notify(wire.UpdateSAAddresses)}, "", "NAT_DETECTION"},
		{"an address of the wrong length", false, []wire.Payload{notify(wire.AdditionalIP4Address, 1, 2, 3)}, "", "INVALID"},
	} {
		n, web, db := connected(t, 1, func(w, d *iketest.Side) { w.Mobike, d.Mobike = !c.off, !c.off })
		n.Ladder = nil
		m := web.Machine()
		data := m.SealForTest(wire.Informational, 2, false, c.send)
		from, to := netip.AddrPortFrom(web.Addr, 4500), netip.AddrPortFrom(db.Addr, 4500)
		n.Inject(iketest.Packet{From: web, To: db, Src: from, Dst: to, Data: data})
		n.Run(time.Second)
		got := n.LadderText(0)
		if !strings.Contains(got, "db -> web") || c.want != "" && !strings.Contains(got, c.want) || c.not != "" && strings.Contains(got, c.not) {
			t.Errorf("%s: got %s", c.name, got)
		}
		if len(db.Machines) != 1 || len(db.Moves) != 0 {
			t.Errorf("%s: %d machines, moves %+v", c.name, len(db.Machines), db.Moves)
		}
	}
}

// Several requests are under way on a dead path: they look for another one together, and
// each of its addresses has its time to answer.
func TestRequestsLeaveADeadPathTogether(t *testing.T) {
	n, web, db := mobile(t, func(w, d *iketest.Side) { w.Resources, d.Resources = 3, 3 })
	db.Policy.Peers[0].Remote = append(db.Policy.Peers[0].Remote, netip.MustParseAddr("10.0.9.1"))
	db.Tell(db.Machine(), ike.PolicyChanged{Policy: db.Policy})
	web.Readdress("10.0.0.1", "10.0.8.1", "10.0.9.1")
	n.Run(5 * time.Second)
	mustHave(t, n, web, 0, 1, 2, 3)
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if p.Src.Addr() != netip.MustParseAddr("10.0.9.1") && p.Dst.Addr() != netip.MustParseAddr("10.0.9.1") {
			return nil
		}
		return []iketest.Packet{p}
	}
	for _, c := range web.Children() {
		web.Do(ike.RekeyChild{Child: c.ID})
	}
	n.Ladder = nil
	n.Run(50 * time.Second)
	between(t, n, web, db, "10.0.9.1", "10.0.0.2")
	mustHave(t, n, web, 0, 1, 2, 3)
	mustBeRekeyed(t, n, 1, web, db)
}
