package sad

import (
	"container/heap"
	"slices"
	"time"
)

// timeLimits are the limits that time alone meets.
var timeLimits = [...]limit{softTime, softUse, hardTime, hardUse}

// deadlines orders SAs by their next time limit. SAD.mu guards it.
type deadlines struct{ h dueHeap }

func (d *deadlines) add(c *common) {
	if c.due() != 0 {
		heap.Push(&d.h, c)
	}
}

// begin adds the limits of SAs that have carried their first packet.
func (d *deadlines) begin(begun []*common) {
	for _, c := range begun {
		if c.dead.Load() != 0 {
			continue // it has met a hard limit, or is removed
		}
		c.setAt(softUse, c.first.Load(), c.limits.useSoft)
		c.setAt(hardUse, c.first.Load(), c.limits.useHard)
		if c.heapAt != 0 {
			heap.Fix(&d.h, int(c.heapAt)-1)
		} else {
			d.add(c)
		}
	}
}

// setAt notes that a limit is met after some time, unless that is 0, and returns when.
func (c *common) setAt(l limit, from int64, after time.Duration) int64 {
	if after == 0 {
		return 0
	}
	at := from + int64(after)
	c.at[slices.Index(timeLimits[:], l)] = at
	return at
}

// due is the next time limit in Unix nanoseconds, 0 for none.
func (c *common) due() (next int64) {
	for _, at := range c.at {
		if at != 0 && (next == 0 || at < next) {
			next = at
		}
	}
	return next
}

func (d *deadlines) remove(c *common) {
	if c.heapAt != 0 {
		heap.Remove(&d.h, int(c.heapAt)-1)
	}
}

func (d *deadlines) next() (time.Time, bool) {
	if len(d.h) == 0 {
		return time.Time{}, false
	}
	return time.Unix(0, d.h[0].due()), true
}

func (d *deadlines) advance(now time.Time) {
	t := now.UnixNano()
	for len(d.h) > 0 && d.h[0].due() <= t {
		c := d.h[0]
		for i, l := range timeLimits {
			if at := c.at[i]; at != 0 && at <= t && c.dead.Load() == 0 {
				c.meet(l)
				c.at[i] = 0
			}
		}
		if c.dead.Load() == 0 && c.due() != 0 {
			heap.Fix(&d.h, 0)
			continue
		}
		heap.Pop(&d.h)
	}
}

// dueHeap is a container/heap of SAs; each knows its place.
type dueHeap []*common

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due() < h[j].due() }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].heapAt, h[j].heapAt = int32(i+1), int32(j+1)
}

func (h *dueHeap) Push(x any) {
	c := x.(*common)
	*h = append(*h, c)
	c.heapAt = int32(len(*h))
}

func (h *dueHeap) Pop() any {
	old := *h
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	c.heapAt = 0
	return c
}
