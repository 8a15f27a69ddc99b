package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/dataplane/sad"
	"github.com/testudo-ipsec/testudo/dataplane/spd"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// SetPolicy replaces the policy. SAs stay; one whose rule is gone carries
// nothing until it is removed.
func (e *Engine) SetPolicy(_ context.Context, p *ipsec.NodePolicy) error {
	table, err := spd.Compile(p.Rules, p.Default)
	if err != nil {
		return fmt.Errorf("policy %s of node %s: %w", p.Version, p.Node, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return backend.ErrClosed
	}
	before, number := e.policy, e.number
	e.policy = p
	e.numberRules(table)
	if err := e.redress(); err != nil {
		e.policy, e.number = before, number
		return fmt.Errorf("policy %s of node %s: %w", p.Version, p.Node, errors.Join(err, e.redress()))
	}
	e.relays = e.relaying(p)
	e.publish(table, e.byRule(table), make([]hit, len(table.Rules)))
	e.acquires.keepRules(table)
	return nil
}

// Apply implements backend.Backend. All of a batch is checked before any of it
// is done.
func (e *Engine) Apply(ops []backend.Op) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return backend.ErrClosed
	}
	plan, err := e.plan(ops)
	if err != nil {
		return err
	}
	if err := e.sad.Apply(e.cfg.Now(), plan.batch); err != nil {
		return e.culprit(ops, err)
	}
	rules := e.rulesOf(ops)
	for i, op := range ops {
		if err := e.do(op, plan); err != nil {
			// What plan and sad have accepted can fail here only for want of
			// memory or entropy; the batch is undone as far as it went.
			undo := sad.Batch{}
			for _, sa := range plan.batch.Install {
				undo.Remove = append(undo.Remove, sa.ID)
				e.forget(sa.ID)
			}
			undoErr := e.sad.Apply(e.cfg.Now(), undo)
			return &backend.OpError{Index: i, Kind: op.Kind, SA: op.Target(), Err: errors.Join(err, undoErr)}
		}
	}
	for _, sa := range plan.batch.Install {
		sa.EncrKey.Wipe()
		sa.IntegKey.Wipe()
	}
	s := e.state.Load()
	e.publish(s.table, e.changed(s.outs, rules, plan.batch.Install), s.hits)
	for _, sa := range plan.batch.Install {
		if sa.Direction == ipsec.Outbound {
			e.drain(sa.Rule)
		}
	}
	return nil
}

// plan is what a batch comes to.
type plan struct {
	batch sad.Batch
	paths map[*ipsec.SA]*path
}

// shadow is what a batch has changed so far, while it is being checked.
type shadow struct {
	removed   map[ipsec.SAID]bool
	installed map[ipsec.SAID]*ipsec.SA
	spis      map[inKey]bool
	lease     map[ipsec.SAID]uint64 // end of the last lease
	leases    map[ipsec.SAID]int    // how many leases it grants
}

func (e *Engine) plan(ops []backend.Op) (plan, error) {
	p := plan{paths: map[*ipsec.SA]*path{}}
	s := shadow{map[ipsec.SAID]bool{}, map[ipsec.SAID]*ipsec.SA{}, map[inKey]bool{}, map[ipsec.SAID]uint64{}, map[ipsec.SAID]int{}}
	for i, op := range ops {
		if err := e.check(op, &p, &s); err != nil {
			return plan{}, &backend.OpError{Index: i, Kind: op.Kind, SA: op.Target(), Err: err}
		}
	}
	return p, nil
}

func (e *Engine) check(op backend.Op, p *plan, s *shadow) error {
	switch op.Kind {
	case backend.OpInstall, backend.OpReplace:
		if op.SA == nil {
			return fmt.Errorf("%w: the operation holds none", backend.ErrNotUsable)
		}
		path, err := e.newPath(op.SA)
		if err != nil {
			return err
		}
		p.paths[op.SA] = path
		if op.Kind == backend.OpReplace {
			if !e.has(op.SA.ID, s) {
				return backend.ErrNotFound
			}
			return nil
		}
		return e.checkInstall(op.SA, p, s)
	case backend.OpRemove:
		if !e.has(op.ID, s) {
			return nil
		}
		if s.installed[op.ID] != nil {
			return fmt.Errorf("%w: it is installed by the same batch", backend.ErrExists)
		}
		s.removed[op.ID] = true
		p.batch.Remove = append(p.batch.Remove, op.ID)
		return nil
	case backend.OpLease:
		return e.checkLease(op, s)
	}
	return fmt.Errorf("%w: unknown operation", backend.ErrNotUsable)
}

func (e *Engine) checkInstall(sa *ipsec.SA, p *plan, s *shadow) error {
	if e.has(sa.ID, s) {
		return backend.ErrExists
	}
	switch sa.Direction {
	case ipsec.Inbound:
		in := e.table(sa.Protocol).lookup(sa.SPI)
		if s.spis[keyOf(sa)] || in != nil && !s.removed[in.SA().ID] {
			return fmt.Errorf("%w: inbound SPI %s", backend.ErrExists, sa.SPI)
		}
		s.spis[keyOf(sa)] = true
	case ipsec.Outbound:
		s.lease[sa.ID] = sa.Lease.Last
	}
	e.shareNames(sa)
	s.installed[sa.ID] = sa
	p.batch.Install = append(p.batch.Install, sa)
	return nil
}

