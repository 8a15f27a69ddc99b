package packet

import (
	"encoding/binary"
	"net/netip"
)

const (
	icmpUnreachable   = 3
	icmpFragNeeded    = 4
	icmp6PacketTooBig = 2

	// RFC 1812 §4.3.2.3: as much of the original as fits into 576 octets.
	maxTooBig4 = 576
	// RFC 4443 §3.2: as much as fits into the minimum IPv6 MTU.
	maxTooBig6 = 1280

	// MinMTU4 and MinMTU6 are the least path MTUs that are believed or sent. For
	// IPv4 every host takes 576 octets (RFC 1122 §3.3.2).
	MinMTU4 = 576
	MinMTU6 = 1280
)

// TooBigLen is a buffer length that holds any packet of PutTooBig.
const TooBigLen = maxTooBig6

// PutTooBig writes into dst the whole IP packet that tells the sender of orig
// that only mtu octets fit: ICMP "fragmentation needed" (RFC 1191 §4) or ICMPv6
// "packet too big" (RFC 4443 §3.2). from is its source, of the same family.
//
// It refuses with WhyUnsupported where no ICMP error may be sent (RFC 1122
// §3.2.2, RFC 4443 §2.4(e)): for ICMP errors, later fragments, multicast
// destinations (but for IPv6, where path MTU discovery needs it) and sources that
// are not one host.
func PutTooBig(dst, orig []byte, h *Header, from netip.Addr, mtu int) (int, Why) {
	to := h.Src(orig)
	if from.Is4() != (h.Version == 4) {
		return 0, WhyFamily
	}
	if h.LaterFragment() || isError(h) || to.IsUnspecified() || to.IsMulticast() || !to.IsValid() {
		return 0, WhyUnsupported
	}
	if h.Version == 4 {
		d := h.Dst(orig)
		if d.IsMulticast() || d == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || to.IsLoopback() {
			return 0, WhyUnsupported
		}
		return putTooBig4(dst, orig[:h.Length], from, to, max(mtu, MinMTU4))
	}
	return putTooBig6(dst, orig[:h.Length], from, to, max(mtu, MinMTU6))
}

// isError reports an ICMP error message, to which no error is sent.
func isError(h *Header) bool {
	kind := h.SrcPort >> 8
	switch {
	case !h.HasPorts:
		return false
	case h.Version == 4 && h.Protocol == ProtoICMP:
		// All but echo, timestamp, information, address mask, router messages.
		return kind == 3 || kind == 4 || kind == 5 || kind == 11 || kind == 12
	case h.Version == 6 && h.Protocol == ProtoICMPv6:
		return kind < 128 || kind == 137 // RFC 4443 §2.1; 137 is redirect
	}
	return false
}

func putTooBig4(dst, orig []byte, from, to netip.Addr, mtu int) (int, Why) {
	n := min(len(orig), maxTooBig4-ipv4Len-8)
	size := ipv4Len + 8 + n
	if len(dst) < size {
		return 0, WhyNoRoom
	}
	p := dst[:size]
	clear(p[:ipv4Len+8])
	p[0], p[1] = 0x45, 0xc0 // precedence "internetwork control" (RFC 1812 §4.3.2.5)
	binary.BigEndian.PutUint16(p[2:], uint16(size))
	p[6] = 0x40 // DF: the identification may then be 0 (RFC 6864 §4.1)
	p[8], p[9] = 64, ProtoICMP
	a, b := from.As4(), to.As4()
	copy(p[12:], a[:])
	copy(p[16:], b[:])
	SetChecksum4(p)
	icmp := p[ipv4Len:]
	icmp[0], icmp[1] = icmpUnreachable, icmpFragNeeded
	binary.BigEndian.PutUint16(icmp[6:], uint16(min(mtu, 65535)))
	copy(icmp[8:], orig[:n])
	binary.BigEndian.PutUint16(icmp[2:], ^Sum(icmp, 0))
	return size, WhyOK
}

func putTooBig6(dst, orig []byte, from, to netip.Addr, mtu int) (int, Why) {
	n := min(len(orig), maxTooBig6-ipv6Len-8)
	size := ipv6Len + 8 + n
	if len(dst) < size {
		return 0, WhyNoRoom
	}
	p := dst[:size]
	clear(p[:ipv6Len+8])
	p[0] = 0x60
	binary.BigEndian.PutUint16(p[4:], uint16(8+n))
	p[6], p[7] = ProtoICMPv6, 64
	a, b := from.As16(), to.As16()
	copy(p[8:], a[:])
	copy(p[24:], b[:])
	icmp := p[ipv6Len:]
	icmp[0] = icmp6PacketTooBig
	binary.BigEndian.PutUint32(icmp[4:], uint32(mtu))
	copy(icmp[8:], orig[:n])
	binary.BigEndian.PutUint16(icmp[2:], ^Sum(icmp, PseudoSum(from, to, ProtoICMPv6, len(icmp))))
	return size, WhyOK
}
