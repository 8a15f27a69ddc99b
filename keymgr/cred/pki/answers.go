package pki

import (
	"context"
	"sync"
	"time"
)

// answers keeps what was fetched until it ends, bounded in number, and lets all who
// want the same wait for one fetch.
type answers[K comparable, V any] struct {
	max      int
	now      func() time.Time
	retry    time.Duration
	maxFresh time.Duration

	mu       sync.Mutex
	kept     map[K]*kept[V]
	fetches  uint64
	failures uint64
	hits     uint64
}

type kept[V any] struct {
	value V
	err   error
	until time.Time     // value or err is served before
	used  time.Time     // last
	done  chan struct{} // closed when the fetch under way has ended; nil when none is
}

func newAnswers[K comparable, V any](limit int, conf Config) *answers[K, V] {
	return &answers[K, V]{max: limit, now: conf.Now, retry: conf.Retry, maxFresh: conf.MaxFresh, kept: make(map[K]*kept[V])}
}

func (a *answers[K, V]) count() (fetches, failures, hits uint64, now int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fetches, a.failures, a.hits, len(a.kept)
}

// get returns what is kept under k, or fetches it. fetch has a deadline of its
// own, since others may wait for the same; it says until when its value holds.
func (a *answers[K, V]) get(ctx context.Context, k K, fetch func() (V, time.Time, error)) (V, error) {
	a.mu.Lock()
	e, now := a.kept[k], a.now()
	if e == nil {
		if !a.makeRoom() {
			a.mu.Unlock()
			var none V
			return none, errCrowded
		}
		e = &kept[V]{}
		a.kept[k] = e
	}
	e.used = now
	switch {
	case e.done != nil:
	case now.Before(e.until):
		a.hits++
		defer a.mu.Unlock()
		return e.value, e.err
	default:
		e.done = make(chan struct{})
		a.fetches++
		go a.run(e, fetch)
	}
	done := e.done
	a.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return e.value, e.err
}

// run fetches for e. Its caller's panic would be the whole daemon's: fetch parses
// what others wrote, in code that does not panic, and that fuzz tests show.
func (a *answers[K, V]) run(e *kept[V], fetch func() (V, time.Time, error)) {
	value, until, err := fetch()
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if err != nil {
		a.failures++
		until = now.Add(a.retry)
	} else if limit := now.Add(a.maxFresh); until.After(limit) {
		until = limit
	}
	e.value, e.err, e.until = value, err, until
	close(e.done)
	e.done = nil
}

// makeRoom keeps the bound: what was not used for longest goes. It reports false
// when everything is being fetched. a.mu is held.
func (a *answers[K, V]) makeRoom() bool {
	if len(a.kept) < a.max {
		return true
	}
	var victim K
	var oldest *kept[V]
	for k, e := range a.kept {
		if e.done == nil && (oldest == nil || e.used.Before(oldest.used)) {
			victim, oldest = k, e
		}
	}
	if oldest == nil {
		return false
	}
	delete(a.kept, victim)
	return true
}
