package engine

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// maxWhys bounds the whys that are told apart: they are constants, but some
// come from machines.
const maxWhys = 256

var handshakeBounds = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}

// counters are behind Stats.
type counters struct {
	received, sent, inboxFull, panics, cookiesSent, established, childrenUp       atomic.Uint64
	acquires, acquiresFailed, installs, nacks, grants, leasesRefused, slowRefused atomic.Uint64
	restored, tooOld                                                              atomic.Uint64
	eventsDropped, legacy                                                         atomic.Uint64
	machines                                                                      atomic.Int64

	mu         sync.Mutex
	drops      map[string]uint64
	failures   map[string]uint64
	handshakes Histogram
}

func (c *counters) init() {
	c.drops = make(map[string]uint64)
	c.failures = make(map[string]uint64)
	c.handshakes = Histogram{Bounds: handshakeBounds, Counts: make([]uint64, len(handshakeBounds)+1)}
}

func (c *counters) drop(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	bump(c.drops, why)
}

func (c *counters) failed(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	bump(c.failures, why)
}

func bump(m map[string]uint64, why string) {
	if _, ok := m[why]; !ok && len(m) >= maxWhys {
		why = "OTHER"
	}
	m[why]++
}

func (c *counters) observe(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, s, i := &c.handshakes, d.Seconds(), 0
	for i < len(h.Bounds) && s > h.Bounds[i] {
		i++
	}
	h.Counts[i]++
	h.Sum += s
}

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	c := &e.stats
	s := Stats{
		Received: c.received.Load(), Sent: c.sent.Load(), InboxFull: c.inboxFull.Load(), Panics: c.panics.Load(),
		CookiesSent: c.cookiesSent.Load(), Established: c.established.Load(), ChildrenUp: c.childrenUp.Load(),
		Acquires: c.acquires.Load(), AcquiresFailed: c.acquiresFailed.Load(), Installs: c.installs.Load(), Nacks: c.nacks.Load(),
		Grants: c.grants.Load(), LeasesRefused: c.leasesRefused.Load(), SlowRefused: c.slowRefused.Load(),
		EventsDropped: c.eventsDropped.Load(), Legacy: c.legacy.Load(), Machines: uint64(max(c.machines.Load(), 0)),
	}
	s.Restored, s.TooOld = c.restored.Load(), c.tooOld.Load()
	if d := e.durable; d != nil {
		s.Commits, s.RecordsWritten, s.OctetsWritten, s.CommitErrors = d.commits.Load(), d.records.Load(), d.written.Load(), d.errors.Load()
		s.CommitWait = time.Duration(d.waited.Load())
		s.StateFailing = d.failing.Load()
	}
	c.mu.Lock()
	s.Drops, s.Failures = maps.Clone(c.drops), maps.Clone(c.failures)
	s.Handshakes = Histogram{Bounds: handshakeBounds, Counts: append([]uint64(nil), c.handshakes.Counts...), Sum: c.handshakes.Sum}
	c.mu.Unlock()
	e.half.mu.Lock()
	s.HalfOpen = uint64(len(e.half.cells))
	e.half.mu.Unlock()
	for _, n := range e.allNodes() {
		n.mu.Lock()
		if n.session != nil {
			s.Workers++
		}
		s.SADesired += uint64(n.sadb.Desired())
		s.SAInstalled += uint64(n.sadb.Installed())
		s.Orphans += uint64(n.sadb.Orphans())
		n.mu.Unlock()
	}
	return s
}
