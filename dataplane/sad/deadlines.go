package sad

import (
	"container/heap"
	"time"
)

// deadlines orders SAs by their next time limit. SAD.mu guards it.
type deadlines struct{ h dueHeap }

func (d *deadlines) add(c *common) {
	if c.due() != 0 {
		heap.Push(&d.h, c)
	}
}

// due is the next time limit in Unix nanoseconds, 0 for none.
func (c *common) due() int64 {
	if c.softAt != 0 && (c.hardAt == 0 || c.softAt < c.hardAt) {
		return c.softAt
	}
	return c.hardAt
}

func (d *deadlines) remove(c *common) {
	if c.heapAt != 0 {
		heap.Remove(&d.h, c.heapAt-1)
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
		if c.softAt != 0 && c.softAt <= t {
			c.meet(softTime)
			c.softAt = 0
		}
		if c.hardAt != 0 && c.hardAt <= t {
			c.meet(hardTime)
		}
		if c.hardAt > t {
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
	h[i].heapAt, h[j].heapAt = i+1, j+1
}

func (h *dueHeap) Push(x any) {
	c := x.(*common)
	*h = append(*h, c)
	c.heapAt = len(*h)
}

func (h *dueHeap) Pop() any {
	old := *h
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	c.heapAt = 0
	return c
}
