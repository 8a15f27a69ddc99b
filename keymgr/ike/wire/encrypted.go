package wire

import (
	"encoding/binary"
	"fmt"
)

// Encrypted is the SK payload (RFC 7296 §3.14) as it stands in the datagram:
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Next Payload  |C|  RESERVED   |         Payload Length        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                     Initialization Vector                     |
//	|         (length is block size for encryption algorithm)       |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                    Encrypted IKE Payloads                     ~
//	+               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|               |             Padding (0-255 octets)            |
//	+-+-+-+-+-+-+-+-+                               +-+-+-+-+-+-+-+-+
//	|                                               |  Pad Length   |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                    Integrity Checksum Data                    ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//
// or one fragment of it, the SKF payload (RFC 7383 §2.5), which has
//
//	|        Fragment Number        |        Total Fragments        |
//
// before the Initialization Vector.
type Encrypted struct {
	PayloadType PayloadType // TypeSK or TypeSKF
	Inner       PayloadType // of the first payload inside; zero in all fragments but the first
	Fragment    uint16      // SKF: from 1
	Total       uint16      // SKF
	Body        []byte      // IV, ciphertext, ICV
}

func (p *Encrypted) Type() PayloadType { return p.PayloadType }

func (p *Encrypted) appendBody(dst []byte) []byte { return append(p.appendNumbers(dst), p.Body...) }

// NumbersLen is the length of the two numbers of an SKF payload.
const NumbersLen = 4

func (p *Encrypted) appendNumbers(dst []byte) []byte {
	if p.PayloadType != TypeSKF {
		return dst
	}
	dst = binary.BigEndian.AppendUint16(dst, p.Fragment)
	return binary.BigEndian.AppendUint16(dst, p.Total)
}

func (p *Encrypted) String() string {
	if p.PayloadType == TypeSKF {
		return fmt.Sprintf("SKF(%d/%d, %d)", p.Fragment, p.Total, len(p.Body))
	}
	return fmt.Sprintf("SK(%d)", len(p.Body))
}

// AppendHead writes a message with no other payload than this one, all of it
// but the body of n octets that the caller has to append: its integrity check, or its
// associated data, begins with what is here.
func (p *Encrypted) AppendHead(dst []byte, h Header, n int) []byte {
	n += GenericLen
	if p.PayloadType == TypeSKF {
		n += NumbersLen
	}
	h.Next, h.Version, h.Length = p.PayloadType, Version, uint32(HeaderLen+n)
	dst = append(h.Append(dst), byte(p.Inner), 0)
	return p.appendNumbers(binary.BigEndian.AppendUint16(dst, uint16(n)))
}

// ParseEncrypted reads the payload of such a message b, whose header h was read.
func ParseEncrypted(h Header, b []byte) (Encrypted, error) {
	b = b[HeaderLen:]
	if len(b) < GenericLen || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
		return Encrypted{}, syntax("%s is not all of the message: %d octets", h.Next, len(b))
	}
	return parseEncrypted(h.Next, PayloadType(b[0]), b[GenericLen:])
}

func parseEncrypted(t, inner PayloadType, body []byte) (Encrypted, error) {
	p := Encrypted{PayloadType: t, Inner: inner, Body: body}
	if t == TypeSK {
		return p, nil
	}
	r := &reader{b: body, payload: t}
	p.Fragment, p.Total = r.u16(), r.u16()
	if r.err == nil && (p.Fragment == 0 || p.Fragment > p.Total) {
		r.fail("fragment %d of %d", p.Fragment, p.Total)
	}
	p.Body = r.rest()
	if r.err != nil {
		return Encrypted{}, r.err
	}
	return p, nil
}
