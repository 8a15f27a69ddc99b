package engine

import (
	"bytes"
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
	d.submit(changes, func() {
		s.inbox.post(item{fn: func() {
			c.pending--
			s.performAll(c, effects)
		}})
	})
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
// holds node.mu, and flushes.
func (n *node) stage(g push.Group[*errand]) {
	d := n.e.durable
	if d == nil {
		n.queue.Add(g)
		return
	}
	s := n.session
	d.submitMany(n.records(), func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		switch {
		case n.session == s && s != nil:
			n.queue.Add(g)
			n.flush()
		case g.Owner.cell == nil: // the next Attach finds the difference
		case n.session == nil:
			n.waiting = append(n.waiting, g.Owner)
		default:
			n.again(g.Owner)
		}
	})
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
	if d := n.e.durable; d != nil {
		if r := n.records(); len(r) != 0 {
			d.submitMany(r, nil)
		}
	}
}
