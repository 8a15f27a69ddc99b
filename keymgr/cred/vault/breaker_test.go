package vault

import (
	"testing"
	"time"
)

func TestBreaker(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	allowed := func(b *breaker) bool {
		ok, _, _ := b.allow(now)
		return ok
	}
	var b breaker
	for i := range breakerThreshold {
		if !allowed(&b) {
			t.Fatalf("closed to question %d before the threshold", i)
		}
		b.failure(now, "away")
	}
	ok, wait, why := b.allow(now)
	if ok || why != "away" || wait < breakerBase/2 || wait > breakerBase {
		t.Fatalf("after %d failures: allow = %t, %s, %q; want a pause of %s to %s", breakerThreshold, ok, wait, why, breakerBase/2, breakerBase)
	}
	// A slow question from before it opened does not prolong the pause.
	b.failure(now, "away")
	if _, again, _ := b.allow(now); again != wait {
		t.Errorf("the pause moved from %s to %s", wait, again)
	}

	now = now.Add(wait)
	if !allowed(&b) {
		t.Fatal("no probe after the pause")
	}
	if allowed(&b) {
		t.Fatal("two probes at a time")
	}
	b.abandon()
	if !allowed(&b) {
		t.Fatal("no probe after the first one's caller left")
	}

	// Pauses double, up to the maximum.
	for limit := 2 * breakerBase; limit < 64*breakerMax; limit *= 2 {
		b.failure(now, "away")
		_, wait, _ := b.allow(now)
		if most := min(limit, breakerMax); wait < most/2 || wait > most {
			t.Fatalf("a pause of %s, want %s to %s", wait, most/2, most)
		}
		now = now.Add(wait)
		if !allowed(&b) {
			t.Fatal("no probe after the pause")
		}
	}
	b.success()
	for range breakerThreshold - 1 {
		if !allowed(&b) {
			t.Fatal("not closed after a success")
		}
		b.failure(now, "away")
	}
	if !allowed(&b) {
		t.Fatal("failures from before the success count")
	}
}

func TestBreakerHoldsForARateLimit(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for asked, want := range map[time.Duration]time.Duration{
		7 * time.Second: 7 * time.Second,
		time.Hour:       breakerMax,
	} {
		var b breaker
		b.hold(now, asked, "429")
		if _, wait, _ := b.allow(now); wait != want {
			t.Errorf("asked to wait for %s: pause of %s, want %s", asked, wait, want)
		}
	}
}
