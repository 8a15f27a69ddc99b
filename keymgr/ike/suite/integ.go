package suite

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"hash"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// The truncated HMACs of RFC 4868 §2.3. How far each is truncated is the ICVLen
// of its ipsec.Algorithm.
var integRows = map[uint16]func() hash.Hash{
	ipsec.IntegHMACSHA256128: sha256.New,
	ipsec.IntegHMACSHA384192: sha512.New384,
	ipsec.IntegHMACSHA512256: sha512.New,
}

// Integ is a keyed integrity algorithm. It is not safe for concurrent use.
type Integ struct {
	icv int
	k   *integKey
}

// integKey is apart from Integ so that the MAC is two pointers away; see doc.go.
type integKey struct {
	mac hash.Hash
	sum [sha512.Size]byte
}

// NewInteg makes the integrity algorithm of a transform. The key has the
// length of the hash output (RFC 4868 §2.1.1).
func NewInteg(t ipsec.Transform, key ipsec.Secret) (*Integ, error) {
	h, a, err := find(ipsec.TransformINTEG, t, integRows)
	if err != nil {
		return nil, err
	}
	if err := keyLength("integrity key", a, key); err != nil {
		return nil, err
	}
	return &Integ{icv: a.ICVLen, k: &integKey{mac: hmac.New(h, key.Reveal())}}, nil
}

// ICVLen is the length of the ICV in octets.
func (g *Integ) ICVLen() int { return g.icv }

// Sum appends the ICV of parts[0] | parts[1] | ... to dst.
func (g *Integ) Sum(dst []byte, parts ...[]byte) []byte {
	return append(dst, g.compute(parts)...)
}

// Verify reports, in constant time, whether icv is the ICV of the parts.
func (g *Integ) Verify(icv []byte, parts ...[]byte) bool {
	return subtle.ConstantTimeCompare(icv, g.compute(parts)) == 1
}

func (g *Integ) compute(parts [][]byte) []byte {
	k := g.k
	k.mac.Reset()
	for _, b := range parts {
		k.mac.Write(b)
	}
	return k.mac.Sum(k.sum[:0])[:g.icv]
}
