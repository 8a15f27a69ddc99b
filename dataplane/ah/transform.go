package ah

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/ipsec/mac"
)

const fixedLen = 12 // up to the ICV (RFC 4302 §2)

// transform is what sealing and opening share: one SA's algorithm, keyed.
// Exactly one of mac and gmac is set.
type transform struct {
	mac  hash.Hash
	gmac cipher.AEAD

	spi   uint32
	mode  ipsec.Mode
	esn   bool
	ivLen uint8
	icv   uint8

	// Scratch, because a slice given to an interface method would otherwise
	// escape to the heap for every packet.
	nonce [12]byte // GMAC: salt, then IV (RFC 4543 §3.2)
	high  [4]byte
	sum   [64]byte
	buf   []byte // the headers as the ICV sees them; GMAC: the whole packet
}

func newTransform(sa *ipsec.SA) (transform, error) {
	if sa.Protocol != ipsec.ProtocolAH {
		return transform{}, fmt.Errorf("ah: %s is an SA of protocol %s, want ah", sa.ID, sa.Protocol)
	}
	if sa.SPI < ipsec.FirstSPI {
		return transform{}, fmt.Errorf("ah: SPI %s is reserved, want at least %s (RFC 4302 §2.4)", sa.SPI, ipsec.FirstSPI)
	}
	if sa.Encap != nil {
		return transform{}, fmt.Errorf("ah: %s asks for UDP encapsulation, which AH does not have (RFC 3948 §1)", sa.ID)
	}
	if sa.Suite.Encr.Type != 0 || !sa.EncrKey.IsZero() {
		return transform{}, fmt.Errorf("ah: AH encrypts nothing, got encryption algorithm %s", sa.Suite.Encr)
	}
	integ, ok := ipsec.LookupAlgorithm(sa.Suite.Integ)
	if !ok || integ.Type != ipsec.TransformINTEG || integ.Use&ipsec.UseAH == 0 {
		return transform{}, fmt.Errorf("ah: integrity algorithm %s is not one for AH", sa.Suite.Integ)
	}
	if got, want := sa.IntegKey.Len(), integ.KeyLen+integ.SaltLen; got != want {
		return transform{}, fmt.Errorf("ah: %s takes %d octets of key and salt, got %d", integ.Name, want, got)
	}
	t := transform{
		spi:   uint32(sa.SPI),
		mode:  sa.Mode,
		esn:   sa.Suite.ESN,
		ivLen: uint8(integ.IVLen),
		icv:   uint8(integ.ICVLen),
	}
	key := sa.IntegKey.Reveal()
	var err error
	switch integ.ID {
	case ipsec.IntegAES128GMAC, ipsec.IntegAES192GMAC, ipsec.IntegAES256GMAC:
		copy(t.nonce[:], key[integ.KeyLen:])
		t.gmac, err = newGMAC(key[:integ.KeyLen])
	default:
		t.mac, err = mac.New(integ, key)
	}
	if err != nil {
		return transform{}, fmt.Errorf("ah: %s: %w", integ.Name, err)
	}
	return t, nil
}

func newGMAC(key []byte) (cipher.AEAD, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

// HeaderLen is the length of the Authentication Header in a packet of IP version
// 4 or 6: a multiple of 4 or 8 octets, with no more padding than that takes (RFC
// 4302 §3.3.3.2.1).
func (t *transform) HeaderLen(version uint8) int {
	n := fixedLen + int(t.ivLen) + int(t.icv)
	if version == 6 {
		return (n + 7) &^ 7
	}
	return (n + 3) &^ 3
}

// ICVLen is the number of octets of the ICV, without IV and padding.
func (t *transform) ICVLen() int { return int(t.icv) }

// SPI of the SA.
func (t *transform) SPI() ipsec.SPI { return ipsec.SPI(t.spi) }

// integrity computes the ICV of the whole packet b, whose AH is the n octets at
// offset at, into t.sum (RFC 4302 §3.3.3). seq is the full sequence number.
func (t *transform) integrity(b []byte, at, n int, seq uint64) ([]byte, packet.Why) {
	buf, why := appendCanonical(t.buf[:0], b, at)
	if why != packet.WhyOK {
		return nil, why
	}
	icv := len(buf) + fixedLen + int(t.ivLen)
	buf = append(buf, b[at:at+n]...)
	clear(buf[icv : icv+int(t.icv)])
	if t.gmac != nil {
		return t.tag(buf, b, at, n, seq), packet.WhyOK
	}
	t.buf = buf
	t.mac.Reset()
	t.mac.Write(buf)
	t.mac.Write(b[at+n:])
	if t.esn { // RFC 4302 §3.3.3.2.2: as if it followed the packet
		binary.BigEndian.PutUint32(t.high[:], uint32(seq>>32))
		t.mac.Write(t.high[:])
	}
	return t.mac.Sum(t.sum[:0])[:t.icv], packet.WhyOK
}

// tag is AES-GMAC, which takes all that is covered in one piece (RFC 4543 §4).
func (t *transform) tag(buf, b []byte, at, n int, seq uint64) []byte {
	copy(t.nonce[4:], b[at+fixedLen:at+fixedLen+int(t.ivLen)])
	buf = append(buf, b[at+n:]...)
	if t.esn {
		buf = binary.BigEndian.AppendUint32(buf, uint32(seq>>32))
	}
	t.buf = buf
	return t.gmac.Seal(t.sum[:0], t.nonce[:], nil, buf)
}

// Peek reads the SPI and the low half of the sequence number of the AH at the
// start of b: packet.Header.Upper is where it is in a packet whose Protocol is
// packet.ProtoAH.
func Peek(b []byte) (spi ipsec.SPI, low uint32, ok bool) {
	if len(b) < fixedLen {
		return 0, 0, false
	}
	return ipsec.SPI(binary.BigEndian.Uint32(b[4:])), binary.BigEndian.Uint32(b[8:]), true
}
