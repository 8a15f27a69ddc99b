package wire

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Protocol identifiers of IKEv2 (RFC 7296 §3.3.1); ipsec.Protocol holds the IP
// protocol numbers instead.
const (
	protoNone uint8 = 0
	protoIKE  uint8 = 1
	protoAH   uint8 = 2
	protoESP  uint8 = 3
)

// ProtocolID is the IKEv2 number of a protocol; unknown ones give 0.
func ProtocolID(p ipsec.Protocol) uint8 {
	switch p {
	case ipsec.ProtocolIKE:
		return protoIKE
	case ipsec.ProtocolAH:
		return protoAH
	case ipsec.ProtocolESP:
		return protoESP
	}
	return protoNone
}

// ProtocolName is the name of a security protocol by its number in IKE.
func ProtocolName(id uint8) string {
	for _, p := range []ipsec.Protocol{ipsec.ProtocolIKE, ipsec.ProtocolAH, ipsec.ProtocolESP} {
		if ProtocolID(p) == id {
			return p.String()
		}
	}
	return fmt.Sprintf("protocol-%d", id)
}

// SA is the Security Association payload (RFC 7296 §3.3): proposals in order
// of preference.
type SA struct{ Proposals []Proposal }

// Proposal (RFC 7296 §3.3.1):
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Last Substruc |   RESERVED    |         Proposal Length       |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Proposal Num  |  Protocol ID  |    SPI Size   |Num  Transforms|
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                        SPI (variable)                         ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                        <Transforms>                           ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type Proposal struct {
	Number     uint8
	Protocol   uint8 // IKEv2 number
	SPI        []byte
	Transforms []Transform
}

// Transform (RFC 7296 §3.3.2):
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Last Substruc |   RESERVED    |        Transform Length       |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|Transform Type |   RESERVED    |          Transform ID         |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                      Transform Attributes                     ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type Transform struct {
	ipsec.Transform
	// Unknown holds attributes other than Key Length. A transform that has any
	// is never chosen (RFC 7296 §3.3.6), but a failure report can show it.
	Unknown []Attribute
}

// Attribute is a transform attribute (RFC 7296 §3.3.5): type/value when Value
// is nil, else type/length/value.
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|A|       Attribute Type        |    AF=0  Attribute Length     |
//	|F|                             |    AF=1  Attribute Value      |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                   AF=0  Attribute Value                       |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type Attribute struct {
	Type  uint16 // without the AF bit
	Short uint16
	Value []byte
}

const (
	transformLen  = 8 // octets without attributes
	attrKeyLength = 14
	attrShort     = 0x8000 // AF bit
)

func (p *SA) Type() PayloadType { return TypeSA }

func (p *SA) appendBody(dst []byte) []byte {
	for i, prop := range p.Proposals {
		start := len(dst)
		dst = append(dst, more(i, len(p.Proposals), 2), 0, 0, 0,
			prop.Number, prop.Protocol, byte(len(prop.SPI)), byte(len(prop.Transforms)))
		dst = append(dst, prop.SPI...)
		for j, t := range prop.Transforms {
			dst = t.append(dst, more(j, len(prop.Transforms), 3))
		}
		binary.BigEndian.PutUint16(dst[start+2:], uint16(len(dst)-start))
	}
	return dst
}

// more is the Last Substruc octet: the marker of this kind, or 0 on the last.
func more(i, n int, marker byte) byte {
	if i == n-1 {
		return 0
	}
	return marker
}

func (t Transform) append(dst []byte, last byte) []byte {
	start := len(dst)
	dst = append(dst, last, 0, 0, 0, byte(t.Type), 0)
	dst = binary.BigEndian.AppendUint16(dst, t.ID)
	if t.KeyBits != 0 {
		dst = binary.BigEndian.AppendUint16(dst, attrShort|attrKeyLength)
		dst = binary.BigEndian.AppendUint16(dst, t.KeyBits)
	}
	for _, a := range t.Unknown {
		if a.Value == nil {
			dst = binary.BigEndian.AppendUint16(dst, attrShort|a.Type)
			dst = binary.BigEndian.AppendUint16(dst, a.Short)
			continue
		}
		dst = binary.BigEndian.AppendUint16(dst, a.Type)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(a.Value)))
		dst = append(dst, a.Value...)
	}
	binary.BigEndian.PutUint16(dst[start+2:], uint16(len(dst)-start))
	return dst
}

