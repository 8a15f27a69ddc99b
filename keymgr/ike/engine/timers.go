package engine

import "time"

// timers is a heap of cells by deadline, since the engine's start. A cell knows its place in it, so that
// moving or removing one costs O(log n) and no search.
type timers []*cell

// set gives a cell a deadline.
func (t *timers) set(c *cell, at time.Duration) {
	switch {
	case c.slot < 0:
		c.at, c.slot = at, int32(len(*t))
		*t = append(*t, c)
	case c.at == at:
		return
	default:
		c.at = at
	}
	if i := int(c.slot); !t.up(i) {
		t.down(i)
	}
}

func (t *timers) remove(c *cell) {
	i := int(c.slot)
	if i < 0 {
		return
	}
	last := len(*t) - 1
	t.swap(i, last)
	(*t)[last] = nil
	*t = (*t)[:last]
	c.slot, c.at = -1, 0
	if i < last && !t.up(i) {
		t.down(i)
	}
}

// first returns the cell with the earliest deadline, nil when there is none.
func (t timers) first() *cell {
	if len(t) == 0 {
		return nil
	}
	return t[0]
}

func (t timers) swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].slot, t[j].slot = int32(i), int32(j)
}

func (t timers) up(i int) bool {
	start := i
	for i > 0 {
		parent := (i - 1) / 2
		if t[i].at >= t[parent].at {
			break
		}
		t.swap(i, parent)
		i = parent
	}
	return i != start
}

func (t timers) down(i int) {
	for {
		least := i
		for _, c := range []int{2*i + 1, 2*i + 2} {
			if c < len(t) && t[c].at < t[least].at {
				least = c
			}
		}
		if least == i {
			return
		}
		t.swap(i, least)
		i = least
	}
}
