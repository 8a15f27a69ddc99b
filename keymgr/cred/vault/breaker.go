package vault

import (
	"math/rand/v2"
	"sync"
	"time"
)

const (
	breakerThreshold = 3                      // failures in a row that open it
	breakerBase      = 500 * time.Millisecond // the first pause; each next one doubles
	breakerMax       = 30 * time.Second
)

// breaker keeps questions from a Vault that fails: it opens after
// breakerThreshold failures in a row, and after a pause lets one question
// through to probe. The zero value is closed.
type breaker struct {
	mu       sync.Mutex
	failures int       // in a row
	pauses   int       // in a row, for the doubling
	until    time.Time // when the next probe may go; zero when closed
	probing  bool
	why      string // of the last failure
	opened   uint64 // how often, ever
}

// allow reports whether a question may go now. If it may, success, failure,
// hold or abandon must follow. If not, it says for how long, and why.
func (b *breaker) allow(now time.Time) (ok bool, wait time.Duration, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.until.IsZero() {
		return true, 0, ""
	}
	if now.Before(b.until) {
		return false, b.until.Sub(now), b.why
	}
	if b.probing {
		return false, 0, b.why
	}
	b.probing = true
	return true, 0, ""
}

// success: Vault answered, whatever it said.
func (b *breaker) success() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures, b.pauses, b.until, b.probing, b.why = 0, 0, time.Time{}, false, ""
}

// failure: Vault did not answer, or said that it cannot.
func (b *breaker) failure(now time.Time, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.why = why
	b.failures++
	switch {
	case b.probing:
		b.pause(now, 0)
	case b.until.IsZero() && b.failures >= breakerThreshold:
		b.pause(now, 0)
	}
}

// hold: Vault asked to be left alone for d (a rate limit), or for as long as we
// think when d is zero.
func (b *breaker) hold(now time.Time, d time.Duration, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.why = why
	b.pause(now, d)
}

// abandon: the caller went away before there was an answer.
func (b *breaker) abandon() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
}

func (b *breaker) pause(now time.Time, atLeast time.Duration) {
	d := min(breakerBase<<min(b.pauses, 10), breakerMax)
	// Half fixed, half random: a fleet that lost the same Vault comes back spread.
	d = d/2 + rand.N(d/2+1)
	b.until = now.Add(min(max(d, atLeast), breakerMax))
	b.pauses++
	b.opened++
	b.probing = false
}

func (b *breaker) state(now time.Time) (open bool, opened uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return now.Before(b.until), b.opened
}
