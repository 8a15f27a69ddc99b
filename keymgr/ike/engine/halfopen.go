package engine

import (
	"net/netip"
	"sync"
)

// initKey names the machine of an IKE_SA_INIT request, so that a copy of the
// request finds the machine that has the response (RFC 7296 §2.1). The
// responder's SPI is not known to the initiator yet.
type initKey struct {
	node   string
	remote netip.AddrPort
	spi    uint64
}

// halfOpen holds the responder machines that are not established: what a
// stranger can make us keep.
type halfOpen struct {
	mu       sync.Mutex
	cells    map[initKey]*cell
	prefixes map[netip.Prefix]int
}

func (h *halfOpen) init() {
	h.cells = make(map[initKey]*cell)
	h.prefixes = make(map[netip.Prefix]int)
}

// prefixOf is what one holder of addresses is taken to have: a /24 or a /64.
func prefixOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a = a.Unmap(); a.Is4() {
		bits = 24
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}

func (h *halfOpen) find(k initKey) *cell {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cells[k]
}

// load returns how many there are in all and of a's prefix.
func (h *halfOpen) load(a netip.Addr) (all, prefix int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.cells), h.prefixes[prefixOf(a)]
}

// add takes a new cell in, or returns the one that is there already.
func (h *halfOpen) add(k initKey, c *cell) *cell {
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.cells[k]; old != nil {
		return old
	}
	h.cells[k] = c
	h.prefixes[prefixOf(k.remote.Addr())]++
	return c
}

func (h *halfOpen) remove(k initKey) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cells[k] == nil {
		return
	}
	delete(h.cells, k)
	p := prefixOf(k.remote.Addr())
	if h.prefixes[p]--; h.prefixes[p] <= 0 {
		delete(h.prefixes, p)
	}
}
