package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

const megabyte = 1 << 20

// traffic is what exchange moves besides small packets and TCP.
type traffic struct {
	v6 bool
	// small leaves out what does not fit into a packet.
	small bool
	// tries is how often a large datagram may be sent; 0 for once. Behind a gateway
	// the first is lost, and the next one cut to what the gateway said (RFC 1191 §3).
	tries int
}

// exchange moves traffic of every kind between two interfaces, both ways. The first
// packet finds no SA: it waits for one, and arrives.
func exchange(t *testing.T, a, b *lab.Interface, k traffic) {
	t.Helper()
	a.Node.Ping(address(b, k.v6), lab.PingOptions{})
	b.Node.Ping(address(a, k.v6), lab.PingOptions{Count: 3})
	up, down := a.Node.Transfer(b, k.v6, 10*megabyte), b.Node.Transfer(a, k.v6, 10*megabyte)
	t.Logf("IPv6 %v: %.0f and %.0f Mbit/s", k.v6, up.BitsPerSecond()/1e6, down.BitsPerSecond()/1e6)
	for _, size := range []int{0, 1, 1300} {
		retry(t, 1, func(limit time.Duration) error { return datagram(a.Node, b, address(b, k.v6), size, limit) })
	}
	if !k.small {
		large(t, a, b, k)
	}
}

// large moves what has to travel in fragments.
func large(t *testing.T, a, b *lab.Interface, k traffic) {
	t.Helper()
	tries := max(k.tries, 1)
	retry(t, tries, func(time.Duration) error { return a.Node.TryPing(address(b, k.v6), lab.PingOptions{Size: 8000}) })
	for _, size := range []int{1472, 1473, 9000, 60000} {
		retry(t, tries, func(limit time.Duration) error { return datagram(a.Node, b, address(b, k.v6), size, limit) })
	}
}

func address(i *lab.Interface, v6 bool) netip.Addr {
	if v6 {
		return i.V6.Addr()
	}
	return i.V4.Addr()
}

// retry fails the test when f fails that many times in a row. It is told how long to
// wait: longest the last time, when there must be an answer.
func retry(t *testing.T, times int, f func(limit time.Duration) error) {
	t.Helper()
	var err error
	for i := range times {
		wait := 2 * time.Second
		if i == times-1 {
			wait = limit
		}
		if err = f(wait); err == nil {
			return
		}
	}
	t.Errorf("%d times: %v", times, err)
}

func TestTwoHostsInTransportMode(t *testing.T) {
	b := newPair(t, protectPair(""), fleet.Options{})
	b.min = 10000
	exchange(t, b.A, b.B, traffic{})
	exchange(t, b.A, b.B, traffic{v6: true})
	for _, c := range b.Children("a") {
		if c.GetEncap() {
			t.Errorf("CHILD SA %v travels in UDP without a NAT", c)
		}
	}
	if fs := b.Failures(""); len(fs) != 0 {
		t.Errorf("failures: %v; want none", fs)
	}
}

// gateways is the policy of lab.NewSites: a tunnel between two gateways for the
// subnets behind them.
func gateways(a, b, secure string) string {
	return policy(
		node("gwa", a, `10.1.0.0/24, "fd00:1::/64"`), node("gwb", b, `10.2.0.0/24, "fd00:2::/64"`),
		filters("sites", "{from: 10.1.0.0/24, to: 10.2.0.0/24}", `{from: "fd00:1::/64", to: "fd00:2::/64"}`),
		action("tunnel", "action: secure, mode: tunnel"+secure), fleetPSK,
		rules("p", "", "{name: sites, filters: sites, action: tunnel, authentication: psk}"),
		assign("p", "gwa"), assign("p", "gwb"))
}

const (
	gwA4, gwB4 = "198.51.100.2", "203.0.113.2"
	gwA6, gwB6 = `"2001:db8:a::2"`, `"2001:db8:b::2"`
)

