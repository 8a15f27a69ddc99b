package esp

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"fmt"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Opener verifies and decrypts ESP packets of one inbound SA.
type Opener struct{ transform }

// NewOpener makes the opener of an inbound ESP SA. It keeps nothing of sa: the
// caller may wipe the keys afterwards.
func NewOpener(sa *ipsec.SA) (*Opener, error) {
	if sa.Direction != ipsec.Inbound {
		return nil, fmt.Errorf("esp: %s is an SA of direction %s, want in", sa.ID, sa.Direction)
	}
	t, err := newTransform(sa)
	if err != nil {
		return nil, err
	}
	o := &Opener{t}
	if t.aead == nil && t.block != nil {
		if o.cbc, err = newCBC(cipher.NewCBCDecrypter(t.block, o.iv[:t.ivLen])); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// OpenJob is one packet of a burst: Packet starts at the SPI, Seq is its full
// sequence number as the replay window inferred it. On return Why says whether
// Payload, which lies inside Packet, may be used.
type OpenJob struct {
	Packet []byte
	Seq    uint64

	Payload []byte
	Next    uint8
	Why     packet.Why
}

// OpenBurst opens packets of one SA and returns how many went well. Jobs whose
// Why is set already are left alone.
func (o *Opener) OpenBurst(jobs []OpenJob) int {
	n := 0
	for i := range jobs {
		j := &jobs[i]
		if j.Why != packet.WhyOK {
			continue
		}
		if j.Payload, j.Next, j.Why = o.Open(j.Packet, j.Seq); j.Why == packet.WhyOK {
			n++
		}
	}
	return n
}

// Open verifies and decrypts a packet in place. seq is the full sequence number;
// its low half must be the packet's. The payload is a part of b; in tunnel mode
// it may be longer than the inner packet (traffic-flow padding): see Trim.
// After a failure the contents of b are unspecified.
//
// An authentic packet with next header 59 gives WhyDummy: its sequence number
// counts as received, its payload is to be discarded (RFC 4303 §2.6). The same
// holds for WhyPadding; for all other reasons nothing was authenticated.
func (o *Opener) Open(b []byte, seq uint64) (payload []byte, next uint8, why packet.Why) {
	head, icv := o.HeaderLen(), int(o.icv)
	if len(b) < head+int(o.align)+icv {
		return nil, 0, packet.WhyShort
	}
	if (len(b)-head-icv)%int(o.align) != 0 {
		return nil, 0, packet.WhyAlign
	}
	if binary.BigEndian.Uint32(b) != o.spi {
		return nil, 0, packet.WhyNoSA
	}
	if binary.BigEndian.Uint32(b[4:]) != uint32(seq) || !o.esn && seq>>32 != 0 {
		return nil, 0, packet.WhySeqRange
	}
	body := b[head : len(b)-icv]
	if o.aead != nil {
		copy(o.nonce[4:], b[espLen:head])
		if _, err := o.aead.Open(body[:0], o.nonce[o.skip:], b[head:], o.additional(seq)); err != nil {
			return nil, 0, packet.WhyAuth
		}
	} else {
		want := o.integrity(b[:len(b)-icv], uint32(seq>>32))
		if subtle.ConstantTimeCompare(want, b[len(b)-icv:]) != 1 {
			return nil, 0, packet.WhyAuth
		}
		switch {
		case o.cbc != nil:
			o.cbc.SetIV(b[espLen:head])
			o.cbc.CryptBlocks(body, body)
		case o.ctr != nil:
			copy(o.nonce[4:], b[espLen:head])
			o.ctr.xor(o.nonce[:], body)
		}
	}
	return untrail(body)
}

// untrail checks and removes the trailer of a decrypted body.
func untrail(body []byte) ([]byte, uint8, packet.Why) {
	pad, next := int(body[len(body)-2]), body[len(body)-1]
	n := len(body) - 2 - pad
	if n < 0 {
		return nil, 0, packet.WhyPadding
	}
	for i, p := range body[n : n+pad] {
		if p != byte(i+1) {
			return nil, 0, packet.WhyPadding
		}
	}
	if next == packet.ProtoNone {
		return nil, next, packet.WhyDummy
	}
	return body[:n], next, packet.WhyOK
}

// Trim cuts a tunnel-mode payload to the inner packet's own length, which takes
// traffic-flow padding off (RFC 4303 §2.7). next must be IPv4 or IPv6 and fit it.
func Trim(b []byte, next uint8) ([]byte, packet.Why) {
	n := 0
	switch next {
	case packet.ProtoIPv4:
		if len(b) < 20 || b[0]>>4 != 4 {
			return nil, packet.WhyNextHead
		}
		n = int(binary.BigEndian.Uint16(b[2:]))
	case packet.ProtoIPv6:
		if len(b) < 40 || b[0]>>4 != 6 {
			return nil, packet.WhyNextHead
		}
		n = 40 + int(binary.BigEndian.Uint16(b[4:]))
	default:
		return nil, packet.WhyNextHead
	}
	if n > len(b) {
		return nil, packet.WhyTruncated
	}
	return b[:n], packet.WhyOK
}
