package spd

import (
	"fmt"
	"sync/atomic"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// NoRule is the rule number of a verdict that the default action gave.
const NoRule int32 = -1

// Verdict is what policy says of a packet. Why is WhyOK for permit and secure,
// else the reason for the drop: WhyBlocked, WhyNoRule or WhyFragment.
type Verdict struct {
	Action ipsec.Action
	Why    packet.Why
	Rule   int32 // index into Table.Rules, or NoRule
}

// Table is a compiled policy. It is immutable and may be read by any goroutine.
type Table struct {
	Generation uint32 // differs between any two tables of one process; never 0
	Rules      []ipsec.Rule
	Default    ipsec.Action

	// Nests says that some rule protects packets of IPsec: what an SA sends may have
	// to go through another one.
	Nests bool

	trees [8]*tree // by the direction, family and ports flags of a key
	boxes []box
}

var generations atomic.Uint32

// Compile checks and indexes rules, which must be ordered by falling weight.
func Compile(rules []ipsec.Rule, fallback ipsec.Action) (*Table, error) {
	if fallback != ipsec.ActionPermit && fallback != ipsec.ActionBlock {
		return nil, fmt.Errorf("default action %s: want permit or block", fallback)
	}
	t := &Table{Rules: rules, Default: fallback, boxes: make([]box, len(rules))}
	for i := range rules {
		if err := checkRule(&rules[i]); err != nil {
			return nil, fmt.Errorf("rule %q: %w", rules[i].Name, err)
		}
		if i > 0 && rules[i].Weight > rules[i-1].Weight {
			return nil, fmt.Errorf("rule %q of weight %d comes after %q of weight %d: want falling weights",
				rules[i].Name, rules[i].Weight, rules[i-1].Name, rules[i-1].Weight)
		}
		t.boxes[i] = boxOf(rules[i].Selector)
		t.Nests = t.Nests || t.protectsIPsec(int32(i))
	}
	wide := make([]box, len(t.boxes))
	for i, b := range t.boxes {
		wide[i] = b.withoutPorts()
	}
	for _, dir := range []ipsec.Direction{ipsec.Inbound, ipsec.Outbound} {
		for _, v4 := range []bool{true, false} {
			var with, without []int32
			for i := range rules {
				if rules[i].Direction&dir == 0 || t.boxes[i].v4 != v4 {
					continue
				}
				if t.boxes[i].ports != portsOpaque {
					with = append(with, int32(i))
				}
				without = append(without, int32(i))
			}
			flags := uint8(flagIn)
			if dir == ipsec.Outbound {
				flags = flagOut
			}
			if v4 {
				flags |= flagV4
			} else {
				flags |= flagV6
			}
			t.trees[treeIndex(flags|flagPorts)] = newTree(t.boxes, with, func(int32) bool { return true })
			t.trees[treeIndex(flags)] = newTree(wide, without, func(m int32) bool { return t.boxes[m].ports != portsNarrow })
		}
	}
	t.Generation = generations.Add(1)
	if t.Generation == 0 { // wrapped: 0 means "no table" to a cache
		t.Generation = generations.Add(1)
	}
	return t, nil
}

// treeIndex folds the flags of a key: direction, family, ports.
func treeIndex(flags uint8) int {
	return int(flags&flagOut>>1 | flags&flagV6>>2 | flags&flagPorts>>2)
}

func checkRule(r *ipsec.Rule) error {
	for _, s := range []ipsec.TrafficSelector{r.Selector.Local, r.Selector.Remote} {
		if err := s.Valid(); err != nil {
			return err
		}
	}
	if r.Selector.Local.First.Is4() != r.Selector.Remote.First.Is4() {
		return fmt.Errorf("selector %s mixes address families", r.Selector)
	}
	if r.Selector.Local.Protocol != r.Selector.Remote.Protocol {
		return fmt.Errorf("selector %s has two protocols", r.Selector)
	}
	if r.Direction&ipsec.Both == 0 || r.Direction > ipsec.Both {
		return fmt.Errorf("direction %s: want in, out or both", r.Direction)
	}
	switch {
	case r.Action == ipsec.ActionSecure && r.Template == nil:
		return fmt.Errorf("secure needs a template")
	case r.Action < ipsec.ActionPermit || r.Action > ipsec.ActionSecure:
		return fmt.Errorf("%s: want permit, block or secure", r.Action)
	}
	return nil
}

// Lookup finds the first rule for a packet.
func (t *Table) Lookup(k *Key) Verdict {
	flags := k.flags()
	tr := t.trees[treeIndex(flags)]
	for _, m := range tr.find(k) {
		b := &t.boxes[m]
		if !b.matchesAddr(k) {
			continue
		}
		if flags&flagPorts != 0 {
			if b.matchesPorts(k) {
				return t.verdict(m)
			}
			continue
		}
		if b.ports != portsNarrow {
			return t.verdict(m)
		}
		if flags&flagFrag != 0 {
			return Verdict{ipsec.ActionBlock, packet.WhyFragment, m}
		}
	}
	if t.Default == ipsec.ActionBlock {
		return Verdict{ipsec.ActionBlock, packet.WhyNoRule, NoRule}
	}
	return Verdict{ipsec.ActionPermit, packet.WhyOK, NoRule}
}

// Around is the rule that protects a packet of IPsec once more, or NoRule.
func (t *Table) Around(k *Key) int32 {
	if t.Nests {
		if v := t.Lookup(k); v.Rule >= 0 && t.protectsIPsec(v.Rule) {
			return v.Rule
		}
	}
	return NoRule
}

func (t *Table) protectsIPsec(rule int32) bool {
	r := &t.Rules[rule]
	return r.Action == ipsec.ActionSecure && r.Selector.IPsec()
}

func (t *Table) verdict(m int32) Verdict {
	v := Verdict{Action: t.Rules[m].Action, Rule: m}
	if v.Action == ipsec.ActionBlock {
		v.Why = packet.WhyBlocked
	}
	return v
}
