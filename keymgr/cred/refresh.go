package cred

import (
	"context"
	"slices"
	"time"
)

// Run checks the secrets that are held, each when it is due, until ctx ends.
// One question is under way at a time, and a source that is away ends the
// round: the background must never crowd out a peer that waits.
func (c *Cache) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		c.round(ctx)
		timer.Reset(c.pause())
	}
}

// round checks what is due now, what waits longest first.
func (c *Cache) round(ctx context.Context) {
	for _, e := range c.due() {
		c.mu.Lock()
		if c.entries[e.ref] != e { // evicted since
			c.mu.Unlock()
			continue
		}
		flight := c.fetch(e)
		c.mu.Unlock()
		select {
		case <-flight:
		case <-ctx.Done():
			return
		}
		c.mu.Lock()
		err := e.err
		c.mu.Unlock()
		if Retryable(err) {
			return
		}
	}
}

// due lists the entries to check, of those that hold a secret: failures are
// asked about again only by who needs them. It wipes what MaxStale has ended.
func (c *Cache) due() []*entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.opt.Now()
	var due []*entry
	for _, e := range c.entries {
		switch {
		case len(e.reading.Candidates) == 0 || e.due.After(now):
		case e.err != nil && now.Sub(e.verified) > c.opt.MaxStale:
			c.drop(e)
			c.stats.Expired++
		default:
			due = append(due, e)
		}
	}
	slices.SortFunc(due, func(a, b *entry) int { return a.due.Compare(b.due) })
	return due
}

// pause is the time between rounds: short enough that a check comes within the
// jitter of its time, and that secrets are wiped soon after MaxStale.
func (c *Cache) pause() time.Duration {
	return max(jitter(c.opt.Refresh/20), 10*time.Millisecond)
}
