package mac

import (
	"crypto/aes"
	"crypto/subtle"
	"hash"
)

// aesMAC is CBC-MAC whose last block is masked, with one key when it is whole and
// with another when it had to be padded: AES-XCBC (RFC 3566 §4) and AES-CMAC
// (RFC 4493 §2.4), which differ in how the masks come about.
type aesMAC struct {
	chain         Chain
	whole, padded [aes.BlockSize]byte

	last [aes.BlockSize]byte // held back, because it may be the last block
	held int
	sum  Chain
}

// newXCBC derives three keys from one (RFC 3566 §4): K1 encrypts, K2 and K3 mask.
func newXCBC(key []byte) (hash.Hash, error) {
	k, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	var k1 [aes.BlockSize]byte
	m := &aesMAC{}
	for i, to := range [][]byte{k1[:], m.whole[:], m.padded[:]} {
		for j := range to {
			to[j] = byte(i + 1)
		}
		k.Encrypt(to, to)
	}
	b, err := aes.NewCipher(k1[:])
	if err != nil {
		return nil, err
	}
	clear(k1[:])
	m.chain = NewChain(b)
	return m, nil
}

// newCMAC derives its two masks by doubling (RFC 4493 §2.3).
func newCMAC(key []byte) (hash.Hash, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	m := &aesMAC{chain: NewChain(b)}
	b.Encrypt(m.whole[:], m.whole[:])
	m.whole = double(m.whole)
	m.padded = double(m.whole)
	return m, nil
}

// double multiplies by x in GF(2^128) (RFC 4493 §2.3), in constant time.
func double(b [aes.BlockSize]byte) (out [aes.BlockSize]byte) {
	var carry byte
	for i := len(b) - 1; i >= 0; i-- {
		out[i] = b[i]<<1 | carry
		carry = b[i] >> 7
	}
	out[len(out)-1] ^= 0x87 & -carry
	return out
}

func (m *aesMAC) Write(b []byte) (int, error) {
	n := len(b)
	if m.held > 0 || n <= aes.BlockSize {
		k := copy(m.last[m.held:], b)
		m.held += k
		if b = b[k:]; len(b) == 0 {
			return n, nil
		}
		m.chain.Write(m.last[:])
	}
	// Keep one block back, whole or not.
	through := (len(b) - 1) / aes.BlockSize * aes.BlockSize
	m.chain.Write(b[:through])
	m.held = copy(m.last[:], b[through:])
	return n, nil
}

func (m *aesMAC) Sum(dst []byte) []byte {
	m.sum = m.chain
	s := m.sum.State()
	if m.held == aes.BlockSize {
		subtle.XORBytes(s, s, m.whole[:])
	} else {
		s[m.held] ^= 0x80
		subtle.XORBytes(s, s, m.padded[:])
	}
	m.sum.WritePadded(m.last[:m.held])
	if m.held == 0 { // the empty message: nothing but padding
		m.sum.block.Encrypt(s, s)
	}
	return append(dst, s...)
}

func (m *aesMAC) Reset() {
	m.chain.Reset()
	m.held = 0
}

func (m *aesMAC) Size() int      { return aes.BlockSize }
func (m *aesMAC) BlockSize() int { return aes.BlockSize }

// Clone implements hash.Cloner.
func (m *aesMAC) Clone() (hash.Cloner, error) {
	c := *m
	return &c, nil
}
