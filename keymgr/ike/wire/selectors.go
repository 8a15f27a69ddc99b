package wire

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Traffic selector types (RFC 7296 §3.13.1).
const (
	tsIPv4 = 7
	tsIPv6 = 8
)

// TS is the TSi or TSr payload (RFC 7296 §3.13). Each selector:
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|   TS Type     |IP Protocol ID |       Selector Length         |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|           Start Port          |           End Port            |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                         Starting Address                      ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                         Ending Address                        ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type TS struct {
	PayloadType PayloadType // TypeTSi or TypeTSr
	Selectors   []ipsec.TrafficSelector
	// Skipped counts selectors that are left out: of an unknown type, or with
	// a range that is not ordered. None of them can match traffic, so leaving
	// them out is narrowing (RFC 7296 §2.9).
	Skipped int
}

func (p *TS) Type() PayloadType { return p.PayloadType }

func (p *TS) appendBody(dst []byte) []byte {
	dst = append(dst, byte(len(p.Selectors)), 0, 0, 0)
	for _, s := range p.Selectors {
		kind := byte(tsIPv6)
		if s.First.Is4() {
			kind = tsIPv4
		}
		dst = append(dst, kind, s.Protocol)
		dst = binary.BigEndian.AppendUint16(dst, uint16(8+2*s.First.BitLen()/8))
		dst = binary.BigEndian.AppendUint16(dst, s.PortFirst)
		dst = binary.BigEndian.AppendUint16(dst, s.PortLast)
		dst = append(dst, s.First.AsSlice()...)
		dst = append(dst, s.Last.AsSlice()...)
	}
	return dst
}

func parseTS(t PayloadType, r *reader) *TS {
	p := &TS{PayloadType: t}
	n := int(r.u8())
	r.bytes(3)
	if r.err == nil && n == 0 {
		r.fail("no traffic selectors")
	}
	if n > MaxSelectors {
		r.fail("%d traffic selectors, at most %d", n, MaxSelectors)
	}
	for i := 0; i < n && r.err == nil; i++ {
		s := ipsec.TrafficSelector{}
		kind := r.u8()
		s.Protocol = r.u8()
		length := int(r.u16())
		if length < 8 {
			r.fail("selector length %d", length)
		}
		b := reader{b: r.bytes(length - 4), payload: r.payload, err: r.err}
		size := 0
		switch kind {
		case tsIPv4:
			size = 4
		case tsIPv6:
			size = 16
		default:
			p.Skipped++
			continue
		}
		s.PortFirst, s.PortLast = b.u16(), b.u16()
		s.First, _ = netip.AddrFromSlice(b.bytes(size))
		s.Last, _ = netip.AddrFromSlice(b.bytes(size))
		if err := b.done(); err != nil {
			r.fail("selector of type %d has length %d", kind, length)
			break
		}
		if s.Valid() != nil {
			p.Skipped++
			continue
		}
		p.Selectors = append(p.Selectors, s)
	}
	return p
}

func (p *TS) String() string {
	words := make([]string, len(p.Selectors))
	for i, s := range p.Selectors {
		words[i] = s.String()
	}
	return p.PayloadType.String() + "(" + strings.Join(words, ", ") + ")"
}
