package lab

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
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"testing"
	"time"
)

// CA is a certificate authority of a test.
type CA struct {
	t      testing.TB
	cert   *x509.Certificate
	key    crypto.Signer
	parent *CA
	serial int64
}

// Cert is a certificate and its key.
type Cert struct {
	Chain string // PEM, leaf first, then the intermediates
	Key   string // PEM, PKCS #8
	DER   []byte
}

// NewCA makes a root; intermediates come from Intermediate.
func NewCA(t testing.TB, name string) *CA { return makeCA(t, name, nil) }

// ReadCA is a CA that somebody else made, to be trusted: it issues nothing here.
func ReadCA(t testing.TB, text string) *CA {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatal("lab: the CA is not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal("lab:", err)
	}
	return &CA{t: t, cert: cert}
}

// Intermediate makes a CA below.
func (ca *CA) Intermediate(name string) *CA { return makeCA(ca.t, name, ca) }

func makeCA(t testing.TB, name string, parent *CA) *CA {
	ca := &CA{t: t, key: newKey(t, "p256"), parent: parent, serial: 100}
	by := parent
	if by == nil {
		by = ca
	}
	ca.cert = by.sign(&x509.Certificate{
		Subject: pkix.Name{Organization: []string{"Fleet"}, CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, ca.key.Public())
	return ca
}

// PEM is the CA's certificate.
func (ca *CA) PEM() string { return pemOf("CERTIFICATE", ca.cert.Raw) }

// Issue makes a certificate for a key of a kind: rsa, rsa4096, p256, p384, p521 or ed25519.
// names are domain names or addresses, for the subjectAltName; the first is the CN.
func (ca *CA) Issue(kind string, names ...string) Cert {
	ca.t.Helper()
	k := newKey(ca.t, kind)
	t := &x509.Certificate{Subject: pkix.Name{Organization: []string{"Fleet"}, CommonName: names[0]}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, n := range names {
		if a, err := netip.ParseAddr(n); err == nil {
			t.IPAddresses = append(t.IPAddresses, net.IP(a.AsSlice()))
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	c := ca.sign(t, k.Public())
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		ca.t.Fatal(err)
	}
	out := Cert{Chain: pemOf("CERTIFICATE", c.Raw), Key: pemOf("PRIVATE KEY", der), DER: c.Raw}
	for up := ca; up.parent != nil; up = up.parent {
		out.Chain += up.PEM()
	}
	return out
}

func (ca *CA) sign(t *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
	ca.t.Helper()
	ca.serial++
	t.SerialNumber = big.NewInt(ca.serial)
	t.NotBefore, t.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		ca.t.Fatal(err)
	}
	id := sha1.Sum(spki)
	t.SubjectKeyId = id[:]
	parent := ca.cert
	if parent == nil {
		parent = t
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return c
}

func newKey(t testing.TB, kind string) crypto.Signer {
	var k crypto.Signer
	var err error
	switch kind {
	case "rsa":
		k, err = rsa.GenerateKey(rand.Reader, 2048)
	case "rsa4096":
		k, err = rsa.GenerateKey(rand.Reader, 4096)
	case "p256":
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p384":
		k, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "p521":
		k, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "ed25519":
		_, k, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("no kind of key %q", kind)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// T is the test that the CA is of.
func (ca *CA) T() testing.TB { return ca.t }
