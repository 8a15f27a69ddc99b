package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Class is what a frame on the wire is, as far as a bystander without keys sees.
type Class uint8

const (
	Cleartext Class = iota // anything that is none of the following
	ESP                    // raw, or in UDP on port 4500 (RFC 3948 §2.1)
	AH
	IKE         // UDP 500, or 4500 behind the non-ESP marker (RFC 3948 §2.2)
	IKEFragment // the same, with a part of a message (RFC 7383 §2.5)
	InTCP       // TCP port 4500 (RFC 9329), whose frames a sniffer of packets does not put together
	Keepalive   // one octet 0xff on 4500 (RFC 3948 §2.3)
	Neighbor    // ARP, neighbour discovery, multicast listener reports
	ICMPError   // an error about a packet of one of the classes above but Cleartext
	classes
)

var classNames = [classes]string{"cleartext", "ESP", "AH", "IKE", "IKE fragment", "in TCP", "keepalive", "neighbor", "ICMP error"}

func (c Class) String() string { return classNames[c] }

// Packet is one classified packet. SPI, Seq and InUDP are set for ESP and AH.
type Packet struct {
	Class    Class
	Src, Dst netip.Addr
	SPI, Seq uint32
	Len      int // octets of ESP
	InUDP    bool
	What     string // for messages: protocol and ports
}

func (p Packet) String() string {
	s := fmt.Sprintf("%s %s -> %s", p.Class, p.Src, p.Dst)
	if p.Class == ESP || p.Class == AH {
		return fmt.Sprintf("%s SPI %08x seq %d", s, p.SPI, p.Seq)
	}
	return s + " " + p.What
}

// fragment names the datagram that a fragment is a part of.
type fragment struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
}

// maxFragments bounds the datagrams whose later fragments are still expected.
const maxFragments = 4096

// A classifier reads frames in the order they were on the wire. It remembers
// first fragments, for only they say what the rest is.
type classifier struct {
	fragments map[fragment]Packet
}

// frame classifies an Ethernet frame. With segment > 0 the frame is a UDP
// super-packet that the receiver sees as many datagrams of that payload size
// (UDP_SEGMENT), so it yields one packet for each.
func (c *classifier) frame(b []byte, segment int) []Packet {
	if len(b) < 14 {
		return []Packet{{What: fmt.Sprintf("frame of %d octets", len(b))}}
	}
	switch t := binary.BigEndian.Uint16(b[12:]); t {
	case unix.ETH_P_ARP:
		return []Packet{{Class: Neighbor, What: "ARP"}}
	case unix.ETH_P_IP, unix.ETH_P_IPV6:
		return c.ip(b[14:], segment)
	default:
		return []Packet{{What: fmt.Sprintf("EtherType %#04x", t)}}
	}
}

// ip classifies an IP packet, which ends early inside an ICMP error.
func (c *classifier) ip(b []byte, segment int) []Packet {
	h, ok := parseIP(b)
	if !ok {
		return []Packet{{What: fmt.Sprintf("malformed IP packet of %d octets", len(b))}}
	}
	p := Packet{Src: h.src, Dst: h.dst, What: fmt.Sprintf("protocol %d", h.proto)}
	if h.fragmented && h.offset > 0 {
		first, known := c.fragments[h.fragment()]
		if !known {
			p.What += ", fragment without its first"
			return []Packet{p}
		}
		if !h.more {
			delete(c.fragments, h.fragment())
		}
		// Counted once, with the first fragment.
		if first.Class != Cleartext {
			return nil
		}
		return []Packet{first}
	}
	var out []Packet
	if h.proto == unix.IPPROTO_UDP && segment > 0 && len(h.payload) > 8 {
		udp, rest := h.payload[:8], h.payload[8:]
		for len(rest) > 0 {
			n := min(segment, len(rest))
			out = append(out, udpPacket(p, udp, rest[:n]))
			rest = rest[n:]
		}
	} else {
		out = []Packet{c.transport(p, h)}
	}
	if h.fragmented {
		if c.fragments == nil || len(c.fragments) >= maxFragments {
			c.fragments = map[fragment]Packet{}
		}
		c.fragments[h.fragment()] = out[0]
	}
	return out
}

func (c *classifier) transport(p Packet, h ipHeader) Packet {
	b := h.payload
	switch h.proto {
	case unix.IPPROTO_ESP: // RFC 4303 §2: SPI, sequence number
		if len(b) >= 8 {
			p.Class, p.SPI, p.Seq, p.Len = ESP, binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), len(b)
		}
	case unix.IPPROTO_AH: // RFC 4302 §2: next header, length, reserved, SPI, sequence number
		if len(b) >= 12 {
			p.Class, p.SPI, p.Seq = AH, binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
		}
	case unix.IPPROTO_UDP:
		if len(b) >= 8 {
			return udpPacket(p, b[:8], b[8:])
		}
	case unix.IPPROTO_TCP:
		if len(b) >= 4 {
			src, dst := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
			p.What = fmt.Sprintf("TCP %d -> %d", src, dst)
			if src == 4500 || dst == 4500 {
				p.Class = InTCP
			}
		}
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return c.icmp(p, h)
	}
	return p
}

