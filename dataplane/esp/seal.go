package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/ipsec/mac"
)

// Sealer makes ESP packets of one outbound SA.
type Sealer struct{ transform }

// cbcMode is what the standard library gives for CBC: a mode whose IV can be set again.
type cbcMode interface {
	cipher.BlockMode
	SetIV([]byte)
}

// NewSealer makes the sealer of an outbound ESP SA. It keeps nothing of sa: the
// caller may wipe the keys afterwards.
func NewSealer(sa *ipsec.SA) (*Sealer, error) {
	if sa.Direction != ipsec.Outbound {
		return nil, fmt.Errorf("esp: %s is an SA of direction %s, want out", sa.ID, sa.Direction)
	}
	t, err := newTransform(sa)
	if err != nil {
		return nil, err
	}
	s := &Sealer{t}
	if t.aead != nil || t.block == nil {
		return s, nil
	}
	if s.ivKey, err = newIVKey(t.block.BlockSize()); err != nil {
		return nil, fmt.Errorf("esp: key for IVs: %w", err)
	}
	if s.cbc, err = newCBC(cipher.NewCBCEncrypter(t.block, s.iv[:t.ivLen])); err != nil {
		return nil, err
	}
	return s, nil
}

// newIVKey makes a cipher with a random key and blocks as long as an IV, so that
// no two sequence numbers get the same IV.
func newIVKey(size int) (cipher.Block, error) {
	var key [24]byte
	rand.Read(key[:]) // never fails (crypto/rand)
	defer clear(key[:])
	if size == des.BlockSize {
		return des.NewTripleDESCipher(key[:])
	}
	return aes.NewCipher(key[:16])
}

// Clone makes a sealer of the same SA and keys for another goroutine. The
// sequence numbers of both come from one reservation.
func (s *Sealer) Clone() (*Sealer, error) {
	c := *s
	if s.aead != nil {
		c.aead = cloneAEAD(s.aead)
		return &c, nil
	}
	apart := *s.separate
	c.separate = &apart
	var err error
	if c.mac, err = mac.Clone(s.mac); err != nil {
		return nil, fmt.Errorf("esp: %w", err)
	}
	if s.ctr != nil {
		c.ctr = s.ctr.clone()
	}
	if s.block != nil {
		c.cbc, err = newCBC(cipher.NewCBCEncrypter(c.block, c.iv[:c.ivLen]))
	}
	return &c, err
}

func newCBC(m cipher.BlockMode) (cbcMode, error) {
	c, ok := m.(cbcMode)
	if !ok {
		return nil, fmt.Errorf("esp: this build's CBC (%T) cannot set an IV without allocating", m)
	}
	return c, nil
}

// SealJob is one packet of a burst. Dst and Src are as in SealFrom; a nil Src
// means that Size octets of payload lie in place, as in Seal. A Total other than
// 0 is as in SealPadded; with Next 59 and no payload that is a dummy packet. On
// return Why says whether it was sealed, and Len how long the ESP packet is.
type SealJob struct {
	Dst   []byte
	Src   []byte
	Size  int // payload octets, when Src is nil
	Total int // octets of the ESP packet, 0 for no more than needed
	Next  uint8
	Seq   uint64

	Len int
	Why packet.Why
}

// Payload is the number of payload octets.
func (j *SealJob) Payload() int {
	if j.Src == nil {
		return j.Size
	}
	return len(j.Src)
}

// SealBurst seals packets of one SA and returns how many went well. Jobs whose
// Why is set already are left alone.
func (s *Sealer) SealBurst(jobs []SealJob) int {
	n := 0
	for i := range jobs {
		j := &jobs[i]
		if j.Why != packet.WhyOK {
			continue
		}
		if j.Total != 0 {
			j.Len, j.Why = s.sealTotal(j)
		} else if j.Src == nil {
			j.Len, j.Why = s.Seal(j.Dst, j.Size, j.Next, j.Seq)
		} else {
			j.Len, j.Why = s.SealFrom(j.Dst, j.Src, j.Next, j.Seq)
		}
		if j.Why == packet.WhyOK {
			n++
		}
	}
	return n
}

