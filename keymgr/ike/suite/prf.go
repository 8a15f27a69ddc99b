package suite

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// The HMAC pseudorandom functions of RFC 4868 §2.1.2: no truncation, a key of
// any length.
var prfRows = map[uint16]func() hash.Hash{
	ipsec.PRFHMACSHA2256: sha256.New,
	ipsec.PRFHMACSHA2384: sha512.New384,
	ipsec.PRFHMACSHA2512: sha512.New,
}

// PRF is a negotiated pseudorandom function. It holds no key; copies are alike
// and it is safe for concurrent use. The zero value is not usable.
type PRF struct {
	hash func() hash.Hash
	size int
}

// NewPRF makes the PRF of a transform.
func NewPRF(t ipsec.Transform) (PRF, error) {
	h, _, err := find(ipsec.TransformPRF, t, prfRows)
	if err != nil {
		return PRF{}, err
	}
	return PRF{hash: h, size: h().Size()}, nil
}

// Size is the length of the output in octets, which for HMAC is also the
// preferred key length (RFC 7296 §2.13).
func (p PRF) Size() int { return p.size }

// Sum is prf(key, parts[0] | parts[1] | ...).
func (p PRF) Sum(key ipsec.Secret, parts ...[]byte) []byte {
	m := hmac.New(p.hash, key.Reveal())
	for _, b := range parts {
		m.Write(b)
	}
	return m.Sum(nil)
}

// Plus is the first n octets of prf+(key, seed) (RFC 7296 §2.13), which is not
// defined beyond 255 outputs of the PRF.
func (p PRF) Plus(key ipsec.Secret, seed []byte, n int) (ipsec.Secret, error) {
	if n < 0 || n > 255*p.size {
		return ipsec.Secret{}, fmt.Errorf("prf+ for %d octets: want 0 to %d (RFC 7296 §2.13)", n, 255*p.size)
	}
	m := hmac.New(p.hash, key.Reveal())
	out := make([]byte, 0, n+p.size)
	var previous []byte
	for i := byte(1); len(out) < n; i++ {
		m.Reset()
		m.Write(previous)
		m.Write(seed)
		m.Write([]byte{i})
		start := len(out)
		out = m.Sum(out)
		previous = out[start:]
	}
	clear(out[n:])
	return ipsec.NewSecret(out[:n:n]), nil
}
