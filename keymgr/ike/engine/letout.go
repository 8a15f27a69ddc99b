package engine

import (
	"bytes"
	"fmt"
	"hash/maphash"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/push"
	"github.com/testudo-ipsec/testudo/keymgr/store"
)

// Persist before send. What a machine asks for that others will know of (a datagram,
// an outbound SA, a removal) is done when the state that led to it is durable. A
// process that dies in between has told nobody anything: its successor is where it was
// before, and the peer, which had no answer, sends its request again.
//
// What nobody outside sees is done at once, and written with the next change: a
// response that ends an exchange of ours, for one, is not written, since its request
// may be sent again, and the peer repeats the response (RFC 7296 §2.1).

// letOut performs effects, at once or later. spawned are the machines that they made.
func (s *shard) letOut(c *cell, effects []ike.Effect, spawned []*cell) {
	d := s.e.durable
	if d == nil || len(effects) == 0 {
		s.performAll(c, effects)
		return
	}
	changes := s.snapshot(c, effects, spawned)
	if c.gone {
		return // it failed inside
	}
	if c.pending == 0 && (len(changes) == 0 || !visible(effects)) {
		if len(changes) != 0 {
			d.submit(changes, nil)
		}
		s.performAll(c, effects)
		return
	}
	c.pending++
	c.node.prepare(c, effects, changes, func() {
		s.inbox.post(item{fn: func() {
			c.pending--
			for _, f := range effects {
				if !c.gone && !prepared(f) {
					s.perform(c, f)
				}
			}
		}})
	})
}

// prepared reports an effect that prepare sees to.
func prepared(f ike.Effect) bool {
	switch f.(type) {
	case ike.Send, ike.Install, ike.Remove, ike.Move:
		return true
	}
	return false
}

// prepare does what effects on SAs change here, and has it written in one batch with
// the machine's changes, so that a set-up waits for the disk once. When that is durable
// the messages leave, the worker is told, and then is called. In this order: a peer is
// to hear of a CHILD SA before it is sent on.
func (n *node) prepare(c *cell, effects []ike.Effect, changes []store.Change, then func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.preparing = true
	for _, f := range effects {
		switch f := f.(type) {
		case ike.Install:
			n.install(c, f)
		case ike.Remove:
			n.remove(f.SAs)
		case ike.Move:
			n.move(f)
		}
	}
	n.preparing = false
	out := n.prepared
	n.prepared = nil
	// Under mu, as all records of SAs: what is written later must be the later state.
	n.e.durable.submitMany(append(n.records(), changes...), func() {
		n.deliver(c, effects, out)
		then()
	})
}

// deliver lets out what is durable, messages of a machine that is still there included: on
// the writer's goroutine, so that the worker gets all that changes its SAs in the
// order in which it was decided.
func (n *node) deliver(c *cell, effects []ike.Effect, out []func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range effects {
		if f, ok := f.(ike.Send); ok && n.cells[c] {
			n.sendNow(c, f.Path, f.Data)
		}
	}
	for _, f := range out {
		f()
	}
	n.flush()
}

func (s *shard) performAll(c *cell, effects []ike.Effect) {
	for _, f := range effects {
		if c.gone {
			return // its SAs were dealt with when it went
		}
		s.perform(c, f)
	}
}

// visible reports effects that tell somebody outside.
func visible(effects []ike.Effect) bool {
	for _, f := range effects {
		switch f := f.(type) {
		case ike.Send, ike.Remove, ike.Move:
			return true
		case ike.Install:
			for _, sa := range f.SAs {
				if sa.Direction == ipsec.Outbound {
					return true
				}
			}
		}
	}
	return false
}

// milestone reports effects after which a machine is worth writing though nobody
// outside knows.
func milestone(effects []ike.Effect) bool {
	for _, f := range effects {
		switch f.(type) {
		case ike.ChildUp, ike.ChildDown, ike.Established, ike.Spawn, ike.Done:
			return true
		}
	}
	return false
}

