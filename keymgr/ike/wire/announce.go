package wire

import (
	"encoding/binary"
	"time"
)

// Notifies about authentication.
const (
	AuthLifetime            NotifyType = 16403 // RFC 4478
	SignatureHashAlgorithms NotifyType = 16431 // RFC 7427
	UsePPK                  NotifyType = 16435 // RFC 8784
	PPKIdentity             NotifyType = 16436
	NoPPKAuth               NotifyType = 16437
	SupportedAuthMethods    NotifyType = 16443 // RFC 9593
)

// HashAlgorithm is the IANA registry "IKEv2 Hash Algorithms".
type HashAlgorithm uint16

const (
	HashSHA1     HashAlgorithm = 1 // MUST NOT (RFC 8247 §3.2): never announced
	HashSHA256   HashAlgorithm = 2
	HashSHA384   HashAlgorithm = 3
	HashSHA512   HashAlgorithm = 4
	HashIdentity HashAlgorithm = 5 // RFC 8420
)

const maxHashes = 64

// HashNotify makes SIGNATURE_HASH_ALGORITHMS (RFC 7427 §4).
func HashNotify(hs []HashAlgorithm) *Notify {
	n := &Notify{Message: SignatureHashAlgorithms}
	for _, h := range hs {
		n.Data = binary.BigEndian.AppendUint16(n.Data, uint16(h))
	}
	return n
}

// Hashes reads SIGNATURE_HASH_ALGORITHMS. Half an identifier makes the notify as
// good as not sent; more than anyone has are not read.
func (p *Notify) Hashes() []HashAlgorithm {
	if len(p.Data)%2 != 0 {
		return nil
	}
	var hs []HashAlgorithm
	for i := 0; i < len(p.Data) && len(hs) < maxHashes; i += 2 {
		hs = append(hs, HashAlgorithm(binary.BigEndian.Uint16(p.Data[i:])))
	}
	return hs
}

// LifetimeNotify makes AUTH_LIFETIME (RFC 4478 §3).
func LifetimeNotify(d time.Duration) *Notify {
	s := min(max(d/time.Second, 0), 1<<32-1)
	return &Notify{Message: AuthLifetime, Data: binary.BigEndian.AppendUint32(nil, uint32(s))}
}

// Lifetime reads AUTH_LIFETIME.
func (p *Notify) Lifetime() (time.Duration, bool) {
	if len(p.Data) != 4 {
		return 0, false
	}
	return time.Duration(binary.BigEndian.Uint32(p.Data)) * time.Second, true
}

// PPKFixed is the PPK_ID type of a configured identifier (RFC 8784 §5.1).
const PPKFixed = 2

// PPKNotify makes PPK_IDENTITY with an identifier of type PPK_ID_FIXED.
func PPKNotify(id string) *Notify {
	return &Notify{Message: PPKIdentity, Data: append([]byte{PPKFixed}, id...)}
}

// PPKID reads the identifier of PPK_IDENTITY, of type PPK_ID_FIXED.
func (p *Notify) PPKID() (string, bool) {
	if len(p.Data) < 2 || p.Data[0] != PPKFixed {
		return "", false
	}
	return string(p.Data[1:]), true
}

// Announcement is one authentication method of SUPPORTED_AUTH_METHODS
// (RFC 9593 §3.2). Its form goes by what there is to say of the method:
//
//	2 octets:  Length=2, Auth Method
//	3 octets:  Length=3, Auth Method, Cert Link
//	more:      Length,   Auth Method, Cert Link, AlgorithmIdentifier
type Announcement struct {
	Method    AuthMethod
	CertLink  uint8  // the CertLink-th authority of all CERTREQs of the message; 0 for any
	Algorithm []byte // method 14: DER of the AlgorithmIdentifier
}

const maxAnnouncements = 64

// AnnounceNotify makes SUPPORTED_AUTH_METHODS, in order of preference.
func AnnounceNotify(as []Announcement) *Notify {
	n := &Notify{Message: SupportedAuthMethods}
	for _, a := range as {
		switch {
		case a.Algorithm != nil:
			n.Data = append(n.Data, byte(3+len(a.Algorithm)), byte(a.Method), a.CertLink)
			n.Data = append(n.Data, a.Algorithm...)
		case a.Method == AuthSharedKey || a.Method == AuthNull:
			n.Data = append(n.Data, 2, byte(a.Method))
		default:
			n.Data = append(n.Data, 3, byte(a.Method), a.CertLink)
		}
	}
	return n
}

// Announcements reads SUPPORTED_AUTH_METHODS. One that does not hold together
// counts as not sent: it is advice, and nothing may hang on it.
func (p *Notify) Announcements() []Announcement {
	var as []Announcement
	for b := p.Data; len(b) > 0; b = b[b[0]:] {
		n := int(b[0])
		if n < 2 || n > len(b) || len(as) == maxAnnouncements {
			return nil
		}
		a := Announcement{Method: AuthMethod(b[1])}
		if n > 2 {
			a.CertLink = b[2]
		}
		if n > 3 {
			a.Algorithm = b[3:n:n]
		}
		as = append(as, a)
	}
	return as
}
