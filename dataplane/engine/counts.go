package engine

import (
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/dataplane/sad"
	"github.com/testudo-ipsec/testudo/dataplane/spd"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// counts is how often each why was met. Each worker has its own, so that no two
// cores write one cache line.
type counts struct {
	n [packet.NumWhys]atomic.Uint64
	_ [64]byte
}

func (c *counts) add(why packet.Why, n uint64) { c.n[why].Add(n) }

// Counters implements backend.Backend.
func (e *Engine) Counters() backend.Counters {
	var sum [packet.NumWhys]uint64
	gather := func(c *counts) {
		for i := range c.n {
			sum[i] += c.n[i].Load()
		}
	}
	for _, w := range e.outw {
		gather(&w.counts)
	}
	for _, w := range e.inw {
		gather(&w.counts)
	}
	e.mu.Lock()
	relayw := e.relayw
	e.mu.Unlock()
	for _, w := range relayw {
		gather(&w.counts)
	}
	gather(&e.ctl.counts)
	gather(&e.acquires.counts)
	var c backend.Counters
	for i, n := range sum {
		if n != 0 && packet.Why(i) != packet.WhyOK {
			c.Whys = append(c.Whys, backend.WhyCount{Why: packet.Why(i).String(), Packets: n})
		}
	}
	slices.SortFunc(c.Whys, func(a, b backend.WhyCount) int { return cmp.Compare(a.Why, b.Why) })
	c.SAs = e.sad.AppendCounters(nil)
	slices.SortFunc(c.SAs, func(a, b ipsec.SACounters) int { return cmp.Compare(a.ID, b.ID) })
	s := e.state.Load()
	for i := range s.hits {
		if n := s.hits[i].packets.Load(); n != 0 {
			c.Rules = append(c.Rules, backend.RuleCount{Rule: s.table.Rules[i].Name, Packets: n, Bytes: s.hits[i].bytes.Load()})
		}
	}
	slices.SortFunc(c.Rules, func(a, b backend.RuleCount) int { return cmp.Compare(a.Rule, b.Rule) })
	return c
}

// Inventory implements backend.Backend.
func (e *Engine) Inventory() []backend.Installed {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]backend.Installed, 0, len(e.ins)+len(e.outs))
	for _, in := range e.ins {
		out = append(out, installed(in.SA(), &in.sel, in.path.Load(), in.Counters()))
	}
	for _, o := range e.outs {
		x := installed(o.SA(), &o.sel, o.path.Load(), o.Counters())
		x.Lease = o.lease
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b backend.Installed) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func installed(sa *sad.SA, sel *spd.Selectors, p *path, c ipsec.SACounters) backend.Installed {
	return backend.Installed{
		ID: sa.ID, Direction: sa.Direction, Protocol: sa.Protocol, SPI: sa.SPI, Mode: sa.Mode,
		Local: p.local.Addr(), Remote: p.remote.Addr(), Encap: p.encap, Suite: sa.Suite(), Selectors: sel.List(),
		Rule: sa.Rule, Peer: sa.Peer, Child: sa.Child, Counters: c,
	}
}

// Explain implements backend.Backend.
func (e *Engine) Explain(f ipsec.Flow, d ipsec.Direction) backend.Explanation {
	return e.explain(e.state.Load(), f, d)
}

func (e *Engine) explain(s *state, f ipsec.Flow, d ipsec.Direction) backend.Explanation {
	r := e.outw[0].explain(s, f, d)
	x := backend.Explanation{Flow: f, Direction: d, Action: r.verdict.Action, Why: r.why.String()}
	if r.verdict.Rule >= 0 {
		x.Rule = s.table.Rules[r.verdict.Rule].Name
	}
	switch {
	case r.verdict.Rule < 0:
		x.Detail = "no rule matches; the policy's default action decides"
	case r.verdict.Action != ipsec.ActionSecure:
		x.Detail = "rule " + x.Rule + " decides"
	case r.why == packet.WhyNesting:
		x.Detail = "rule " + x.Rule + " secures it, and what its SA sends has to be protected once more, which cannot be: the rules lead in a circle or too deep, or ESP travels in UDP or TCP that they do not cover"
	case r.out == nil && d == ipsec.Outbound:
		x.Detail = "rule " + x.Rule + " secures it and no SA carries it: the packet waits and the key manager is asked for one"
	case d == ipsec.Inbound && r.why == packet.WhyClear:
		x.Detail = "rule " + x.Rule + " secures it: a packet in clear is dropped, a protected one passes"
	case d == ipsec.Inbound:
		x.Detail = "rule " + x.Rule + " secures it and accepts it in clear too"
	}
	if r.out != nil {
		sa, p := r.out.SA(), r.out.path.Load()
		x.SA, x.SPI, x.Mode, x.Suite = sa.ID, sa.SPI, sa.Mode, sa.Suite().String()
		x.Local, x.Remote = p.local.Addr(), p.remote.Addr()
		x.Detail = "rule " + x.Rule + " secures it with " + sa.ID.String()
		if f := sends(p, sa.Protocol); s.around(f, d) != spd.NoRule {
			around := e.explain(s, f, d)
			x.Around = &around
		}
	}
	return x
}
