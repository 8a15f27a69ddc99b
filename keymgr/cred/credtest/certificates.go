package credtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// Certificates is a store of credentials and trust anchors under test, and the
// operator's hand on what it holds.
type Certificates interface {
	Anchors(ctx context.Context, ref string) (*cred.Anchors, error)
	Credential(ctx context.Context, ref string) (*cred.Credential, error)
	// Trust is the reference of the authority that issues, and Nowhere one of an
	// authority that is not there.
	Trust() string
	Nowhere() string
	// Name is the reference of the credential for the domain name.
	Name(domain string) string
	// Issue makes a credential, ECDSA, for the domain; again, it replaces the one
	// that was there.
	Issue(t *testing.T, domain string)
	// Deny makes the credential unreadable for the key manager.
	Deny(t *testing.T, domain string)
}

// RunCertificates runs the suite; open makes a store without credentials for each
// test.
func RunCertificates(t *testing.T, open func(t *testing.T) Certificates) {
	tests := []struct {
		name string
		test func(*testing.T, Certificates)
	}{
		{"a credential leads to the anchors and signs", usable},
		{"what does not change is not read again", same},
		{"a new credential replaces the old one", replaced},
		{"what is not there", absent},
		{"what may not be read", forbidden},
		{"bad references are invalid", badCertRefs},
		{"a cancelled caller gets an error that says so", cancelledCert},
		{"many callers at once", concurrentCerts},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			tt.test(t, s)
			Leak(t, s)
		})
	}
}

const domain = "web-1.fleet.example"

// credential gets the credential for a domain and checks it; it returns the leaf.
func credential(t *testing.T, s Certificates, domain string) *x509.Certificate {
	t.Helper()
	c, err := s.Credential(t.Context(), s.Name(domain))
	if err != nil {
		t.Fatalf("Credential(%s): %v", s.Name(domain), err)
	}
	a, err := s.Anchors(t.Context(), s.Trust())
	if err != nil {
		t.Fatalf("Anchors(%s): %v", s.Trust(), err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, cert := range a.Certificates {
		roots.AddCert(cert)
	}
	var leaf *x509.Certificate
	for i, der := range c.Chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			leaf = cert
		} else {
			between.AddCert(cert)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: domain, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Fatalf("the credential for %s: %v", domain, err)
	}
	digest := sha256.Sum256([]byte("what is signed"))
	sig, err := c.Signer.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil || !ecdsa.VerifyASN1(leaf.PublicKey.(*ecdsa.PublicKey), digest[:], sig) {
		t.Fatalf("the key does not sign for its certificate: %v", err)
	}
	if key, ok := c.Signer.(*ecdsa.PrivateKey); ok {
		scalar, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		Leak(t, c, string(scalar))
		Leak(t, s, string(scalar))
	}
	return leaf
}

func usable(t *testing.T, s Certificates) {
	s.Issue(t, domain)
	s.Issue(t, "db-1.fleet.example")
	credential(t, s, domain)
	credential(t, s, "db-1.fleet.example")
}

func same(t *testing.T, s Certificates) {
	s.Issue(t, domain)
	first := credential(t, s, domain)
	if second := credential(t, s, domain); !first.Equal(second) {
		t.Error("the second time it was another")
	}
}

func replaced(t *testing.T, s Certificates) {
	s.Issue(t, domain)
	first := credential(t, s, domain)
	s.Issue(t, domain)
	if second := credential(t, s, domain); first.Equal(second) {
		t.Error("it is still the old one")
	}
}

func absent(t *testing.T, s Certificates) {
	if a, err := s.Anchors(t.Context(), s.Nowhere()); err == nil || cred.Retryable(err) {
		t.Errorf("Anchors(%s): got %v, %v", s.Nowhere(), a, err)
	}
	ref := s.Name("nobody.elsewhere.example")
	if c, err := s.Credential(t.Context(), ref); err == nil || cred.Retryable(err) {
		t.Errorf("Credential(%s): got %v, %v", ref, c, err)
	}
}

func forbidden(t *testing.T, s Certificates) {
	s.Issue(t, domain)
	s.Deny(t, domain)
	if c, err := s.Credential(t.Context(), s.Name(domain)); cred.KindOf(err) != cred.Denied {
		t.Errorf("got %v, %v", c, err)
	}
}

func badCertRefs(t *testing.T, s Certificates) {
	scheme, path, _ := strings.Cut(s.Name(domain), ":")
	for _, ref := range []string{
		"", ":", path, "ftp:" + path, scheme + ":", scheme + ":/" + path, scheme + ":../" + path, scheme + ":" + path + "/..",
		scheme + ":" + path + "\x00", scheme + ":" + path + "\n", scheme + ":a b", scheme + ":" + strings.Repeat("x", 600),
	} {
		if c, err := s.Credential(t.Context(), ref); cred.KindOf(err) != cred.Invalid {
			t.Errorf("Credential(%q): got %v, %v", ref, c, err)
		}
		if a, err := s.Anchors(t.Context(), ref); cred.KindOf(err) != cred.Invalid {
			t.Errorf("Anchors(%q): got %v, %v", ref, a, err)
		}
	}
}

func cancelledCert(t *testing.T, s Certificates) {
	s.Issue(t, domain)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Credential(ctx, s.Name(domain)); !errors.Is(err, context.Canceled) || !errors.Is(err, cred.Unavailable) {
		t.Errorf("Credential: got %v", err)
	}
	if _, err := s.Anchors(ctx, s.Trust()); !errors.Is(err, context.Canceled) || !errors.Is(err, cred.Unavailable) {
		t.Errorf("Anchors: got %v", err)
	}
	credential(t, s, domain)
}

func concurrentCerts(t *testing.T, s Certificates) {
	s.Issue(t, domain)
	var mu sync.Mutex
	leaves := map[string]bool{}
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			c, err := s.Credential(t.Context(), s.Name(domain))
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := s.Anchors(t.Context(), s.Trust()); err != nil {
				t.Error(err)
			}
			mu.Lock()
			leaves[string(c.Chain[0])] = true
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(leaves) != 1 {
		t.Errorf("32 callers got %d certificates", len(leaves))
	}
}
