package cred

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// CacheOptions bound a Cache. The zero value is the defaults.
type CacheOptions struct {
	// MaxStale is how long a secret is served after the source last confirmed
	// it, while the source is away. Default 24 h.
	MaxStale time.Duration
	// Refresh is how often a secret is checked, ±20 %; at most half of MaxStale.
	// Default 5 min.
	Refresh time.Duration
	// Retry is how long a failure is remembered, ±20 %, and the least time
	// between two checks that Recheck asks for. Default 5 s.
	Retry time.Duration
	// Timeout ends a fetch that the source itself does not end. Default 10 s.
	Timeout time.Duration
	// MaxEntries bounds the references held, failures included. Default 10,000.
	MaxEntries int
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// Log takes what happens in the background; slog.Default when nil.
	Log *slog.Logger
}

func (o CacheOptions) withDefaults() CacheOptions {
	set := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	set(&o.MaxStale, 24*time.Hour)
	set(&o.Refresh, 5*time.Minute)
	o.Refresh = min(o.Refresh, o.MaxStale/2)
	set(&o.Retry, 5*time.Second)
	set(&o.Timeout, 10*time.Second)
	if o.MaxEntries <= 0 {
		o.MaxEntries = 10_000
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o
}

// CacheStats counts what a Cache did since it was made.
type CacheStats struct {
	Hits       uint64    // served without asking the source
	Stale      uint64    // served although the last check failed
	Fetches    uint64    // questions to the source
	Failures   uint64    // questions that came to nothing, a definite "not found" included
	Gone       uint64    // secrets dropped because the source said so
	Expired    uint64    // secrets dropped because MaxStale was over
	Evicted    uint64    // entries dropped because MaxEntries was reached
	Refused    uint64    // references refused because MaxEntries were all busy
	Entries    int       // references held now
	StaleNow   int       // of those: secrets whose last check failed
	OldestGood time.Time // when the longest unconfirmed secret was last confirmed
}

// Cache keeps the secrets of a Source at hand, so that a peer can be
// authenticated at once, and while the source is away (fail static):
//
//   - a definite NotFound drops a secret at once;
//   - every other failure leaves what was last good in use until MaxStale.
//     That holds for Denied and TooWeak too: a slip in Vault's policy, or a bad
//     new version, must not cut a fleet off while somebody corrects it;
//   - callers that want the same reference share one question.
//
// It is safe for concurrent use. Run is optional: without it secrets are
// checked when they are used.
type Cache struct {
	src Source
	opt CacheOptions

	mu      sync.Mutex
	entries map[string]*entry
	stats   CacheStats
}

// Format keeps every verb from reaching the secrets: fmt prints unexported
// fields without asking them how.
func (c *Cache) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[cache of secrets]") }

// entry is one reference; Cache.mu guards it.
type entry struct {
	ref      string
	reading  Reading
	verified time.Time     // when the source last confirmed reading
	due      time.Time     // when to ask next
	used     time.Time     // last asked for by a caller
	err      error         // of the last question; nil when it was answered
	flight   chan struct{} // closed when the question under way is answered
}

// NewCache makes a Cache over src.
func NewCache(src Source, opt CacheOptions) *Cache {
	return &Cache{src: src, opt: opt.withDefaults(), entries: make(map[string]*entry)}
}

// PSK implements PSKs.
func (c *Cache) PSK(ctx context.Context, ref string) ([]ipsec.Secret, error) {
	if err := ctx.Err(); err != nil {
		return nil, Errorf(Unavailable, ref, "not asked for: %w", err)
	}
	// What is not a reference may be a secret: it must not become a key of entries.
	if _, err := ParseRef(ref); err != nil {
		return nil, err
	}
	c.mu.Lock()
	now := c.opt.Now()
	e, ok := c.entries[ref]
	if !ok {
		if !c.makeRoom() {
			c.stats.Refused++
			c.mu.Unlock()
			return nil, Errorf(Unavailable, ref, "%d other secrets are being fetched; try again", c.opt.MaxEntries)
		}
		e = &entry{ref: ref, due: now}
		c.entries[ref] = e
	}
	e.used = now
	if now.Before(e.due) {
		c.stats.Hits++
		defer c.mu.Unlock()
		return c.serve(e)
	}
	flight := c.fetch(e)
	c.mu.Unlock()

	// A slow source must not fail a caller whom the cache can serve: when ctx
	// ends first, serve what is there.
	var cancelled error
	select {
	case <-flight:
	case <-ctx.Done():
		cancelled = ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if cancelled != nil && len(e.reading.Candidates) == 0 {
		return nil, Errorf(Unavailable, ref, "waiting for the secret store: %w", cancelled)
	}
	return c.serve(e)
}

// Recheck asks the source about ref before its time. An authentication that
// failed is such a hint: the peer may have the next version already. It reports
// whether the next PSK will ask; it will not when the last check is younger
// than Retry, so that a peer that fails on purpose cannot load the source.
func (c *Cache) Recheck(ref string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[ref]
	if !ok {
		return true
	}
	now := c.opt.Now()
	if now.Sub(e.verified) >= c.opt.Retry && e.err == nil {
		e.due = now
	}
	return !now.Before(e.due)
}

// Stats returns the counters.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Entries = len(c.entries)
	for _, e := range c.entries {
		if len(e.reading.Candidates) == 0 {
			continue
		}
		if e.err != nil {
			s.StaleNow++
		}
		if s.OldestGood.IsZero() || e.verified.Before(s.OldestGood) {
			s.OldestGood = e.verified
		}
	}
	return s
}

// serve answers from e as it is. c.mu is held.
func (c *Cache) serve(e *entry) ([]ipsec.Secret, error) {
	now := c.opt.Now()
	if len(e.reading.Candidates) == 0 {
		return nil, e.err
	}
	if age := now.Sub(e.verified); age > c.opt.MaxStale {
		c.drop(e)
		c.stats.Expired++
		if e.err == nil { // nobody asked since; the caller's next try will
			e.due = now
			e.err = Errorf(Unavailable, e.ref, "not confirmed for %s", age.Round(time.Second))
		}
		return nil, e.tooStale(age, c.opt.MaxStale)
	}
	if e.err != nil {
		c.stats.Stale++
	}
	secrets := make([]ipsec.Secret, 0, MaxCandidates)
	for _, cand := range e.reading.Candidates {
		if cand.NotAfter.IsZero() || now.Before(cand.NotAfter) {
			secrets = append(secrets, cand.Secret.Clone())
		}
	}
	return secrets, nil
}

func (e *entry) tooStale(age, limit time.Duration) error {
	return &Error{
		Kind: Unavailable,
		Ref:  e.ref,
		Why: "last confirmed " + age.Round(time.Second).String() + " ago, more than maxStale (" + limit.String() +
			"); the last check said: " + e.err.Error(),
		Err: e.err,
	}
}

// drop forgets and wipes the secrets of e. c.mu is held.
func (c *Cache) drop(e *entry) {
	e.reading.wipe()
	e.reading = Reading{}
}

// fetch starts a question about e, or joins the one under way. c.mu is held.
func (c *Cache) fetch(e *entry) <-chan struct{} {
	if e.flight != nil {
		return e.flight
	}
	done := make(chan struct{})
	e.flight = done
	known := e.reading.Version
	// Not the caller's context: others may wait for the same answer.
	ctx, cancel := context.WithTimeout(context.Background(), c.opt.Timeout)
	go func() {
		defer cancel()
		reading, unchanged, err := c.ask(ctx, e.ref, known)
		c.mu.Lock()
		c.settle(e, reading, unchanged, err)
		e.flight = nil
		c.mu.Unlock()
		close(done)
	}()
	return done
}

// ask puts the question to the source: the version alone when one is known.
func (c *Cache) ask(ctx context.Context, ref, known string) (r Reading, unchanged bool, err error) {
	if known != "" {
		version, err := c.src.Version(ctx, ref)
		if err == nil && version == known {
			return Reading{}, true, nil
		}
		// A store may let us read a secret but not its metadata: what a failed
		// Version means is for Read to find out, unless it was definite.
		if k := KindOf(err); err != nil && (k == Unavailable || k == NotFound) {
			return Reading{}, false, err
		}
	}
	r, err = c.src.Read(ctx, ref)
	if err == nil && (len(r.Candidates) == 0 || len(r.Candidates) > MaxCandidates) {
		r.wipe()
		err = Errorf(Invalid, ref, "the store gave %d secrets, want 1 to %d", len(r.Candidates), MaxCandidates)
	}
	return r, false, err
}

// settle writes an answer into e. c.mu is held.
func (c *Cache) settle(e *entry, r Reading, unchanged bool, err error) {
	now := c.opt.Now()
	c.stats.Fetches++
	before := e.err
	e.err = err
	if err == nil {
		if before != nil && len(e.reading.Candidates) > 0 {
			c.opt.Log.Info("secret confirmed again", "ref", e.ref)
		}
		if !unchanged {
			c.drop(e)
			e.reading = r
		}
		e.verified = now
		e.due = now.Add(jitter(c.opt.Refresh))
		return
	}
	c.stats.Failures++
	e.due = now.Add(jitter(c.opt.Retry))
	if len(e.reading.Candidates) == 0 {
		return
	}
	if KindOf(err) == NotFound {
		c.drop(e)
		c.stats.Gone++
		c.opt.Log.Warn("secret dropped: its store says that it is gone", "ref", e.ref)
	} else if before == nil {
		c.opt.Log.Warn("secret could not be checked; the last good one stays in use",
			"ref", e.ref, "why", KindOf(err).Error(), "err", err)
	}
}

// makeRoom keeps the bound before an entry is added: failures go first, then
// what was not used for longest. It reports false when every entry is in use
// by a question under way. c.mu is held.
func (c *Cache) makeRoom() bool {
	if len(c.entries) < c.opt.MaxEntries {
		return true
	}
	var victim *entry
	for _, e := range c.entries {
		if e.flight != nil {
			continue
		}
		if victim == nil || worseThan(e, victim) {
			victim = e
		}
	}
	if victim == nil {
		return false
	}
	c.drop(victim)
	delete(c.entries, victim.ref)
	c.stats.Evicted++
	return true
}

func worseThan(a, b *entry) bool {
	emptyA, emptyB := len(a.reading.Candidates) == 0, len(b.reading.Candidates) == 0
	if emptyA != emptyB {
		return emptyA
	}
	return a.used.Before(b.used)
}

// jitter spreads d by ±20 %, so that a fleet does not ask in step.
func jitter(d time.Duration) time.Duration {
	return d - d/5 + rand.N(2*d/5+1)
}