func parseSA(r *reader) *SA {
	p := &SA{}
	for last := false; !last && r.err == nil; {
		if len(p.Proposals) == MaxProposals {
			r.fail("more than %d proposals", MaxProposals)
			break
		}
		var prop Proposal
		prop, last = parseProposal(r)
		p.Proposals = append(p.Proposals, prop)
	}
	return p
}

// substructure takes one proposal or transform: the marker, a reserved octet,
// the length, and the octets that the length covers.
func (r *reader) substructure(part string, marker uint8) (body reader, last bool) {
	m := r.u8()
	r.u8()
	n := int(r.u16())
	if r.err == nil && m != 0 && m != marker {
		r.fail("%s starts with %d, want 0 or %d", part[1:], m, marker)
	}
	if r.err == nil && n < 4 {
		r.fail("%s length %d", part[1:], n)
	}
	b := r.bytes(n - 4)
	return reader{b: b, payload: r.payload, part: part, err: r.err}, m == 0
}

func parseProposal(r *reader) (Proposal, bool) {
	body, last := r.substructure(" proposal", 2)
	b := &body
	p := Proposal{Number: b.u8(), Protocol: b.u8()}
	spiLen, count := int(b.u8()), int(b.u8())
	p.SPI = b.bytes(spiLen)
	if count > MaxTransforms {
		b.fail("%d transforms, at most %d", count, MaxTransforms)
	}
	if b.err == nil && count > 0 {
		p.Transforms = make([]Transform, 0, min(count, len(b.b)/transformLen))
	}
	for i := 0; i < count && b.err == nil; i++ {
		t, end := parseTransform(b)
		if b.err == nil && end != (i == count-1) {
			b.fail("the transform count %d and the last-transform mark disagree", count)
		}
		p.Transforms = append(p.Transforms, t)
	}
	if err := b.done(); err != nil && r.err == nil {
		r.err, r.b = err, nil
	}
	return p, last
}

func parseTransform(r *reader) (Transform, bool) {
	body, last := r.substructure(" proposal transform", 3)
	b := &body
	var t Transform
	t.Type = ipsec.TransformType(b.u8())
	b.u8()
	t.ID = b.u16()
	for n := 0; len(b.b) > 0 && b.err == nil; n++ {
		if n == MaxAttributes {
			b.fail("more than %d attributes", MaxAttributes)
			break
		}
		a := Attribute{Type: b.u16()}
		if a.Type&attrShort != 0 {
			a.Type &^= attrShort
			a.Short = b.u16()
		} else {
			a.Value = b.bytes(int(b.u16()))
		}
		if a.Type == attrKeyLength && a.Value == nil && a.Short != 0 && t.KeyBits == 0 {
			t.KeyBits = a.Short
			continue
		}
		t.Unknown = append(t.Unknown, a)
	}
	if err := b.done(); err != nil && r.err == nil {
		r.err, r.b = err, nil
	}
	return t, last
}

func (p *SA) String() string {
	words := make([]string, len(p.Proposals))
	for i, prop := range p.Proposals {
		words[i] = prop.String()
	}
	return "SA(" + strings.Join(words, " | ") + ")"
}

// String is the operators' spelling of the transforms.
func (p Proposal) String() string {
	words := make([]string, len(p.Transforms))
	for i, t := range p.Transforms {
		words[i] = t.String()
	}
	return strings.Join(words, "-")
}

func (t Transform) String() string {
	s := t.Transform.String()
	for _, a := range t.Unknown {
		s += fmt.Sprintf("+attribute%d", a.Type)
	}
	return s
}