func udpPacket(p Packet, header, data []byte) Packet {
	src, dst := binary.BigEndian.Uint16(header), binary.BigEndian.Uint16(header[2:])
	p.What = fmt.Sprintf("UDP %d -> %d", src, dst)
	// A NAT may have changed the port of one end.
	switch {
	case src == 500 || dst == 500:
		p.Class = ikeClass(data)
	case src != 4500 && dst != 4500:
	case len(data) == 1 && data[0] == 0xff:
		p.Class = Keepalive
	case len(data) >= 4 && binary.BigEndian.Uint32(data) == 0:
		p.Class = ikeClass(data[4:])
	case len(data) >= 8 && binary.BigEndian.Uint32(data) != 0:
		p.Class, p.InUDP = ESP, true
		p.SPI, p.Seq, p.Len = binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:]), len(data)
	}
	return p
}

// ikeClass reads an IKE header (RFC 7296 §3.1).
func ikeClass(b []byte) Class {
	const nextPayload, fragment = 16, 53
	switch {
	case len(b) < 28:
		return Cleartext
	case b[nextPayload] == fragment:
		return IKEFragment
	}
	return IKE
}

func (c *classifier) icmp(p Packet, h ipHeader) Packet {
	if len(h.payload) < 8 {
		return p
	}
	kind := h.payload[0]
	p.What = fmt.Sprintf("ICMP type %d", kind)
	isError := kind < 128 // RFC 4443 §2.1
	if h.proto == unix.IPPROTO_ICMP {
		isError = kind == 3 || kind == 4 || kind == 5 || kind == 11 || kind == 12 // RFC 1122 §3.2.2
	} else {
		p.What = fmt.Sprintf("ICMPv6 type %d", kind)
		// MLD: RFC 2710 §3 and RFC 3810 §5.2; ND: RFC 4861 §4.
		if kind >= 130 && kind <= 137 || kind == 143 {
			p.Class = Neighbor
		}
	}
	if !isError {
		return p
	}
	// The error quotes a packet, and may so leak what was in it.
	quoted := (&classifier{}).ip(h.payload[8:], 0)
	if len(quoted) == 1 && quoted[0].Class != Cleartext {
		p.Class = ICMPError
	}
	p.What += fmt.Sprintf(" about (%v)", quoted)
	return p
}

type ipHeader struct {
	src, dst         netip.Addr
	proto            uint8
	fragmented, more bool
	offset           int
	id               uint32
	payload          []byte
}

func (h ipHeader) fragment() fragment { return fragment{h.src, h.dst, h.id, h.proto} }

// parseIP reads an IPv4 header (RFC 791 §3.1) or an IPv6 header and its extension
// headers (RFC 8200 §3, §4).
func parseIP(b []byte) (h ipHeader, ok bool) {
	if len(b) >= 20 && b[0]>>4 == 4 {
		n := int(b[0]&15) * 4
		if n < 20 || n > len(b) {
			return h, false
		}
		h.src, h.dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		frag := binary.BigEndian.Uint16(b[6:])
		h.more, h.offset = frag&0x2000 != 0, int(frag&0x1fff)*8
		h.fragmented = h.more || h.offset > 0
		h.id, h.proto = uint32(binary.BigEndian.Uint16(b[4:])), b[9]
		h.payload = trim(b[n:], int(binary.BigEndian.Uint16(b[2:]))-n)
		return h, true
	}
	if len(b) < 40 || b[0]>>4 != 6 {
		return h, false
	}
	h.src, h.dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	h.proto, h.payload = b[6], trim(b[40:], int(binary.BigEndian.Uint16(b[4:])))
	for {
		p := h.payload
		if len(p) < 8 {
			return h, true
		}
		switch h.proto {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			n := int(p[1])*8 + 8
			if n > len(p) {
				return h, false
			}
			h.proto, h.payload = p[0], p[n:]
		case unix.IPPROTO_FRAGMENT:
			frag := binary.BigEndian.Uint16(p[2:])
			h.fragmented, h.more, h.offset = true, frag&1 != 0, int(frag&^7)
			h.id = binary.BigEndian.Uint32(p[4:])
			h.proto, h.payload = p[0], p[8:]
			if h.offset > 0 {
				return h, true
			}
		default:
			return h, true
		}
	}
}

// trim cuts the Ethernet padding off. A length of 0 is that of a super-packet
// longer than 64 KiB, and a packet quoted in an ICMP error is shorter than it says.
func trim(b []byte, n int) []byte {
	if n > 0 && n < len(b) {
		return b[:n]
	}
	return b
}
