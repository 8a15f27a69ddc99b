package engine

import (
	"bytes"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
)

// shard is one goroutine with the machines it owns.
type shard struct {
	e      *Engine
	inbox  *inbox
	timers timers
	traces traces
	buf    []byte // for machines to save themselves into, or to rest in
}

func newShard(e *Engine) *shard { return &shard{e: e, inbox: newInbox(e.cfg.Inbox)} }

func (s *shard) run() {
	var tasks, data []item
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for more := false; ; {
		if more {
			select {
			case <-s.e.closed:
				return
			default:
			}
		} else {
			select {
			case <-s.e.closed:
				return
			case <-s.inbox.wake:
			case <-timer.C:
			}
		}
		tasks, data, more = s.inbox.take(tasks, data)
		for _, it := range tasks {
			s.do(it)
		}
		for _, it := range data {
			s.do(it)
		}
		next := s.expire(time.Now())
		timer.Reset(next)
	}
}

func (s *shard) do(it item) {
	if it.fn != nil {
		it.fn()
		return
	}
	s.handle(it.cell, it.event)
}

// expire serves the deadlines that have come and returns how long until the
// next one.
func (s *shard) expire(now time.Time) time.Duration {
	for {
		c := s.timers.first()
		if c == nil {
			return time.Hour
		}
		since := now.Sub(s.e.started)
		if d := c.at - since; d > 0 {
			return d
		}
		if c.initKey != 0 && !s.halfEnd(c).After(now) {
			s.retire(c, whyTimeout)
			continue
		}
		s.handle(c, ike.Timer{})
		// A machine that does not move its deadline must not spin.
		if c.slot >= 0 && c.at <= since {
			s.timers.set(c, since+10*time.Millisecond)
		}
	}
}

// handle gives one event to a machine and performs what it asks for. It is the
// boundary at which a panic ends.
func (s *shard) handle(c *cell, ev ike.Event) {
	if c.gone {
		if cc, ok := ev.(ike.CreateChild); ok {
			c.node.negotiationLost(c, cc.Rule)
		}
		return
	}
	var effects []ike.Effect
	var deadline time.Time
	var spi uint64
	now := time.Now()
	ok := s.guard(c, func() error {
		if err := s.wake(c); err != nil {
			return err
		}
		effects = c.machine.Handle(now, ev)
		deadline = c.machine.Deadline()
		if c.spi == 0 {
			spi = c.machine.Info().LocalSPI
		}
		s.rest(c)
		return nil
	})
	if !ok {
		return
	}
	// The index knows an SPI before any datagram that carries it leaves.
	if spi != 0 {
		c.spi = spi
		s.e.index.add(spi, c)
	}
	s.trace(c, now, ev, effects)
	var spawned []*cell
	for _, f := range effects {
		if spawn, ok := f.(ike.Spawn); ok {
			spawned = append(spawned, s.adopt(c, spawn.Machine))
		}
	}
	s.setDeadline(c, deadline)
	s.letOut(c, effects, spawned)
}

// wake sees to it that a cell has its machine: a new one for its first event, and
// for a responder that rests the one that it was, with the policy of now.
func (s *shard) wake(c *cell) (err error) {
	switch {
	case c.machine != nil:
	case c.make != nil:
		if c.machine, err = c.make(); err == nil {
			c.make = nil
		}
	default:
		policy, candidates := c.node.candidates(c.remote)
		c.machine, err = s.e.cfg.Machines.Wake(c.node.env, policy, candidates, c.rest)
		clear(c.rest)
		c.rest = nil
	}
	return err
}

// rest keeps a responder that waits for its peer as octets when it is one of many, none
// of which is proven to be a friend's. While they are few, that would cost a set-up a
// tenth of its time.
func (s *shard) rest(c *cell) {
	if c.initKey == 0 || s.e.half.count() <= s.e.cfg.HalfOpenRest {
		return
	}
	b, ok := c.machine.Rest(s.buf[:0])
	s.buf = b[:0]
	if ok {
		c.machine, c.rest = nil, bytes.Clone(b)
	}
	clear(b)
}

// guard runs fn and ends the machine when fn fails or panics.
func (s *shard) guard(c *cell, fn func() error) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			ok = false
			s.e.stats.panics.Add(1)
			key := c.node.name + "/" + c.remote.String()
			if s.e.panics.allow(key, time.Now()) {
				s.e.cfg.Log.Error("IKE machine ended by a panic", "node", c.node.name, "remote", c.remote,
					"spi", fmt.Sprintf("%016x", c.spi), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			}
			c.node.abandon(c)
			s.retire(c, whyPanic)
		}
	}()
	if err := fn(); err != nil {
		c.node.failed(c, ike.Failure{Time: time.Now(), Remote: c.remote.String(), Role: role(c.initiator), Exchange: "IKE_SA_INIT",
			Why: whyMachine, Detail: err.Error(), Advice: "check the peer profile in the policy"})
		s.retire(c, whyMachine)
		return false
	}
	return true
}

func role(initiator bool) string {
	if initiator {
		return "initiator"
	}
	return "responder"
}

