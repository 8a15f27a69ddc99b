package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// hub is lab.NewSites with the WAN router as the hub of both gateways, and a host in a
// network of its own. One rule speaks of all networks.
func hub(t *testing.T, secure string) (*lab.Sites, *lab.Interface, *bench) {
	t.Helper()
	s := lab.NewSites(t, lab.SitesOptions{})
	lan, host := s.Link(lab.End{Node: s.WAN(), Name: "lan", V4: netip.MustParsePrefix("10.0.0.1/24"), V6: netip.MustParsePrefix("fd00::1/64")},
		lab.End{Node: s.Node("hostH"), Name: "eth0", V4: netip.MustParsePrefix("10.0.0.2/24"), V6: netip.MustParsePrefix("fd00::2/64")}, 0)
	host.Node.Route(netip.MustParsePrefix("0.0.0.0/0"), lan.V4.Addr())
	host.Node.Route(netip.MustParsePrefix("::/0"), lan.V6.Addr())
	p := policy(node("wan", "198.51.100.1, 203.0.113.1", `10.0.0.0/24, "fd00::/64"`),
		node("gwa", gwA4, `10.1.0.0/24, "fd00:1::/64"`), node("gwb", gwB4, `10.2.0.0/24, "fd00:2::/64"`),
		filters("company", "{from: 10.0.0.0/8, to: 10.0.0.0/8}", `{from: "fd00::/16", to: "fd00::/16"}`),
		action("tunnel", "action: secure, mode: tunnel"+secure), fleetPSK,
		rules("p", "", "{name: all, filters: company, action: tunnel, authentication: psk, tunnel: wan}"),
		assign("p", "wan"), assign("p", "gwa"), assign("p", "gwb"))
	b := newBench(t, s.Lab, p, fleet.Options{Hosts: []*lab.Node{s.WAN(), s.GWA.Node, s.GWB.Node}}, s.WANA.Sniff(), s.WANB.Sniff())
	return s, host, b
}

// Two branches reach each other, and the head office, through a hub, under one rule for
// supernets on both sides; no wire shows anything in clear.
func TestHubRelaysBetweenBranches(t *testing.T) {
	s, host, b := hub(t, "")
	b.min = 1000
	s.HostA.Node.WaitPing(s.HostB.V4.Addr(), limit)
	exchange(t, s.HostA, s.HostB, traffic{tries: 4})
	s.HostA.Node.WaitPing(s.HostB.V6.Addr(), limit)
	exchange(t, s.HostA, s.HostB, traffic{v6: true, small: true})
	exchange(t, s.HostA, host, traffic{small: true})
	host.Node.Ping(s.HostB.V4.Addr(), lab.PingOptions{Count: 3})
	for _, p := range [][2]*lab.Interface{{s.HostA, s.LANA}, {host, s.LANA}, {s.HostB, s.LANB}} {
		p[0].Node.WaitPing(p[1].V4.Addr(), limit)
	}
	for _, gw := range []string{"gwa", "gwb"} {
		if n := len(b.Children(gw)); n != 2 {
			t.Errorf("%s has %d CHILD SAs; want one for each family", gw, n)
		}
	}
	if around := explainAround(t, b, "wan", "10.1.0.2", "10.2.0.2"); len(around) != 1 {
		t.Errorf("explain: %q; want the one SA to gwb", around)
	}
}

// Clear packets that claim to come from a branch do not go into the tunnel of another
// one, and what a branch that is away should get does not go there in clear.
func TestHubKeepsClearApart(t *testing.T) {
	s, host, b := hub(t, "")
	s.HostA.Node.WaitPing(s.HostB.V4.Addr(), limit)

	host.Node.IP("addr", "add", "10.2.0.77/32", "dev", "eth0")
	before := packets(b.Worker("wan"), "clear-not-allowed")
	if err := host.Node.TryPing(s.HostA.V4.Addr(), lab.PingOptions{Source: netip.MustParseAddr("10.2.0.77")}); err == nil {
		t.Error("a ping from the head office with a branch's address was answered")
	}
	lab.WaitFor(t, limit, "the hub to count what came in clear", func() error {
		if n := packets(b.Worker("wan"), "clear-not-allowed"); n <= before {
			return fmt.Errorf("%v packets; want more than %v", n, before)
		}
		return nil
	})

	b.Worker("gwb").Kill9()
	b.Terminate("wan", "gwb")
	if err := s.HostA.Node.TryPing(s.HostB.V4.Addr(), lab.PingOptions{Count: 2}); err == nil {
		t.Error("a ping to a branch that is away was answered")
	}
	b.Worker("gwb").Start()
	b.WaitInSync()
	s.HostA.Node.WaitPing(s.HostB.V4.Addr(), limit)
	s.HostB.Node.WaitPing(s.HostA.V4.Addr(), limit)
	b.Worker("wan").Restart()
	b.WaitInSync()
	s.HostA.Node.WaitPing(s.HostB.V4.Addr(), limit)
}