func newSites(t *testing.T, o lab.SitesOptions, policy string) (*lab.Sites, *bench) {
	t.Helper()
	s := lab.NewSites(t, o)
	b := newBench(t, s.Lab, policy, fleet.Options{Hosts: []*lab.Node{s.GWA.Node, s.GWB.Node}}, s.WANB.Sniff())
	return s, b
}

// Each family over each. IPv6 fragments do not pass a gateway: the worker puts them
// together to find their rule, and the far gateway cannot cut them again.
func TestGatewaysInTunnelMode(t *testing.T) {
	for _, tc := range []struct{ name, a, b string }{
		{"over IPv4", gwA4, gwB4},
		{"over IPv6", gwA6, gwB6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, b := newSites(t, lab.SitesOptions{}, gateways(tc.a, tc.b, ""))
			b.min = 10000
			exchange(t, s.HostA, s.HostB, traffic{tries: 4})
			exchange(t, s.HostA, s.HostB, traffic{v6: true, small: true})
		})
	}
}

// A is behind a NAT: the exchange and ESP move to port 4500 (RFC 7296 §2.23). B does
// not know the address that A is seen at; it knows A by its identity.
func TestNATBetweenThePeers(t *testing.T) {
	s, b := newSites(t, lab.SitesOptions{NAT: true}, strings.Replace(gateways(gwA4, gwB4, ""), "addresses: ["+gwA4+"]", "behindNAT: true, addresses: ["+gwA4+"]", 1))
	b.min = 10000
	exchange(t, s.HostA, s.HostB, traffic{small: true})
	exchange(t, s.HostA, s.HostB, traffic{v6: true, small: true})
	b.wires[0].RequireProtected(b.min)
	// A kernel that translates fragments writes into those that a sniffer has not read
	// yet, so nobody watches while they pass.
	b.clearAllowed()
	large(t, s.HostA, s.HostB, traffic{tries: 4})
	for _, node := range []string{"gwa", "gwb"} {
		for _, c := range b.Children(node) {
			if !c.GetEncap() {
				t.Errorf("%s: CHILD SA %v does not travel in UDP", node, c)
			}
		}
	}
	if n := b.SAs("gwb")[0].GetNat(); n != "remote" {
		t.Errorf("gwb sees a NAT at %q; want remote", n)
	}
}

// The NAT in front of A forgets its mapping and makes another one, for ESP alone: A sends
// no IKE, and does not know. B follows what it can authenticate (RFC 7296 §2.23).
func TestNATThatForgetsIsFollowedByESP(t *testing.T) {
	text := strings.Replace(gateways(gwA4, gwB4, ""), "addresses: ["+gwA4+"]", "behindNAT: true, addresses: ["+gwA4+"]", 1)
	text = strings.Replace(text, "{rules: [{name: sites", "{keyExchange: {dpd: 0s, mobike: false}, rules: [{name: sites", 1)
	s, b := newSites(t, lab.SitesOptions{NAT: true}, text)
	b.min = 100
	s.HostA.Node.Ping(s.HostB.V4.Addr(), lab.PingOptions{})
	before := b.onlyIKE("gwb", "gwa")
	probe := s.HostA.Node.StartProbe(s.HostB, false, 10*time.Millisecond)
	moving(t, probe)
	wan := s.WAN()
	wan.Nft(fmt.Sprintf(`flush table inet nat
table inet nat {
	chain postrouting {
		oifname %q meta l4proto udp masquerade to :20000-20100
	}
}
`, s.WANB.Name))
	// The kernel forgets the mappings of an interface that goes down.
	wan.IP("link", "set", s.WANB.Name, "down")
	wan.IP("link", "set", s.WANB.Name, "up")
	lab.WaitFor(t, limit, "gwb to follow", func() error {
		if sa := b.onlyIKE("gwb", "gwa"); sa.GetRemote() == before.GetRemote() {
			return fmt.Errorf("the IKE SA goes to %s as before", sa.GetRemote())
		}
		return nil
	})
	moving(t, probe)
	t.Logf("%v", probe.Stop())
	s.HostB.Node.Transfer(s.HostA, false, megabyte)
	// IKE goes there too: B can ask for something.
	b.RekeyChild("gwb", b.Children("gwb")[0].GetId())
	lab.WaitFor(t, limit, "a rekey by gwb", func() error {
		if c := b.Children("gwa"); len(c) != 1 || c[0].GetRekeyed() == 0 {
			return fmt.Errorf("gwa has %v", c)
		}
		return nil
	})
	if after := b.onlyIKE("gwb", "gwa"); after.GetLocalSpi() != before.GetLocalSpi() {
		t.Errorf("IKE SA %v, before %v; want the same", after, before)
	}
}

