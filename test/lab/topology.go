package lab

import (
	"net/netip"
	"testing"
)

// PairOptions changes NewPair.
type PairOptions struct {
	MTU     int  // 0 for 1500
	Machine bool // b is a virtual machine
}

// Pair is two hosts on one wire, for transport mode and host-to-host tunnels.
//
//	 a ─────────────────────────── b
//	192.0.2.1/24        192.0.2.2/24
//	2001:db8::1/64      2001:db8::2/64
//
// The interface is called eth0 on both.
type Pair struct {
	*Lab
	A, B *Interface
}

// NewPair makes the pair.
func NewPair(t testing.TB, o PairOptions) *Pair {
	t.Helper()
	l := New(t)
	p := &Pair{Lab: l}
	p.A, p.B = l.Link(
		End{l.Node("a"), "eth0", prefix("192.0.2.1/24"), prefix("2001:db8::1/64")},
		End{l.host("b", o.Machine), "eth0", prefix("192.0.2.2/24"), prefix("2001:db8::2/64")}, o.MTU)
	return p
}

// SitesOptions changes NewSites.
type SitesOptions struct {
	MTU    int  // of the LANs, 0 for 1500
	WANMTU int  // between WAN and GatewayB: a smaller one makes the WAN answer "too big"
	NAT    bool // the WAN masquerades what it sends to GatewayB, so that A is behind a NAT

	Machine bool // gwB is a virtual machine
}

// Sites is two sites, each a host behind a gateway, and a router between the
// gateways that knows nothing of the sites' subnets: what crosses it has to be
// tunnelled. The WAN's interfaces are where to sniff.
//
//	hostA ───────── gwA ─────────────── wan ─────────────── gwB ───────── hostB
//	    .2         .1  .2              .1 .1               .2  .1         .2
//	    10.1.0.0/24       198.51.100.0/24   203.0.113.0/24     10.2.0.0/24
//	    fd00:1::/64       2001:db8:a::/64   2001:db8:b::/64    fd00:2::/64
//	  eth0      lan    eth0         toA    toB           eth0  lan      eth0
//
// With NAT, gwB sees gwA as 203.0.113.1 or 2001:db8:b::1.
type Sites struct {
	*Lab
	HostA, LANA *Interface // two ends of A's LAN: the host's, the gateway's
	GWA, WANA   *Interface // two ends of A's uplink: the gateway's, the WAN's
	WANB, GWB   *Interface
	LANB, HostB *Interface
}

// Subnets of the two sites.
var (
	SiteA4 = prefix("10.1.0.0/24")
	SiteB4 = prefix("10.2.0.0/24")
	SiteA6 = prefix("fd00:1::/64")
	SiteB6 = prefix("fd00:2::/64")
)

// NewSites makes the two sites.
func NewSites(t testing.TB, o SitesOptions) *Sites {
	t.Helper()
	l := New(t)
	s := &Sites{Lab: l}
	hostA, gwA, wan, gwB, hostB := l.Node("hostA"), l.Node("gwA"), l.Node("wan"), l.host("gwB", o.Machine), l.Node("hostB")
	s.HostA, s.LANA = l.Link(
		End{hostA, "eth0", prefix("10.1.0.2/24"), prefix("fd00:1::2/64")},
		End{gwA, "lan", prefix("10.1.0.1/24"), prefix("fd00:1::1/64")}, o.MTU)
	s.GWA, s.WANA = l.Link(
		End{gwA, "eth0", prefix("198.51.100.2/24"), prefix("2001:db8:a::2/64")},
		End{wan, "toA", prefix("198.51.100.1/24"), prefix("2001:db8:a::1/64")}, 0)
	s.WANB, s.GWB = l.Link(
		End{wan, "toB", prefix("203.0.113.1/24"), prefix("2001:db8:b::1/64")},
		End{gwB, "eth0", prefix("203.0.113.2/24"), prefix("2001:db8:b::2/64")}, o.WANMTU)
	s.LANB, s.HostB = l.Link(
		End{gwB, "lan", prefix("10.2.0.1/24"), prefix("fd00:2::1/64")},
		End{hostB, "eth0", prefix("10.2.0.2/24"), prefix("fd00:2::2/64")}, o.MTU)
	for _, router := range []*Node{gwA, wan, gwB} {
		router.Forward()
	}
	for _, d := range []struct{ from, via *Interface }{
		{s.HostA, s.LANA}, {s.GWA, s.WANA}, {s.GWB, s.WANB}, {s.HostB, s.LANB},
	} {
		d.from.Node.Route(prefix("0.0.0.0/0"), d.via.V4.Addr())
		d.from.Node.Route(prefix("::/0"), d.via.V6.Addr())
	}
	if o.NAT {
		wan.Masquerade(s.WANB.Name)
	}
	return s
}

// host is a node, or a machine.
func (l *Lab) host(name string, machine bool) *Node {
	l.t.Helper()
	if machine {
		return l.Machine(name)
	}
	return l.Node(name)
}

// WAN is the router between the gateways.
func (s *Sites) WAN() *Node { return s.WANA.Node }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
