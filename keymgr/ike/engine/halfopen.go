package engine

import (
	"hash/maphash"
	"net/netip"
	"sync"
)

// initKey names the machine of an IKE_SA_INIT request, so that a copy of the
// request finds the machine that has the response (RFC 7296 §2.1). The
// responder's SPI is not known to the initiator yet. It is a hash that nobody outside
// can compute; should two requests ever have the same, the later one goes to the
// earlier one's machine, which drops it.
type initKey uint64

// halfOpen holds the responder machines that are not established: what a
// stranger can make us keep.
type halfOpen struct {
	seed     maphash.Seed
	mu       sync.Mutex
	cells    map[initKey]*cell
	prefixes map[netip.Prefix]int
}

func (h *halfOpen) init() {
	h.seed = maphash.MakeSeed()
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

// key is never zero.
func (h *halfOpen) key(n *node, remote netip.AddrPort, spi uint64) initKey {
	return initKey(maphash.Comparable(h.seed, struct {
		node   *node
		remote netip.AddrPort
		spi    uint64
	}{n, remote, spi}) | 1)
}

func (h *halfOpen) find(k initKey) *cell {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cells[k]
}

// count is how many there are.
func (h *halfOpen) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.cells)
}

// load returns how many there are in all and of a's prefix.
func (h *halfOpen) load(a netip.Addr) (all, prefix int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.cells), h.prefixes[prefixOf(a)]
}

// add takes a new cell in, or returns the one that is there already.
func (h *halfOpen) add(c *cell) *cell {
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.cells[c.initKey]; old != nil {
		return old
	}
	h.cells[c.initKey] = c
	h.prefixes[prefixOf(c.remote)]++
	return c
}

func (h *halfOpen) remove(c *cell) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cells[c.initKey] != c {
		return
	}
	delete(h.cells, c.initKey)
	p := prefixOf(c.remote)
	if h.prefixes[p]--; h.prefixes[p] <= 0 {
		delete(h.prefixes, p)
	}
}
