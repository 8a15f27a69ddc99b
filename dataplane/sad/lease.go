package sad

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// MaxLeases bounds the leases that wait behind the one in use.
const MaxLeases = 8

// leases hands out sequence numbers. Several goroutines take from the lease in
// use without a lock; the lock is for moving on to the next one. A number leaves
// here at most once: within a lease by compare-and-swap, between leases because
// each starts at or after the end of the one before.
type leases struct {
	cur atomic.Pointer[lease]

	mu      sync.Mutex
	waiting []ipsec.Lease
	end     uint64 // Last of the newest lease: the next may not start before it
	top     uint64 // highest number used from leases before the current one
	low     atomic.Bool
	esn     bool
}

// lease is a range in use. Numbers from warn on are the last quarter.
type lease struct {
	next        atomic.Uint64
	first, last uint64
	warn        uint64
}

// add queues a lease.
func (l *leases) add(x ipsec.Lease) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case x.First == 0 || x.First >= x.Last:
		return fmt.Errorf("lease [%d, %d): want a range that starts at 1 or above and is not empty", x.First, x.Last)
	case x.First < l.end:
		return fmt.Errorf("lease [%d, %d) overlaps or precedes one granted before, which ended at %d: a sequence number would be used twice", x.First, x.Last, l.end)
	case !l.esn && x.Last > 1<<32: // exclusive: numbers to 2^32-1
		return fmt.Errorf("lease [%d, %d) ends past the sequence number space, which ends at %d", x.First, x.Last, uint64(1<<32))
	case len(l.waiting) == MaxLeases:
		return fmt.Errorf("lease [%d, %d): %d leases are waiting already", x.First, x.Last, MaxLeases)
	}
	l.waiting = append(l.waiting, x)
	l.end = x.Last
	l.low.Store(false)
	return nil
}

// take reserves up to n numbers in one row. granted is 0 when no lease is left.
// low says, once per lease added, that it is time to ask for another.
func (l *leases) take(n uint64) (first, granted uint64, low bool) {
	for {
		c := l.cur.Load()
		if c != nil {
			for next := c.next.Load(); next < c.last; next = c.next.Load() {
				granted = min(n, c.last-next)
				if c.next.CompareAndSwap(next, next+granted) {
					return next, granted, next+granted >= c.warn && l.isLow()
				}
			}
		}
		if !l.advance(c) {
			return 0, 0, l.isLow()
		}
	}
}

// isLow reports, once, that nothing waits behind the lease in use.
func (l *leases) isLow() bool {
	if l.low.Load() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.waiting) == 0 && !l.low.Swap(true)
}

// advance moves on from the spent lease old, unless somebody else has.
func (l *leases) advance(old *lease) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cur.Load() != old {
		return true
	}
	if len(l.waiting) == 0 {
		return false
	}
	if old != nil {
		l.top = old.last - 1
	}
	x := l.waiting[0]
	l.waiting = l.waiting[1:]
	c := &lease{first: x.First, last: x.Last, warn: x.Last - (x.Last-x.First)/4}
	c.next.Store(x.First)
	l.cur.Store(c)
	return true
}

// used is the highest number taken, 0 for none.
func (l *leases) used() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.cur.Load(); c != nil {
		if next := c.next.Load(); next > c.first {
			return next - 1
		}
	}
	return l.top
}

// room is how many leases may still be added.
func (l *leases) room() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return MaxLeases - len(l.waiting)
}

// left is how many numbers may still be taken.
func (l *leases) left() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n uint64
	if c := l.cur.Load(); c != nil {
		n = c.last - c.next.Load()
	}
	for _, x := range l.waiting {
		n += x.Last - x.First
	}
	return n
}
