package suite

import (
	"crypto/aes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/ipsec/mac"
)

// keyed is a PRF under one key. After Sum it takes nothing more before Reset, and
// after free nothing at all.
type keyed interface {
	Reset()
	Write(b []byte) (int, error)
	Sum(dst []byte) []byte
	free()
}

// prfRow makes a PRF with a key of any length.
type prfRow struct {
	keyed func(key []byte) keyed
	size  int
	aes   bool // RFC 7296 §2.14 treats these two specially
}

// The HMACs of RFC 4868 §2.1.2 are not truncated.
var prfRows = map[uint16]*prfRow{
	ipsec.PRFHMACSHA2256: {keyed: hmacOf(sha256.New), size: sha256.Size},
	ipsec.PRFHMACSHA2384: {keyed: hmacOf(sha512.New384), size: sha512.Size384},
	ipsec.PRFHMACSHA2512: {keyed: hmacOf(sha512.New), size: sha512.Size},
	ipsec.PRFAES128XCBC:  {keyed: aesPRF(ipsec.IntegAESXCBC96, true), size: aes.BlockSize, aes: true},
	ipsec.PRFAES128CMAC:  {keyed: aesPRF(ipsec.IntegAESCMAC96, false), size: aes.BlockSize, aes: true},
	ipsec.PRFHMACSHA1:    {keyed: hmacOf(sha1.New), size: sha1.Size},
	ipsec.PRFHMACMD5:     {keyed: hmacOf(md5.New), size: md5.Size},
}

// keyedMAC is a MAC of IPsec as a PRF.
type keyedMAC struct{ hash.Hash }

func (keyedMAC) free() {}

// aesPRF is AES-XCBC-PRF-128 (RFC 4434) or AES-CMAC-PRF-128 (RFC 4615): the MAC of
// IPsec, whole, with a key that is made 16 octets long first. The former fills a
// short one up with zeros (RFC 4434 §2); all others become the MAC of themselves
// under a key of zeros.
func aesPRF(integ uint16, fill bool) func(key []byte) keyed {
	a, ok := ipsec.LookupAlgorithm(ipsec.Transform{Type: ipsec.TransformINTEG, ID: integ})
	with := func(key []byte) keyed {
		h, err := mac.New(a, key)
		if err != nil || !ok {
			panic("suite: " + err.Error()) // a wrong literal in prfRows
		}
		return keyedMAC{h}
	}
	return func(key []byte) keyed {
		switch n := len(key); {
		case n < aes.BlockSize && fill:
			key = append(key[:n:n], make([]byte, aes.BlockSize-n)...)
		case n != aes.BlockSize:
			h := with(make([]byte, aes.BlockSize))
			_, _ = h.Write(key)
			key = h.Sum(nil)
		}
		return with(key)
	}
}

// PRF is a negotiated pseudorandom function. It holds no key; copies are alike
// and it is safe for concurrent use. The zero value is not usable.
type PRF struct{ row *prfRow }

// NewPRF makes the PRF of a transform.
func NewPRF(t ipsec.Transform) (PRF, error) {
	row, _, err := find(ipsec.TransformPRF, t, prfRows)
	return PRF{row}, err
}

// Size is the length of the output in octets, which for all of them is also the
// preferred key length (RFC 7296 §2.13).
func (p PRF) Size() int { return p.row.size }

// seedNonce is how much of a nonce goes into the key of SKEYSEED: all of it, but
// with the PRFs of AES, whose key is short, the first 64 bits (RFC 7296 §2.14).
func (p PRF) seedNonce(n []byte) []byte {
	if p.row.aes {
		return n[:min(8, len(n))]
	}
	return n
}

// Sum is prf(key, parts[0] | parts[1] | ...).
func (p PRF) Sum(key ipsec.Secret, parts ...[]byte) []byte { return p.sum(key.Reveal(), parts...) }

func (p PRF) sum(key []byte, parts ...[]byte) []byte {
	m := p.row.keyed(key)
	defer m.free()
	for _, b := range parts {
		_, _ = m.Write(b)
	}
	return m.Sum(make([]byte, 0, p.row.size))
}

// Plus is the first n octets of prf+(key, seed) (RFC 7296 §2.13), which is not
// defined beyond 255 outputs of the PRF.
func (p PRF) Plus(key ipsec.Secret, seed []byte, n int) (ipsec.Secret, error) {
	b, err := p.stream(key, seed, n)
	return ipsec.NewSecret(b), err
}

func (p PRF) stream(key ipsec.Secret, seed []byte, n int) ([]byte, error) {
	if n < 0 || n > 255*p.row.size {
		return nil, fmt.Errorf("prf+ for %d octets: want 0 to %d (RFC 7296 §2.13)", n, 255*p.row.size)
	}
	m := p.row.keyed(key.Reveal())
	defer m.free()
	out := make([]byte, 0, n+p.row.size)
	number := []byte{1}
	var previous []byte
	for ; len(out) < n; number[0]++ {
		m.Reset()
		_, _ = m.Write(previous)
		_, _ = m.Write(seed)
		_, _ = m.Write(number)
		start := len(out)
		out = m.Sum(out)
		previous = out[start:]
	}
	clear(out[n:])
	return out[:n:n], nil
}