func (s *shard) setDeadline(c *cell, at time.Time) {
	if c.initKey != 0 {
		if end := s.halfEnd(c); at.IsZero() || end.Before(at) {
			at = end
		}
	}
	if at.IsZero() {
		s.timers.remove(c)
		return
	}
	s.timers.set(c, at.Sub(s.e.started))
}

// halfEnd is how long a responder may take to be established.
func (s *shard) halfEnd(c *cell) time.Time { return s.e.started.Add(c.began + s.e.cfg.HalfOpenTimeout) }

func (s *shard) perform(c *cell, f ike.Effect) {
	n := c.node
	switch f := f.(type) {
	case ike.Send:
		n.send(c, f.Path, f.Data)
	case ike.Install, ike.Remove, ike.Move:
		n.changeSAs(c, f)
	case ike.NeedPSK:
		s.findPSK(c, f)
	case ike.NeedKE:
		s.exchangeKeys(c, f)
	case ike.Reauthenticate:
		if info, ok := s.info(c); ok {
			n.reauthenticate(c, info.Path)
		}
	case ike.NeedAuthorities:
		s.findAuthorities(c, f)
	case ike.NeedSignature:
		s.sign(c, f)
	case ike.NeedVerification:
		s.verify(c, f)
	case ike.Spawn: // adopted before the others
	case ike.InitialContact:
		n.initialContact(c, f)
	case ike.Dropped:
		s.e.stats.drop(f.Why)
	case ike.Established:
		s.established(c)
	case ike.ChildUp:
		n.childUp(c, f.Child)
	case ike.ChildDown:
		n.childDown(c, f.Child, f.Why)
	case ike.Failed:
		n.failed(c, f.Failure)
	case ike.Done:
		s.retire(c, f.Why)
	default:
		panic(fmt.Sprintf("effect %T is not known", f))
	}
}

// adopt takes over the machine that replaces c's: same shard, same node, and
// the CHILD SAs it lists.
func (s *shard) adopt(c *cell, m ike.Machine) *cell {
	h := &cell{shard: s, node: c.node, remote: c.remote, began: time.Since(s.e.started), machine: m, slot: -1, trace: c.trace}
	var info ike.Info
	var deadline time.Time
	if !s.guard(h, func() error { info, deadline = m.Info(), m.Deadline(); return nil }) {
		return h
	}
	h.initiator, h.spi = info.Initiator, info.LocalSPI
	if h.spi != 0 {
		s.e.index.add(h.spi, h)
	}
	s.setDeadline(h, deadline)
	s.e.stats.machines.Add(1)
	c.node.adopt(c, h, info)
	return h
}

// info is a machine's snapshot; false when the machine is gone, or is now.
func (s *shard) info(c *cell) (info ike.Info, ok bool) {
	if c.gone || c.machine == nil && c.rest == nil {
		return ike.Info{}, false
	}
	ok = s.guard(c, func() error {
		if err := s.wake(c); err != nil {
			return err
		}
		info = c.machine.Info()
		s.rest(c)
		return nil
	})
	return info, ok
}

func (s *shard) established(c *cell) {
	info, ok := s.info(c)
	if !ok {
		return
	}
	if c.initKey != 0 {
		s.endHalfOpen(c)
		s.setDeadline(c, c.machine.Deadline())
	}
	s.e.stats.established.Add(1)
	c.node.warnLegacy(info.Peer, "IKE SA", info.Suite)
	s.e.stats.observe(time.Since(s.e.started) - c.began)
	c.node.established(c, info)
}

func (s *shard) endHalfOpen(c *cell) {
	if c.initKey != 0 {
		s.e.half.remove(c)
		c.initKey = 0
	}
}

// retire forgets a machine.
func (s *shard) retire(c *cell, why string) {
	if c.gone {
		return
	}
	c.gone = true
	s.forget(c)
	s.timers.remove(c)
	s.endHalfOpen(c)
	if c.spi != 0 {
		s.e.index.remove(c.spi)
	}
	var left []ike.Child
	if h := c.node.heirOf(c); h != nil {
		if info, ok := s.info(h); ok {
			left = info.Children
		}
	}
	c.machine = nil
	clear(c.rest)
	c.rest = nil
	s.e.stats.machines.Add(-1)
	c.node.retire(c, why, left)
}

// findPSK and exchangeKeys answer exactly once, at once when a pool is full.
func (s *shard) findPSK(c *cell, f ike.NeedPSK) {
	if !s.e.secrets.submit(c.source(), func() { c.post(s.e.logOptional(c, f, s.e.lookUp(f))) }) {
		s.e.stats.slowRefused.Add(1)
		c.post(s.e.logOptional(c, f, ike.PSKs{ID: f.ID, Err: errBusy}))
	}
}

func (s *shard) exchangeKeys(c *cell, f ike.NeedKE) {
	s.slow(s.e.kes, c, func() { c.post(s.e.performKE(f)) }, ike.KeyExchanged{ID: f.ID, Err: errBusy})
}

func (e *Engine) performKE(f ike.NeedKE) (a ike.KeyExchanged) {
	defer func() {
		if p := recover(); p != nil {
			e.stats.panics.Add(1)
			a = ike.KeyExchanged{ID: f.ID, Err: errors.New("the key exchange failed inside")}
		}
	}()
	return ikev2.PerformKE(e.cfg.Rand, f)
}
