package userspace

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
)

const (
	shortChain = 16 // rules that are not worth dispatching
	maxCopies  = 3  // of each rule, on average
)

// section is a stretch of remote addresses that one list of rules decides about.
type section struct {
	first, last netip.Addr
	rules       int // which list; -1 for none
}

// dispatch says which rules decide about a packet from or to a remote address.
// Rules that differ in their remote addresses only are one.
type dispatch struct {
	sections []section
	lists    [][]*ipsec.Rule // in order; their remote addresses do not matter any more
}

// dispatchOf cuts the address space where a rule's remote addresses begin or end,
// so that each rule covers a stretch wholly or not at all. Stretches with the same
// rules share a list: a fleet's rule for each of 10,000 hosts is one list. ok is
// false when that makes too many copies of rules.
func dispatchOf(list []*ipsec.Rule) (d dispatch, ok bool) {
	kinds, kind := map[string]int{}, make([]int, len(list))
	type edge struct {
		at   netip.Addr
		rule int
		in   bool
	}
	edges := make([]edge, 0, 2*len(list))
	for i, x := range list {
		k := kindOf(x)
		if _, known := kinds[k]; !known {
			kinds[k] = len(kinds)
		}
		kind[i] = kinds[k]
		edges = append(edges, edge{x.Selector.Remote.First.Unmap(), i, true})
		if after := x.Selector.Remote.Last.Unmap().Next(); after.IsValid() {
			edges = append(edges, edge{after, i, false})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return a.at.Compare(b.at) })
	known := map[string]int{}
	var here, key []byte // kinds in force, as text
	var active []int     // rules in force, in order
	copies := 0
	for i := 0; i < len(edges); {
		at := edges[i].at
		for ; i < len(edges) && edges[i].at == at; i++ {
			p, found := slices.BinarySearch(active, edges[i].rule)
			if edges[i].in && !found {
				active = slices.Insert(active, p, edges[i].rule)
			} else if !edges[i].in && found {
				active = slices.Delete(active, p, p+1)
			}
		}
		key = key[:0]
		for _, r := range active {
			key = append(strconv.AppendInt(key, int64(kind[r]), 36), ' ')
		}
		if n := len(d.sections); n > 0 {
			if string(key) == string(here) {
				continue
			}
			d.sections[n-1].last = at.Prev()
		}
		here = append(here[:0], key...)
		s := section{first: at, rules: -1}
		if len(active) > 0 {
			n, have := known[string(key)]
			if !have {
				n = len(d.lists)
				known[string(key)] = n
				var rules []*ipsec.Rule
				var seen []int
				for _, r := range active {
					if !slices.Contains(seen, kind[r]) {
						seen, rules = append(seen, kind[r]), append(rules, list[r])
					}
				}
				if copies += len(rules); copies > maxCopies*len(list) {
					return dispatch{}, false
				}
				d.lists = append(d.lists, rules)
			}
			s.rules = n
		}
		d.sections = append(d.sections, s)
	}
	if n := len(d.sections); n > 0 {
		d.sections[n-1].last = lastOf(d.sections[n-1].first)
	}
	return d, true
}

// lastOf is the last address of a family.
func lastOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return netip.AddrFrom16([16]byte([]byte(strings.Repeat("\xff", 16))))
}

// kindOf is all that the host's rules depend on besides the remote addresses.
func kindOf(x *ipsec.Rule) string {
	s := x.Selector
	s.Remote.First, s.Remote.Last = netip.Addr{}, netip.Addr{}
	b := strconv.AppendInt(nil, int64(x.Action), 10)
	b = append(b, ' ')
	if passesClear(x) {
		b = append(b, '!')
	}
	for _, n := range []uint16{uint16(s.Local.Protocol), s.Local.PortFirst, s.Local.PortLast, s.Remote.PortFirst, s.Remote.PortLast} {
		b = append(strconv.AppendUint(b, uint64(n), 10), ' ')
	}
	return string(s.Local.Last.AppendTo(append(s.Local.First.AppendTo(b), '-')))
}

// anyRemote is a rule without its remote addresses.
func anyRemote(x *ipsec.Rule) *ipsec.Rule {
	y := *x
	y.Selector.Remote.Last = lastOf(y.Selector.Remote.First.Unmap())
	y.Selector.Remote.First = netip.IPv6Unspecified()
	if y.Selector.Remote.Last.Is4() {
		y.Selector.Remote.First = netip.IPv4Unspecified()
	}
	return &y
}
