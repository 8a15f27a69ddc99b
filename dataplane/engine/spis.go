package engine

import (
	"math/bits"
	"sync/atomic"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// inTable finds inbound SAs of one protocol by SPI. For unicast these two name the SA;
// the destination address need not (RFC 4301 §4.1). Readers take no lock: each shard is
// an immutable open-addressed array behind an atomic pointer, copied by the one writer
// (who holds Engine.mu) when it changes. Shards keep that copy small.
type inTable struct {
	shards [256]atomic.Pointer[shard]
}

// shard has a power of two slots, at most three quarters of them full; nil is empty.
type shard struct {
	slots []*inSA
	count int
}

// table is where the inbound SAs of a protocol are: those of ESP and of AH may have the
// same SPI (RFC 4301 §4.1).
func (e *Engine) table(p ipsec.Protocol) *inTable {
	if p == ipsec.ProtocolAH {
		return &e.ah
	}
	return &e.esp
}

// place spreads SPIs that differ only in some bits (a worker puts its number
// into the upper ones) by Fibonacci hashing: shard from the top 8 bits, slot
// from those below; the lowest bits of the product are poor.
func place(spi ipsec.SPI) (shard uint32, hash uint32) {
	h := uint32(spi) * 0x9e3779b1
	return h >> 24, bits.RotateLeft32(h, 20)
}

func (t *inTable) lookup(spi ipsec.SPI) *inSA {
	n, h := place(spi)
	s := t.shards[n].Load()
	if s == nil {
		return nil
	}
	mask := uint32(len(s.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		if in := s.slots[i]; in == nil || in.SA().SPI == spi {
			return in
		}
	}
}

func (t *inTable) put(in *inSA)         { t.change(in.SA().SPI, in) }
func (t *inTable) remove(spi ipsec.SPI) { t.change(spi, nil) }

// change copies the shard of spi without it, and with in when there is one.
func (t *inTable) change(spi ipsec.SPI, in *inSA) {
	n, _ := place(spi)
	old := t.shards[n].Load()
	count := 1
	if old != nil {
		count += old.count
	}
	size := 2
	for size*3 < count*4 {
		size *= 2
	}
	s := &shard{slots: make([]*inSA, size)}
	if old != nil {
		for _, x := range old.slots {
			if x != nil && x.SA().SPI != spi {
				s.insert(x)
			}
		}
	}
	if in != nil {
		s.insert(in)
	}
	if s.count == 0 {
		s = nil
	}
	t.shards[n].Store(s)
}

func (s *shard) insert(in *inSA) {
	_, h := place(in.SA().SPI)
	mask := uint32(len(s.slots) - 1)
	i := h & mask
	for s.slots[i] != nil {
		i = (i + 1) & mask
	}
	s.slots[i] = in
	s.count++
}
