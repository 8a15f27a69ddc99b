package suite

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"

	"github.com/testudo-ipsec/testudo/ipsec/mac"
)

// The combined modes of RFC 5282 that the standard library does not have. They
// are made for messages of IKE: few, and of at most 64 KiB.

var errTag = errors.New("message authentication failed")

func newGCM(key []byte, icv int) (cipher.AEAD, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	g, err := cipher.NewGCM(b)
	if err != nil || icv == g.Overhead() {
		return g, err
	}
	return &shortGCM{AEAD: g, block: b, icv: icv}, nil
}

// shortGCM is AES-GCM with a tag cut to 12 or 8 octets (RFC 5282 §3).
type shortGCM struct {
	cipher.AEAD
	block cipher.Block
	icv   int
}

func (g *shortGCM) Overhead() int { return g.icv }

// Seal does not write past what it appends: there may be no room for a whole tag.
func (g *shortGCM) Seal(dst, nonce, plain, aad []byte) []byte {
	whole := g.AEAD.Seal(nil, nonce, plain, aad)
	return append(dst, whole[:len(plain)+g.icv]...)
}

// Open decrypts in GCM's counter mode, whose first number for data is 2, and
// compares with the tag that the plaintext has.
func (g *shortGCM) Open(dst, nonce, sealed, aad []byte) ([]byte, error) {
	n := len(sealed) - g.icv
	if n < 0 {
		return nil, errTag
	}
	out := append(dst, sealed[:n]...)
	plain := out[len(dst):]
	cipher.NewCTR(g.block, append(nonce[:len(nonce):len(nonce)], 0, 0, 0, 2)).XORKeyStream(plain, plain)
	again := g.Seal(nil, nonce, plain, aad)
	if subtle.ConstantTimeCompare(again[n:], sealed[n:]) != 1 {
		clear(plain)
		return nil, errTag
	}
	return out, nil
}

// ccm is AES-CCM (RFC 3610) with the nonce of 11 octets that RFC 5282 §4 has, so
// that L, the length of the length, is 4.
type ccm struct {
	block cipher.Block
	icv   int
}

const ccmNonce = 11

func newCCM(key []byte, icv int) (cipher.AEAD, error) {
	b, err := aes.NewCipher(key)
	return &ccm{b, icv}, err
}

func (c *ccm) NonceSize() int { return ccmNonce }
func (c *ccm) Overhead() int  { return c.icv }

func (c *ccm) Seal(dst, nonce, plain, aad []byte) []byte {
	tag := c.tag(nonce, plain, aad)
	out := append(dst, plain...)
	c.xor(nonce, out[len(dst):])
	return append(out, tag...)
}

func (c *ccm) Open(dst, nonce, sealed, aad []byte) ([]byte, error) {
	n := len(sealed) - c.icv
	if n < 0 {
		return nil, errTag
	}
	out := append(dst, sealed[:n]...)
	plain := out[len(dst):]
	c.xor(nonce, plain)
	if subtle.ConstantTimeCompare(c.tag(nonce, plain, aad), sealed[n:]) != 1 {
		clear(plain)
		return nil, errTag
	}
	return out, nil
}

// xor is counter mode; the blocks A_1, A_2 and so on of RFC 3610 §2.3.
func (c *ccm) xor(nonce, b []byte) {
	cipher.NewCTR(c.block, c.counter(nonce, 1)).XORKeyStream(b, b)
}

// counter is A_i: L-1, the nonce, the number.
func (c *ccm) counter(nonce []byte, i uint32) []byte {
	return binary.BigEndian.AppendUint32(append([]byte{3}, nonce...), i)
}

// tag is U of RFC 3610 §2.2 and §2.3. There always is additional data: the header
// of the message.
func (c *ccm) tag(nonce, plain, aad []byte) []byte {
	first := append([]byte{1<<6 | byte((c.icv-2)/2)<<3 | 3}, nonce...)
	first = binary.BigEndian.AppendUint32(first, uint32(len(plain)))
	chain := mac.NewChain(c.block)
	chain.Write(first)
	chain.WritePadded(append(binary.BigEndian.AppendUint16(nil, uint16(len(aad))), aad...))
	chain.WritePadded(plain)
	s := make([]byte, aes.BlockSize)
	c.block.Encrypt(s, c.counter(nonce, 0))
	subtle.XORBytes(s, s, chain.State())
	return s[:c.icv]
}
