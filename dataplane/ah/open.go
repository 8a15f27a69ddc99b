package ah

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Opener verifies packets of one inbound SA.
type Opener struct{ transform }

// NewOpener makes the opener of an inbound AH SA. It keeps nothing of sa: the
// caller may wipe the keys afterwards.
func NewOpener(sa *ipsec.SA) (*Opener, error) {
	if sa.Direction != ipsec.Inbound {
		return nil, fmt.Errorf("ah: %s is an SA of direction %s, want in", sa.ID, sa.Direction)
	}
	t, err := newTransform(sa)
	if err != nil {
		return nil, err
	}
	return &Opener{t}, nil
}

// OpenJob is one packet of a burst: Packet is a whole IP packet (reassembled, and
// no longer than it says), At the offset of its AH, Seq its full sequence number as
// the replay window inferred it. On return Why says whether Payload, which lies
// inside Packet, may be used: Next says what it is.
type OpenJob struct {
	Packet []byte
	At     int
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
		if j.Payload, j.Next, j.Why = o.Open(j.Packet, j.At, j.Seq); j.Why == packet.WhyOK {
			n++
		}
	}
	return n
}

// Open verifies the IP packet b, whose AH is at offset at, and changes nothing of
// it. seq is the full sequence number; its low half must be the packet's. The
// payload is what follows the AH. Unless the reason is WhyOK nothing was
// authenticated. (AH has no dummy packets; next header 59 is IPv6's own.)
func (o *Opener) Open(b []byte, at int, seq uint64) (payload []byte, next uint8, why packet.Why) {
	n, why := headerLen(b, at)
	if why != packet.WhyOK {
		return nil, 0, why
	}
	h := b[at : at+n]
	if binary.BigEndian.Uint32(h[4:]) != o.spi {
		return nil, 0, packet.WhyNoSA
	}
	if binary.BigEndian.Uint32(h[8:]) != uint32(seq) || !o.esn && seq>>32 != 0 {
		return nil, 0, packet.WhySeqRange
	}
	if !o.fits(n, b[0]>>4) {
		return nil, 0, packet.WhyAlign
	}
	if why := whole(b); why != packet.WhyOK {
		return nil, 0, why
	}
	nextAt, why := naming(b, at)
	if why != packet.WhyOK {
		return nil, 0, why
	}
	if b[nextAt] != packet.ProtoAH {
		return nil, 0, packet.WhyNextHead
	}
	want, why := o.integrity(b, at, n, seq)
	if why != packet.WhyOK {
		return nil, 0, why
	}
	got := h[fixedLen+int(o.ivLen):]
	if subtle.ConstantTimeCompare(want, got[:o.icv]) != 1 {
		return nil, 0, packet.WhyAuth
	}
	return b[at+n:], h[0], packet.WhyOK
}

// fits says whether an AH of n octets is one of this SA. For IPv4 padding to 8
// octets is taken too: Linux sends it unless told otherwise, though RFC 4302
// §3.3.3.2.1 asks for no more than 4.
func (o *Opener) fits(n int, version uint8) bool {
	return n == o.HeaderLen(version) || n == o.HeaderLen(6)
}

// headerLen is the length of the AH at offset at, all of which lies in b.
func headerLen(b []byte, at int) (int, packet.Why) {
	if at < ipv4Len || at+fixedLen > len(b) {
		return 0, packet.WhyShort
	}
	n := (int(b[at+1]) + 2) * 4
	if n < fixedLen || at+n > len(b) {
		return 0, packet.WhyShort
	}
	return n, packet.WhyOK
}

// whole refuses a packet that is longer or shorter than it says: the ICV would
// cover other octets than the sender's did.
func whole(b []byte) packet.Why {
	n := int(binary.BigEndian.Uint16(b[2:]))
	if b[0]>>4 == 6 {
		if len(b) < ipv6Len {
			return packet.WhyTruncated
		}
		n = ipv6Len + int(binary.BigEndian.Uint16(b[4:]))
	}
	if n != len(b) {
		return packet.WhyTruncated
	}
	return packet.WhyOK
}

// Strip takes the AH at offset at out of a packet that Open has verified, and gives
// the IP packet that SealFrom was given, up to what routers have changed: it is what
// transport mode delivers, and in a bundle the packet with ESP in it. The result is a
// part of b.
func Strip(b []byte, at int) ([]byte, packet.Why) {
	n, why := headerLen(b, at)
	if why != packet.WhyOK {
		return nil, why
	}
	nextAt, why := naming(b, at)
	if why != packet.WhyOK {
		return nil, why
	}
	next := b[at]
	copy(b[n:], b[:at])
	b = b[n:]
	packet.SetNext(b, nextAt, next)
	return b, packet.SetLength(b, len(b))
}
