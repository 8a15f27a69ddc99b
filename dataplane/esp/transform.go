package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/testudo-ipsec/testudo/ipsec"
)

const (
	espLen   = 8 // SPI and sequence number
	maxIV    = 16
	maxBlock = 16
)

// aeads and macs are the constructors behind the rows of ipsec.Algorithms.
// What is not here is refused by name.
var aeads = map[uint16]func(key []byte) (cipher.AEAD, error){
	ipsec.EncrAESGCM16: func(key []byte) (cipher.AEAD, error) {
		b, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		return cipher.NewGCM(b)
	},
	ipsec.EncrChaCha20Poly1305: chacha20poly1305.New,
}

var macs = map[uint16]func() hash.Hash{
	ipsec.IntegHMACSHA256128: sha256.New,
	ipsec.IntegHMACSHA384192: sha512.New384,
	ipsec.IntegHMACSHA512256: sha512.New,
}

// transform is what sealing and opening share: one SA's algorithms, keyed.
// Exactly one of aead and block is set; mac goes with block.
type transform struct {
	aead  cipher.AEAD
	block cipher.Block
	mac   hash.Hash

	spi   uint32
	esn   bool
	ivLen uint8
	icv   uint8
	align uint8 // of payload, padding and the two octets after it

	// Scratch, because a slice given to an interface method would otherwise
	// escape to the heap for every packet.
	nonce [12]byte // salt, then IV
	aad   [12]byte
	high  [4]byte
	sum   [64]byte
}

func newTransform(sa *ipsec.SA) (transform, error) {
	if sa.Protocol != ipsec.ProtocolESP {
		return transform{}, fmt.Errorf("esp: %s is an SA of protocol %s, want esp", sa.ID, sa.Protocol)
	}
	if sa.SPI < ipsec.FirstSPI {
		return transform{}, fmt.Errorf("esp: SPI %s is reserved, want at least %s (RFC 4303 §2.1)", sa.SPI, ipsec.FirstSPI)
	}
	encr, ok := ipsec.LookupAlgorithm(sa.Suite.Encr)
	if !ok || encr.Type != ipsec.TransformENCR || encr.Use&ipsec.UseESP == 0 {
		return transform{}, fmt.Errorf("esp: encryption algorithm %s is not one for ESP", sa.Suite.Encr)
	}
	if got, want := sa.EncrKey.Len(), encr.KeyLen+encr.SaltLen; got != want {
		return transform{}, fmt.Errorf("esp: %s takes %d octets of key and salt, got %d", encr.Name, want, got)
	}
	t := transform{
		spi:   uint32(sa.SPI),
		esn:   sa.Suite.ESN,
		ivLen: uint8(encr.IVLen),
		icv:   uint8(encr.ICVLen),
		align: uint8(max(encr.Block, 4)), // RFC 4303 §2.4
	}
	key := sa.EncrKey.Reveal()
	var err error
	if encr.AEAD {
		err = t.keyAEAD(sa, encr, key)
	} else {
		err = t.keySeparate(sa, encr, key)
	}
	if err != nil {
		return transform{}, err
	}
	binary.BigEndian.PutUint32(t.aad[:], t.spi)
	return t, nil
}

func (t *transform) keyAEAD(sa *ipsec.SA, encr *ipsec.Algorithm, key []byte) error {
	make, ok := aeads[encr.ID]
	if !ok {
		return fmt.Errorf("esp: combined-mode algorithm %s is not implemented", encr.Name)
	}
	if !sa.IntegKey.IsZero() || sa.Suite.Integ.ID != ipsec.IntegNone {
		return fmt.Errorf("esp: %s authenticates by itself, got integrity algorithm %s as well", encr.Name, sa.Suite.Integ)
	}
	var err error
	if t.aead, err = make(key[:encr.KeyLen]); err != nil {
		return fmt.Errorf("esp: %s: %w", encr.Name, err)
	}
	copy(t.nonce[:], key[encr.KeyLen:])
	return nil
}

func (t *transform) keySeparate(sa *ipsec.SA, encr *ipsec.Algorithm, key []byte) error {
	if encr.ID != ipsec.EncrAESCBC {
		return fmt.Errorf("esp: encryption algorithm %s is not implemented", encr.Name)
	}
	integ, ok := ipsec.LookupAlgorithm(sa.Suite.Integ)
	if !ok || integ.Type != ipsec.TransformINTEG || macs[integ.ID] == nil {
		return fmt.Errorf("esp: %s needs an integrity algorithm for ESP, got %s", encr.Name, sa.Suite.Integ)
	}
	if got := sa.IntegKey.Len(); got != integ.KeyLen {
		return fmt.Errorf("esp: %s takes %d octets of key, got %d", integ.Name, integ.KeyLen, got)
	}
	var err error
	if t.block, err = aes.NewCipher(key); err != nil {
		return fmt.Errorf("esp: %s: %w", encr.Name, err)
	}
	t.keyMAC(macs[integ.ID], sa.IntegKey.Reveal())
	t.icv = uint8(integ.ICVLen)
	return nil
}

// keyMAC makes the HMAC, and one Reset: from then on crypto/hmac restores the
// saved states after ipad and opad instead of hashing the key again.
func (t *transform) keyMAC(h func() hash.Hash, key []byte) {
	t.mac = hmac.New(h, key)
	t.mac.Reset()
}

// integrity computes the ICV over b, and over the high half of the sequence
// number with ESN, into t.sum.
func (t *transform) integrity(b []byte, high uint32) []byte {
	t.mac.Reset()
	t.mac.Write(b)
	if t.esn {
		binary.BigEndian.PutUint32(t.high[:], high)
		t.mac.Write(t.high[:])
	}
	return t.mac.Sum(t.sum[:0])[:t.icv]
}

// additional is the additional authenticated data of an AEAD suite.
func (t *transform) additional(seq uint64) []byte {
	if t.esn {
		binary.BigEndian.PutUint64(t.aad[4:], seq)
		return t.aad[:12]
	}
	binary.BigEndian.PutUint32(t.aad[4:], uint32(seq))
	return t.aad[:8]
}

// HeaderLen is the number of octets before the payload: SPI, sequence number
// and IV.
func (t *transform) HeaderLen() int { return espLen + int(t.ivLen) }

// ICVLen is the number of octets of the ICV.
func (t *transform) ICVLen() int { return int(t.icv) }

// TrailerLen is the most that may follow the payload: padding, its length, next
// header and ICV.
func (t *transform) TrailerLen() int { return int(t.align) - 1 + 2 + int(t.icv) }

// SealedLen is the length of the ESP packet that carries n octets of payload.
func (t *transform) SealedLen(n int) int {
	a := int(t.align)
	return t.HeaderLen() + (n+2+a-1)/a*a + int(t.icv)
}

// MaxPayload is the most payload that an ESP packet of n octets can carry; it
// is the inverse of SealedLen, and negative when nothing fits.
func (t *transform) MaxPayload(n int) int {
	a := int(t.align)
	body := n - t.HeaderLen() - int(t.icv)
	if body < 0 {
		return -1
	}
	return body/a*a - 2
}

// SPI of the SA.
func (t *transform) SPI() ipsec.SPI { return ipsec.SPI(t.spi) }

// Peek reads the SPI and the low half of the sequence number of a packet.
func Peek(b []byte) (spi ipsec.SPI, low uint32, ok bool) {
	if len(b) < espLen {
		return 0, 0, false
	}
	return ipsec.SPI(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[4:]), true
}