// snapshot writes out what has changed of a machine, and of those that it spawned.
func (s *shard) snapshot(c *cell, effects []ike.Effect, spawned []*cell) []store.Change {
	if !visible(effects) && !milestone(effects) {
		return nil
	}
	var changes []store.Change
	for _, x := range append(spawned, c) {
		if x.machine == nil {
			continue
		}
		s.guard(x, func() error {
			b, ok := x.machine.Save(s.buf[:0])
			s.buf = b[:0]
			ok = ok && len(b) <= store.MaxValue // larger than any peer needs: it will not be resumed
			switch sum := maphash.Bytes(s.e.seed, b); {
			case !ok && x.saved:
				changes = append(changes, store.Change{Key: keyMachine(x.spi, x.node.name)})
				x.saved = false
			case ok && (!x.saved || x.sum != sum):
				changes = append(changes, store.Change{Key: keyMachine(x.spi, x.node.name), Value: bytes.Clone(b)})
				x.saved, x.sum = true, sum
			}
			clear(b)
			return nil
		})
	}
	return changes
}

// forget removes the record of a machine that ended without an effect of its own.
func (s *shard) forget(c *cell) {
	if c.saved {
		c.saved = false
		s.e.durable.submit([]store.Change{{Key: keyMachine(c.spi, c.node.name)}}, nil)
	}
}

// stage queues operations for the worker, when what they rest on is durable: a lease
// above all, which must be on the disk before anyone uses a number of it. The caller
// holds node.mu, and flushes. Without a worker an Install effect waits for one.
func (n *node) stage(g push.Group[*errand]) {
	d, s := n.e.durable, n.session
	switch {
	case s == nil:
		if g.Owner.cell != nil {
			n.waiting = append(n.waiting, g.Owner)
		} // else the next Attach finds the difference
		n.persist()
		return
	case d == nil || n.mayPrecede(g):
		n.queue.Add(g)
		return
	}
	if !g.Owner.allFresh() {
		n.changing++
	}
	out := func() {
		if !g.Owner.allFresh() {
			n.changing--
		}
		switch {
		case n.session == s:
			n.queue.Add(g)
		case g.Owner.cell == nil: // the next Attach finds the difference
		case n.detached():
			n.fail(g.Owner, fmt.Errorf("the worker of node %q went away", n.name))
		case n.session == nil:
			n.waiting = append(n.waiting, g.Owner)
		default:
			n.again(g.Owner)
		}
	}
	if n.preparing {
		n.prepared = append(n.prepared, out)
		return
	}
	d.submitMany(n.records(), func() { n.deliver(nil, nil, []func(){out}) })
}

// mayPrecede reports a group that the worker may have before it is written: inbound
// SAs that are new. No lease is with them, and a worker that has one which the key
// manager forgot is told to remove it. Only its number must not be given again. It
// must not overtake what changes or removes an SA, which may have its SPI.
func (n *node) mayPrecede(g push.Group[*errand]) bool {
	if !g.Owner.allFresh() || n.changing != 0 {
		return false
	}
	for _, op := range g.Ops {
		if in, ok := op.(push.Install); !ok || in.SA.Direction != ipsec.Inbound || uint64(in.SA.ID) > n.e.durable.reserved.Load() {
			return false
		}
	}
	return true
}

// records are the changes of the node's SAs since the last call.
func (n *node) records() []store.Change {
	var out []store.Change
	for _, r := range n.sadb.Changes() {
		if len(r.Octets) > store.MaxValue {
			r.Octets = nil // as in snapshot
		}
		out = append(out, store.Change{Key: keySA(r.ID, n.name), Value: r.Octets})
	}
	return out
}

// persist writes them down with nobody waiting.
func (n *node) persist() {
	if d := n.e.durable; d != nil && !n.preparing {
		if r := n.records(); len(r) != 0 {
			d.submitMany(r, nil)
		}
	}
}
