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

// byRule lists the outbound SAs of each rule, the newest first. The caller
// holds mu.
func (e *Engine) byRule(t *spd.Table) [][]*outSA {
	outs := make([][]*outSA, len(t.Rules))
	for _, o := range e.outs {
		if i, ok := e.number[o.SA().Rule]; ok {
			outs[i] = append(outs[i], o)
		}
	}
	for _, l := range outs {
		slices.SortFunc(l, newestFirst)
	}
	return outs
}

// rulesOf lists the rules whose outbound SAs a batch will change.
func (e *Engine) rulesOf(ops []backend.Op) []int {
	var rules []int
	add := func(sa *ipsec.SA) {
		if i, ok := e.number[sa.Rule]; ok && sa.Direction == ipsec.Outbound && !slices.Contains(rules, i) {
			rules = append(rules, i)
		}
	}
	for _, op := range ops {
		switch o := e.outs[op.ID]; {
		case op.Kind == backend.OpInstall:
			add(op.SA)
		case op.Kind == backend.OpRemove && o != nil:
			add(o.SA())
		}
	}
	return rules
}

// changed is byRule after a batch: all lists but those of the rules named are as
// they were. With a thousand rules, and a batch for each handshake, making all of
// them anew was a third of a worker's time.
func (e *Engine) changed(outs [][]*outSA, rules []int, installed []*ipsec.SA) [][]*outSA {
	if len(rules) == 0 {
		return outs
	}
	outs = slices.Clone(outs)
	for _, i := range rules {
		kept := make([]*outSA, 0, len(outs[i])+1)
		for _, o := range outs[i] {
			if e.outs[o.SA().ID] == o {
				kept = append(kept, o)
			}
		}
		outs[i] = kept
	}
	for _, sa := range installed {
		o := e.outs[sa.ID]
		if i, ok := e.number[sa.Rule]; ok && o != nil {
			outs[i] = append(outs[i], o)
			slices.SortFunc(outs[i], newestFirst)
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
