package wire

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// PayloadType is the IANA registry "IKEv2 Payload Types".
type PayloadType uint8

const (
	TypeNone     PayloadType = 0
	TypeSA       PayloadType = 33
	TypeKE       PayloadType = 34
	TypeIDi      PayloadType = 35
	TypeIDr      PayloadType = 36
	TypeCERT     PayloadType = 37
	TypeCERTREQ  PayloadType = 38
	TypeAUTH     PayloadType = 39
	TypeNonce    PayloadType = 40
	TypeNotify   PayloadType = 41
	TypeDelete   PayloadType = 42
	TypeVendorID PayloadType = 43
	TypeTSi      PayloadType = 44
	TypeTSr      PayloadType = 45
	TypeSK       PayloadType = 46
	TypeCP       PayloadType = 47
	TypeEAP      PayloadType = 48
	TypeSKF      PayloadType = 53
)

// payloadNames are those of the payloads that are understood.
var payloadNames = [...]string{
	TypeSA: "SA", TypeKE: "KE", TypeIDi: "IDi", TypeIDr: "IDr", TypeCERT: "CERT", TypeCERTREQ: "CERTREQ",
	TypeAUTH: "AUTH", TypeNonce: "N", TypeNotify: "NOTIFY", TypeDelete: "D", TypeVendorID: "V", TypeTSi: "TSi",
	TypeTSr: "TSr", TypeSK: "SK", TypeCP: "CP", TypeEAP: "EAP", TypeSKF: "SKF",
}

func (t PayloadType) String() string {
	if t.known() {
		return payloadNames[t]
	}
	return fmt.Sprintf("PAYLOAD-%d", uint8(t))
}

func (t PayloadType) known() bool { return int(t) < len(payloadNames) && payloadNames[t] != "" }

// Payload is one payload of a message.
type Payload interface {
	Type() PayloadType
	appendBody(dst []byte) []byte
	// String describes the payload for logs; it never holds key material.
	String() string
}

// Opaque is a payload that is carried, not read: CP, EAP, and what has no
// meaning here and is not critical.
type Opaque struct {
	PayloadType PayloadType
	Body        []byte
}

func (p *Opaque) Type() PayloadType            { return p.PayloadType }
func (p *Opaque) appendBody(dst []byte) []byte { return append(dst, p.Body...) }
func (p *Opaque) String() string               { return fmt.Sprintf("%s(%d)", p.PayloadType, len(p.Body)) }

// GenericLen is the length of the generic payload header.
const GenericLen = 4

const criticalBit = 0x80

// AppendPayloads writes a chain of payloads (RFC 7296 §3.2). The type of the
// first one belongs into the header before it: see First.
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Next Payload  |C|  RESERVED   |         Payload Length        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//
// The critical bit is never set: every payload written here is defined in
// RFC 7296, where it must be zero (§3.2).
func AppendPayloads(dst []byte, ps []Payload) []byte {
	for i, p := range ps {
		start := len(dst)
		next := First(ps[i+1:])
		if e, ok := p.(*Encrypted); ok {
			next = e.Inner
		}
		dst = append(dst, byte(next), 0, 0, 0)
		dst = p.appendBody(dst)
		binary.BigEndian.PutUint16(dst[start+2:], uint16(len(dst)-start))
	}
	return dst
}

// First is the type of the first payload, TypeNone for an empty chain.
func First(ps []Payload) PayloadType {
	if len(ps) == 0 {
		return TypeNone
	}
	return ps[0].Type()
}

// AppendMessage writes an unprotected message: header and payloads, with the
// header's Next, Version and Length filled in.
func AppendMessage(dst []byte, h Header, ps []Payload) []byte {
	start := len(dst)
	h.Next, h.Version = First(ps), Version
	dst = AppendPayloads(h.Append(dst), ps)
	binary.BigEndian.PutUint32(dst[start+24:], uint32(len(dst)-start))
	return dst
}

// Parse reads a datagram: the header, and the payloads up to and including an
// SK or SKF payload. On an error the header is still of use when its Version
// is set.
func Parse(b []byte) (Header, []Payload, error) {
	h, err := ParseHeader(b)
	if err != nil {
		return h, nil, err
	}
	ps, err := ParsePayloads(h.Next, b[HeaderLen:])
	return h, ps, err
}

