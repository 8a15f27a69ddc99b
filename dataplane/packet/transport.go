package packet

import "encoding/binary"

// checksumAt is the offset of a protocol's checksum in its header, and the
// least length of that header; size 0: the protocol has no Internet checksum.
func checksumAt(version, proto uint8) (at, size int) {
	switch proto {
	case ProtoTCP:
		return 16, 20
	case ProtoUDP:
		return 6, 8
	case ProtoICMP:
		if version == 4 {
			return 2, 4
		}
	case ProtoICMPv6:
		if version == 6 {
			return 2, 4
		}
	}
	return 0, 0
}

// sumUpper is the sum over pseudo header and upper-layer octets.
func sumUpper(b []byte, h *Header) uint16 {
	up := b[h.Upper:h.Length]
	if h.Protocol == ProtoICMP { // RFC 792: no pseudo header
		return Sum(up, 0)
	}
	s := fold(uint64(h.Protocol) + uint64(len(up)))
	if h.Version == 4 {
		return Sum(up, Sum(b[12:20], s))
	}
	return Sum(up, Sum(b[8:40], s))
}

// VerifyChecksum checks the TCP, UDP, ICMP or ICMPv6 checksum. Other protocols,
// and IPv4 UDP without a checksum, pass. Fragments, and packets still on the way
// to the first hop of a routing header, cannot be checked: WhyUnsupported.
func VerifyChecksum(b []byte, h *Header) Why {
	at, size := checksumAt(h.Version, h.Protocol)
	if size == 0 {
		return WhyOK
	}
	if h.Fragment() || h.Routed {
		return WhyUnsupported
	}
	if h.Length-int(h.Upper) < size {
		return WhyTruncated
	}
	if h.Protocol == ProtoUDP && binary.BigEndian.Uint16(b[int(h.Upper)+at:]) == 0 {
		if h.Version == 4 {
			return WhyOK
		}
		return WhyChecksum // RFC 8200 §8.1
	}
	if sumUpper(b, h) != 0xffff {
		return WhyChecksum
	}
	return WhyOK
}

// SetChecksum computes the TCP, UDP, ICMP or ICMPv6 checksum over the whole
// packet. For other protocols it does nothing; for what cannot be computed it
// returns WhyUnsupported, as VerifyChecksum does.
func SetChecksum(b []byte, h *Header) Why {
	at, size := checksumAt(h.Version, h.Protocol)
	if size == 0 {
		return WhyOK
	}
	if h.Fragment() || h.Routed {
		return WhyUnsupported
	}
	if h.Length-int(h.Upper) < size {
		return WhyTruncated
	}
	field := b[int(h.Upper)+at:][:2]
	field[0], field[1] = 0, 0
	c := ^sumUpper(b, h)
	if h.Protocol == ProtoUDP {
		c = NonZero(c)
	}
	binary.BigEndian.PutUint16(field, c)
	return WhyOK
}

// SetChecksum4 computes the checksum of the IPv4 header at the start of b.
func SetChecksum4(b []byte) {
	n := int(b[0]&0x0f) * 4
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^Sum(b[:n], 0))
}

// VerifyChecksum4 checks the checksum of the IPv4 header at the start of b.
func VerifyChecksum4(b []byte) Why {
	if Sum(b[:int(b[0]&0x0f)*4], 0) != 0xffff {
		return WhyChecksum
	}
	return WhyOK
}

// CompleteChecksum finishes a checksum that a sender left to the device: the
// field at start+offset holds the folded, not complemented, sum of the pseudo
// header, and the octets from start to the end of b are still to be added
// (virtio VIRTIO_NET_HDR_F_NEEDS_CSUM). udp keeps 0 from meaning "none".
func CompleteChecksum(b []byte, start, offset int, udp bool) Why {
	if start < 0 || offset < 0 || start > len(b) || offset+2 > len(b)-start {
		return WhyTruncated
	}
	c := ^Sum(b[start:], 0) // the field itself is part of the sum: the pseudo header's share
	if udp {
		c = NonZero(c)
	}
	binary.BigEndian.PutUint16(b[start+offset:], c)
	return WhyOK
}

// ClampMSS lowers the MSS option of a TCP SYN to at most mss, and keeps the
// checksum right. It reports whether it changed the packet.
func ClampMSS(b []byte, h *Header, mss uint16) bool {
	const syn = 0x02
	if h.Protocol != ProtoTCP || h.FragmentOffset != 0 {
		return false
	}
	tcp := b[h.Upper:h.Length]
	if len(tcp) < 20 || tcp[13]&syn == 0 {
		return false
	}
	end := int(tcp[12]>>4) * 4
	if end < 20 || end > len(tcp) {
		return false
	}
	for i := 20; i < end; {
		switch tcp[i] {
		case 0: // end of options
			return false
		case 1: // no operation
			i++
			continue
		}
		if i+2 > end || tcp[i+1] < 2 || i+int(tcp[i+1]) > end {
			return false
		}
		if tcp[i] == 2 && tcp[i+1] == 4 {
			return lowerMSS(tcp, i+2, mss)
		}
		i += int(tcp[i+1])
	}
	return false
}

// lowerMSS changes the two octets at i. At an odd offset they fall into two
// checksum words with their octets swapped (RFC 1071 §2 B).
func lowerMSS(tcp []byte, i int, mss uint16) bool {
	old := binary.BigEndian.Uint16(tcp[i:])
	if old <= mss {
		return false
	}
	binary.BigEndian.PutUint16(tcp[i:], mss)
	if i%2 != 0 {
		old, mss = old<<8|old>>8, mss<<8|mss>>8
	}
	update(tcp[16:18], old, mss)
	return true
}