// shareNames makes the names in an SA those that the policy holds already.
func (e *Engine) shareNames(sa *ipsec.SA) {
	i, ok := e.number[sa.Rule]
	if !ok {
		return
	}
	r := &e.state.Load().table.Rules[i]
	sa.Rule = r.Name
	if sa.Peer == r.Peer {
		sa.Peer = r.Peer
	}
}

func (e *Engine) checkLease(op backend.Op, s *shadow) error {
	end, esn, room := s.lease[op.ID], false, sad.MaxLeases
	switch sa, o := s.installed[op.ID], e.outs[op.ID]; {
	case sa != nil && sa.Direction == ipsec.Outbound:
		esn = sa.Suite.ESN
		if sa.Lease != (ipsec.Lease{}) {
			room--
		}
	case o != nil && !s.removed[op.ID]:
		end, esn, room = max(end, o.lease.Last), o.SA().Suite().ESN, o.LeaseRoom()
	default:
		return fmt.Errorf("outbound: %w", backend.ErrNotFound)
	}
	l := op.Lease
	switch {
	case l.First == 0 || l.First >= l.Last || !esn && l.Last > 1<<32:
		return fmt.Errorf("%w: lease [%d, %d) is empty, starts at 0 or ends past the sequence numbers", backend.ErrNotUsable, l.First, l.Last)
	case s.leases[op.ID] >= room:
		return fmt.Errorf("%w: lease [%d, %d): %d leases are waiting already", backend.ErrNotUsable, l.First, l.Last, sad.MaxLeases)
	case l.First < end:
		return fmt.Errorf("%w: [%d, %d), granted to %d", backend.ErrOverlap, l.First, l.Last, end)
	}
	s.lease[op.ID] = l.Last
	s.leases[op.ID]++
	return nil
}

func (e *Engine) has(id ipsec.SAID, s *shadow) bool {
	return s.installed[id] != nil || (e.outs[id] != nil || e.ins[id] != nil) && !s.removed[id]
}

// do makes a checked operation real. The SAD has installed and removed already.
func (e *Engine) do(op backend.Op, p plan) error {
	switch op.Kind {
	case backend.OpInstall:
		return e.install(op.SA, p.paths[op.SA])
	case backend.OpReplace:
		if o := e.outs[op.SA.ID]; o != nil {
			o.path.Store(p.paths[op.SA])
		} else if in := e.ins[op.SA.ID]; in != nil {
			in.path.Store(p.paths[op.SA])
		}
	case backend.OpRemove:
		e.forget(op.ID)
	case backend.OpLease:
		if err := e.outs[op.ID].AddLease(op.Lease); err != nil {
			return err
		}
		e.outs[op.ID].lease = op.Lease
	}
	return nil
}

func (e *Engine) install(sa *ipsec.SA, p *path) error {
	if sa.Direction == ipsec.Inbound {
		in := &inSA{Inbound: e.sad.Inbound(sa.ID), sel: spd.CompileSelectors(sa.Selectors)}
		in.path.Store(p)
		e.ins[sa.ID] = in
		e.table(sa.Protocol).put(in)
		return nil
	}
	o := &outSA{Outbound: e.sad.Outbound(sa.ID), sel: spd.CompileSelectors(sa.Selectors), lease: sa.Lease}
	o.path.Store(p)
	o.sealers = make([]sealer, len(e.outw)+1+len(e.cfg.Tun)) // one for ctl, and those that relay
	e.outs[sa.ID] = o
	return nil
}

func (e *Engine) forget(id ipsec.SAID) {
	delete(e.outs, id)
	if in := e.ins[id]; in != nil {
		delete(e.ins, id)
		// The SPI may belong to another SA of the same batch by now.
		if t := e.table(in.SA().Protocol); t.lookup(in.SA().SPI) == in {
			t.remove(in.SA().SPI)
		}
	}
}

// culprit finds the operation that made the SAD refuse a batch.
func (e *Engine) culprit(ops []backend.Op, cause error) error {
	for i, op := range ops {
		if op.Kind != backend.OpInstall {
			continue
		}
		if err := sad.New().Apply(e.cfg.Now(), sad.Batch{Install: []*ipsec.SA{op.SA}}); err != nil {
			return &backend.OpError{Index: i, Kind: op.Kind, SA: op.SA.ID, Err: fmt.Errorf("%w: %w", backend.ErrNotUsable, err)}
		}
	}
	return cause
}

// drain sends what waited for an SA of a rule. What the new SA does not cover
// waits again. The caller holds mu.
func (e *Engine) drain(rule string) {
	if waiting := e.acquires.take(rule); len(waiting) > 0 {
		e.resume(waiting)
	}
}

// resume decides anew about what has waited. The caller holds mu.
func (e *Engine) resume(waiting []waiter) {
	w := e.ctl
	defer e.panicked(&w.counts, w.forget)
	w.begin()
	for i := range waiting {
		w.relay = waiting[i].relayed
		w.packet(waiting[i].Data, waiting[i].Offload)
	}
	w.flush()
}

// AcquireFailed implements backend.Backend.
func (e *Engine) AcquireFailed(id uint64, _ string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	rule, waiting, ok := e.acquires.fail(id)
	if !ok {
		return
	}
	if r := e.rule(rule); r == nil || !r.Template.FallbackClear {
		e.acquires.counts.add(packet.WhyAcquireFail, uint64(len(waiting)))
		return
	}
	e.resume(waiting)
}
