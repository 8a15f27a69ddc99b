package userspace

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Names of what belongs to one revision: prefix, number, and for the parts of a
// chain a further number.
const versionPrefix = "rules_"

// rules writes the rules of a policy as seen by packets of one way: a chain for
// IPv4 and one for IPv6.
func (r *ruleset) rules(p *ipsec.NodePolicy, w way) [2]*nftables.Chain {
	dir, name := ipsec.Outbound, "out"
	if w == inward {
		dir, name = ipsec.Inbound, "in"
	}
	var chains [2]*nftables.Chain
	for i, v4 := range []bool{true, false} {
		var list []*ipsec.Rule
		for j := range p.Rules {
			if x := &p.Rules[j]; x.Direction&dir != 0 && x.Selector.Local.First.Unmap().Is4() == v4 {
				list = append(list, x)
			}
		}
		family := []string{"4", "6"}[i]
		chains[i] = r.ruleChain(versionPrefix+r.version+"_"+name+family, list, w, v4)
	}
	return chains
}

// ruleChain writes a list of rules. A long one is dispatched by the remote
// address to short ones, since a chain is walked rule by rule.
func (r *ruleset) ruleChain(name string, list []*ipsec.Rule, w way, v4 bool) *nftables.Chain {
	c := r.conn.AddChain(&nftables.Chain{Name: name, Table: r.table})
	parts := partition(list)
	if len(parts) < 2 {
		for _, x := range list {
			r.rule(c, x, w)
		}
		return c
	}
	set := &nftables.Set{Table: r.table, Name: name + "_map", IsMap: true, Interval: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict}
	if !v4 {
		set.KeyType = nftables.TypeIP6Addr
	}
	var elements []nftables.SetElement
	for i, p := range parts {
		sub := r.conn.AddChain(&nftables.Chain{Name: name + "_" + strconv.Itoa(i), Table: r.table})
		for _, x := range p.rules {
			r.rule(sub, x, w)
		}
		elements = append(elements, nftables.SetElement{
			Key: p.first.AsSlice(), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: sub.Name},
		})
		if i+1 < len(parts) {
			elements = append(elements, nftables.SetElement{Key: parts[i+1].first.AsSlice(), IntervalEnd: true})
		}
	}
	r.flush()
	if err := r.conn.AddSet(set, elements); err != nil {
		r.err = cmp.Or(r.err, fmt.Errorf("map %s: %w", set.Name, err))
		return c
	}
	r.flush()
	// The remote address is the destination of what goes out.
	offset, size := uint32(12), uint32(4)
	if w == outward {
		offset = 16
	}
	if !v4 {
		offset, size = 8, 16
		if w == outward {
			offset = 24
		}
	}
	r.add(c, []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Lookup{SourceRegister: 1, DestRegister: 0, IsDestRegSet: true, SetName: set.Name, SetID: set.ID},
	})
	return c
}

// rule writes one rule.
func (r *ruleset) rule(c *nftables.Chain, x *ipsec.Rule, w way) {
	do, fragments := r.action(x, w)
	for _, m := range matches(x.Selector, w) {
		r.piece(func() { r.add(c, m, do) })
	}
	if fragments == nil {
		return
	}
	for _, m := range fragmentMatches(x.Selector, w) {
		r.piece(func() { r.add(c, m, fragments) })
	}
}

// action is what a rule does to a packet, and to a later fragment of which it
// cannot be said whether the rule covers it: the engine drops it and counts, or
// it is dropped here.
func (r *ruleset) action(x *ipsec.Rule, w way) (do, fragments []expr.Any) {
	drop := func(counter string) []expr.Any { return append(count(counter), drop()...) }
	mark := append(setMark(r.c.Mark), accept()...)
	switch {
	case w == inward && passesClear(x), x.Action == ipsec.ActionPermit:
		return accept(), nil
	case x.Action == ipsec.ActionSecure && w == inward:
		return drop(counterClearIn), drop(counterClearIn)
	case x.Action == ipsec.ActionSecure:
		return mark, mark
	case w == inward:
		return drop(counterBlockedIn), drop(counterBlockedIn)
	}
	return drop(counterBlockedOut), mark
}

// passesClear reports a rule under which packets may arrive in clear. Where we
// fall back to clear the peer's answers come that way too.
func passesClear(x *ipsec.Rule) bool {
	return x.Action == ipsec.ActionPermit || x.Action == ipsec.ActionSecure && (x.Template.AcceptClear || x.Template.FallbackClear)
}

