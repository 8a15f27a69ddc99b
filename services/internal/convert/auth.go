package convert

import (
	"fmt"

	"github.com/testudo-ipsec/testudo/ipsec"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
)

func toAuthMethod(a ipsec.AuthMethod) *policyv1.AuthMethod {
	m := &policyv1.AuthMethod{Psk: a.PSK, Null: a.Null, Side: uint32(a.Side)}
	if c := a.Certificate; c != nil {
		m.Certificate = &policyv1.CertificateAuth{
			Trust: c.Trust, Credential: c.Credential, PeerIdentity: c.PeerIdentity,
			Revocation: uint32(c.Revocation), RevocationUrls: c.RevocationURLs, AllowLegacy: c.AllowLegacy,
		}
	}
	return m
}

// fromAuthMethod refuses what it does not understand: to leave a method out, or a
// condition of one, could let a peer in that the policy keeps out.
func fromAuthMethod(m *policyv1.AuthMethod) (ipsec.AuthMethod, error) {
	a := ipsec.AuthMethod{PSK: m.GetPsk(), Null: m.GetNull(), Side: ipsec.AuthSide(m.GetSide())}
	if m.GetSide() > uint32(ipsec.AuthRemote) {
		return a, fmt.Errorf("authentication method is for side %d, want 0 to 2", m.GetSide())
	}
	given := 0
	for _, set := range []bool{a.PSK != "", a.Null, m.GetCertificate() != nil} {
		if set {
			given++
		}
	}
	if given != 1 {
		return a, fmt.Errorf("authentication method has %d of psk, certificate and null, want one", given)
	}
	if c := m.GetCertificate(); c != nil {
		a.Certificate = &ipsec.CertificateAuth{
			Trust: c.GetTrust(), Credential: c.GetCredential(), PeerIdentity: c.GetPeerIdentity(),
			Revocation: ipsec.Revocation(c.GetRevocation()), RevocationURLs: c.GetRevocationUrls(), AllowLegacy: c.GetAllowLegacy(),
		}
		if c.GetRevocation() > uint32(ipsec.RevocationHard) {
			return a, fmt.Errorf("revocation is %d, want 0 to 2", c.GetRevocation())
		}
		if c.GetPeerIdentity() != "" {
			if _, err := ipsec.ParseIdentityPattern(c.GetPeerIdentity()); err != nil {
				return a, err
			}
		}
	}
	return a, nil
}

func fromPPK(m *policyv1.Ppk) (*ipsec.PPK, error) {
	if m == nil {
		return nil, nil //nolint:nilnil // no key is what the policy says
	}
	if m.GetId() == "" || m.GetSecret() == "" {
		return nil, fmt.Errorf("postquantum preshared key has identifier %q and reference %q, want both", m.GetId(), m.GetSecret())
	}
	return &ipsec.PPK{ID: m.GetId(), Secret: m.GetSecret(), Required: m.GetRequired()}, nil
}
