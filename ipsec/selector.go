package ipsec

import (
	"fmt"
	"net/netip"
	"strconv"
)

// TrafficSelector is one side of a selector: an inclusive address range and an
// inclusive port range under one IP protocol (RFC 7296 §3.13.1). Protocol 0 is
// any. For ICMP the ports hold type<<8|code. OPAQUE ports are First 65535,
// Last 0 (RFC 4301 §4.4.1.1).
type TrafficSelector struct {
	Protocol  uint8
	First     netip.Addr
	Last      netip.Addr
	PortFirst uint16
	PortLast  uint16
}

// PrefixSelector covers all protocols and ports of a prefix.
func PrefixSelector(p netip.Prefix) TrafficSelector {
	p = p.Masked()
	return TrafficSelector{First: p.Addr(), Last: lastOf(p), PortLast: 65535}
}

// AddrSelector covers all protocols and ports of one address.
func AddrSelector(a netip.Addr) TrafficSelector {
	return TrafficSelector{First: a, Last: a, PortLast: 65535}
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Valid checks that the range is ordered and of one family.
func (t TrafficSelector) Valid() error {
	if !t.First.IsValid() || !t.Last.IsValid() || t.First.Is4() != t.Last.Is4() || t.Last.Less(t.First) {
		return fmt.Errorf("address range %s-%s is not an ordered range of one family", t.First, t.Last)
	}
	if t.PortLast < t.PortFirst && !t.Opaque() {
		return fmt.Errorf("port range %d-%d is not ordered", t.PortFirst, t.PortLast)
	}
	return nil
}

// Opaque reports the OPAQUE port range.
func (t TrafficSelector) Opaque() bool { return t.PortFirst == 65535 && t.PortLast == 0 }

// AnyPort reports the whole port range.
func (t TrafficSelector) AnyPort() bool { return t.PortFirst == 0 && t.PortLast == 65535 }

// Contains reports whether one packet side falls inside. A port of a protocol
// without ports is 0 and matches AnyPort only.
func (t TrafficSelector) Contains(proto uint8, a netip.Addr, port uint16) bool {
	if t.Protocol != 0 && t.Protocol != proto {
		return false
	}
	return t.ContainsAddr(a) && port >= t.PortFirst && port <= t.PortLast
}

// ContainsAddr looks at the address range only.
func (t TrafficSelector) ContainsAddr(a netip.Addr) bool {
	return a.Is4() == t.First.Is4() && !a.Less(t.First) && !t.Last.Less(a)
}

// Covers reports whether o lies wholly inside t.
func (t TrafficSelector) Covers(o TrafficSelector) bool {
	i, ok := t.Intersect(o)
	return ok && i == o
}

// Intersect is the overlap of two selectors, and whether there is one.
func (t TrafficSelector) Intersect(o TrafficSelector) (TrafficSelector, bool) {
	if t.First.Is4() != o.First.Is4() {
		return TrafficSelector{}, false
	}
	r := t
	switch {
	case t.Protocol == 0:
		r.Protocol = o.Protocol
	case o.Protocol != 0 && o.Protocol != t.Protocol:
		return TrafficSelector{}, false
	}
	if r.First.Less(o.First) {
		r.First = o.First
	}
	if o.Last.Less(r.Last) {
		r.Last = o.Last
	}
	if t.Opaque() || o.Opaque() {
		if t.Opaque() && !o.Opaque() && !o.AnyPort() || o.Opaque() && !t.Opaque() && !t.AnyPort() {
			return TrafficSelector{}, false
		}
		r.PortFirst, r.PortLast = 65535, 0
		return r, !r.Last.Less(r.First)
	}
	r.PortFirst = max(t.PortFirst, o.PortFirst)
	r.PortLast = min(t.PortLast, o.PortLast)
	return r, !r.Last.Less(r.First) && r.PortFirst <= r.PortLast
}

// Prefix returns the range as a prefix when it is one.
func (t TrafficSelector) Prefix() (netip.Prefix, bool) {
	if !t.First.IsValid() {
		return netip.Prefix{}, false
	}
	for bits := t.First.BitLen(); bits >= 0; bits-- {
		p := netip.PrefixFrom(t.First, bits).Masked()
		if p.Addr() != t.First {
			break
		}
		if lastOf(p) == t.Last {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// Prefixes splits the range into the fewest prefixes that cover it exactly.
func (t TrafficSelector) Prefixes() []netip.Prefix {
	var out []netip.Prefix
	for a := t.First; a.IsValid() && !t.Last.Less(a); {
		bits := a.BitLen()
		for bits > 0 {
			p := netip.PrefixFrom(a, bits-1).Masked()
			if p.Addr() != a || t.Last.Less(lastOf(p)) {
				break
			}
			bits--
		}
		p := netip.PrefixFrom(a, bits)
		out = append(out, p)
		a = lastOf(p).Next()
	}
	return out
}

// String reads "tcp 10.0.0.0/24 443" with the parts that are "any" left out.
func (t TrafficSelector) String() string {
	addr := t.First.String() + "-" + t.Last.String()
	if p, ok := t.Prefix(); ok {
		if addr = p.String(); p.IsSingleIP() {
			addr = p.Addr().String()
		}
	}
	if t.Protocol != 0 {
		addr += " " + ProtocolName(t.Protocol)
	}
	switch {
	case t.AnyPort():
		return addr
	case t.Opaque():
		return addr + " opaque"
	case t.PortFirst == t.PortLast:
		return addr + " " + strconv.Itoa(int(t.PortFirst))
	}
	return fmt.Sprintf("%s %d-%d", addr, t.PortFirst, t.PortLast)
}

// Selector is both sides of a traffic description as one host sees it. Local
// and Remote carry the same Protocol.
type Selector struct {
	Local  TrafficSelector
	Remote TrafficSelector
}

// Swap is the selector as the other host sees it.
func (s Selector) Swap() Selector { return Selector{Local: s.Remote, Remote: s.Local} }

// Intersect is the overlap of both sides.
func (s Selector) Intersect(o Selector) (Selector, bool) {
	l, ok1 := s.Local.Intersect(o.Local)
	r, ok2 := s.Remote.Intersect(o.Remote)
	return Selector{Local: l, Remote: r}, ok1 && ok2
}

// Covers reports whether o lies wholly inside s.
func (s Selector) Covers(o Selector) bool {
	return s.Local.Covers(o.Local) && s.Remote.Covers(o.Remote)
}

// Ports of IKE. ESP in UDP shares the second one (RFC 3948).
const (
	PortIKE  = 500
	PortNATT = 4500
)

// MaxNesting is how many SAs may carry a packet one inside the other.
const MaxNesting = 3

// IPsec reports a selector for the packets of IPsec itself: ESP, AH, and IKE or ESP
// in UDP from a port of IKE to the same. A rule with such a selector is also for what
// this host's own SAs send: it nests one SA in another (RFC 4301 Appendix E).
func (s Selector) IPsec() bool {
	switch l, r := s.Local, s.Remote; l.Protocol {
	case uint8(ProtocolESP), uint8(ProtocolAH):
		return true
	case protocolUDP:
		return l.PortFirst == l.PortLast && r.PortFirst == l.PortFirst && r.PortLast == l.PortFirst &&
			(l.PortFirst == PortIKE || l.PortFirst == PortNATT)
	}
	return false
}

const protocolUDP = 17

func (s Selector) String() string { return s.Local.String() + " <-> " + s.Remote.String() }

// Flow is the selector fields of one packet, seen from the host.
type Flow struct {
	Local      netip.Addr
	Remote     netip.Addr
	Protocol   uint8
	LocalPort  uint16 // for ICMP: type<<8|code, as RemotePort
	RemotePort uint16
}

// Matches reports whether the packet falls inside the selector.
func (s Selector) Matches(f Flow) bool {
	return s.Local.Contains(f.Protocol, f.Local, f.LocalPort) && s.Remote.Contains(f.Protocol, f.Remote, f.RemotePort)
}

func (f Flow) String() string {
	return fmt.Sprintf("%s %s:%d -> %s:%d", ProtocolName(f.Protocol), f.Local, f.LocalPort, f.Remote, f.RemotePort)
}

var protocolNames = map[uint8]string{0: "any", 1: "icmp", 2: "igmp", 4: "ipip", 6: "tcp", 17: "udp", 41: "ipv6", 47: "gre", 50: "esp", 51: "ah", 58: "icmp6", 89: "ospf", 115: "l2tp", 132: "sctp"}

// ProtocolName is the IP protocol's name, or its number.
func ProtocolName(p uint8) string {
	if n, ok := protocolNames[p]; ok {
		return n
	}
	return strconv.Itoa(int(p))
}

// ParseProtocol reads a name or a number; "" and "any" are 0.
func ParseProtocol(s string) (uint8, error) {
	if s == "" {
		return 0, nil
	}
	for n, name := range protocolNames {
		if name == s {
			return n, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("protocol %q: want any, tcp, udp, icmp, icmp6, sctp, gre, esp, ah or a number from 0 to 255", s)
	}
	return uint8(n), nil
}
