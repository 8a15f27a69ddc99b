package engine

import (
	"bytes"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/dataplane/spd"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Bounds of what waits for SAs.
const (
	maxAcquires   = 1024
	maxWaitEach   = 16
	maxWaitAll    = 1024
	maxWaitOctets = 4 << 20

	acquireTimeout = 30 * time.Second
	// holdDown is how long after a failure packets are dropped at once, so that
	// a peer that refuses is not asked for every packet.
	holdDown = time.Second
)

// acquires is the table of rules and address pairs that wait for an SA. It is
// off the fast path, behind a lock.
type acquires struct {
	e      *Engine
	counts counts

	mu     sync.Mutex
	nextID uint64
	byKey  map[acquireKey]*acquire
	byID   map[uint64]*acquire
	oldest []*acquire // in order of birth; may hold ones that are gone
	queued int
	octets int
}

// acquireKey: one negotiation covers all ports of two addresses under a rule,
// as the SA's selectors come from the rule.
type acquireKey struct {
	rule string
	flow ipsec.Flow // without ports
}

type acquire struct {
	id      uint64
	key     acquireKey
	born    time.Time
	failed  time.Time // zero while it is under way
	clear   time.Time // until when the rule falls back to clear
	waiting []waiter
}

type waiter struct {
	netio.Packet
	relayed bool
}

func (a *acquires) init(e *Engine) {
	a.e = e
	a.byKey = map[acquireKey]*acquire{}
	a.byID = map[uint64]*acquire{}
}

// add queues a packet, and raises an acquire when there is none. It returns
// WhyAcquiring for a packet that waits, WhyOK for one that is to go in clear,
// and another reason for one that is dropped. stale says that the decision to
// come here was made on a state that is no longer current (the SA may have been
// installed, and the queue drained): nothing was done, decide again.
func (a *acquires) add(stamp uint64, rule *ipsec.Rule, flow ipsec.Flow, p waiter) (why packet.Why, stale bool) {
	key := acquireKey{rule.Name, flow}
	key.flow.LocalPort, key.flow.RemotePort, key.flow.Protocol = 0, 0, 0
	now := a.e.cfg.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.e.state.Load().stamp != stamp {
		return packet.WhyOK, true
	}
	q := a.byKey[key]
	if q != nil && !q.failed.IsZero() {
		switch {
		case rule.Template.FallbackClear && now.Before(q.clear):
			return packet.WhyOK, false
		case now.Sub(q.failed) < holdDown:
			return packet.WhyAcquireFail, false
		}
		a.drop(q, packet.WhyAcquireFail)
		q = nil
	}
	if q == nil {
		if len(a.byKey) >= maxAcquires {
			return packet.WhyQueueFull, false
		}
		a.nextID++
		q = &acquire{id: a.nextID, key: key, born: now}
		a.byKey[key], a.byID[q.id] = q, q
		a.oldest = append(a.oldest, q)
		a.e.cfg.Emit(backend.Acquire{ID: q.id, Rule: rule.Name, Peer: rule.Peer, Flow: flow})
	}
	if len(q.waiting) == maxWaitEach {
		a.dropOldest(q)
	}
	for (a.queued >= maxWaitAll || a.octets+len(p.Data) > maxWaitOctets) && a.makeRoom() {
	}
	p.Data = bytes.Clone(p.Data)
	q.waiting = append(q.waiting, p)
	a.queued++
	a.octets += len(p.Data)
	a.counts.add(packet.WhyAcquiring, 1)
	return packet.WhyAcquiring, false
}

// dropOldest drops the packet that has waited longest for q.
func (a *acquires) dropOldest(q *acquire) {
	a.queued--
	a.octets -= len(q.waiting[0].Data)
	q.waiting = q.waiting[1:]
	a.counts.add(packet.WhyQueueFull, 1)
}

// makeRoom drops one packet of the acquire that was raised first.
func (a *acquires) makeRoom() bool {
	for _, q := range a.oldest {
		if len(q.waiting) > 0 {
			a.dropOldest(q)
			return true
		}
	}
	return false
}

// drop forgets an acquire, and counts what waited.
func (a *acquires) drop(q *acquire, why packet.Why) {
	a.counts.add(why, uint64(len(q.waiting)))
	a.unlink(q)
}

func (a *acquires) unlink(q *acquire) {
	a.queued -= len(q.waiting)
	for i := range q.waiting {
		a.octets -= len(q.waiting[i].Data)
	}
	delete(a.byKey, q.key)
	delete(a.byID, q.id)
	for i, o := range a.oldest {
		if o == q {
			a.oldest = append(a.oldest[:i], a.oldest[i+1:]...)
			break
		}
	}
}

// take removes the acquires of a rule and returns what waited for them.
func (a *acquires) take(rule string) []waiter {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []waiter
	for i := 0; i < len(a.oldest); {
		q := a.oldest[i]
		if q.key.rule != rule {
			i++
			continue
		}
		out = append(out, q.waiting...)
		a.unlink(q)
	}
	return out
}

// fail marks an acquire as failed and returns what waited.
func (a *acquires) fail(id uint64) (rule string, waiting []waiter, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.byID[id]
	if q == nil || !q.failed.IsZero() {
		return "", nil, false
	}
	q.failed = a.e.cfg.Now()
	q.clear = q.failed
	if r := a.e.rule(q.key.rule); r != nil && r.Template.FallbackClear {
		q.clear = q.failed.Add(a.e.cfg.FallbackFor)
	}
	waiting, q.waiting = q.waiting, nil
	a.queued -= len(waiting)
	for i := range waiting {
		a.octets -= len(waiting[i].Data)
	}
	return q.key.rule, waiting, true
}

// expire drops what has waited too long, and forgets failures that are over.
func (a *acquires) expire(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := 0; i < len(a.oldest); {
		q := a.oldest[i]
		switch {
		case q.failed.IsZero() && now.Sub(q.born) >= acquireTimeout:
			a.drop(q, packet.WhyQueueExpired)
		case !q.failed.IsZero() && now.Sub(q.failed) >= holdDown && !now.Before(q.clear):
			a.drop(q, packet.WhyAcquireFail)
		default:
			i++
		}
	}
}

// keepRules drops what waits for a rule that a new policy does not have.
func (a *acquires) keepRules(t *spd.Table) {
	secure := make(map[string]bool, len(t.Rules))
	for i := range t.Rules {
		secure[t.Rules[i].Name] = t.Rules[i].Action == ipsec.ActionSecure
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := 0; i < len(a.oldest); {
		if q := a.oldest[i]; !secure[q.key.rule] {
			a.drop(q, packet.WhyAcquireFail)
			continue
		}
		i++
	}
}

// rule finds a secure rule of the current policy by name.
func (e *Engine) rule(name string) *ipsec.Rule {
	s := e.state.Load()
	for i := range s.table.Rules {
		if r := &s.table.Rules[i]; r.Name == name && r.Action == ipsec.ActionSecure {
			return r
		}
	}
	return nil
}
