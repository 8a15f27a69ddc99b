package ipsec

import (
	"fmt"
	"net/netip"
	"strings"
)

// IdentityKind is an ID type (RFC 7296 §3.5).
type IdentityKind uint8

const (
	IdentityIPv4  IdentityKind = 1
	IdentityFQDN  IdentityKind = 2
	IdentityEmail IdentityKind = 3 // ID_RFC822_ADDR
	IdentityIPv6  IdentityKind = 5
	IdentityDN    IdentityKind = 9  // ID_DER_ASN1_DN, Data is the DER
	IdentityKeyID IdentityKind = 11 // opaque octets
	IdentityNull  IdentityKind = 13 // ID_NULL (RFC 7619 §2.2): no octets
)

// Identity is an IKE identity: its kind and the octets of the ID payload.
type Identity struct {
	Kind IdentityKind
	Data string
}

// ParseIdentity reads what an operator writes: an address, an e-mail address, a
// distinguished name such as "C=DE, O=Fleet, CN=web-1", "keyid:..." or a domain name.
func ParseIdentity(s string) (Identity, error) {
	if s == "" {
		return Identity{}, fmt.Errorf("identity is empty; want a domain name, an address, user@domain, a distinguished name or keyid:octets")
	}
	if k, ok := strings.CutPrefix(s, "keyid:"); ok {
		return Identity{IdentityKeyID, k}, nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return AddrIdentity(a), nil
	}
	if strings.Contains(s, "=") {
		return parseDistinguishedName(s)
	}
	if strings.Contains(s, "@") {
		return Identity{IdentityEmail, s}, nil
	}
	return Identity{IdentityFQDN, s}, nil
}

// AddrIdentity is the identity of an address.
func AddrIdentity(a netip.Addr) Identity {
	k := IdentityIPv6
	if a = a.Unmap(); a.Is4() {
		k = IdentityIPv4
	}
	return Identity{k, string(a.AsSlice())}
}

// IsZero reports an identity that is not set.
func (i Identity) IsZero() bool { return i.Kind == 0 }

func (i Identity) String() string {
	switch i.Kind {
	case 0:
		return "%any"
	case IdentityIPv4, IdentityIPv6:
		if a, ok := netip.AddrFromSlice([]byte(i.Data)); ok {
			return a.String()
		}
	case IdentityFQDN, IdentityEmail:
		return printable(i.Data)
	case IdentityDN:
		if s, ok := DNString([]byte(i.Data)); ok {
			return s
		}
	case IdentityKeyID:
		return "keyid:" + printable(i.Data)
	case IdentityNull:
		return "%null"
	}
	return fmt.Sprintf("id%d:%x", uint8(i.Kind), i.Data)
}

// printable keeps a peer's octets from writing control characters into a log.
func printable(s string) string {
	for _, r := range s {
		if r < 0x20 || r == 0x7f || r == 0xfffd {
			return fmt.Sprintf("%q", s)
		}
	}
	return s
}
