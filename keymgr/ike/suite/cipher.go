package suite

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// The two outcomes of a bad Encrypted payload. Tell them apart with errors.Is.
var (
	// ErrIntegrity: the message is not known to be from the peer. Drop it and
	// leave all state untouched (RFC 7296 §2.21.4).
	ErrIntegrity = errors.New("integrity check failed")
	// ErrPadding: the peer sent it, and its padding is not well-formed.
	ErrPadding = errors.New("malformed padding")
)

// encrRow makes either a block cipher, used in CBC or counter mode, or an AEAD with
// an ICV of so many octets.
type encrRow struct {
	block   func(key []byte) (cipher.Block, error)
	counter bool
	aead    func(key []byte, icv int) (cipher.AEAD, error)
}

var encrRows = map[uint16]encrRow{
	ipsec.EncrAESCBC:   {block: aes.NewCipher},
	ipsec.EncrAESCTR:   {block: aes.NewCipher, counter: true}, // RFC 5930
	ipsec.EncrAESGCM8:  {aead: newGCM},                        // RFC 5282
	ipsec.EncrAESGCM12: {aead: newGCM},
	ipsec.EncrAESGCM16: {aead: newGCM},
	ipsec.EncrAESCCM8:  {aead: newCCM}, // RFC 5282
	ipsec.EncrAESCCM12: {aead: newCCM},
	ipsec.EncrAESCCM16: {aead: newCCM},
	ipsec.EncrChaCha20Poly1305: {aead: func(key []byte, _ int) (cipher.AEAD, error) {
		return chacha20poly1305.New(key)
	}},
	ipsec.Encr3DES: {block: des.NewTripleDESCipher}, // RFC 2451
	ipsec.EncrDES:  {block: des.NewCipher},          // RFC 2405
}

// Cipher protects the Encrypted payloads (SK, and SKF of RFC 7383) of one
// direction of an IKE SA. What follows the payload header is
//
//	IV | ciphertext of (payloads | padding | pad length) | ICV
//
// with the ICV over the message from the first octet of the IKE header to the
// end of the ciphertext (RFC 7296 §3.14), or the AEAD's associated data from
// there to the last octet of the payload header (RFC 5282 §5.1). Either way
// that first stretch is the aad of Seal and Open; its length fields must be
// final, and SealedLen tells them.
//
// A Cipher is not safe for concurrent use.
type Cipher struct {
	alg         *ipsec.Algorithm
	encr, integ ipsec.Transform
	ske, ska    ipsec.Secret // its maker's: to be wiped by it, when the Cipher is not used any more
	next        uint64       // the IV of the next Seal, AEAD only; see NextIV
	icv         int
	k           *cipherKeys // nil at rest
}

// cipherKeys keeps all that is secret behind pointers of its own; see doc.go.
type cipherKeys struct {
	block cipher.Block
	integ *Integ // with block
	aead  cipher.AEAD
	ctr   bool      // block is in counter mode
	nonce *[12]byte // salt | IV (RFC 5282 §4, RFC 7634 §2, RFC 3686 §4)
}

// NewCipher makes the cipher of one direction from its SK_e, with the salt after
// the key for an AEAD (RFC 5282 §7.1), and its SK_a. With an AEAD integ is the
// zero Transform or NONE, and ska is empty.
func NewCipher(encr, integ ipsec.Transform, ske, ska ipsec.Secret) (*Cipher, error) {
	c := &Cipher{encr: encr, integ: integ, ske: ske, ska: ska, next: 1}
	if err := c.prepare(); err != nil {
		return nil, err
	}
	return c, nil
}

// prepare expands the keys: to ten times their size, which is why Rest is there.
func (c *Cipher) prepare() error {
	row, a, err := find(ipsec.TransformENCR, c.encr, encrRows)
	if err != nil {
		return err
	}
	if err := keyLength("SK_e", a, c.ske); err != nil {
		return err
	}
	k := &cipherKeys{}
	c.alg, c.icv = a, a.ICVLen
	key := c.ske.Reveal()
	if row.counter || row.aead != nil {
		k.nonce = new([12]byte)
		copy(k.nonce[:], key[a.KeyLen:])
	}
	if row.aead != nil {
		if c.integ.ID != ipsec.IntegNone || !c.ska.IsZero() {
			return fmt.Errorf("%s protects integrity itself; got %s and an SK_a of %d octets, want neither (RFC 5282 §8)", a.Name, c.integ, c.ska.Len())
		}
		if k.aead, err = row.aead(key[:a.KeyLen], a.ICVLen); err != nil {
			return fmt.Errorf("%s: %w", a.Name, err)
		}
		c.k = k
		return nil
	}
	if k.block, err = row.block(key[:a.KeyLen]); err != nil {
		return fmt.Errorf("%s: %w", a.Name, err)
	}
	k.ctr = row.counter
	if k.integ, err = NewInteg(c.integ, c.ska); err != nil {
		return fmt.Errorf("%s needs integrity protection: %w", a.Name, err)
	}
	c.icv, c.k = k.integ.ICVLen(), k
	return nil
}

// Rest gives up the memory of the expanded keys, until the Cipher is used again.
func (c *Cipher) Rest() { c.k = nil }

// keys are the expanded keys.
func (c *Cipher) keys() *cipherKeys {
	if c.k == nil {
		if err := c.prepare(); err != nil {
			panic("suite: " + err.Error()) // NewCipher has done the same
		}
	}
	return c.k
}

// IVLen is the length of the explicit IV in octets.
func (c *Cipher) IVLen() int { return c.alg.IVLen }

// ICVLen is the length of the ICV in octets.
func (c *Cipher) ICVLen() int { return c.icv }

// Block is the multiple, in octets, to which padding fills the plaintext.
func (c *Cipher) Block() int { return c.alg.Block }

