package iketest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
)

// CA is a certificate authority for tests.
type CA struct {
	Cert *x509.Certificate
	key  crypto.Signer
}

// Credential is a key and its chain, leaf first.
type Credential struct {
	Chain [][]byte
	Key   crypto.Signer
}

var rsaKeys = sync.OnceValue(func() (ks []*rsa.PrivateKey) {
	for range 2 {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		ks = append(ks, k)
	}
	return ks
})

var rsaNext int

// newKey makes a key: rsa, p256, p384, p521 or ed25519. RSA keys are taken from
// two that are made once.
func newKey(tb testing.TB, kind string) crypto.Signer {
	var k crypto.Signer
	var err error
	switch kind {
	case "rsa":
		rsaNext++
		k = rsaKeys()[rsaNext%2]
	case "p256":
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p384":
		k, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "p521":
		k, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "ed25519":
		_, k, err = ed25519.GenerateKey(rand.Reader)
	default:
		tb.Fatalf("no kind of key %q", kind)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// NewCA makes a root.
func NewCA(tb testing.TB, name string) *CA {
	k := newKey(tb, "p256")
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	return &CA{certificate(tb, t, t, k.Public(), k), k}
}

// Intermediate makes a CA below.
func (ca *CA) Intermediate(tb testing.TB, name string) *CA {
	k := newKey(tb, "p256")
	t := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	return &CA{certificate(tb, t, ca.Cert, k.Public(), ca.key), k}
}

// Issue makes a credential whose certificate names a host.
func (ca *CA) Issue(tb testing.TB, kind, name string) Credential {
	k := newKey(tb, kind)
	t := &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), KeyUsage: x509.KeyUsageDigitalSignature}
	return Credential{Chain: [][]byte{certificate(tb, t, ca.Cert, k.Public(), ca.key).Raw}, Key: k}
}

func certificate(tb testing.TB, t, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		tb.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// Certificates answers what a machine asks about certificates, nil for anything
// else, from Credentials and Anchors.
func (h *Host) Certificates(e ike.Effect) ike.Event {
	switch e := e.(type) {
	case ike.NeedAuthorities:
		return h.authorities(e)
	case ike.NeedSignature:
		return h.sign(e)
	case ike.NeedVerification:
		return h.verify(e)
	}
	return nil
}

// authorities answers from Host.Anchors.
func (h *Host) authorities(e ike.NeedAuthorities) ike.Authorities {
	a := ike.Authorities{ID: e.ID}
	for _, ref := range e.Trust {
		ca := h.Anchors[ref]
		if ca == nil {
			a.Err = errors.New("no trust anchor " + ref)
			return a
		}
		a.Keys = append(a.Keys, sha1.Sum(ca.Cert.RawSubjectPublicKeyInfo))
	}
	return a
}

// sign answers from Host.Credentials.
func (h *Host) sign(e ike.NeedSignature) ike.Signed {
	a := ike.Signed{ID: e.ID, Err: errors.New("no credential")}
	for _, m := range e.Credentials {
		c, ok := h.Credentials[m.Credential]
		if !ok {
			a.Err = errors.New("no credential " + m.Credential)
			continue
		}
		if a = ikev2.PerformSignature(rand.Reader, e, c.Key, c.Chain); a.Err == nil {
			return a
		}
	}
	return a
}

// verify judges a chain as simply as can be: package cred/pki does it in earnest.
func (h *Host) verify(e ike.NeedVerification) ike.Verified {
	var last error
	for _, m := range e.Methods {
		key, err := h.chain(e, m)
		if err != nil {
			last = err
			continue
		}
		return ikev2.PerformVerification(e, key)
	}
	return ike.Verified{ID: e.ID, Err: last}
}

func (h *Host) chain(e ike.NeedVerification, m ipsec.CertificateAuth) (crypto.PublicKey, error) {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, ref := range m.Trust {
		if ca := h.Anchors[ref]; ca != nil {
			roots.AddCert(ca.Cert)
		}
	}
	var leaf *x509.Certificate
	for i, der := range e.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			leaf = c
		} else {
			between.AddCert(c)
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: h.net.Now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, err
	}
	if !slices.Contains(leaf.DNSNames, e.Identity.Data) {
		return nil, fmt.Errorf("the certificate names %v, and not %s", leaf.DNSNames, e.Identity)
	}
	return leaf.PublicKey, nil
}