// Seal makes the packet in place: the payload is the n octets at
// dst[HeaderLen():], and dst must hold SealedLen(n) octets. It returns the
// length of the packet.
//
// seq must never have been given to a sealer of this SA before.
func (s *Sealer) Seal(dst []byte, n int, next uint8, seq uint64) (int, packet.Why) {
	size, why := s.check(dst, n, seq)
	if why != packet.WhyOK {
		return 0, why
	}
	head, end := s.HeaderLen(), size-int(s.icv)
	body := dst[head:end]
	trailer(body, n, next)
	s.header(dst, seq)
	if s.aead != nil {
		s.aead.Seal(body[:0], s.nonce[s.skip:], body, s.additional(seq))
		return size, packet.WhyOK
	}
	switch {
	case s.cbc != nil:
		s.cbc.SetIV(dst[espLen:head])
		s.cbc.CryptBlocks(body, body)
	case s.ctr != nil:
		s.ctr.xor(s.nonce[:], body)
	}
	copy(dst[end:size], s.integrity(dst[:end], uint32(seq>>32)))
	return size, packet.WhyOK
}

// SealFrom makes the packet at dst out of the payload src elsewhere, with no
// copy but the cipher's own. dst must hold SealedLen(len(src)) octets and must
// not overlap src.
//
// When cap(src) leaves room for the trailer (TrailerLen octets are enough), an
// AEAD suite borrows those octets after src during the call and puts their
// contents back; so segments of one large packet can be sealed one after the
// other. Without that room the payload is copied to dst first.
func (s *Sealer) SealFrom(dst, src []byte, next uint8, seq uint64) (int, packet.Why) {
	size, why := s.check(dst, len(src), seq)
	if why != packet.WhyOK {
		return 0, why
	}
	head, end := s.HeaderLen(), size-int(s.icv)
	if s.aead == nil && s.cbc != nil {
		s.header(dst, seq)
		s.encryptFrom(dst[head:end], src, next, dst[espLen:head])
		copy(dst[end:size], s.integrity(dst[:end], uint32(seq>>32)))
		return size, packet.WhyOK
	}
	if s.aead == nil || cap(src) < end-head {
		copy(dst[head:], src)
		return s.Seal(dst, len(src), next, seq)
	}
	plain := src[:end-head]
	var saved [8]byte // an AEAD suite's trailer has at most 5 octets
	copy(saved[:], plain[len(src):])
	trailer(plain, len(src), next)
	s.header(dst, seq)
	s.aead.Seal(dst[head:head], s.nonce[s.skip:], plain, s.additional(seq))
	copy(plain[len(src):], saved[:])
	return size, packet.WhyOK
}

// encryptFrom runs CBC over src into body: whole blocks straight from src, the
// rest of it together with the trailer.
func (s *Sealer) encryptFrom(body, src []byte, next uint8, iv []byte) {
	size := s.cbc.BlockSize()
	whole := len(src) / size * size
	last := s.last[:len(body)-whole]
	copy(last, src[whole:])
	trailer(last, len(src)-whole, next)
	s.cbc.SetIV(iv)
	if whole > 0 {
		s.cbc.CryptBlocks(body[:whole], src[:whole])
	}
	s.cbc.CryptBlocks(body[whole:], last)
}

func (s *Sealer) check(dst []byte, n int, seq uint64) (size int, why packet.Why) {
	size = s.SealedLen(n)
	switch {
	case n < 0 || len(dst) < size:
		return 0, packet.WhyNoRoom
	case seq == 0:
		return 0, packet.WhySeqZero
	case !s.esn && seq>>32 != 0:
		return 0, packet.WhySeqRange
	}
	return size, packet.WhyOK
}

// header writes SPI, sequence number and IV, and leaves a nonce in s.
func (s *Sealer) header(dst []byte, seq uint64) {
	binary.BigEndian.PutUint32(dst, s.spi)
	binary.BigEndian.PutUint32(dst[4:], uint32(seq))
	switch {
	case s.aead == nil && s.ivKey != nil:
		iv := s.iv[:s.ivLen]
		binary.BigEndian.PutUint64(iv[len(iv)-8:], seq)
		s.ivKey.Encrypt(dst[espLen:], iv)
	case s.ivLen == 8:
		binary.BigEndian.PutUint64(dst[espLen:], seq)
		binary.BigEndian.PutUint64(s.nonce[4:], seq)
	}
}

// trailer writes padding 1, 2, 3, …, its length and the next header after the n
// octets of payload in body (RFC 4303 §2.4).
func trailer(body []byte, n int, next uint8) {
	pad := len(body) - n - 2
	for i := range pad {
		body[n+i] = byte(i + 1)
	}
	body[len(body)-2] = byte(pad)
	body[len(body)-1] = next
}
