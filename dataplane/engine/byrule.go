package engine

import (
	"slices"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/spd"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// numberRules makes the index from a rule's name to its place in the table. The
// caller holds mu.
func (e *Engine) numberRules(t *spd.Table) {
	e.number = make(map[string]int, len(t.Rules))
	for i := range t.Rules {
		e.number[t.Rules[i].Name] = i
	}
}

// rulePage is how many rules' lists are copied when one of them changes.
const rulePage = 32

// ruleSAs lists the outbound SAs of each rule, by rule number, the newest first. It
// is in pages, so that a batch copies those it changes and not all lists of a policy
// with thousands of rules. What is published is never changed.
type ruleSAs [][][]*outSA

func newRuleSAs(rules int) ruleSAs {
	outs := make(ruleSAs, 0, (rules+rulePage-1)/rulePage)
	for ; rules > 0; rules -= rulePage {
		outs = append(outs, make([][]*outSA, min(rules, rulePage)))
	}
	return outs
}

// of is where the list of a rule is.
func (r ruleSAs) of(rule int) *[]*outSA { return &r[rule/rulePage][rule%rulePage] }

// with is a copy in which the lists of the rules named may be changed.
func (r ruleSAs) with(rules []int) ruleSAs {
	r = slices.Clone(r)
	copied := make(map[int]bool, len(rules))
	for _, i := range rules {
		if page := i / rulePage; !copied[page] {
			r[page], copied[page] = slices.Clone(r[page]), true
		}
	}
	return r
}

// byRule makes all lists anew. The caller holds mu.
func (e *Engine) byRule(t *spd.Table) ruleSAs {
	outs := newRuleSAs(len(t.Rules))
	for _, o := range e.outs {
		if i, ok := e.number[o.SA().Rule]; ok {
			l := outs.of(i)
			*l = append(*l, o)
		}
	}
	for _, page := range outs {
		for _, l := range page {
			slices.SortFunc(l, newestFirst)
		}
	}
	return outs
}

// rulesOf lists the rules whose outbound SAs a batch will change.
func (e *Engine) rulesOf(ops []backend.Op) []int {
	var rules []int
	add := func(d ipsec.Direction, rule string) {
		if i, ok := e.number[rule]; ok && d == ipsec.Outbound && !slices.Contains(rules, i) {
			rules = append(rules, i)
		}
	}
	for _, op := range ops {
		switch o := e.outs[op.ID]; {
		case op.Kind == backend.OpInstall:
			add(op.SA.Direction, op.SA.Rule)
		case op.Kind == backend.OpRemove && o != nil:
			add(ipsec.Outbound, o.SA().Rule)
		}
	}
	return rules
}

// changed is byRule after a batch: all lists but those of the rules named are as
// they were. With a thousand rules, and a batch for each handshake, making all of
// them anew was a third of a worker's time.
func (e *Engine) changed(outs ruleSAs, rules []int, installed []*ipsec.SA) ruleSAs {
	if len(rules) == 0 {
		return outs
	}
	outs = outs.with(rules)
	for _, i := range rules {
		l := outs.of(i)
		kept := make([]*outSA, 0, len(*l)+1)
		for _, o := range *l {
			if e.outs[o.SA().ID] == o {
				kept = append(kept, o)
			}
		}
		*l = kept
	}
	for _, sa := range installed {
		o := e.outs[sa.ID]
		if i, ok := e.number[sa.Rule]; ok && o != nil {
			l := outs.of(i)
			*l = append(*l, o)
			slices.SortFunc(*l, newestFirst)
		}
	}
	return outs
}

// newestFirst orders SAs by falling ID: a key manager's IDs only grow, so the
// SA of a rekey comes before the one it replaces.
func newestFirst(a, b *outSA) int {
	if a.SA().ID > b.SA().ID {
		return -1
	}
	return 1
}
