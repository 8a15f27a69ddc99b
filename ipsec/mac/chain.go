package mac

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
)

// Chain is CBC-MAC without any padding: what XCBC, CMAC and CCM are made of. It
// is secure for none of them alone.
type Chain struct {
	block cipher.Block
	state [aes.BlockSize]byte
}

// NewChain starts a chain of zeros over an AES key.
func NewChain(b cipher.Block) Chain { return Chain{block: b} }

// Reset goes back to zeros.
func (c *Chain) Reset() { c.state = [aes.BlockSize]byte{} }

// Write takes whole blocks in; octets of b past the last one are left.
func (c *Chain) Write(b []byte) {
	for len(b) >= aes.BlockSize {
		subtle.XORBytes(c.state[:], c.state[:], b[:aes.BlockSize])
		c.block.Encrypt(c.state[:], c.state[:])
		b = b[aes.BlockSize:]
	}
}

// WritePadded takes b in, filled up with zeros.
func (c *Chain) WritePadded(b []byte) {
	c.Write(b)
	if rest := b[len(b)/aes.BlockSize*aes.BlockSize:]; len(rest) > 0 {
		subtle.XORBytes(c.state[:], c.state[:], rest)
		c.block.Encrypt(c.state[:], c.state[:])
	}
}

// State is the last block, which the next Write changes.
func (c *Chain) State() []byte { return c.state[:] }
