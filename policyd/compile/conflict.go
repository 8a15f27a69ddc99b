package compile

import (
	"fmt"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// conflicts reports rules of equal weight that overlap and do different things.
// The rules are sorted by weight.
func (b *builder) conflicts() {
	for low := 0; low < len(b.rules); {
		high := low + 1
		for high < len(b.rules) && b.rules[high].rule.Weight == b.rules[low].rule.Weight {
			high++
		}
		overlapping(b.rules[low:high], func(x, y *built) {
			if Differ(&x.rule, &y.rule) {
				b.conflict(x, y)
			}
		})
		low = high
	}
}

// overlapping calls found for each pair of rules that some packet matches both
// of. It sweeps along the remote addresses, so that rules for as many hosts as
// there are cost little more than a sort.
func overlapping(group []built, found func(x, y *built)) {
	if len(group) < 2 {
		return
	}
	order := make([]*built, len(group))
	for i := range group {
		order[i] = &group[i]
	}
	slices.SortStableFunc(order, func(x, y *built) int {
		return x.rule.Selector.Remote.First.Compare(y.rule.Selector.Remote.First)
	})
	var active []*built
	for _, y := range order {
		start := y.rule.Selector.Remote.First
		active = slices.DeleteFunc(active, func(x *built) bool { return x.rule.Selector.Remote.Last.Less(start) })
		for _, x := range active {
			if Overlap(&x.rule, &y.rule) {
				found(x, y)
			}
		}
		active = append(active, y)
	}
}

// Overlap reports whether some packet matches both rules.
func Overlap(x, y *ipsec.Rule) bool {
	if x.Direction&y.Direction == 0 {
		return false
	}
	_, ok := x.Selector.Intersect(y.Selector)
	return ok
}

// Differ reports whether two rules do different things to a packet.
func Differ(x, y *ipsec.Rule) bool {
	return x.Action != y.Action || x.Action == ipsec.ActionSecure && (x.Template != y.Template || x.Peer != y.Peer)
}

func (b *builder) conflict(x, y *built) {
	if y.origin.Filter.String() < x.origin.Filter.String() || y.origin.Filter == x.origin.Filter && y.origin.Rule.String() < x.origin.Rule.String() {
		x, y = y, x
	}
	common, _ := x.rule.Selector.Intersect(y.rule.Selector)
	key := fmt.Sprint("conflict ", x.origin, y.origin)
	b.errs.once(key, x.origin.Filter, "",
		"%s (%s) and %s (%s, filter at %s, rule at %s) are equally specific and overlap on node %q in %s; make one of the filters more specific",
		x.rule.Name, outcome(&x.rule), y.rule.Name, outcome(&y.rule), y.origin.Filter, y.origin.Rule, b.node.Name, common)
}

func outcome(r *ipsec.Rule) string {
	if r.Action == ipsec.ActionSecure {
		return "secure with " + r.Peer
	}
	return r.Action.String()
}
