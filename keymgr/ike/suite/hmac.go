package suite

import (
	"hash"
	"sync"
)

// keyedHash is HMAC (RFC 2104) whose memory serves one key after the other: that of
// crypto/hmac has one key for its life, and a negotiation takes a dozen.
type keyedHash struct {
	hash  hash.Hash
	inner []byte // the key, filled up to a block, XOR ipad
	outer []byte // the same XOR opad
	sum   []byte // of the inner hash
	pool  *sync.Pool
}

// hmacOf makes the HMACs of one hash.
func hmacOf(h func() hash.Hash) func(key []byte) keyed {
	pool := new(sync.Pool)
	pool.New = func() any {
		x := h()
		return &keyedHash{hash: x, inner: make([]byte, x.BlockSize()), outer: make([]byte, x.BlockSize()), sum: make([]byte, x.Size()), pool: pool}
	}
	return func(key []byte) keyed {
		m := pool.Get().(*keyedHash)
		m.use(key)
		return m
	}
}

func (m *keyedHash) use(key []byte) {
	if len(key) > len(m.inner) {
		m.hash.Reset()
		m.hash.Write(key)
		key = m.hash.Sum(m.sum[:0])
	}
	clear(m.inner[copy(m.inner, key):])
	for i, b := range m.inner {
		m.inner[i], m.outer[i] = b^0x36, b^0x5c
	}
	m.Reset()
}

func (m *keyedHash) Reset() {
	m.hash.Reset()
	m.hash.Write(m.inner)
}

func (m *keyedHash) Write(b []byte) (int, error) { return m.hash.Write(b) }

func (m *keyedHash) Sum(dst []byte) []byte {
	m.sum = m.hash.Sum(m.sum[:0])
	m.hash.Reset()
	m.hash.Write(m.outer)
	m.hash.Write(m.sum)
	return m.hash.Sum(dst)
}

// free overwrites what the key has left.
func (m *keyedHash) free() {
	m.hash.Reset()
	clear(m.inner)
	clear(m.outer)
	clear(m.sum)
	m.pool.Put(m)
}
