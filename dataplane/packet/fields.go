package packet

import "encoding/binary"

// The functions here take an IP packet that Parse accepted. Those that change an
// IPv4 header keep its checksum right, incrementally (RFC 1624): a checksum that
// was wrong before stays wrong.

// ECN codepoints (RFC 3168 §5), the low two bits of TOS.
const (
	NotECT uint8 = 0
	ECT1   uint8 = 1
	ECT0   uint8 = 2
	CE     uint8 = 3
)

// TOS is DSCP<<2|ECN: the IPv4 TOS octet, the IPv6 traffic class.
func TOS(b []byte) uint8 {
	if b[0]>>4 == 4 {
		return b[1]
	}
	return b[0]<<4 | b[1]>>4
}

// SetTOS writes DSCP<<2|ECN.
func SetTOS(b []byte, tos uint8) {
	if b[0]>>4 == 4 {
		set4(b, 0, uint16(b[0])<<8|uint16(tos))
		return
	}
	b[0] = b[0]&0xf0 | tos>>4
	b[1] = b[1]&0x0f | tos<<4
}

// FlowLabel is the IPv6 flow label, 0 for IPv4 (RFC 6437).
func FlowLabel(b []byte) uint32 {
	if b[0]>>4 != 6 {
		return 0
	}
	return uint32(b[1]&15)<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// DSCP is the differentiated services code point, 0 to 63.
func DSCP(b []byte) uint8 { return TOS(b) >> 2 }

// SetDSCP writes the code point and leaves ECN alone.
func SetDSCP(b []byte, dscp uint8) { SetTOS(b, dscp<<2|TOS(b)&3) }

// ECN is the explicit congestion notification codepoint.
func ECN(b []byte) uint8 { return TOS(b) & 3 }

// SetECN writes the codepoint and leaves DSCP alone.
func SetECN(b []byte, ecn uint8) { SetTOS(b, TOS(b)&^3|ecn&3) }

// TTL is the IPv4 TTL or the IPv6 hop limit.
func TTL(b []byte) uint8 {
	if b[0]>>4 == 4 {
		return b[8]
	}
	return b[7]
}

// SetTTL writes the TTL or hop limit.
func SetTTL(b []byte, ttl uint8) {
	if b[0]>>4 == 4 {
		set4(b, 8, uint16(ttl)<<8|uint16(b[9]))
		return
	}
	b[7] = ttl
}

// DecTTL takes one off for a forwarded packet. At 1 or 0 it changes nothing and
// returns WhyTTL: the packet goes no further.
func DecTTL(b []byte) Why {
	t := TTL(b)
	if t <= 1 {
		return WhyTTL
	}
	SetTTL(b, t-1)
	return WhyOK
}

// DF reports that routers may not fragment the packet: always so for IPv6.
func DF(b []byte) bool { return b[0]>>4 != 4 || b[6]&0x40 != 0 }

// SetDF writes the IPv4 flag; IPv6 has none.
func SetDF(b []byte, df bool) {
	if b[0]>>4 != 4 {
		return
	}
	v := binary.BigEndian.Uint16(b[6:]) &^ 0x4000
	if df {
		v |= 0x4000
	}
	set4(b, 6, v)
}

// SetLength writes the total length of the packet: n octets with all headers.
func SetLength(b []byte, n int) Why {
	if b[0]>>4 == 4 {
		if n < ipv4Len || n > 65535 {
			return WhyTooBig
		}
		set4(b, 2, uint16(n))
		return WhyOK
	}
	if n < ipv6Len || n-ipv6Len > 65535 {
		return WhyTooBig
	}
	binary.BigEndian.PutUint16(b[4:], uint16(n-ipv6Len))
	return WhyOK
}

// SetNext writes the octet that names a header: Header.InsertNext is where the
// one at Header.Insert is named. Transport mode changes it to ESP and back.
func SetNext(b []byte, at uint16, proto uint8) {
	if b[0]>>4 == 4 {
		set4(b, 8, uint16(b[8])<<8|uint16(proto))
		return
	}
	b[at] = proto
}

// set4 changes a 16-bit word of an IPv4 header and its checksum (RFC 1624 §3,
// equation 3).
func set4(b []byte, at int, v uint16) {
	old := binary.BigEndian.Uint16(b[at:])
	binary.BigEndian.PutUint16(b[at:], v)
	update(b[10:12], old, v)
}

// update changes the checksum field at c for a word that went from old to new.
func update(c []byte, old, new uint16) {
	sum := add(add(^binary.BigEndian.Uint16(c), ^old), new)
	binary.BigEndian.PutUint16(c, ^sum)
}
