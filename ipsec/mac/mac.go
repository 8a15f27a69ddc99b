// Package mac makes the integrity algorithms of ESP, AH and IKE that take a key and
// octets and nothing else. AES-GMAC, which takes a nonce as well, is not here.
package mac

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// makers are the constructors behind the integrity rows of ipsec.Algorithms.
var makers = map[uint16]func(key []byte) (hash.Hash, error){
	ipsec.IntegHMACMD596:     hmacOf(md5.New),       // RFC 2403
	ipsec.IntegHMACSHA196:    hmacOf(sha1.New),      // RFC 2404
	ipsec.IntegHMACSHA256128: hmacOf(sha256.New),    // RFC 4868
	ipsec.IntegHMACSHA384192: hmacOf(sha512.New384), // RFC 4868
	ipsec.IntegHMACSHA512256: hmacOf(sha512.New),    // RFC 4868
	ipsec.IntegAESXCBC96:     newXCBC,               // RFC 3566
	ipsec.IntegAESCMAC96:     newCMAC,               // RFC 4494
}

// Known says whether New can make a.
func Known(a *ipsec.Algorithm) bool {
	return a.Type == ipsec.TransformINTEG && makers[a.ID] != nil
}

// New keys an integrity algorithm. Its Sum is not truncated: the caller sends the
// first ICVLen octets. The result serves one goroutine, allocates nothing in
// Write, Sum and Reset, and keeps nothing of key.
func New(a *ipsec.Algorithm, key []byte) (hash.Hash, error) {
	if !Known(a) {
		return nil, fmt.Errorf("mac: %s is not an integrity algorithm that is implemented", a.Name)
	}
	if len(key) != a.KeyLen {
		return nil, fmt.Errorf("mac: %s takes %d octets of key, got %d", a.Name, a.KeyLen, len(key))
	}
	return makers[a.ID](key)
}

// Clone makes another of the same key, for another goroutine.
func Clone(h hash.Hash) (hash.Hash, error) {
	c, ok := h.(hash.Cloner)
	if !ok {
		return nil, fmt.Errorf("mac: this build's %T cannot be cloned", h)
	}
	return c.Clone()
}

// hmacOf makes the HMAC, and one Reset: from then on crypto/hmac restores the
// saved states after ipad and opad instead of hashing the key again.
func hmacOf(h func() hash.Hash) func([]byte) (hash.Hash, error) {
	return func(key []byte) (hash.Hash, error) {
		m := hmac.New(h, key)
		m.Reset()
		return m, nil
	}
}
