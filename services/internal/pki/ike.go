package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// IKECA is the authority of a fleet's IKE identities in a directory: ike-ca.pem,
// ike-ca-key.pem and ike-ca.crl. It is another one than the services' (CA): who
// may speak IPsec has no say in who may change policy.
type IKECA struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
}

// Files of an IKECA, by the name that references use.
const (
	ikeCA    = "ike-ca"
	ikeTrust = ikeCA + ".pem"
	ikeCRL   = ikeCA + ".crl"
)

// MakeIKECA makes an authority in dir with a key of one of cred.KeyKinds. What is
// there already is never replaced: every certificate would be worthless.
func MakeIKECA(dir, name, kind string, life, crlLife time.Duration) (*IKECA, error) {
	for _, f := range []string{ikeTrust, ikeCA + "-key.pem"} {
		if _, err := os.Lstat(filepath.Join(dir, f)); err == nil {
			return nil, fmt.Errorf("%s is there already: a second authority would make every certificate of the first one worthless; use another --dir", filepath.Join(dir, f))
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	key, err := cred.GenerateKey(kind)
	if err != nil {
		return nil, err
	}
	tmpl, err := template(name, life)
	if err != nil {
		return nil, err
	}
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.MaxPathLenZero = true, true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if err := write(dir, ikeCA, der, key); err != nil {
		return nil, err
	}
	ca, err := OpenIKECA(dir)
	if err != nil {
		return nil, err
	}
	_, err = ca.Revoke(crlLife)
	return ca, err
}

// OpenIKECA reads the authority in dir.
func OpenIKECA(dir string) (*IKECA, error) {
	text, err := os.ReadFile(filepath.Join(dir, ikeTrust))
	if err != nil {
		return nil, fmt.Errorf("%w; make an authority with `testudo pki ike-ca --dir %s`", err, dir)
	}
	anchors, err := cred.ParseAnchors(ikeTrust, text)
	if err != nil {
		return nil, err
	}
	text, err = os.ReadFile(filepath.Join(dir, ikeCA+"-key.pem"))
	if err != nil {
		return nil, err
	}
	key, err := cred.ParseKey(ikeCA+"-key.pem", text)
	if err != nil {
		return nil, err
	}
	return &IKECA{dir: dir, cert: anchors.Certificates[0], key: key}, nil
}

// Issue makes a key and a certificate for names (domain names, e-mail addresses,
// addresses) and writes FILE.pem and FILE-key.pem into out, and the authority's
// certificate and CRL beside them when out is another folder.
func (ca *IKECA) Issue(out, file string, names []string, kind string, life time.Duration) error {
	if !name.MatchString(file) || file == ikeCA {
		return fmt.Errorf("name: got %q, want letters, digits, '.', '_' and '-', a letter or digit first, and not %q", file, ikeCA)
	}
	tmpl, err := template(file, life)
	if err != nil {
		return err
	}
	for _, n := range names {
		addr, err := netip.ParseAddr(n)
		switch {
		case err == nil:
			tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(addr.Unmap().AsSlice()))
		case strings.ContainsAny(n, "* /,") || n == "":
			return fmt.Errorf("name %q: want a domain name, an e-mail address or an address; wildcards prove nothing in IKE (RFC 4945 §5.1.3.6.1)", n)
		case strings.Contains(n, "@"):
			tmpl.EmailAddresses = append(tmpl.EmailAddresses, n)
		default:
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	// No extended key usage: RFC 4945 §5.1.3.12 recommends against it.
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	if tmpl.NotAfter.After(ca.cert.NotAfter) {
		tmpl.NotAfter = ca.cert.NotAfter
	}
	key, err := cred.GenerateKey(kind)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	if err := write(out, file, der, key); err != nil {
		return err
	}
	written := []string{file + ".pem", file + "-key.pem"}
	if !sameFolder(ca.dir, out) {
		if err := ca.publish(out); err != nil {
			return err
		}
		written = append(written, ikeTrust, ikeCRL)
	}
	return giveToOwner(out, written)
}

// Revoke puts certificates, in PEM files, on the CRL, and writes it anew with what
// was on it: it ends after life, so it has to be made again before. It returns how
// many certificates are on it.
func (ca *IKECA) Revoke(life time.Duration, files ...string) (int, error) {
	crl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-skew), NextUpdate: time.Now().Add(life)}
	path := filepath.Join(ca.dir, ikeCRL)
	text, err := os.ReadFile(path)
	switch {
	case err == nil:
		block, _ := pem.Decode(text)
		if block == nil {
			return 0, fmt.Errorf("%s is not PEM", path)
		}
		old, err := x509.ParseRevocationList(block.Bytes)
		if err == nil {
			err = old.CheckSignatureFrom(ca.cert)
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		crl.RevokedCertificateEntries = old.RevokedCertificateEntries
		if old.Number != nil {
			crl.Number.Add(old.Number, big.NewInt(1))
		}
	case !errors.Is(err, os.ErrNotExist):
		return 0, err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return 0, err
		}
		chain, err := cred.ParseChain(f, text)
		if err != nil {
			return 0, err
		}
		cert, err := x509.ParseCertificate(chain[0])
		if err != nil {
			return 0, fmt.Errorf("%s: %w", f, err)
		}
		if err := cert.CheckSignatureFrom(ca.cert); err != nil {
			return 0, fmt.Errorf("%s was not issued by this authority: %w", f, err)
		}
		if slices.ContainsFunc(crl.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(cert.SerialNumber) == 0 }) {
			continue
		}
		crl.RevokedCertificateEntries = append(crl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: cert.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, crl, ca.cert, ca.key)
	if err != nil {
		return 0, err
	}
	return len(crl.RevokedCertificateEntries), replace(path, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// Publish writes the authority's certificate and CRL into another folder.
func (ca *IKECA) Publish(out string) error {
	if sameFolder(ca.dir, out) {
		return nil
	}
	if err := ca.publish(out); err != nil {
		return err
	}
	return giveToOwner(out, []string{ikeTrust, ikeCRL})
}

func (ca *IKECA) publish(out string) error {
	for _, f := range []string{ikeTrust, ikeCRL} {
		text, err := os.ReadFile(filepath.Join(ca.dir, f))
		if err != nil {
			return err
		}
		if err := replace(filepath.Join(out, f), text); err != nil {
			return err
		}
	}
	return nil
}

// replace writes a file at once, so that nobody reads half of it.
func replace(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func sameFolder(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// giveToOwner gives files that root made to the owner of their folder, who is the
// one to read them: keymgrd runs as a user of its own.
func giveToOwner(dir string, files []string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	for _, f := range files {
		if err := os.Lchown(filepath.Join(dir, f), int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	return nil
}
