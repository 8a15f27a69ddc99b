package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// DFPolicy says what the outer IPv4 header's DF bit is (RFC 4301 §8.1).
type DFPolicy uint8

const (
	DFCopy DFPolicy = iota // from the inner packet; IPv6 counts as set
	DFSet
	DFClear
)

// OuterConfig is what NewOuter makes an outer header of. The zero value of each
// option is the default of RFC 4301 §5.1.2.
type OuterConfig struct {
	Local, Remote netip.Addr
	Protocol      uint8 // ProtoESP, ProtoAH, or ProtoUDP for encapsulated ESP
	TTL           uint8 // 0: 64
	DF            DFPolicy

	FixedDSCP bool  // write DSCP instead of copying the inner one
	DSCP      uint8 // 0 to 63

	// CompatECN sends Not-ECT outside, for a decapsulator that is not known to
	// carry congestion marks over (RFC 6040 §4.3).
	CompatECN bool

	FlowLabel uint32 // IPv6, 20 bits; lets routers tell SAs apart (RFC 6437)
}

// Outer writes the outer IP header of tunnel mode (RFC 4301 §5.1.2). It is a
// value prepared once per SA and may be shared.
type Outer struct {
	head   [ipv6Len]byte
	size   uint8
	sum    uint16 // over the constant words of an IPv4 header
	df     DFPolicy
	keep   uint8 // mask of inner TOS bits that are copied
	set    uint8
	isIPv4 bool
}

// NewOuter prepares an outer header.
func NewOuter(c OuterConfig) (Outer, error) {
	if !c.Local.IsValid() || !c.Remote.IsValid() || c.Local.Is4() != c.Remote.Is4() || c.Local.Is4In6() || c.Remote.Is4In6() {
		return Outer{}, fmt.Errorf("outer header from %s to %s: want two addresses of one family", c.Local, c.Remote)
	}
	if c.DSCP > 63 || c.FlowLabel > 1<<20-1 || c.DF > DFClear {
		return Outer{}, fmt.Errorf("outer header: DSCP %d, flow label %d, DF policy %d: want at most 63, 1048575, %d", c.DSCP, c.FlowLabel, c.DF, DFClear)
	}
	if c.TTL == 0 {
		c.TTL = 64
	}
	o := Outer{df: c.DF, keep: 0xff, isIPv4: c.Local.Is4()}
	if c.FixedDSCP {
		o.keep, o.set = 0x03, c.DSCP<<2
	}
	if c.CompatECN {
		o.keep &^= 0x03
	}
	if o.isIPv4 {
		o.size = ipv4Len
		o.head[0] = 0x45
		o.head[8], o.head[9] = c.TTL, c.Protocol
		a, b := c.Local.As4(), c.Remote.As4()
		copy(o.head[12:], a[:])
		copy(o.head[16:], b[:])
		o.sum = Sum(o.head[:ipv4Len], 0)
		return o, nil
	}
	o.size = ipv6Len
	binary.BigEndian.PutUint32(o.head[:], 6<<28|c.FlowLabel)
	o.head[6], o.head[7] = c.Protocol, c.TTL
	a, b := c.Local.As16(), c.Remote.As16()
	copy(o.head[8:], a[:])
	copy(o.head[24:], b[:])
	return o, nil
}

// Len is the length of the header: 20 or 40.
func (o *Outer) Len() int { return int(o.size) }

// TOS is the outer TOS octet for an inner one: for sockets that write the outer
// header themselves.
func (o *Outer) TOS(inner uint8) uint8 { return inner&o.keep | o.set }

// Put writes the header at the start of b, which is the whole outer packet. tos
// and df are those of the inner packet. id is the IPv4 identification: without DF
// it must be unique among packets that may be under way (RFC 6864 §4).
func (o *Outer) Put(b []byte, tos uint8, df bool, id uint16) Why {
	if len(b) < int(o.size) {
		return WhyNoRoom
	}
	tos = o.TOS(tos)
	if !o.isIPv4 {
		if len(b)-ipv6Len > 65535 {
			return WhyTooBig
		}
		copy(b, o.head[:])
		b[0] |= tos >> 4
		b[1] |= tos << 4
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ipv6Len))
		return WhyOK
	}
	if len(b) > 65535 {
		return WhyTooBig
	}
	copy(b, o.head[:ipv4Len])
	b[1] = tos
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[4:], id)
	if o.df == DFSet || o.df == DFCopy && df {
		b[6] = 0x40
	}
	sum := fold(uint64(o.sum) + uint64(tos) + uint64(len(b)) + uint64(id) + uint64(b[6])<<8)
	binary.BigEndian.PutUint16(b[10:], ^sum)
	return WhyOK
}

// DecapECN carries the outer congestion mark over to the inner packet b
// (RFC 6040 §4.2). Congestion seen by a packet whose transport does not
// understand ECN means that the packet is dropped: WhyECN.
func DecapECN(b []byte, outer uint8) Why {
	inner := ECN(b)
	switch outer & 3 {
	case CE:
		if inner == NotECT {
			return WhyECN
		}
		if inner != CE {
			SetECN(b, CE)
		}
	case ECT1:
		if inner == ECT0 {
			SetECN(b, ECT1)
		}
	}
	return WhyOK
}