// piece queues something that nothing in force depends on, and sends what is
// queued when it is enough for one message.
func (r *ruleset) piece(queue func()) {
	if r.err != nil {
		return
	}
	queue()
	if r.queued++; r.queued >= perMessage {
		r.flush()
	}
}

// part is a stretch of remote addresses and the rules that touch it, in order.
type part struct {
	first netip.Addr
	rules []*ipsec.Rule
}

const (
	shortChain = 32  // rules that are not worth dispatching
	maxParts   = 256 // of one chain; the elements of a map fit one attribute of 64 KiB
	maxCopies  = 3   // of each rule, on average
)

// partition cuts the address space into stretches with about as many rules each.
// Rules with wide remote ranges stand in many; when that makes too many copies,
// there are fewer stretches.
func partition(list []*ipsec.Rule) []part {
	if len(list) <= shortChain {
		return nil
	}
	starts := make([]netip.Addr, 0, len(list))
	for _, x := range list {
		starts = append(starts, x.Selector.Remote.First.Unmap())
	}
	slices.SortFunc(starts, netip.Addr.Compare)
	for n := min(maxParts, len(list)/8); n > 1; n /= 2 {
		zero := netip.IPv4Unspecified()
		if starts[0].Is6() {
			zero = netip.IPv6Unspecified()
		}
		parts := []part{{first: zero}}
		for i := 1; i < n; i++ {
			if s := starts[i*len(starts)/n]; parts[len(parts)-1].first.Less(s) {
				parts = append(parts, part{first: s})
			}
		}
		if fill(parts, list) <= maxCopies*len(list) {
			return parts
		}
	}
	return nil
}

// fill gives each part its rules and returns how many copies that makes.
func fill(parts []part, list []*ipsec.Rule) int {
	copies := 0
	at := func(a netip.Addr) int { // the part an address lies in
		i, found := slices.BinarySearchFunc(parts, a, func(p part, a netip.Addr) int { return p.first.Compare(a) })
		if !found {
			i--
		}
		return i
	}
	for _, x := range list {
		from, to := at(x.Selector.Remote.First.Unmap()), at(x.Selector.Remote.Last.Unmap())
		for i := from; i <= to; i++ {
			parts[i].rules = append(parts[i].rules, x)
			copies++
		}
	}
	return copies
}

// revision is what the table holds of other revisions.
type revision struct {
	chains []*nftables.Chain
	sets   []*nftables.Set
	next   string // a suffix that none of them has
}

// others lists the chains and maps of all revisions that are there.
func (r *ruleset) others() (revision, error) {
	var v revision
	top := 0
	number := func(name string) bool {
		rest, ok := strings.CutPrefix(name, versionPrefix)
		if !ok {
			return false
		}
		n, _, _ := strings.Cut(rest, "_")
		if i, err := strconv.Atoi(n); err == nil {
			top = max(top, i)
		}
		return true
	}
	chains, err := r.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return v, err
	}
	for _, c := range chains {
		if c.Table.Name == r.table.Name && number(c.Name) {
			c.Table = r.table
			v.chains = append(v.chains, c)
		}
	}
	sets, err := r.conn.GetSets(r.table)
	if err != nil {
		return v, err
	}
	for _, s := range sets {
		if number(s.Name) {
			v.sets = append(v.sets, s)
		}
	}
	v.next = strconv.Itoa(top + 1)
	return v, nil
}

// keep takes what another list has off this one.
func (v *revision) keep(o revision) {
	v.chains = slices.DeleteFunc(v.chains, func(c *nftables.Chain) bool {
		return slices.ContainsFunc(o.chains, func(x *nftables.Chain) bool { return x.Name == c.Name })
	})
	v.sets = slices.DeleteFunc(v.sets, func(s *nftables.Set) bool {
		return slices.ContainsFunc(o.sets, func(x *nftables.Set) bool { return x.Name == s.Name })
	})
}

// remove takes away what other revisions have left: first the rules and maps,
// which hold on to chains, then the chains.
func (r *ruleset) remove(v revision) {
	for _, c := range v.chains {
		r.piece(func() { r.conn.FlushChain(c) })
	}
	for _, s := range v.sets {
		r.piece(func() { r.conn.DelSet(s) })
	}
	r.flush()
	for _, c := range v.chains {
		r.piece(func() { r.conn.DelChain(c) })
	}
	r.flush()
}
