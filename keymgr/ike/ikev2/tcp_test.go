package ikev2_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// noUDP is a network that carries TCP only.
func noUDP(p iketest.Packet) []iketest.Packet {
	if !p.TCP {
		return nil
	}
	return []iketest.Packet{p}
}

// RFC 9329 §5.1: UDP first, and then a new IKE_SA_INIT over TCP.
func TestFallbackToTCP(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { w.TCP, d.TCP = ipsec.TCPFallback, ipsec.TCPFallback })
	n.Hook = noUDP
	first := web.Connect("rule", nil).Info()
	n.Run(20 * time.Second)
	mustBeUp(t, n, web, db)
	i := web.Machine().Info()
	if !i.Path.TCP || i.Path.Remote.Port() != 4500 || i.Path.Local.Port() < 49152 || i.LocalSPI == first.LocalSPI {
		t.Errorf("%+v, before %+v; want another IKE SA over TCP from a dynamic port to 4500", i, first)
	}
	for _, h := range []*iketest.Host{web, db} {
		for _, sa := range h.SAs {
			if sa.Encap == nil || !sa.Encap.TCP {
				t.Errorf("%s: %s SA has %+v, want TCP", h.Name, sa.Direction, sa.Encap)
			}
		}
		if len(h.Failures) != 0 {
			t.Errorf("%s: %+v", h.Name, h.Failures)
		}
	}
	if i.NAT != "none" { // §6.5: the digests are of the TCP ports
		t.Errorf("NAT %s, want none", i.NAT)
	}
	web.Do(ike.RekeyIKE{})
	n.Run(10 * time.Second)
	web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
	n.Run(10 * time.Second)
	mustBeUp(t, n, web, db)
}

func TestTCPOnly(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { w.TCP, d.TCP = ipsec.TCPAlways, ipsec.TCPFallback })
	web.Connect("rule", nil)
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	if !web.Machine().Info().Path.TCP {
		t.Error("it went over UDP")
	}
}

// RFC 9329 §5: "applicable only when it has been configured to be used with
// specific IKE peers".
func TestTCPIsRefusedWhereThePolicyDoesNotWantIt(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, _ *iketest.Side) { w.TCP = ipsec.TCPAlways })
	web.Connect("rule", nil)
	n.Run(2 * time.Minute)
	mustBeEmpty(t, web, db)
	if web.Failure().Why != "TIMEOUT" {
		t.Errorf("%+v", web.Failures)
	}
}

func TestNoFallbackUnlessThePolicyWantsIt(t *testing.T) {
	n, web, _ := iketest.Pair(t, 1, func(_, d *iketest.Side) { d.TCP = ipsec.TCPFallback })
	n.Hook = noUDP
	web.Connect("rule", nil)
	n.Run(2 * time.Minute)
	if len(web.Machines) != 0 || web.Failure().Why != "TIMEOUT" {
		t.Errorf("%d machines, %+v", len(web.Machines), web.Failures)
	}
}

// RFC 9329 §6.1: the originator connects again, from another port perhaps.
func TestATCPConnectionIsReplaced(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { w.TCP, d.TCP = ipsec.TCPAlways, ipsec.TCPAlways })
	web.Connect("rule", nil)
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	port := uint16(60001)
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if p.From == web {
			p.Src = netip.AddrPortFrom(p.Src.Addr(), port)
		}
		return []iketest.Packet{p}
	}
	web.Do(ike.CheckPeer{})
	n.Run(time.Second)
	for _, sa := range db.SAs {
		if sa.Direction == ipsec.Outbound && sa.Encap.RemotePort != port {
			t.Errorf("ESP goes to port %d, want %d", sa.Encap.RemotePort, port)
		}
	}
}

// RFC 9329 §6.4: a refusal over TCP is believed at once.
func TestARefusalOverTCPIsFinal(t *testing.T) {
	n, web, _ := iketest.Pair(t, 1, func(w, d *iketest.Side) {
		w.TCP, d.TCP = ipsec.TCPAlways, ipsec.TCPAlways
		d.IKE = []string{"aes256-sha384-prfsha384-ecp384"}
	})
	web.Connect("rule", nil)
	n.Run(100 * time.Millisecond)
	if web.Failure().Why != wire.NoProposalChosen.String() {
		t.Errorf("%+v", web.Failures)
	}
}

// RFC 9329 §7.1: where UDP does not get through at the new address, the same
// IKE SA moves into TCP, and back.
func TestMobikeMovesIntoTCP(t *testing.T) {
	n, web, db := mobile(t, func(w, d *iketest.Side) {
		w.TCP, d.TCP = ipsec.TCPFallback, ipsec.TCPFallback
		d.AnyRemote = true
	})
	spi := web.Machine().Info().LocalSPI
	n.Hook = noUDP
	web.Readdress("10.0.9.1")
	n.Run(30 * time.Second)
	between(t, n, web, db, "10.0.9.1", "10.0.0.2")
	if i := web.Machine().Info(); !i.Path.TCP || i.LocalSPI != spi {
		t.Errorf("%+v, want the same IKE SA in TCP\n%s", i, n.LadderText(0))
	}
	for _, l := range n.Ladder { // §7.1: "the Return Routability Check SHOULD NOT be performed"
		if strings.HasPrefix(l, "db -> web INFORMATIONAL request") {
			t.Errorf("a check: %s", l)
		}
	}
	n.Hook = nil
	web.Readdress("10.0.10.1")
	n.Run(30 * time.Second)
	between(t, n, web, db, "10.0.10.1", "10.0.0.2")
}

// RFC 9329 §7.5: "an implementation SHOULD NOT send fragments when going over a
// TCP connection".
func TestNoFragmentsInTCP(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { w.TCP, d.TCP = ipsec.TCPAlways, ipsec.TCPAlways })
	many := web.Policy.Rules[0].Template
	for range 12 { // proposals enough for more than one datagram
		many.Proposals = append(many.Proposals, many.Proposals...)
		if len(many.Proposals) > 60 {
			break
		}
	}
	web.Connect("rule", nil)
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	if s := n.LadderText(0); strings.Contains(s, "SKF") {
		t.Errorf("fragments:\n%s", s)
	}
}
