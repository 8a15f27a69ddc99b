package ipsec

import "fmt"

// CertificateAuth authenticates with signatures: we show Credential, and the
// peer's chain must lead to an anchor in Trust and be bound to its identity.
type CertificateAuth struct {
	// Trust are references of trust anchors: file:fleet-ca.pem, or vault:pki for
	// the CA chain of a PKI mount.
	Trust []string
	// Credential is the reference of our key and chain: file:web-1 (web-1.pem and
	// web-1-key.pem), or vault:pki/ROLE (a key made in keymgrd, its certificate
	// signed by the mount's role).
	Credential string
	// PeerIdentity is a pattern that the peer's identity must match, such as
	// *.fleet.example; empty for any identity that the peer's profile accepts.
	PeerIdentity string
	// Revocation says what to do when a certificate's status cannot be had.
	Revocation Revocation
	// RevocationURLs are the prefixes of URLs from which CRLs and OCSP answers
	// may be fetched; empty for none.
	RevocationURLs []string
	// AllowLegacy lets RSA with SHA-1 pass, for peers without RFC 7427.
	AllowLegacy bool
}

// Revocation is how far a certificate's revocation status matters. What is known
// to be revoked is refused in Soft and Hard alike.
type Revocation uint8

const (
	RevocationNone Revocation = 0 // not asked
	RevocationSoft Revocation = 1 // a status that cannot be had is passed over
	RevocationHard Revocation = 2 // a status that cannot be had refuses the chain
)

func (r Revocation) String() string {
	switch r {
	case RevocationNone:
		return "none"
	case RevocationSoft:
		return "soft"
	case RevocationHard:
		return "hard"
	}
	return fmt.Sprintf("revocation-%d", uint8(r))
}

// ParseRevocation reads "none", "soft" or "hard".
func ParseRevocation(s string) (Revocation, error) {
	for _, r := range []Revocation{RevocationNone, RevocationSoft, RevocationHard} {
		if s == r.String() {
			return r, nil
		}
	}
	return 0, fmt.Errorf("revocation %q: want none, soft or hard", s)
}
