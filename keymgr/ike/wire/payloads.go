package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// KE is the Key Exchange payload (RFC 7296 §3.4):
//
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|   Diffie-Hellman Group Num    |           RESERVED            |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                       Key Exchange Data                       ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type KE struct {
	Method uint16
	Data   []byte
}

func (p *KE) Type() PayloadType { return TypeKE }
func (p *KE) appendBody(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, p.Method)
	return append(append(dst, 0, 0), p.Data...)
}
func (p *KE) String() string {
	return fmt.Sprintf("KE(%s)", ipsec.Transform{Type: ipsec.TransformKE, ID: p.Method})
}

func parseKE(r *reader) *KE {
	p := &KE{Method: r.u16()}
	r.u16()
	p.Data = r.rest()
	return p
}

// ID is the IDi or IDr payload (RFC 7296 §3.5):
//
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|   ID Type     |                 RESERVED                      |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                   Identification Data                         ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type ID struct {
	PayloadType PayloadType // TypeIDi or TypeIDr
	Identity    ipsec.Identity
	Reserved    [3]byte // signed with the rest (RFC 7296 §2.15), so kept
}

func (p *ID) Type() PayloadType { return p.PayloadType }

// Body is the payload after the generic header: RestOfInitIDPayload and
// RestOfRespIDPayload of RFC 7296 §2.15.
func (p *ID) Body() []byte { return p.appendBody(make([]byte, 0, 4+len(p.Identity.Data))) }

func (p *ID) appendBody(dst []byte) []byte {
	dst = append(dst, byte(p.Identity.Kind), p.Reserved[0], p.Reserved[1], p.Reserved[2])
	return append(dst, p.Identity.Data...)
}
func (p *ID) String() string { return fmt.Sprintf("%s(%s)", p.PayloadType, p.Identity) }

func parseID(t PayloadType, r *reader) *ID {
	p := &ID{PayloadType: t}
	p.Identity.Kind = ipsec.IdentityKind(r.u8())
	copy(p.Reserved[:], r.bytes(3))
	p.Identity.Data = string(r.rest())
	return p
}

// AuthMethod is the IANA registry "IKEv2 Authentication Method".
type AuthMethod uint8

const (
	AuthRSA       AuthMethod = 1
	AuthSharedKey AuthMethod = 2
	AuthECDSA256  AuthMethod = 9 // RFC 4754
	AuthECDSA384  AuthMethod = 10
	AuthECDSA521  AuthMethod = 11
	AuthNull      AuthMethod = 13 // RFC 7619
	AuthSignature AuthMethod = 14 // RFC 7427
)

var authNames = map[AuthMethod]string{
	AuthRSA: "rsa", AuthSharedKey: "psk", 3: "dss", AuthECDSA256: "ecdsa-256", AuthECDSA384: "ecdsa-384",
	AuthECDSA521: "ecdsa-521", AuthNull: "null", AuthSignature: "signature",
}

func (m AuthMethod) String() string {
	if n, ok := authNames[m]; ok {
		return n
	}
	return fmt.Sprintf("method-%d", uint8(m))
}

// Auth is the Authentication payload (RFC 7296 §3.8):
//
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Auth Method   |                RESERVED                       |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                      Authentication Data                      ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type Auth struct {
	Method AuthMethod
	Data   []byte
}

func (p *Auth) Type() PayloadType { return TypeAUTH }
func (p *Auth) appendBody(dst []byte) []byte {
	return append(append(dst, byte(p.Method), 0, 0, 0), p.Data...)
}
func (p *Auth) String() string { return fmt.Sprintf("AUTH(%s)", p.Method) }

func parseAuth(r *reader) *Auth {
	p := &Auth{Method: AuthMethod(r.u8())}
	r.bytes(3)
	p.Data = r.rest()
	return p
}

// Nonce lengths (RFC 7296 §3.9).
const (
	MinNonce = 16
	MaxNonce = 256
)

// Nonce is the Ni or Nr payload (RFC 7296 §3.9): nothing but its data.
type Nonce struct{ Data []byte }

func (p *Nonce) Type() PayloadType            { return TypeNonce }
func (p *Nonce) appendBody(dst []byte) []byte { return append(dst, p.Data...) }
func (p *Nonce) String() string               { return fmt.Sprintf("N(%d)", len(p.Data)) }

func parseNonce(r *reader) *Nonce {
	if n := len(r.b); n < MinNonce || n > MaxNonce {
		r.fail("nonce of %d octets, want %d to %d (RFC 7296 §3.9)", n, MinNonce, MaxNonce)
	}
	return &Nonce{Data: r.rest()}
}

// VendorID is the Vendor ID payload (RFC 7296 §3.12): nothing but its data.
type VendorID struct{ Data []byte }

func (p *VendorID) Type() PayloadType            { return TypeVendorID }
func (p *VendorID) appendBody(dst []byte) []byte { return append(dst, p.Data...) }
func (p *VendorID) String() string               { return fmt.Sprintf("V(%d)", len(p.Data)) }

// Delete is the Delete payload (RFC 7296 §3.11), of the SPIs that the sender
// expects on inbound packets; none for the IKE SA.
//
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Protocol ID   |   SPI Size    |          Num of SPIs          |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~               Security Parameter Index(es) (SPI)              ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type Delete struct {
	Protocol uint8 // IKEv2 number
	SPIs     []ipsec.SPI
}

// OfIKE reports a delete of the IKE SA itself.
func (p *Delete) OfIKE() bool { return p.Protocol == protoIKE }

func (p *Delete) Type() PayloadType { return TypeDelete }
func (p *Delete) appendBody(dst []byte) []byte {
	size := byte(4)
	if p.OfIKE() {
		size = 0
	}
	dst = append(dst, p.Protocol, size)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(p.SPIs)))
	for _, s := range p.SPIs {
		dst = binary.BigEndian.AppendUint32(dst, uint32(s))
	}
	return dst
}

func (p *Delete) String() string {
	if p.OfIKE() {
		return "D(ike)"
	}
	return fmt.Sprintf("D(%v)", p.SPIs)
}

func parseDelete(r *reader) *Delete {
	p := &Delete{Protocol: r.u8()}
	size, n := r.u8(), int(r.u16())
	switch {
	case r.err != nil:
	case p.Protocol == protoIKE && (size != 0 || n != 0):
		r.fail("delete of the IKE SA with %d SPIs of %d octets, want none", n, size)
	case p.Protocol == protoESP || p.Protocol == protoAH:
		if size != 4 {
			r.fail("SPI of %d octets, want 4", size)
		}
		if n > MaxDeletes {
			r.fail("%d SPIs, at most %d", n, MaxDeletes)
		}
		for i := 0; i < n && r.err == nil; i++ {
			p.SPIs = append(p.SPIs, ipsec.SPI(r.u32()))
		}
	case p.Protocol != protoIKE:
		r.fail("protocol %d, want 1, 2 or 3", p.Protocol)
	}
	return p
}
