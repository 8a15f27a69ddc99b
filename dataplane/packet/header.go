package packet

import (
	"encoding/binary"
	"net/netip"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// IP protocol numbers that the dataplane looks at.
const (
	ProtoHopOpts  = 0
	ProtoICMP     = 1
	ProtoIPv4     = 4
	ProtoTCP      = 6
	ProtoUDP      = 17
	ProtoDCCP     = 33
	ProtoIPv6     = 41
	ProtoRouting  = 43
	ProtoFragment = 44
	ProtoESP      = 50
	ProtoAH       = 51
	ProtoICMPv6   = 58
	ProtoNone     = 59
	ProtoDestOpts = 60
	ProtoSCTP     = 132
	ProtoMobility = 135
	ProtoUDPLite  = 136
)

const (
	ipv4Len = 20
	ipv6Len = 40

	// maxExtensions and maxExtensionOctets bound the walk over IPv6 extension
	// headers. RFC 8200 §4.1 names six kinds, of which one may occur twice.
	maxExtensions      = 8
	maxExtensionOctets = 1024
)

// Header is what Parse found: offsets into the packet, and the selector fields.
type Header struct {
	Version  uint8 // 4 or 6
	Protocol uint8 // upper-layer protocol, after any extension headers

	// MoreFragments and FragmentOffset (in octets) come from the IPv4 header or
	// the IPv6 fragment header.
	MoreFragments  bool
	FragmentOffset uint16

	// HasPorts says that SrcPort and DstPort were read. For ICMP both hold
	// type<<8|code, for the Mobility Header type<<8 (RFC 4301 §4.4.1.1).
	HasPorts bool
	SrcPort  uint16
	DstPort  uint16

	// Routed says that an IPv6 routing header has segments left: the destination
	// address is not yet the final one.
	Routed bool

	// Length is the packet's own idea of its length; octets after it are link
	// or traffic-flow padding and not part of the packet.
	Length int

	// Upper is the offset of the upper-layer header, Fixed the length of the IP
	// header with IPv4 options but without IPv6 extension headers.
	Upper uint16
	Fixed uint16

	// Insert is where a transport-mode ESP or AH header goes: after the
	// hop-by-hop, routing and fragment headers (RFC 4303 §3.1.1). Destination
	// options after those are protected. InsertNext is the offset of the octet
	// that names the header at Insert.
	Insert     uint16
	InsertNext uint16
}

// Fragment reports a packet that is one piece of a larger one.
func (h *Header) Fragment() bool { return h.MoreFragments || h.FragmentOffset != 0 }

// LaterFragment reports a fragment other than the first: it has no ports.
func (h *Header) LaterFragment() bool { return h.FragmentOffset != 0 }

// Parse reads an IP packet at the start of b. b may be longer than the packet;
// it may not be shorter. The IPv4 header checksum is not verified.
func Parse(b []byte) (Header, Why) {
	if len(b) == 0 {
		return Header{}, WhyTruncated
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b)
	case 6:
		return parse6(b)
	}
	return Header{}, WhyVersion
}

func parse4(b []byte) (Header, Why) {
	if len(b) < ipv4Len {
		return Header{}, WhyTruncated
	}
	hlen := int(b[0]&0x0f) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if hlen < ipv4Len || total < hlen {
		return Header{}, WhyHeader
	}
	if total > len(b) {
		return Header{}, WhyTruncated
	}
	frag := binary.BigEndian.Uint16(b[6:])
	h := Header{
		Version:        4,
		Protocol:       b[9],
		MoreFragments:  frag&0x2000 != 0,
		FragmentOffset: frag & 0x1fff * 8,
		Length:         total,
		Upper:          uint16(hlen),
		Fixed:          uint16(hlen),
		Insert:         uint16(hlen),
		InsertNext:     9,
	}
	return h.finish(b)
}

