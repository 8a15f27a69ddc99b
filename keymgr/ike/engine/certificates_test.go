package engine_test

import (
	"context"
	"crypto"
	"crypto/sha1"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
)

// certStore is a store of certificates of one CA, which can be away or fail inside.
type certStore struct {
	ca     *iketest.CA
	own    map[string]iketest.Credential
	away   atomic.Bool
	broken atomic.Bool
	asked  atomic.Int32 // for authorities
}

func (s *certStore) up(ref string) error {
	if s.broken.Load() {
		panic("a bug in the store")
	}
	if s.away.Load() {
		return cred.Errorf(cred.Unavailable, ref, "Vault is away")
	}
	return nil
}

func (s *certStore) Credential(_ context.Context, ref string) (*cred.Credential, error) {
	if err := s.up(ref); err != nil {
		return nil, err
	}
	c, ok := s.own[ref]
	if !ok {
		return nil, cred.Errorf(cred.NotFound, ref, "no such file")
	}
	return &cred.Credential{Chain: c.Chain, Signer: c.Key}, nil
}

func (s *certStore) Authorities(_ context.Context, trust []string) ([][20]byte, error) {
	s.asked.Add(1)
	if err := s.up(trust[0]); err != nil {
		return nil, err
	}
	return [][20]byte{sha1.Sum(s.ca.Cert.RawSubjectPublicKeyInfo)}, nil
}

func (s *certStore) Verify(_ context.Context, q cred.ChainQuestion) (crypto.PublicKey, error) {
	if err := s.up(q.Method.Trust[0]); err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(q.Chain[0])
	if err != nil {
		return nil, err
	}
	if err := leaf.CheckSignatureFrom(s.ca.Cert); err != nil {
		return nil, cred.Errorf(cred.Invalid, "", "%v", err)
	}
	if !slices.Contains(leaf.DNSNames, q.Identity.Data) {
		return nil, cred.Errorf(cred.Invalid, "", "the certificate names %v", leaf.DNSNames)
	}
	return leaf.PublicKey, nil
}

func inCertificates(t *testing.T, fn func(t *testing.T, p *pair, s *certStore)) {
	ca := iketest.NewCA(t, "fleet")
	s := &certStore{ca: ca, own: map[string]iketest.Credential{"file:a": ca.Issue(t, "p256", "a.example"), "file:b": ca.Issue(t, "ed25519", "b.example")}}
	inPair(t, 1, func(c *engine.Config) { c.Certificates = s }, func(t *testing.T, p *pair) {
		for _, end := range [][4]string{{"a", "192.0.2.1", "b", "192.0.2.2"}, {"b", "192.0.2.2", "a", "192.0.2.1"}} {
			x := policy(t, end[0], end[1], end[2], end[3], 1)
			x.Peers[0].Auth = []ipsec.AuthMethod{{Certificate: &ipsec.CertificateAuth{Trust: []string{"file:ca"}, Credential: "file:" + end[0]}}}
			p.e.SetPolicy(end[0], x)
		}
		fn(t, p, s)
	})
}

func TestCertificatesBringUpSAs(t *testing.T) {
	inCertificates(t, func(t *testing.T, p *pair, _ *certStore) {
		p.a.acquire(1)
		p.after(time.Second)
		p.mustForward()
		sas := p.list(t, engine.Filter{Node: "a"})
		if len(sas) != 1 || sas[0].LocalAuth != "ecdsa-sha256" || sas[0].RemoteAuth != "ed25519" {
			t.Errorf("%+v", sas)
		}
	})
}

// A store that is away, or fails inside, is a state: it is reported, and tried
// again after a pause until it is back.
func TestCertificatesThatAreAwayAreAState(t *testing.T) {
	for name, flag := range map[string]func(*certStore) *atomic.Bool{
		"away":   func(s *certStore) *atomic.Bool { return &s.away },
		"broken": func(s *certStore) *atomic.Bool { return &s.broken },
	} {
		t.Run(name, func(t *testing.T) {
			inCertificates(t, func(t *testing.T, p *pair, s *certStore) {
				flag(s).Store(true)
				_, err := p.e.Initiate(t.Context(), "a", "rule-0")
				var failed *engine.FailedError
				if !errors.As(err, &failed) || failed.Why != "NO_CREDENTIAL" || failed.Advice == "" {
					t.Fatalf("got %v", err)
				}
				p.a.acquire(1)
				p.after(time.Second)
				if len(p.a.failed) != 1 || !strings.Contains(p.a.failed[1], "BACKING_OFF") {
					t.Errorf("an acquire meanwhile: %v", p.a.failed)
				}
				flag(s).Store(false)
				p.after(time.Minute)
				p.a.acquire(2)
				p.after(time.Second)
				p.mustForward()
			})
		})
	}
}

// A key manager without any store of certificates says so.
func TestNoStoreOfCertificates(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		x := policy(t, "a", "192.0.2.1", "b", "192.0.2.2", 1)
		x.Peers[0].Auth = []ipsec.AuthMethod{{Certificate: &ipsec.CertificateAuth{Trust: []string{"file:ca"}, Credential: "file:a"}}}
		p.e.SetPolicy("a", x)
		if _, err := p.e.Initiate(t.Context(), "a", "rule-0"); err == nil || !strings.Contains(err.Error(), "no store of certificates") {
			t.Errorf("got %v", err)
		}
	})
}

// However many negotiations there are, a store that is away is asked for trust
// anchors once in a while.
func TestAuthoritiesThatAreAwayAreNotAskedForEachTime(t *testing.T) {
	inCertificates(t, func(t *testing.T, p *pair, s *certStore) {
		s.away.Store(true)
		for range 20 {
			if _, err := p.e.Initiate(t.Context(), "a", "rule-0"); err == nil {
				t.Fatal("it came up without a store")
			}
			p.after(100 * time.Millisecond)
		}
		if n := s.asked.Load(); n == 0 || n > 2 { // the time of the test's bubble is 2 s
			t.Errorf("asked %d times", n)
		}
	})
}