// With tfc nobody on the way sees how long packets are (RFC 4303 §2.7), also where the
// path carries less than the interfaces. A policy without takes it away again.
func TestPacketsAreOfOneLength(t *testing.T) {
	for _, o := range []lab.SitesOptions{{}, {WANMTU: 1400}, {NAT: true}} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			text := gateways(gwA4, gwB4, ", tfc: {padTo: mtu}")
			if o.NAT {
				text = strings.Replace(text, "addresses: ["+gwA4+"]", "behindNAT: true, addresses: ["+gwA4+"]", 1)
			}
			s, b := newSites(t, o, text)
			b.min = 1000
			s.HostA.Node.WaitPing(s.HostB.V4.Addr(), limit) // the first ones tell how much the path carries
			s.HostB.Node.WaitPing(s.HostA.V4.Addr(), limit)
			s.HostA.Node.Transfer(s.HostB, false, megabyte)
			s.HostB.Node.Transfer(s.HostA, false, megabyte)
			for _, node := range []string{"gwa", "gwb"} {
				for _, c := range b.Children(node) {
					if c.GetPadTo() != 65535 {
						t.Errorf("%s has %v; want it padded", node, c)
					}
				}
			}
			if out := string(b.CLI("sa", "list")); !strings.Contains(out, "padded to mtu") {
				t.Errorf("sa list says nothing of padding:\n%s", out)
			}
			if o.WANMTU == 0 {
				for _, sa := range b.wires[0].SAs() {
					if sa.Shortest != sa.Longest || sa.Shortest < 1300 {
						t.Errorf("an SA to %s has packets of %d to %d octets; want one length", sa.Dst, sa.Shortest, sa.Longest)
					}
				}
			}
			b.Apply(strings.Replace(text, ", tfc: {padTo: mtu}", "", 1))
			b.WaitInSync()
			lab.WaitFor(t, 2*limit, "SAs without padding", func() error {
				for _, node := range []string{"gwa", "gwb"} {
					for _, c := range b.Children(node) {
						if c.GetPadTo() != 0 {
							return fmt.Errorf("%s has %v", node, c)
						}
					}
				}
				return nil
			})
			s.HostA.Node.Ping(s.HostB.V4.Addr(), lab.PingOptions{})
			short := false
			for _, sa := range b.wires[0].SAs() {
				short = short || sa.Shortest < 200
			}
			if !short {
				t.Error("packets are still padded")
			}
		})
	}
}

// A router between the gateways carries less than their interfaces do. Senders
// learn of it from "too big" (RFC 4301 §8.2), and TCP works without tuning.
func TestSmallerMTUOnTheWay(t *testing.T) {
	s, b := newSites(t, lab.SitesOptions{WANMTU: 1400}, gateways(gwA4, gwB4, ""))
	s.HostA.Node.Transfer(s.HostB, false, megabyte)
	s.HostB.Node.Transfer(s.HostA, false, megabyte)
	s.HostA.Node.Transfer(s.HostB, true, megabyte)
	b.min = 1000
}

// What does not fit is refused where it is sent, as by a router with a small MTU.
func TestTooBigIsSaid(t *testing.T) {
	b := newPair(t, protectPair(""), fleet.Options{})
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
	if err := b.A.Node.TryPing(b.B.V4.Addr(), lab.PingOptions{Size: 1472, DontFragment: true}); err == nil {
		t.Error("1500 octets with DF passed a wire of 1500 under ESP")
	}
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{Size: 1400, DontFragment: true})
}
