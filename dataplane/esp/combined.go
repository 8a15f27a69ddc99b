package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/ipsec/mac"
)

// aeads are the constructors behind the combined-mode rows of ipsec.Algorithms.
var aeads = map[uint16]func(key []byte, icv int) (cipher.AEAD, error){
	ipsec.EncrAESGCM8:          newShortGCM,
	ipsec.EncrAESGCM12:         newGCM,
	ipsec.EncrAESGCM16:         newGCM,
	ipsec.EncrAESCCM8:          newCCM,
	ipsec.EncrAESCCM12:         newCCM,
	ipsec.EncrAESCCM16:         newCCM,
	ipsec.EncrNullAESGMAC:      newGMAC,
	ipsec.EncrChaCha20Poly1305: func(key []byte, _ int) (cipher.AEAD, error) { return chacha20poly1305.New(key) },
}

// cloner is a cipher.AEAD of ours. It has scratch space, so it serves one
// goroutine; those of the standard library serve all.
type cloner interface{ clone() cipher.AEAD }

func cloneAEAD(a cipher.AEAD) cipher.AEAD {
	if c, ok := a.(cloner); ok {
		return c.clone()
	}
	return a
}

var errAuth = errors.New("esp: integrity check failed")

func newGCM(key []byte, icv int) (cipher.AEAD, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	if icv == 16 {
		return cipher.NewGCM(b)
	}
	return cipher.NewGCMWithTagSize(b, icv)
}

// shortGCM is AES-GCM with an ICV of 8 octets (RFC 4106 §6), which the standard
// library does not offer: it cuts tags of 16.
type shortGCM struct {
	cipher.AEAD
	icv     int
	scratch []byte
}

func newShortGCM(key []byte, icv int) (cipher.AEAD, error) {
	g, err := newGCM(key, 16)
	return &shortGCM{AEAD: g, icv: icv}, err
}

func (g *shortGCM) clone() cipher.AEAD { return &shortGCM{AEAD: g.AEAD, icv: g.icv} }
func (g *shortGCM) Overhead() int      { return g.icv }

func (g *shortGCM) Seal(dst, nonce, plain, aad []byte) []byte {
	g.scratch = g.AEAD.Seal(g.scratch[:0], nonce, plain, aad)
	return append(dst, g.scratch[:len(plain)+g.icv]...)
}

// Open needs the full tag to compare with, and only encryption gives it: the
// cipher text encrypted is the plain text, and that encrypted is the cipher text
// again, with its tag.
func (g *shortGCM) Open(dst, nonce, sealed, aad []byte) ([]byte, error) {
	n := len(sealed) - g.icv
	if n < 0 {
		return nil, errAuth
	}
	g.scratch = g.AEAD.Seal(g.scratch[:0], nonce, sealed[:n], nil)
	got := sealed[n:]
	out := append(dst, g.scratch[:n]...)
	plain := out[len(dst):]
	g.scratch = g.AEAD.Seal(g.scratch[:0], nonce, plain, aad)
	if subtle.ConstantTimeCompare(g.scratch[n:n+g.icv], got) != 1 {
		clear(plain)
		return nil, errAuth
	}
	return out, nil
}

// ccm is AES-CCM as RFC 4309 uses it: a nonce of 11 octets, so that L, the length
// of the length, is 4 (§4); additional data of 8 or 12 octets (§5).
type ccm struct {
	*counter
	chain  mac.Chain
	icv    int
	prefix [12]byte // of the counter blocks: flags and nonce
	head   [2 * aes.BlockSize]byte
}

const ccmNonce = 11

func newCCM(key []byte, icv int) (cipher.AEAD, error) {
	c, err := newCounter(key)
	if err != nil {
		return nil, err
	}
	return &ccm{counter: c, chain: mac.NewChain(c.block), icv: icv}, nil
}

func (c *ccm) clone() cipher.AEAD {
	k := c.counter.clone()
	return &ccm{counter: k, chain: mac.NewChain(k.block), icv: c.icv}
}

func (c *ccm) NonceSize() int { return ccmNonce }
func (c *ccm) Overhead() int  { return c.icv }

func (c *ccm) Seal(dst, nonce, plain, aad []byte) []byte {
	out := append(dst, plain...)
	body := out[len(dst):]
	tag := c.tag(nonce, body, aad)
	out = append(out, tag...)
	c.xor(c.prefix[:], out[len(dst):len(dst)+len(plain)])
	return out
}

func (c *ccm) Open(dst, nonce, sealed, aad []byte) ([]byte, error) {
	n := len(sealed) - c.icv
	if n < 0 {
		return nil, errAuth
	}
	got := sealed[n:]
	out := append(dst, sealed[:n]...)
	plain := out[len(dst):]
	c.prefix[0] = 3 // L-1, RFC 3610 §2.3
	copy(c.prefix[1:], nonce)
	c.xor(c.prefix[:], plain)
	if subtle.ConstantTimeCompare(c.tag(nonce, plain, aad), got) != 1 {
		clear(plain)
		return nil, errAuth
	}
	return out, nil
}

// tag computes the authentication field U (RFC 3610 §2.2, §2.3), and sets the
// prefix of the counter blocks.
func (c *ccm) tag(nonce, plain, aad []byte) []byte {
	clear(c.head[:])
	c.head[0] = 1<<6 | byte((c.icv-2)/2)<<3 | 3 // there is additional data; M; L
	copy(c.head[1:], nonce)
	binary.BigEndian.PutUint32(c.head[12:], uint32(len(plain)))
	binary.BigEndian.PutUint16(c.head[16:], uint16(len(aad)))
	copy(c.head[18:], aad)
	c.chain.Reset()
	c.chain.Write(c.head[:])
	c.chain.WritePadded(plain)

	c.prefix[0] = 3
	copy(c.prefix[1:], nonce)
	c.stream(c.prefix[:], 0)
	subtle.XORBytes(c.first[:], c.first[:], c.chain.State())
	return c.first[:c.icv]
}

// gmac is ENCR_NULL_AUTH_AES_GMAC (RFC 4543 §3): nothing is encrypted, and all of
// the packet is additional data, the IV too: RFC 4543 erratum 1821 corrects the
// figures of §3.3, and what peers do agrees with it.
type gmac struct {
	cipher.AEAD
	scratch []byte
}

func newGMAC(key []byte, _ int) (cipher.AEAD, error) {
	g, err := newGCM(key, 16)
	return &gmac{AEAD: g}, err
}

func (g *gmac) clone() cipher.AEAD { return &gmac{AEAD: g.AEAD} }

// tag is over SPI and sequence number, which ESP gives as additional data, then
// the IV, then payload and trailer.
func (g *gmac) tag(nonce, body, aad []byte) []byte {
	b := append(g.scratch[:0], aad...)
	b = append(b, nonce[4:]...)
	b = append(b, body...)
	g.scratch = g.AEAD.Seal(b, nonce, nil, b)
	return g.scratch[len(b):]
}

func (g *gmac) Seal(dst, nonce, plain, aad []byte) []byte {
	tag := g.tag(nonce, plain, aad)
	return append(append(dst, plain...), tag...)
}

func (g *gmac) Open(dst, nonce, sealed, aad []byte) ([]byte, error) {
	n := len(sealed) - g.Overhead()
	if n < 0 || subtle.ConstantTimeCompare(g.tag(nonce, sealed[:n], aad), sealed[n:]) != 1 {
		return nil, errAuth
	}
	return append(dst, sealed[:n]...), nil
}
