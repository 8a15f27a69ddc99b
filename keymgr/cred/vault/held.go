package vault

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// held keeps what Vault gave, by reference, until it ends, and replaces it before:
// in the background, so that nobody waits for a Vault that is away while what is
// there still holds. Who wants what is not there yet shares one question.
type held[T any] struct {
	what string // for the log
	now  func() time.Time
	log  *slog.Logger
	max  int
	ask  func(ctx context.Context, ref string) (T, term, error)

	mu    sync.Mutex
	byRef map[string]*holding[T]
	stats HeldStats
}

// term is how long something holds.
type term struct {
	renew time.Time // ask again then
	ends  time.Time // of no use from then on
}

type holding[T any] struct {
	ref    string
	value  T
	term   term // zero when there is no value
	err    error
	retry  time.Time // after a failure, do not ask before
	used   time.Time
	asking chan struct{} // closed when the question under way is answered
}

// HeldStats counts what became of certificates from Vault.
type HeldStats struct {
	Issued   uint64    // questions answered: certificates signed, or anchors read
	Failures uint64    // questions that failed
	Held     int       // references with something that holds now
	Overdue  int       // of those, whose replacement fails
	NextEnd  time.Time // the first end of one of those
}

const (
	heldRetry = 10 * time.Second
	maxHeld   = 10_000
)

// get returns what is held for ref, asking when there is nothing.
func (h *held[T]) get(ctx context.Context, ref string) (T, error) {
	var none T
	h.mu.Lock()
	now := h.now()
	e := h.byRef[ref]
	if e == nil {
		if !h.makeRoom() {
			h.mu.Unlock()
			return none, cred.Errorf(cred.Unavailable, ref, "%d other references are being asked about; try again", h.max)
		}
		e = &holding[T]{ref: ref}
		h.byRef[ref] = e
	}
	e.used = now
	if now.Before(e.term.ends) {
		if !now.Before(e.term.renew) {
			h.start(e)
		}
		defer h.mu.Unlock()
		return e.value, nil
	}
	if e.asking == nil && e.err != nil && now.Before(e.retry) {
		defer h.mu.Unlock()
		return none, e.err
	}
	h.start(e)
	asking := e.asking
	h.mu.Unlock()
	select {
	case <-asking:
	case <-ctx.Done():
		return none, cred.Errorf(cred.Unavailable, ref, "waiting for Vault: %w", ctx.Err())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if e.err != nil {
		return none, e.err
	}
	return e.value, nil
}

// start asks about e unless that is under way, or failed a moment ago. h.mu is
// held.
func (h *held[T]) start(e *holding[T]) {
	if e.asking != nil || h.now().Before(e.retry) && h.now().Before(e.term.ends) {
		return
	}
	done := make(chan struct{})
	e.asking = done
	go func() {
		// Not the caller's context: others may wait for the same. Each question
		// has a deadline of its own.
		value, term, err := h.ask(context.Background(), e.ref)
		h.mu.Lock()
		h.settle(e, value, term, err)
		e.asking = nil
		h.mu.Unlock()
		close(done)
	}()
}

// settle takes an answer into e. h.mu is held.
func (h *held[T]) settle(e *holding[T], value T, t term, err error) {
	now := h.now()
	before := e.err
	e.err = err
	if err != nil {
		h.stats.Failures++
		if cred.KindOf(err) == cred.NotFound { // Vault has said so: what was there is withdrawn
			var none T
			e.value, e.term = none, term{}
		}
		e.retry = now.Add(heldRetry - heldRetry/5 + rand.N(2*heldRetry/5))
		if now.Before(e.term.ends) && before == nil {
			h.log.Warn(h.what+" could not be replaced; the last one stays in use until it ends", "ref", e.ref, "ends", e.term.ends, "err", err)
		}
		return
	}
	h.stats.Issued++
	e.value, e.term, e.retry = value, t, time.Time{}
	h.log.Info(h.what+" from Vault", "ref", e.ref, "ends", t.ends)
}

// run replaces what is due and was used since it came, until ctx ends.
func (h *held[T]) run(ctx context.Context, pause time.Duration) {
	for sleep(ctx, pause-pause/5+rand.N(2*pause/5+1)) {
		h.mu.Lock()
		now := h.now()
		for ref, e := range h.byRef {
			switch {
			case e.asking != nil:
			case !now.Before(e.term.ends) && now.After(e.retry):
				delete(h.byRef, ref) // nobody asked since; the next one to ask starts anew
			case now.Before(e.term.ends) && !now.Before(e.term.renew):
				h.start(e)
			}
		}
		h.mu.Unlock()
	}
}

// makeRoom keeps the bound: what was not used for longest goes. h.mu is held.
func (h *held[T]) makeRoom() bool {
	if len(h.byRef) < h.max {
		return true
	}
	var oldest *holding[T]
	for _, e := range h.byRef {
		if e.asking == nil && (oldest == nil || e.used.Before(oldest.used)) {
			oldest = e
		}
	}
	if oldest == nil {
		return false
	}
	delete(h.byRef, oldest.ref)
	return true
}

func (h *held[T]) count() HeldStats {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, now := h.stats, h.now()
	for _, e := range h.byRef {
		if !now.Before(e.term.ends) {
			continue
		}
		s.Held++
		if e.err != nil {
			s.Overdue++
		}
		if s.NextEnd.IsZero() || e.term.ends.Before(s.NextEnd) {
			s.NextEnd = e.term.ends
		}
	}
	return s
}
