package wire

import (
	"crypto/sha1"
	"fmt"
)

// CertEncoding is the IANA registry "IKEv2 Certificate Encodings".
type CertEncoding uint8

const (
	CertX509Signature CertEncoding = 4  // one certificate, DER
	CertHashAndURL    CertEncoding = 12 // a place to fetch it from, which is never done here
)

func (e CertEncoding) String() string {
	switch e {
	case CertX509Signature:
		return "x509"
	case CertHashAndURL:
		return "hash-and-url"
	}
	return fmt.Sprintf("encoding-%d", uint8(e))
}

// Bounds on the certificates of one message.
const (
	MaxCerts       = 8        // CERT payloads
	MaxCertOctets  = 32 << 10 // of all of them
	MaxAuthorities = 256      // hashes in all CERTREQ payloads
)

// Cert is the CERT payload (RFC 7296 §3.6):
//
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| Cert Encoding |                                               |
//	+-+-+-+-+-+-+-+-+                                               |
//	~                       Certificate Data                        ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type Cert struct {
	Encoding CertEncoding
	Data     []byte
}

func (p *Cert) Type() PayloadType            { return TypeCERT }
func (p *Cert) appendBody(dst []byte) []byte { return append(append(dst, byte(p.Encoding)), p.Data...) }
func (p *Cert) String() string               { return fmt.Sprintf("CERT(%s %d)", p.Encoding, len(p.Data)) }

func parseCert(r *reader) *Cert {
	p := &Cert{Encoding: CertEncoding(r.u8())}
	if p.Data = r.rest(); len(p.Data) > MaxCertOctets {
		r.fail("a certificate of %d octets, at most %d", len(p.Data), MaxCertOctets)
	}
	return p
}

// Authority names a trust anchor: the SHA-1 of its SubjectPublicKeyInfo
// (RFC 7296 §3.7). It selects a certificate and secures nothing.
type Authority [sha1.Size]byte

// CertReq is the CERTREQ payload (RFC 7296 §3.7), laid out as CERT is; for X.509
// its data is the Authorities, one after the other.
type CertReq struct {
	Encoding    CertEncoding
	Authorities []Authority
	Data        []byte // of other encodings
}

func (p *CertReq) Type() PayloadType { return TypeCERTREQ }
func (p *CertReq) appendBody(dst []byte) []byte {
	dst = append(dst, byte(p.Encoding))
	for _, a := range p.Authorities {
		dst = append(dst, a[:]...)
	}
	return append(dst, p.Data...)
}
func (p *CertReq) String() string {
	return fmt.Sprintf("CERTREQ(%s %d)", p.Encoding, len(p.Authorities))
}

func parseCertReq(r *reader) *CertReq {
	p := &CertReq{Encoding: CertEncoding(r.u8())}
	if p.Encoding != CertX509Signature && p.Encoding != CertHashAndURL {
		p.Data = r.rest()
		return p
	}
	n := len(r.b) / sha1.Size
	if len(r.b)%sha1.Size != 0 || n > MaxAuthorities {
		r.fail("%d octets of authorities, want a multiple of %d and at most %d of them", len(r.b), sha1.Size, MaxAuthorities)
		return p
	}
	for range n {
		p.Authorities = append(p.Authorities, Authority(r.bytes(sha1.Size)))
	}
	return p
}

// SignatureAuth is the Authentication Data of method 14 (RFC 7427 §3):
//
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	| ASN.1 Length  | AlgorithmIdentifier ASN.1 object              |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~                        Signature Value                        ~
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type SignatureAuth struct {
	Algorithm []byte // DER of the AlgorithmIdentifier, at most 255 octets
	Signature []byte
}

// Append writes the data of an AUTH payload.
func (s SignatureAuth) Append(dst []byte) []byte {
	dst = append(append(dst, byte(len(s.Algorithm))), s.Algorithm...)
	return append(dst, s.Signature...)
}

// ParseSignatureAuth reads it.
func ParseSignatureAuth(b []byte) (SignatureAuth, error) {
	r := &reader{b: b, payload: TypeAUTH, part: " of method 14"}
	s := SignatureAuth{Algorithm: r.bytes(int(r.u8()))}
	s.Signature = r.rest()
	if r.err == nil && (len(s.Algorithm) == 0 || len(s.Signature) == 0) {
		r.fail("the algorithm has %d octets and the signature %d, want both", len(s.Algorithm), len(s.Signature))
	}
	if err := r.done(); err != nil {
		return SignatureAuth{}, err
	}
	return s, nil
}
