package pki

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// checkIdentity binds the identity of the ID payload to the leaf (RFC 4945 §3.1,
// §5.1.3.6) and to the policy. An identity is looked for only in the field of its
// own kind: a domain name in the subject's CN proves nothing (§3.1.9).
func checkIdentity(leaf *x509.Certificate, id ipsec.Identity, pattern string) error {
	var has bool
	var want string
	var got []string
	switch id.Kind {
	case ipsec.IdentityFQDN:
		// RFC 4945 §5.1.3.6.1: no wildcards, so a name with one matches nothing.
		want, got = "dNSName", leaf.DNSNames
		has = hostLike(id.Data) && slices.ContainsFunc(leaf.DNSNames, func(s string) bool { return ipsec.EqualFoldASCII(s, id.Data) })
	case ipsec.IdentityEmail:
		want, got = "rfc822Name", leaf.EmailAddresses
		has = hostLike(id.Data) && slices.ContainsFunc(leaf.EmailAddresses, func(s string) bool { return ipsec.EqualFoldASCII(s, id.Data) })
	case ipsec.IdentityIPv4, ipsec.IdentityIPv6:
		want = "iPAddress"
		size := map[ipsec.IdentityKind]int{ipsec.IdentityIPv4: 4, ipsec.IdentityIPv6: 16}[id.Kind]
		for _, ip := range leaf.IPAddresses {
			a, _ := netip.AddrFromSlice(ip)
			got = append(got, a.String())
			has = has || len(id.Data) == size && string(ip) == id.Data
		}
	case ipsec.IdentityDN:
		want, got = "subject", []string{leaf.Subject.String()}
		// An empty subject names nobody (RFC 4945 §3.1.5).
		has = len(leaf.Subject.Names) > 0 && ipsec.EqualDN(leaf.RawSubject, []byte(id.Data))
	default:
		return refuse(WhyIdentityKind, "got %s, want a domain name, an e-mail address, an address or a distinguished name; set the peer's identity to one in its certificate", quote(id.String()))
	}
	if !has {
		return refuse(WhyIdentity, "the peer is %s, and the certificate's %s is %s; issue a certificate with that name, or set the peer's identity to one in it", quote(id.String()), want, list(got))
	}
	if pattern == "" {
		return nil
	}
	p, err := ipsec.ParseIdentityPattern(pattern)
	if err != nil {
		return refuse(WhyPeerIdentity, "the policy's own pattern is wrong: %v", err)
	}
	if !p.Match(id) {
		return refuse(WhyPeerIdentity, "the peer is %s, and the policy accepts %s; change certificate.peerIdentity if this peer is meant", quote(id.String()), quote(pattern))
	}
	return nil
}

// hostLike keeps out what a name in a certificate could be mistaken for: stars,
// blanks, NULs, letters outside ASCII.
func hostLike(s string) bool {
	if s == "" || len(s) > 254 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '*' {
			return false
		}
	}
	return true
}

func list(names []string) string {
	if len(names) == 0 {
		return "not there"
	}
	var out []string
	for _, n := range names[:min(len(names), 4)] {
		out = append(out, quote(n))
	}
	if more := len(names) - len(out); more > 0 {
		out = append(out, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(out, ", ")
}
