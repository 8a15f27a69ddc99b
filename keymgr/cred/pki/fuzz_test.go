package pki

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

var then = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// files yields the contents of the vectors with an ending.
func files(tb testing.TB, ending string) [][]byte {
	tb.Helper()
	names, err := filepath.Glob("testdata/*/*" + ending)
	if err != nil || len(names) == 0 {
		tb.Fatalf("no vectors %s: %v", ending, err)
	}
	var out [][]byte
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

func ders(b []byte) (out [][]byte) {
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		out = append(out, block.Bytes)
	}
	return out
}

// certificate reads the first certificate of a vector.
func certificate(tb testing.TB, name string) *x509.Certificate {
	tb.Helper()
	b, err := os.ReadFile("testdata/" + name + ".pem")
	if err != nil {
		tb.Fatal(err)
	}
	c, err := x509.ParseCertificate(ders(b)[0])
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// sayable fails when an error would carry a peer's octets into a log.
func sayable(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	text := err.Error()
	if !utf8.ValidString(text) || strings.ContainsAny(text, "\n\r\x00\x1b") || len(text) > 4096 {
		t.Errorf("the error is %q", text)
	}
}

// FuzzChain: two certificates of a peer, one before the other.
func FuzzChain(f *testing.F) {
	for _, b := range files(f, ".pem") {
		chain := append(ders(b), nil)
		f.Add(chain[0], chain[1], "web-1.fleet.example")
	}
	roots := x509.NewCertPool()
	ca := certificate(f, "openssl/ca")
	roots.AddCert(ca)
	f.Fuzz(func(t *testing.T, leaf, above []byte, id string) {
		certs, err := parseChain([][]byte{leaf, above})
		sayable(t, err)
		if err != nil {
			if certs, err = parseChain([][]byte{leaf}); err != nil {
				sayable(t, err)
				return
			}
		}
		for kind := range ipsec.IdentityKind(12) {
			sayable(t, checkIdentity(certs[0], ipsec.Identity{Kind: kind, Data: id}, ""))
		}
		chains, err := verifyChain(certs, roots, then)
		sayable(t, err)
		for _, chain := range chains {
			// Whatever was accepted is signed by the one above it, up to the anchor.
			for i, c := range chain[:len(chain)-1] {
				if c.CheckSignatureFrom(chain[i+1]) != nil {
					t.Fatal("accepted without a signature")
				}
			}
			if !chain[len(chain)-1].Equal(ca) {
				t.Fatal("accepted below another anchor")
			}
		}
	})
}

// FuzzIdentity: nothing but the names in the certificate are bound to it.
func FuzzIdentity(f *testing.F) {
	leaf := certificate(f, "openssl/good-prime256v1")
	for _, s := range append(append([]string{}, leaf.DNSNames...), leaf.EmailAddresses...) {
		f.Add(uint8(2), s)
		f.Add(uint8(3), s)
	}
	f.Add(uint8(9), string(leaf.RawSubject))
	f.Add(uint8(1), string(leaf.IPAddresses[0]))
	f.Fuzz(func(t *testing.T, kind uint8, data string) {
		id := ipsec.Identity{Kind: ipsec.IdentityKind(kind), Data: data}
		err := checkIdentity(leaf, id, "")
		sayable(t, err)
		if err != nil {
			return
		}
		switch id.Kind {
		case ipsec.IdentityFQDN:
			if strings.ToLower(data) != "web-1.fleet.example" || len(data) != len("web-1.fleet.example") {
				t.Errorf("%q was bound", data)
			}
		case ipsec.IdentityEmail:
			if strings.ToLower(data) != "ops@fleet.example" || len(data) != len("ops@fleet.example") {
				t.Errorf("%q was bound", data)
			}
		case ipsec.IdentityIPv4, ipsec.IdentityIPv6:
			if s := id.String(); s != "10.0.1.11" && s != "2001:db8::11" {
				t.Errorf("%s was bound", s)
			}
		case ipsec.IdentityDN:
			if !ipsec.EqualDN([]byte(data), leaf.RawSubject) {
				t.Errorf("%x was bound", data)
			}
		default:
			t.Errorf("the kind %d was bound", kind)
		}
	})
}

func FuzzOCSP(f *testing.F) {
	for _, b := range files(f, ".ocsp") {
		f.Add(b)
	}
	cert, ca := certificate(f, "openssl/with-urls"), certificate(f, "openssl/ca")
	f.Fuzz(func(t *testing.T, der []byte) {
		a, err := readAnswer(der, cert, ca, then)
		sayable(t, err)
		if err == nil {
			s, err := a.at(then)
			sayable(t, err)
			if s == revoked {
				t.Error("no responder ever said so")
			}
		}
	})
}

func FuzzCRL(f *testing.F) {
	for _, b := range files(f, ".crl") {
		f.Add(b)
	}
	cert, ca := certificate(f, "openssl/revoked"), certificate(f, "openssl/ca")
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseCRL(b)
		sayable(t, err)
		if err != nil {
			return
		}
		sayable(t, c.check(ca))
		_, err = c.status(cert, then)
		sayable(t, err)
	})
}

func FuzzAnchors(f *testing.F) {
	for _, b := range append(files(f, ".pem"), files(f, ".crl")...) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := cred.ParseAnchors("file:x", b); err == nil && len(a.Certificates) == 0 {
			t.Error("anchors without a certificate")
		}
	})
}

func FuzzAllowedURL(f *testing.F) {
	for _, s := range []string{"http://pki.example/crl/a", "http://pki.example/crl/../x", "http://pki.example@evil.example/crl/", "http://pki.example/crl%2f..%2fx", "HTTP://PKI.example/crl", "http://pki.example:80/crl/", "http:pki.example/crl", "http://pki.example/crl/?a=http://x", "http://pki.example/crlx"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, ok := plainURL(s)
		if !allows([]string{"http://pki.example/crl/"}, s) {
			return
		}
		if !ok || u.Scheme != "http" || strings.ToLower(u.Host) != "pki.example" || u.User != nil || u.Path != "/crl" && !strings.HasPrefix(u.Path, "/crl/") || strings.Contains(u.Path+"/", "/../") {
			t.Errorf("%q is allowed", s)
		}
	})
}

func TestAllowedURLs(t *testing.T) {
	prefixes := []string{"http://pki.example/crl/", "https://[2001:db8::1]:8443", "junk", "http://u@pki.example/open/"}
	for s, want := range map[string]bool{
		"http://pki.example/crl/fleet.crl": true, "http://PKI.example/crl/": true, "http://pki.example/crl": true, "http://pki.example/crl/a?b=c": true,
		"https://[2001:db8::1]:8443": true, "https://[2001:db8::1]:8443/any/thing": true,
		"https://pki.example/crl/fleet.crl": false, "http://pki.example:8080/crl/fleet.crl": false, "http://pki.example/crlx": false,
		"http://pki.example/": false, "http://pki.example/crl/../secret": false, "http://pki.example/crl/%2e%2e/secret": false,
		"http://pki.example/crl/%2E%2E/secret": false, "http://pki.example\\@evil.example/crl/": false, "http://pki.example@evil.example/crl/": false,
		"ldap://pki.example/crl/": false, "file:///etc/passwd": false, "": false, "http://pki.example/open/": false, "http://pki.example/crl/#x": false,
	} {
		if got := allows(prefixes, s); got != want {
			t.Errorf("%q: got %t", s, got)
		}
	}
}
