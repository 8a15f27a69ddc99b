package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
)

// counter is AES in counter mode, whose counter blocks are 12 octets of prefix
// and a 32-bit number that starts at 1: RFC 3686 §4, and the A_i of AES-CCM with
// the 11-octet nonce of RFC 4309 §4.
//
// The standard library's counter mode allocates for every packet. GCM does not,
// and encrypts with the same counter blocks from number 2 on when the prefix is
// its nonce; so the first block is done here and GCM does the others. Its tag is
// thrown away: GHASH costs next to nothing beside AES, and a loop over single
// blocks is several times slower.
type counter struct {
	block   cipher.Block
	gcm     cipher.AEAD
	first   [aes.BlockSize]byte
	scratch []byte
}

func newCounter(key []byte) (*counter, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		return nil, err
	}
	return &counter{block: b, gcm: g}, nil
}

// clone makes another for another goroutine.
func (c *counter) clone() *counter { return &counter{block: c.block, gcm: c.gcm} }

// xor encrypts or decrypts b in place.
func (c *counter) xor(prefix, b []byte) {
	c.stream(prefix, 1)
	n := subtle.XORBytes(b, b, c.first[:])
	if b = b[n:]; len(b) > 0 {
		c.scratch = c.gcm.Seal(c.scratch[:0], prefix, b, nil)
		copy(b, c.scratch)
	}
}

// stream leaves the key stream of one counter block in c.first.
func (c *counter) stream(prefix []byte, number byte) {
	copy(c.first[:], prefix)
	c.first[12], c.first[13], c.first[14], c.first[15] = 0, 0, 0, number
	c.block.Encrypt(c.first[:], c.first[:])
}
