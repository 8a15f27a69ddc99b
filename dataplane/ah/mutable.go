package ah

import (
	"encoding/binary"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
)

// Which fields of the headers before AH the ICV covers: RFC 4302 §3.3.3.1 and
// Appendix A.

const (
	ipv4Len    = 20
	ipv6Len    = 40
	maxHeaders = 1200 // octets before AH that we look through
)

// immutable4 are the IPv4 options that the ICV covers, by their type octet (RFC
// 4302 Appendix A1). Any other is zeroed whole, a type unknown included.
var immutable4 = [256]bool{
	0:   true, // End of Options List
	1:   true, // No Operation
	130: true, // Security (RFC 1108)
	133: true, // Extended Security (RFC 1108)
	134: true, // Commercial Security
	148: true, // Router Alert (RFC 2113)
	149: true, // Sender Directed Multi-Destination Delivery (RFC 1770)
}

const (
	optionEnd         = 0
	optionNop         = 1
	optionLooseRoute  = 131
	optionStrictRoute = 137
)

// mayChange is the bit of an IPv6 option's type that says that its data may change
// on the way (RFC 8200 §4.2).
const mayChange = 0x20

// appendCanonical appends the headers b[:at] as the ICV sees them: fields that
// routers change are zero, those that they change predictably are as they will be
// at the destination. at must be where the header after the last of them begins.
// Nothing of a fragment has a canonical form: WhyFragment (RFC 4302 §3.3.4).
func appendCanonical(dst, b []byte, at int) ([]byte, packet.Why) {
	if at > maxHeaders {
		return nil, packet.WhyExtensions
	}
	if at < ipv4Len || at > len(b) {
		return nil, packet.WhyHeader
	}
	start := len(dst)
	dst = append(dst, b[:at]...)
	if b[0]>>4 == 4 {
		return dst, canonical4(dst[start:])
	}
	cut, why := canonical6(dst[start:])
	return dst[:len(dst)-cut], why
}

func canonical4(h []byte) packet.Why {
	if int(h[0]&15)*4 != len(h) {
		return packet.WhyHeader
	}
	if binary.BigEndian.Uint16(h[6:])&0x3fff != 0 {
		return packet.WhyFragment
	}
	h[1] = 0                     // DSCP, ECN
	h[6], h[7] = 0, 0            // flags, fragment offset
	h[8], h[10], h[11] = 0, 0, 0 // TTL, header checksum
	for o := h[ipv4Len:]; len(o) > 0; {
		switch o[0] {
		case optionEnd:
			return packet.WhyOK
		case optionNop:
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return packet.WhyHeader
		}
		n := int(o[1])
		if o[0] == optionLooseRoute || o[0] == optionStrictRoute {
			if why := finalHop4(h[16:20], o[:n]); why != packet.WhyOK {
				return why
			}
		}
		if !immutable4[o[0]] {
			clear(o[:n])
		}
		o = o[n:]
	}
	return packet.WhyOK
}

// finalHop4 sets the destination to the last address of a source route that is
// not yet through (RFC 791 §3.1: the pointer counts from 1).
func finalHop4(dst, o []byte) packet.Why {
	if len(o) < 3 || (len(o)-3)%4 != 0 {
		return packet.WhyHeader
	}
	if int(o[2]) <= len(o)-3 {
		copy(dst, o[len(o)-4:])
	}
	return packet.WhyOK
}

// canonical6 works on the IPv6 header and extension headers h. cut is how many
// octets it took out: a Fragment header of a packet that is whole does not exist
// for AH (RFC 4302 Appendix A2).
func canonical6(h []byte) (cut int, why packet.Why) {
	if len(h) < ipv6Len || h[0]>>4 != 6 {
		return 0, packet.WhyHeader
	}
	h[0] &= 0xf0 // traffic class
	h[1], h[2], h[3] = 0, 0, 0
	h[7] = 0 // hop limit
	nextAt := 6
	for at := ipv6Len; at < len(h); {
		next := h[nextAt]
		if at+8 > len(h) {
			return 0, packet.WhyHeader
		}
		size := int(h[at+1])*8 + 8
		if next == packet.ProtoFragment {
			size = 8
		}
		if at+size > len(h) {
			return 0, packet.WhyHeader
		}
		x := h[at : at+size]
		switch next {
		case packet.ProtoHopOpts, packet.ProtoDestOpts:
			why = options6(x)
		case packet.ProtoRouting:
			why = routing6(h[24:40], x)
		case packet.ProtoFragment:
			if binary.BigEndian.Uint16(x[2:])&^6 != 0 {
				return 0, packet.WhyFragment
			}
			h[nextAt] = x[0]
			copy(h[at:], h[at+8:])
			h = h[:len(h)-8]
			cut += 8
			continue
		default:
			why = packet.WhyExtensions
		}
		if why != packet.WhyOK {
			return 0, why
		}
		nextAt, at = at, at+size
	}
	if cut > 0 {
		binary.BigEndian.PutUint16(h[4:], binary.BigEndian.Uint16(h[4:])-uint16(cut))
	}
	return cut, packet.WhyOK
}

// options6 zeroes the data of options that may change on the way; type and length
// stay (RFC 4302 §3.3.3.1.2.2).
func options6(x []byte) packet.Why {
	for o := x[2:]; len(o) > 0; {
		if o[0] == 0 { // Pad1 has no length (RFC 8200 §4.2)
			o = o[1:]
			continue
		}
		if len(o) < 2 || int(o[1])+2 > len(o) {
			return packet.WhyHeader
		}
		n := int(o[1]) + 2
		if o[0]&mayChange != 0 {
			clear(o[2:n])
		}
		o = o[n:]
	}
	return packet.WhyOK
}

// routing6 brings a routing header and the destination address to where they will
// be at the end of the route: each hop swaps the destination with the next
// address (RFC 2460 §4.4 for type 0; type 2, of Mobile IPv6, is the same with one
// address). Of other types only one that is through is the same at both ends.
func routing6(dst, x []byte) packet.Why {
	left := int(x[3])
	if left == 0 {
		return packet.WhyOK
	}
	if x[2] != 0 && x[2] != 2 {
		return packet.WhyUnsupported
	}
	addrs := x[8:]
	n := len(addrs) / 16
	if len(addrs)%16 != 0 || left > n {
		return packet.WhyHeader
	}
	for ; left > 0; left-- {
		a := addrs[(n-left)*16:][:16]
		for i := range a {
			a[i], dst[i] = dst[i], a[i]
		}
	}
	x[3] = 0
	return packet.WhyOK
}

// naming finds the octet that names the header at offset at.
func naming(b []byte, at int) (nextAt uint16, why packet.Why) {
	if at > maxHeaders {
		return 0, packet.WhyExtensions
	}
	if len(b) < at || at < ipv4Len {
		return 0, packet.WhyHeader
	}
	if b[0]>>4 == 4 {
		if int(b[0]&15)*4 != at {
			return 0, packet.WhyHeader
		}
		return 9, packet.WhyOK
	}
	if b[0]>>4 != 6 || at < ipv6Len {
		return 0, packet.WhyHeader
	}
	nextAt = 6
	for pos := ipv6Len; pos != at; {
		if pos+8 > at {
			return 0, packet.WhyHeader
		}
		size := 8
		switch b[nextAt] {
		case packet.ProtoHopOpts, packet.ProtoDestOpts, packet.ProtoRouting:
			size += int(b[pos+1]) * 8
		case packet.ProtoFragment:
		default:
			return 0, packet.WhyExtensions
		}
		nextAt = uint16(pos)
		pos += size
	}
	return nextAt, packet.WhyOK
}