// Overhead is the most that Seal adds to a plaintext.
func (c *Cipher) Overhead() int { return c.IVLen() + c.Block() + c.ICVLen() }

// SealedLen is what Seal appends for n octets of payloads: the Payload Length
// of the Encrypted payload without its header.
func (c *Cipher) SealedLen(n int) int {
	return c.IVLen() + n + c.padding(n) + 1 + c.ICVLen()
}

// MaxPlaintext is the most octets of payloads that fit when Seal may append n
// octets, 0 when none do. It sizes the fragments of RFC 7383 §2.5.2.
func (c *Cipher) MaxPlaintext(n int) int {
	room := n - c.IVLen() - c.ICVLen()
	return max(0, room-room%c.Block()-1)
}

// padding is the minimal Pad Length for n octets of payloads.
func (c *Cipher) padding(n int) int {
	return c.Block() - 1 - n%c.Block()
}

// NextIV is the counter that the next Seal uses as its explicit IV under an
// AEAD and in counter mode. A key with a repeated IV is a broken key, so a saved IKE SA must be read
// back with a counter no lower than any used: save it before the message
// leaves, or save a value ahead of it. The first one is 1; with CBC it stays 1.
func (c *Cipher) NextIV() uint64 { return c.next }

// SetNextIV moves the counter forward; it refuses to go back.
func (c *Cipher) SetNextIV(n uint64) error {
	if n < c.next {
		return fmt.Errorf("IV counter of %s set to %d, want at least %d: an IV is never used twice", c.alg.Name, n, c.next)
	}
	c.next = n
	return nil
}

// use is the nonce with an IV.
func (c *Cipher) use(iv []byte) []byte {
	n := c.alg.SaltLen + copy(c.k.nonce[c.alg.SaltLen:], iv)
	return c.k.nonce[:n:n]
}

// xor encrypts or decrypts in counter mode: the counter block is nonce, IV and a
// number that starts at 1 (RFC 5930 §2, RFC 3686 §4).
func (c *Cipher) xor(iv, b []byte) {
	block := append(c.use(iv), 0, 0, 0, 1)
	cipher.NewCTR(c.k.block, block).XORKeyStream(b, b)
}

// Seal appends the protected form of plaintext (the chain of IKE payloads) to
// dst and returns the longer slice. aad may be dst itself, as it is when a
// message is built in place; plaintext must not share memory with dst. random
// gives the IV in CBC mode and is not read otherwise.
func (c *Cipher) Seal(random io.Reader, dst, aad, plaintext []byte) ([]byte, error) {
	k := c.keys()
	if k.nonce != nil && c.next == math.MaxUint64 {
		return nil, fmt.Errorf("%s: all IVs of this key are used; rekey the IKE SA", c.alg.Name)
	}
	start, n := len(dst), c.SealedLen(len(plaintext))
	out := slices.Grow(dst, n)[:start+n]
	body := out[start:]
	iv, inner := body[:c.IVLen()], body[c.IVLen():n-c.icv]
	clear(inner[copy(inner, plaintext):])
	inner[len(inner)-1] = byte(c.padding(len(plaintext)))

	if k.nonce != nil {
		binary.BigEndian.PutUint64(iv, c.next)
		c.next++
	}
	switch {
	case k.aead != nil:
		k.aead.Seal(inner[:0], c.use(iv), inner, aad)
		return out, nil
	case k.ctr:
		c.xor(iv, inner)
	default:
		// Unpredictable, not only unique (RFC 7296 §3.14).
		if _, err := io.ReadFull(random, iv); err != nil {
			return nil, fmt.Errorf("random IV for %s: %w", c.alg.Name, err)
		}
		cipher.NewCBCEncrypter(k.block, iv).CryptBlocks(inner, inner)
	}
	k.integ.Sum(body[:n-c.icv], aad, body[:n-c.icv])
	return out, nil
}

// Open checks and decrypts what follows the header of an Encrypted payload, and
// appends the payloads in it, without padding, to dst. dst must not share
// memory with body. On an error (ErrIntegrity or ErrPadding) nothing is
// appended.
func (c *Cipher) Open(dst, aad, body []byte) ([]byte, error) {
	k := c.keys()
	least := c.SealedLen(0)
	if len(body) < least || (len(body)-least)%c.Block() != 0 {
		return nil, fmt.Errorf("%w: encrypted payload of %d octets, want %d or more in steps of %d for %s", ErrIntegrity, len(body), least, c.Block(), c.alg.Name)
	}
	iv, sealed := body[:c.IVLen()], body[c.IVLen():]
	start := len(dst)
	var out []byte
	if k.aead != nil {
		var err error
		if out, err = k.aead.Open(dst, c.use(iv), sealed, aad); err != nil {
			return nil, fmt.Errorf("%w: %s", ErrIntegrity, c.alg.Name)
		}
	} else {
		end := len(body) - c.icv
		if !k.integ.Verify(body[end:], aad, body[:end]) {
			return nil, fmt.Errorf("%w: %s", ErrIntegrity, c.alg.Name)
		}
		out = append(dst, body[c.IVLen():end]...)
		if k.ctr {
			c.xor(iv, out[start:])
		} else {
			cipher.NewCBCDecrypter(k.block, iv).CryptBlocks(out[start:], out[start:])
		}
	}
	// The recipient accepts any pad length that gives proper alignment
	// (RFC 7296 §3.14), and any padding.
	pad := int(out[len(out)-1])
	n := len(out) - start - 1 - pad
	if n < 0 {
		clear(out[start:])
		return nil, fmt.Errorf("%w: pad length %d in a plaintext of %d octets (RFC 7296 §3.14)", ErrPadding, pad, len(out)-start)
	}
	return out[:start+n], nil
}
