package sad

import (
	"math/bits"
	"sync/atomic"
)

// table finds inbound SAs by SPI. Readers take no lock: each shard is an
// immutable open-addressed array behind an atomic pointer, copied by the one
// writer (who holds SAD.mu) when it changes. Shards keep that copy small: with
// 100,000 SAs it is about 12 KiB.
type table struct {
	shards [256]atomic.Pointer[shard]
}

type shard struct {
	slots []slot // power of two, at most half full
	count int
}

type slot struct {
	spi uint32
	in  *Inbound // nil: empty
}

// place spreads SPIs that differ only in some bits (a worker puts its number
// into the upper ones) by Fibonacci hashing: shard from the top 8 bits, slot
// from those below; the lowest bits of the product are poor.
func place(spi uint32) (shard uint32, hash uint32) {
	h := spi * 0x9e3779b1
	return h >> 24, bits.RotateLeft32(h, 20)
}

func (t *table) lookup(spi uint32) *Inbound {
	n, h := place(spi)
	s := t.shards[n].Load()
	if s == nil {
		return nil
	}
	mask := uint32(len(s.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		e := &s.slots[i]
		if e.in == nil {
			return nil
		}
		if e.spi == spi {
			return e.in
		}
	}
}

func (t *table) put(spi uint32, in *Inbound) { t.change(spi, in) }
func (t *table) remove(spi uint32)           { t.change(spi, nil) }

// change copies the shard of spi without it, and with in when there is one.
func (t *table) change(spi uint32, in *Inbound) {
	n, _ := place(spi)
	old := t.shards[n].Load()
	count := 1
	if old != nil {
		count += old.count
	}
	size := 4
	for size < 2*count {
		size *= 2
	}
	s := &shard{slots: make([]slot, size)}
	if old != nil {
		for _, e := range old.slots {
			if e.in != nil && e.spi != spi {
				s.insert(e)
			}
		}
	}
	if in != nil {
		s.insert(slot{spi, in})
	}
	if s.count == 0 {
		s = nil
	}
	t.shards[n].Store(s)
}

func (s *shard) insert(e slot) {
	_, h := place(e.spi)
	mask := uint32(len(s.slots) - 1)
	i := h & mask
	for s.slots[i].in != nil {
		i = (i + 1) & mask
	}
	s.slots[i] = e
	s.count++
}
