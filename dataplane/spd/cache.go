package spd

// Cache remembers what was decided for the flows of one goroutine, which owns
// it. It has a fixed size; a new flow takes the place of an old one. V holds
// what the owner derives from a verdict, such as the SA.
//
// Entries carry the stamp they were made under. When the policy or the SAs
// change, the owner's stamp changes and every entry is stale at once.
type Cache[V any] struct {
	slots []slot[V]
	mask  uint64
}

type slot[V any] struct {
	key   Key
	stamp uint64
	val   V
}

// probes is how many neighbouring slots one key may take.
const probes = 4

// NewCache makes a cache of size flows, rounded up to a power of two.
func NewCache[V any](size int) *Cache[V] {
	n := 16
	for n < size {
		n *= 2
	}
	return &Cache[V]{slots: make([]slot[V], n+probes), mask: uint64(n - 1)}
}

// Find returns the value of a key under a stamp, or nil. The pointer is good
// until the next Put.
func (c *Cache[V]) Find(k *Key, stamp uint64) *V {
	at := k.hash() & c.mask
	for i := range c.slots[at : at+probes] {
		if s := &c.slots[at+uint64(i)]; s.stamp == stamp && s.key == *k {
			return &s.val
		}
	}
	return nil
}

// Put stores a value: in the key's own slot, a stale one, or else a slot picked
// by the hash.
func (c *Cache[V]) Put(k *Key, stamp uint64, v V) *V {
	h := k.hash()
	at := h & c.mask
	pick := at + h>>60%probes
	for i := at; i < at+probes; i++ {
		if c.slots[i].key == *k || c.slots[i].stamp != stamp {
			pick = i
			break
		}
	}
	c.slots[pick] = slot[V]{*k, stamp, v}
	return &c.slots[pick].val
}
