package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/ipsec/mac"
)

const (
	espLen   = 8 // SPI and sequence number
	maxIV    = 16
	maxBlock = 16
)

// blocks are the constructors of the ciphers that run in CBC mode.
var blocks = map[uint16]func(key []byte) (cipher.Block, error){
	ipsec.EncrAESCBC: aes.NewCipher,          // RFC 3602
	ipsec.Encr3DES:   des.NewTripleDESCipher, // RFC 2451
	ipsec.EncrDES:    newDES,                 // RFC 2405
}

// transform is what sealing and opening share: one SA's algorithms, keyed.
// Either aead or separate is set.
type transform struct {
	aead cipher.AEAD
	*separate

	spi   uint32
	mode  ipsec.Mode
	esn   bool
	ivLen uint8
	icv   uint8
	align uint8 // of payload, padding and the two octets after it
	skip  uint8 // octets of nonce that are not used: CCM's salt is one shorter

	// Scratch, because a slice given to an interface method would otherwise
	// escape to the heap for every packet.
	nonce [12]byte // salt, which ends at the fourth octet, then IV
	aad   [12]byte
}

// separate is what the suites need whose encryption does not authenticate: mac, and
// with it block (CBC), ctr or neither (NULL). It is apart because an SA of a combined
// suite, as nearly all are, would carry it for nothing.
type separate struct {
	block cipher.Block
	ctr   *counter
	mac   hash.Hash
	cbc   cbcMode      // CBC
	ivKey cipher.Block // CBC, sealing: makes IVs

	// Scratch, as in transform.
	high [4]byte
	sum  [64]byte
	iv   [maxIV]byte
	last [2 * maxBlock]byte // the final plaintext blocks of SealFrom under CBC
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
		mode:  sa.Mode,
		esn:   sa.Suite.ESN,
		ivLen: uint8(encr.IVLen),
		icv:   uint8(encr.ICVLen),
		align: uint8(max(encr.Block, 4)), // RFC 4303 §2.4
	}
	key := sa.EncrKey.Reveal()
	if encr.SaltLen > 0 {
		t.skip = uint8(4 - encr.SaltLen)
		copy(t.nonce[t.skip:], key[encr.KeyLen:])
	}
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
	if t.aead, err = make(key[:encr.KeyLen], encr.ICVLen); err != nil {
		return fmt.Errorf("esp: %s: %w", encr.Name, err)
	}
	return nil
}

func (t *transform) keySeparate(sa *ipsec.SA, encr *ipsec.Algorithm, key []byte) error {
	integ, ok := ipsec.LookupAlgorithm(sa.Suite.Integ)
	if !ok || integ.Use&ipsec.UseESP == 0 || !mac.Known(integ) {
		return fmt.Errorf("esp: %s needs an integrity algorithm for ESP, got %s", encr.Name, sa.Suite.Integ)
	}
	t.separate = &separate{}
	var err error
	switch {
	case encr.ID == ipsec.EncrNULL:
	case encr.ID == ipsec.EncrAESCTR:
		t.ctr, err = newCounter(key[:encr.KeyLen])
	case blocks[encr.ID] != nil:
		t.block, err = blocks[encr.ID](key)
	default:
		return fmt.Errorf("esp: encryption algorithm %s is not implemented", encr.Name)
	}
	if err != nil {
		return fmt.Errorf("esp: %s: %w", encr.Name, err)
	}
	if t.mac, err = mac.New(integ, sa.IntegKey.Reveal()); err != nil {
		return fmt.Errorf("esp: %w", err)
	}
	t.icv = uint8(integ.ICVLen)
	return nil
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
