package suite

import (
	"crypto/sha512"
	"crypto/subtle"
	"hash"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/ipsec/mac"
)

// The integrity algorithms of IKE; package mac makes them. How far each is
// truncated is the ICVLen of its ipsec.Algorithm.
var integRows = map[uint16]bool{
	ipsec.IntegHMACSHA256128: true, // RFC 4868
	ipsec.IntegHMACSHA384192: true,
	ipsec.IntegHMACSHA512256: true,
	ipsec.IntegAESXCBC96:     true, // RFC 3566
	ipsec.IntegAESCMAC96:     true, // RFC 4494
	ipsec.IntegHMACSHA196:    true, // RFC 2404
	ipsec.IntegHMACMD596:     true, // RFC 2403
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

// NewInteg makes the integrity algorithm of a transform. Its key has the length
// that the algorithm fixes.
func NewInteg(t ipsec.Transform, key ipsec.Secret) (*Integ, error) {
	_, a, err := find(ipsec.TransformINTEG, t, integRows)
	if err != nil {
		return nil, err
	}
	if err := keyLength("integrity key", a, key); err != nil {
		return nil, err
	}
	h, err := mac.New(a, key.Reveal())
	if err != nil {
		return nil, err
	}
	return &Integ{icv: a.ICVLen, k: &integKey{mac: h}}, nil
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
