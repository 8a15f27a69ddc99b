package engine

import "sync"

// index finds the machine of an IKE SA by its own SPI. SPIs are 64 random bits
// that machines pick, so both ends of an IKE SA may live here without
// confusion: the I flag says which SPI of a header is ours.
type index struct {
	stripes [64]struct {
		mu    sync.RWMutex
		cells map[uint64]*cell
	}
}

func (x *index) init() {
	for i := range x.stripes {
		x.stripes[i].cells = make(map[uint64]*cell)
	}
}

func (x *index) add(spi uint64, c *cell) {
	s := &x.stripes[spi%64]
	s.mu.Lock()
	s.cells[spi] = c
	s.mu.Unlock()
}

func (x *index) remove(spi uint64) {
	s := &x.stripes[spi%64]
	s.mu.Lock()
	delete(s.cells, spi)
	s.mu.Unlock()
}

func (x *index) find(spi uint64) *cell {
	s := &x.stripes[spi%64]
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.cells[spi]
}
