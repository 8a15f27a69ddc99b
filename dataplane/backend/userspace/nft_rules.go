package userspace

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Names of what belongs to one revision: prefix, number, and for the parts of a
// chain a further number.
const versionPrefix = "rules_"

// chains are the rules of a policy as seen by packets of one way, for IPv4 and for
// IPv6: those for packets of IPsec, which are not exempt then, and the others. The
// former are nil where there are none.
type chains struct{ ipsec, others [2]*nftables.Chain }

// rules writes the rules of a policy as seen by packets of one way.
func (r *ruleset) rules(p *ipsec.NodePolicy, w way) (c chains) {
	dir, name := ipsec.Outbound, "out"
	if w == inward {
		dir, name = ipsec.Inbound, "in"
	}
	for i, v4 := range []bool{true, false} {
		var own, others []*ipsec.Rule
		for j := range p.Rules {
			switch x := &p.Rules[j]; {
			case x.Direction&dir == 0 || x.Selector.Local.First.Unmap().Is4() != v4:
			case x.Selector.IPsec():
				own = append(own, x)
			default:
				others = append(others, x)
			}
		}
		name := versionPrefix + r.version + "_" + name + []string{"4", "6"}[i]
		if len(own) > 0 {
			c.ipsec[i] = r.ruleChain(name+"_ipsec", own, w, v4)
		}
		c.others[i] = r.ruleChain(name, others, w, v4)
	}
	return c
}

// ruleChain writes a list of rules. A long one is dispatched by the remote
// address to short ones, since a chain is walked rule by rule.
func (r *ruleset) ruleChain(name string, list []*ipsec.Rule, w way, v4 bool) *nftables.Chain {
	c := r.newChain(name)
	r.dispatch(c, name, list, w, v4)
	return c
}

func (r *ruleset) newChain(name string) *nftables.Chain {
	c := &nftables.Chain{Name: name, Table: r.table}
	r.part(func() { r.conn.AddChain(c) })
	return c
}

// dispatch writes a list of rules into a chain. Rules with wide remote ranges
// stand in many lists; when that makes too many copies, the list is taken in halves,
// one after the other.
func (r *ruleset) dispatch(c *nftables.Chain, name string, list []*ipsec.Rule, w way, v4 bool) {
	if len(list) <= shortChain {
		for _, x := range list {
			r.rule(c, x, w)
		}
		return
	}
	d, ok := dispatchOf(list)
	if !ok {
		half := len(list) / 2
		r.dispatch(c, name+"a", list[:half], w, v4)
		r.dispatch(c, name+"b", list[half:], w, v4)
		return
	}
	chains := make([]string, len(d.lists))
	for i, rules := range d.lists {
		sub := r.newChain(name + "_" + strconv.Itoa(i))
		chains[i] = sub.Name
		for _, x := range rules {
			r.rule(sub, anyRemote(x), w)
		}
	}
	set := r.verdictMap(name+"_map", d.sections, chains, v4)
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
}

// perElements is how many elements are added at once: they have to fit an attribute
// of 64 KiB.
const perElements = 400

// verdictMap makes the map from remote addresses to the chains of their rules.
func (r *ruleset) verdictMap(name string, sections []section, chains []string, v4 bool) *nftables.Set {
	set := &nftables.Set{Table: r.table, Name: name, IsMap: true, Interval: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict}
	if !v4 {
		set.KeyType = nftables.TypeIP6Addr
	}
	r.part(func() {
		if err := r.conn.AddSet(set, nil); err != nil {
			r.err = fmt.Errorf("map %s: %w", name, err)
		}
	})
	var elements []nftables.SetElement
	for _, s := range sections {
		if s.rules < 0 {
			continue
		}
		elements = append(elements, nftables.SetElement{
			Key: s.first.AsSlice(), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chains[s.rules]},
		})
		if after := s.last.Next(); after.IsValid() {
			elements = append(elements, nftables.SetElement{Key: after.AsSlice(), IntervalEnd: true})
		}
	}
	for some := range slices.Chunk(elements, perElements) {
		r.queue(partSize*len(some), func() {
			if err := r.conn.SetAddElements(set, some); err != nil {
				r.err = fmt.Errorf("map %s: %w", name, err)
			}
		})
	}
	return set
}

// rule writes one rule.
func (r *ruleset) rule(c *nftables.Chain, x *ipsec.Rule, w way) {
	do, fragments := r.action(x, w)
	for _, m := range matches(x.Selector, w) {
		r.add(c, m, do)
	}
	if x.Action == ipsec.ActionSecure && w == inward && x.Selector.Local.Protocol == unix.IPPROTO_ESP {
		r.add(c, espInUDP(x.Selector, r.c.NATTPort), do)
	}
	if fragments == nil {
		return
	}
	for _, m := range fragmentMatches(x.Selector, w) {
		r.add(c, m, fragments)
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
	v.next = "1"
	tables, err := r.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil || !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == r.table.Name }) {
		return v, err // no table yet
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
		r.part(func() { r.conn.FlushChain(c) })
	}
	for _, s := range v.sets {
		r.part(func() { r.conn.DelSet(s) })
	}
	for _, c := range v.chains {
		r.part(func() { r.conn.DelChain(c) })
	}
}