// ParsePayloads walks a chain of payloads, of a message or inside SK.
func ParsePayloads(next PayloadType, b []byte) ([]Payload, error) {
	all, notifies := count(next, b)
	out, room := make([]Payload, 0, all), make([]Notify, 0, notifies)
	var unsupported *Error
	for next != TypeNone {
		if len(out) == MaxPayloads {
			return nil, syntax("more than %d payloads", MaxPayloads)
		}
		if len(b) < GenericLen {
			return nil, syntax("%s: got %d octets where a payload header is needed", next, len(b))
		}
		n := int(binary.BigEndian.Uint16(b[2:]))
		if n < GenericLen || n > len(b) {
			return nil, syntax("%s: payload length %d, with %d octets left", next, n, len(b))
		}
		t, critical := next, b[1]&criticalBit != 0
		body := b[GenericLen:n:n]
		next, b = PayloadType(b[0]), b[n:]

		// The Next Payload field of SK and SKF names the first payload inside,
		// so nothing can follow them (RFC 7296 §3.14, RFC 7383 §2.5).
		if t == TypeSK || t == TypeSKF {
			if len(b) != 0 {
				return nil, syntax("%s is not the last payload", t)
			}
			p, err := parseEncrypted(t, next, body)
			if err != nil {
				return nil, err
			}
			out = append(out, &p)
			next = TypeNone
			continue
		}
		p, err := parsePayload(t, body, &room)
		if err != nil {
			return nil, err
		}
		// RFC 7296 §2.5: the critical bit counts only where the payload type is
		// not understood, and then the whole message is refused. The walk goes on,
		// because a malformed message is INVALID_SYNTAX first.
		if !t.known() && critical && unsupported == nil {
			unsupported = &Error{Notify: UnsupportedCriticalPayload, Data: []byte{byte(t)},
				Detail: fmt.Sprintf("payload type %d is critical and not known here", uint8(t))}
		}
		out = append(out, p)
	}
	if len(b) != 0 {
		return nil, syntax("%d octets after the last payload", len(b))
	}
	if unsupported != nil {
		return nil, unsupported
	}
	return out, nil
}

// count tells how much room the payloads of a chain take, so that most messages take
// one allocation for the list and one for all notifies; what is malformed ends it.
func count(next PayloadType, b []byte) (all, notifies int) {
	for next != TypeNone && all < MaxPayloads && len(b) >= GenericLen {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if n < GenericLen || n > len(b) {
			break
		}
		if all++; next == TypeNotify {
			notifies++
		}
		next, b = PayloadType(b[0]), b[n:]
	}
	return all, notifies
}

// parsePayload reads one payload. A notify is put into what count has made room for.
func parsePayload(t PayloadType, body []byte, notifies *[]Notify) (Payload, error) {
	r := &reader{b: body, payload: t}
	var p Payload
	switch t {
	case TypeSA:
		p = parseSA(r)
	case TypeKE:
		p = parseKE(r)
	case TypeIDi, TypeIDr:
		p = parseID(t, r)
	case TypeCERT:
		p = parseCert(r)
	case TypeCERTREQ:
		p = parseCertReq(r)
	case TypeAUTH:
		p = parseAuth(r)
	case TypeNonce:
		p = parseNonce(r)
	case TypeNotify:
		*notifies = append(*notifies, parseNotify(r))
		p = &(*notifies)[len(*notifies)-1]
	case TypeDelete:
		p = parseDelete(r)
	case TypeVendorID:
		p = &VendorID{Data: r.rest()}
	case TypeTSi, TypeTSr:
		p = parseTS(t, r)
	default:
		p = &Opaque{PayloadType: t, Body: r.rest()}
	}
	if err := r.done(); err != nil {
		return nil, err
	}
	return p, nil
}

// Describe prints a message on one line for logs and tests:
// "IKE_AUTH request 1 { IDi(web-1) AUTH(psk) }".
func Describe(h Header, ps []Payload) string {
	words := make([]string, len(ps))
	for i, p := range ps {
		words[i] = p.String()
	}
	return fmt.Sprintf("%s { %s }", h, strings.Join(words, " "))
}