func parse6(b []byte) (Header, Why) {
	if len(b) < ipv6Len {
		return Header{}, WhyTruncated
	}
	total := ipv6Len + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return Header{}, WhyTruncated
	}
	h := Header{Version: 6, Length: total, Fixed: ipv6Len, Insert: ipv6Len, InsertNext: 6}
	next, nextAt, at := b[6], 0, ipv6Len
	for n := 0; ; n++ {
		size, movesInsert := 0, true
		switch next {
		case ProtoHopOpts:
			if at != ipv6Len { // RFC 8200 §4.3: only right after the fixed header
				return Header{}, WhyHeader
			}
			fallthrough
		case ProtoRouting, ProtoDestOpts:
			if at+8 > total {
				return Header{}, WhyTruncated
			}
			size = int(b[at+1])*8 + 8
			movesInsert = next != ProtoDestOpts
			if next == ProtoRouting && b[at+3] != 0 {
				h.Routed = true
			}
		case ProtoFragment:
			size = 8
			if at+8 > total {
				return Header{}, WhyTruncated
			}
			off := binary.BigEndian.Uint16(b[at+2:])
			h.FragmentOffset = off &^ 7
			h.MoreFragments = off&1 != 0
		default:
			h.Protocol, h.Upper = next, uint16(at)
			return h.finish(b)
		}
		if n == maxExtensions || at+size-ipv6Len > maxExtensionOctets {
			return Header{}, WhyExtensions
		}
		if at+size > total {
			return Header{}, WhyTruncated
		}
		next, nextAt, at = b[at], at, at+size
		if movesInsert {
			h.Insert, h.InsertNext = uint16(at), uint16(nextAt)
		}
		if h.FragmentOffset != 0 {
			// What follows is the middle of something: RFC 8200 §4.5.
			h.Protocol, h.Upper = next, uint16(at)
			return h.finish(b)
		}
	}
}

// finish reads the ports, which a later fragment does not have.
func (h *Header) finish(b []byte) (Header, Why) {
	if h.FragmentOffset != 0 {
		return *h, WhyOK
	}
	up := b[h.Upper:h.Length]
	switch h.Protocol {
	case ProtoTCP, ProtoUDP, ProtoSCTP, ProtoDCCP, ProtoUDPLite:
		if len(up) < 4 {
			return Header{}, WhyTruncated
		}
		h.SrcPort = binary.BigEndian.Uint16(up)
		h.DstPort = binary.BigEndian.Uint16(up[2:])
		h.HasPorts = true
	case ProtoICMP, ProtoICMPv6:
		if len(up) < 2 {
			return Header{}, WhyTruncated
		}
		h.SrcPort = binary.BigEndian.Uint16(up)
		h.DstPort = h.SrcPort
		h.HasPorts = true
	case ProtoMobility:
		if len(up) < 3 {
			return Header{}, WhyTruncated
		}
		h.SrcPort = uint16(up[2]) << 8
		h.DstPort = h.SrcPort
		h.HasPorts = true
	}
	return *h, WhyOK
}

// Src is the source address.
func (h *Header) Src(b []byte) netip.Addr {
	if h.Version == 4 {
		return netip.AddrFrom4([4]byte(b[12:16]))
	}
	return netip.AddrFrom16([16]byte(b[8:24]))
}

// Dst is the destination address in the IP header. With a routing header that
// is the next hop of the route, not the last.
func (h *Header) Dst(b []byte) netip.Addr {
	if h.Version == 4 {
		return netip.AddrFrom4([4]byte(b[16:20]))
	}
	return netip.AddrFrom16([16]byte(b[24:40]))
}

// Flow is the selector fields as the host sees them: outbound, the source is
// local; inbound, the destination is. Without ports (HasPorts is false) both
// are 0; such a packet matches only selectors with ANY or OPAQUE ports, which
// the caller must see to for later fragments (RFC 4301 §7).
func (h *Header) Flow(b []byte, dir ipsec.Direction) ipsec.Flow {
	f := ipsec.Flow{Protocol: h.Protocol}
	if dir == ipsec.Inbound {
		f.Local, f.Remote = h.Dst(b), h.Src(b)
		f.LocalPort, f.RemotePort = h.DstPort, h.SrcPort
		return f
	}
	f.Local, f.Remote = h.Src(b), h.Dst(b)
	f.LocalPort, f.RemotePort = h.SrcPort, h.DstPort
	return f
}
