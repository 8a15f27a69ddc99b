// Package pki makes certificates for development and small installations: an
// authority and certificates for mutual TLS between the services (CA), and another
// authority and certificates for IKE between the hosts (IKECA), so that nobody runs
// without for want of one.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

// CA is a certificate authority in a directory: ca.pem and ca-key.pem.
type CA struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
	// skew lets hosts whose clocks are behind accept a new certificate.
	skew = 5 * time.Minute
)

// Open reads the authority in dir, or makes one when there is none.
func Open(dir string) (ca *CA, made bool, err error) {
	ca, err = read(dir)
	if err == nil {
		return ca, false, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, false, err
	}
	// One half without the other is an authority whose key was moved away, not
	// a folder without one.
	for _, f := range []string{"ca.pem", "ca-key.pem"} {
		if _, serr := os.Lstat(filepath.Join(dir, f)); serr == nil {
			return nil, false, fmt.Errorf("%s is there, but not the other half of the authority: %w; put it back, or use another folder", f, err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, false, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, false, err
	}
	tmpl, err := template("Testudo development CA", caLife)
	if err != nil {
		return nil, false, err
	}
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.MaxPathLenZero = true, true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, false, err
	}
	if err := write(dir, "ca", der, key); err != nil {
		return nil, false, err
	}
	ca, err = read(dir)
	return ca, true, err
}

func read(dir string) (*CA, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, "ca-key.pem"))
	if err != nil {
		return nil, err
	}
	cb, _ := pem.Decode(certPEM)
	kb, _ := pem.Decode(keyPEM)
	if cb == nil || kb == nil {
		return nil, fmt.Errorf("%s: ca.pem or ca-key.pem is not PEM", dir)
	}
	cert, err := x509.ParseCertificate(cb.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s/ca.pem: %w", dir, err)
	}
	k, err := x509.ParsePKCS8PrivateKey(kb.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s/ca-key.pem: %w", dir, err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s/ca-key.pem: got %T, want an ECDSA key", dir, k)
	}
	return &CA{dir: dir, cert: cert, key: key}, nil
}

// name is what a caller may be called: a name becomes part of a URI, where '?',
// '#' and '%' would make another name of it, and of a file name.
var name = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$`)

// Issue writes <file>.pem and <file>-key.pem for a caller.
func (ca *CA) Issue(file string, c rpc.Caller) error {
	if !slices.Contains(rpc.Roles, c.Role) {
		return fmt.Errorf("role: got %q, want one of %v", c.Role, rpc.Roles)
	}
	if !name.MatchString(c.Name) {
		return fmt.Errorf("name: got %q, want letters, digits, '.', '_' and '-', a letter or digit first", c.Name)
	}
	uri, err := url.Parse(c.URI())
	if err != nil {
		return fmt.Errorf("name %q does not fit into a URI: %w", c.Name, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl, err := template(c.String(), leafLife)
	if err != nil {
		return err
	}
	tmpl.URIs = []*url.URL{uri}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		return err
	}
	return write(ca.dir, file, der, key)
}

func template(cn string, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: cn, Organization: []string{"Testudo"}},
		NotBefore:    now.Add(-skew),
		NotAfter:     now.Add(life),
	}, nil
}

func write(dir, file string, der []byte, key crypto.Signer) error {
	kd, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd})
	keyFile := filepath.Join(dir, file+"-key.pem")
	// A file that is there keeps its mode, which may let others read it.
	if err := os.Remove(keyFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(keyFile, keyPEM, 0o600); err != nil {
		return err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return os.WriteFile(filepath.Join(dir, file+".pem"), certPEM, 0o644)
}
