package ipsec

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
