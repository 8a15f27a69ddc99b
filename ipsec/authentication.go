package ipsec

import "strings"

// AuthSide is whom a method authenticates: each end proves itself by a method of
// its own, and the two need not be alike (RFC 7296 §2.15).
type AuthSide uint8

const (
	AuthBoth   AuthSide = 0
	AuthLocal  AuthSide = 1 // we prove ourselves with it, the peer may not
	AuthRemote AuthSide = 2 // the peer may prove itself with it, we do not
)

func (s AuthSide) String() string {
	switch s {
	case AuthLocal:
		return "local"
	case AuthRemote:
		return "remote"
	}
	return "both"
}

// PPK is a postquantum preshared key that is mixed into the keys of IKE SAs
// (RFC 8784).
type PPK struct {
	ID       string // PPK_ID, of type PPK_ID_FIXED
	Secret   string // reference
	Required bool   // without it no IKE SA is made
}

// Local reports that we may prove ourselves with the method.
func (a AuthMethod) Local() bool {
	return a.Side != AuthRemote && (a.Certificate == nil || a.Certificate.Credential != "")
}

// Remote reports that the peer may prove itself with the method.
func (a AuthMethod) Remote() bool {
	return a.Side != AuthLocal && (a.Certificate == nil || len(a.Certificate.Trust) > 0)
}

// Name is the kind of the method, as policy files have it.
func (a AuthMethod) Name() string {
	switch {
	case a.Certificate != nil:
		return "certificate"
	case a.Null:
		return "null"
	}
	return "psk"
}

// String shows the method with its references, none of which is secret.
func (a AuthMethod) String() string {
	s := "null"
	switch c := a.Certificate; {
	case a.PSK != "":
		s = "psk " + a.PSK
	case c != nil:
		s = "certificate"
		if c.Credential != "" {
			s += " " + c.Credential
		}
		if len(c.Trust) > 0 {
			s += " trusting " + strings.Join(c.Trust, " ")
		}
		if c.PeerIdentity != "" {
			s += " for " + c.PeerIdentity
		}
		if c.Revocation != RevocationNone {
			s += " revocation " + c.Revocation.String()
		}
		if c.AllowLegacy {
			s += " with legacy"
		}
	}
	if a.Side != AuthBoth {
		s += " (" + a.Side.String() + " side)"
	}
	return s
}

func (p *PPK) String() string {
	if p.Required {
		return p.ID + " " + p.Secret + " required"
	}
	return p.ID + " " + p.Secret
}
