package engine

import (
	"encoding/binary"

	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
)

// maxTrainHeader is the most that the headers of a train may take: an IPv6
// header, some extension headers, and TCP with options.
const maxTrainHeader = 256

// TCP flags that differ between the segments of a train.
const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

// train cuts a packet from the TUN into the packets it stands for, one after
// the other and in place: the headers of a segment are written over the end of
// the segment before it, which has been sealed by then. A packet that is no
// train has one segment.
type train struct {
	b    []byte
	h    *packet.Header
	gso  uint8
	head []byte // headers of the first segment, untouched

	headLen int
	payload int // octets after the headers, in all
	each    int // octets after the headers, in every segment but the last
	count   int
	next    int

	skip      int   // transport mode: octets before what is protected
	skipProto uint8 // and the protocol of what is

	// Sums of what is the same in every segment: the IPv4 header without length,
	// identification and checksum; addresses and protocol of the pseudo header.
	ip, pseudo uint16
}

// newTrain looks at a packet and finishes its checksum when it is a single one.
// room holds the headers.
func newTrain(b []byte, h *packet.Header, o *netio.Offload, room []byte) (train, packet.Why) {
	t := train{b: b, h: h, count: 1, payload: len(b), each: len(b)}
	if o.GSO == netio.GSONone {
		if o.NeedsChecksum {
			return t, packet.CompleteChecksum(b, int(o.ChecksumStart), int(o.ChecksumOffset), h.Protocol == packet.ProtoUDP)
		}
		return t, packet.WhyOK
	}
	upper := 8
	switch {
	case h.Fragment() || o.Segment == 0:
		return t, packet.WhyUnsupported
	case h.Protocol == packet.ProtoTCP && (o.GSO == netio.GSOTCP4 || o.GSO == netio.GSOTCP6):
		if len(b) < int(h.Upper)+20 {
			return t, packet.WhyTruncated
		}
		if upper = int(b[h.Upper+12]>>4) * 4; upper < 20 {
			return t, packet.WhyTruncated
		}
	case h.Protocol == packet.ProtoUDP && o.GSO == netio.GSOUDP:
	default:
		return t, packet.WhyUnsupported
	}
	t.gso = o.GSO
	t.headLen = int(h.Upper) + upper
	if t.headLen > len(room) || t.headLen >= len(b) {
		return t, packet.WhyTruncated
	}
	t.head = room[:copy(room, b[:t.headLen])]
	t.payload = len(b) - t.headLen
	t.each = int(o.Segment)
	t.count = (t.payload + t.each - 1) / t.each
	t.pseudo = packet.PseudoSum(h.Src(b), h.Dst(b), h.Protocol, 0)
	if h.Version == 4 {
		t.ip = packet.Sum(t.head[6:10], packet.Sum(t.head[12:h.Fixed], packet.Sum(t.head[:2], 0)))
	}
	return t, packet.WhyOK
}

// forTransport makes segments start at what transport mode protects.
func (t *train) forTransport() packet.Why {
	switch {
	case t.h.Fragment():
		return packet.WhyFragment
	case t.h.Insert != t.h.Fixed, t.h.Version == 4 && t.h.Fixed != 20:
		// The socket writes the outer header, without options and extensions.
		return packet.WhyUnsupported
	}
	t.skip = int(t.h.Insert)
	t.skipProto = t.b[t.h.InsertNext]
	return packet.WhyOK
}

// size is the length of the i-th packet.
func (t *train) size(i int) int { return t.headLen + min(t.each, t.payload-i*t.each) }

// largest is the length of the first packet, which no other exceeds.
func (t *train) largest() int { return t.size(0) }

// segment is the next packet, from what the mode protects on, and its protocol
// number there. It is good until the next call.
func (t *train) segment() (inner []byte, proto uint8) {
	i := t.next
	t.next++
	start, end := i*t.each, i*t.each+t.size(i)
	if t.gso != netio.GSONone {
		t.writeHeaders(i, t.b[start:end])
	}
	if t.skip != 0 {
		return t.b[start+t.skip : end], t.skipProto
	}
	if t.h.Version == 4 {
		return t.b[start:end], packet.ProtoIPv4
	}
	return t.b[start:end], packet.ProtoIPv6
}

// writeHeaders makes the headers of the i-th packet of a real train.
func (t *train) writeHeaders(i int, b []byte) {
	copy(b, t.head)
	if t.h.Version == 4 {
		length, id := uint16(len(b)), binary.BigEndian.Uint16(t.head[4:])+uint16(i)
		binary.BigEndian.PutUint16(b[2:], length)
		binary.BigEndian.PutUint16(b[4:], id)
		binary.BigEndian.PutUint16(b[10:], ^packet.Fold(uint32(t.ip)+uint32(length)+uint32(id)))
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	}
	up := b[t.h.Upper:]
	at := 16
	if t.h.Protocol == packet.ProtoUDP {
		at = 6
		binary.BigEndian.PutUint16(up[4:], uint16(len(up)))
	} else {
		binary.BigEndian.PutUint32(up[4:], binary.BigEndian.Uint32(up[4:])+uint32(i*t.each))
		if i < t.count-1 {
			up[13] &^= tcpFIN | tcpPSH
		}
		if i > 0 {
			up[13] &^= tcpCWR
		}
	}
	up[at], up[at+1] = 0, 0
	c := ^packet.Sum(up, packet.Fold(uint32(t.pseudo)+uint32(len(up))))
	if at == 6 {
		c = packet.NonZero(c)
	}
	binary.BigEndian.PutUint16(up[at:], c)
}
