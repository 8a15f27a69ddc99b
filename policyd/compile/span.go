package compile

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/model"
)

// span is an inclusive range of addresses of one family.
type span struct{ first, last netip.Addr }

var (
	everyIPv4 = spanOf(netip.MustParsePrefix("0.0.0.0/0"))
	everyIPv6 = spanOf(netip.MustParsePrefix("::/0"))
)

func spanOf(p netip.Prefix) span {
	t := ipsec.PrefixSelector(p)
	return span{t.First, t.Last}
}

func single(a netip.Addr) span { return span{a, a} }

func (s span) is4() bool { return s.first.Is4() }

func (s span) contains(a netip.Addr) bool {
	return a.Is4() == s.is4() && !a.Less(s.first) && !s.last.Less(a)
}

func (s span) intersect(o span) (span, bool) {
	if s.is4() != o.is4() {
		return span{}, false
	}
	if s.first.Less(o.first) {
		s.first = o.first
	}
	if o.last.Less(s.last) {
		s.last = o.last
	}
	return s, !s.last.Less(s.first)
}

func (s span) overlaps(o span) bool {
	_, ok := s.intersect(o)
	return ok
}

// coveredBy reports whether the others together hold all of s.
func (s span) coveredBy(others []span) bool {
	slices.SortFunc(others, func(a, b span) int { return cmp.Or(a.first.Compare(b.first), a.last.Compare(b.last)) })
	next := s.first
	for _, o := range others {
		if o.is4() != s.is4() || o.last.Less(next) {
			continue
		}
		if next.Less(o.first) {
			return false
		}
		if !o.last.Less(s.last) {
			return true
		}
		next = o.last.Next()
	}
	return false
}

func (s span) String() string { return model.AddrRange(s.first, s.last) }

// written is the addresses of an endpoint that names addresses.
func written(e model.Endpoint) []span {
	switch e.Kind {
	case model.EndpointAny:
		return []span{everyIPv4, everyIPv6}
	case model.EndpointRange:
		return []span{{e.First, e.Last}}
	}
	return nil
}

// ownersIn are the addresses of nodes inside a span, sorted.
func (c *Compiler) ownersIn(s span) []owner {
	at := func(a netip.Addr) int {
		i, _ := slices.BinarySearchFunc(c.owners, a, func(o owner, a netip.Addr) int { return o.addr.Compare(a) })
		return i
	}
	low, high := at(s.first), at(s.last)
	for high < len(c.owners) && c.owners[high].addr == s.last {
		high++
	}
	return c.owners[low:high]
}

func (c *Compiler) ownerOf(a netip.Addr) *model.Node {
	if o := c.ownersIn(single(a)); len(o) > 0 {
		return o[0].node
	}
	return nil
}

// protectorOf is the gateway of an address: the one with the longest prefix.
func (c *Compiler) protectorOf(a netip.Addr) *model.Node {
	var best *model.Node
	for _, g := range c.gateways {
		if g.contains(a) {
			best = g.node // sorted: a longer prefix that contains a comes later
		}
	}
	return best
}
