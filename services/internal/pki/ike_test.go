package pki_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
	judge "github.com/testudo-ipsec/testudo/keymgr/cred/pki"
	"github.com/testudo-ipsec/testudo/keymgr/cred/static"
	"github.com/testudo-ipsec/testudo/services/internal/pki"
)

const hour = time.Hour

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// secrets is keymgrd's folder and what keymgrd makes of it.
func secrets(t *testing.T) (string, *judge.PKI) {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o700))
	files, err := static.Open(dir)
	must(t, err)
	t.Cleanup(func() { _ = files.Close() })
	return dir, judge.New(judge.Config{Stores: map[string]judge.Store{"file": files}})
}

// accepted asks whether the certificate called name proves id.
func accepted(t *testing.T, p *judge.PKI, name, id string) error {
	t.Helper()
	c, err := p.Credential(t.Context(), "file:"+name)
	must(t, err)
	who, err := ipsec.ParseIdentity(id)
	must(t, err)
	_, err = p.Verify(t.Context(), cred.ChainQuestion{Chain: c.Chain, Identity: who, Now: time.Now(),
		Method: ipsec.CertificateAuth{Trust: []string{"file:ike-ca.pem"}, Revocation: ipsec.RevocationHard}})
	return err
}

func TestIKECertificatesOfEveryKindProveTheirNames(t *testing.T) {
	for _, kind := range []string{"ecdsa256", "ecdsa384", "ecdsa521", "ed25519", "rsa2048"} {
		t.Run(kind, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ike-pki")
			ca, err := pki.MakeIKECA(dir, "Fleet CA", kind, 1000*hour, 100*hour)
			must(t, err)
			out, p := secrets(t)
			must(t, ca.Issue(out, "web-1", []string{"web-1", "web-1.fleet.example", "ops@fleet.example", "10.0.1.11", "2001:db8::1"}, kind, 100*hour))
			for _, id := range []string{"web-1", "web-1.fleet.example", "ops@fleet.example", "10.0.1.11", "2001:db8::1"} {
				if err := accepted(t, p, "web-1", id); err != nil {
					t.Errorf("%s: %v", id, err)
				}
			}
			if err := accepted(t, p, "web-1", "web-2"); !errors.Is(err, judge.WhyIdentity) {
				t.Errorf("as web-2: got %v", err)
			}
			if st, err := os.Stat(filepath.Join(out, "web-1-key.pem")); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("the key: %v, %v", st.Mode(), err)
			}
			if _, err := os.Stat(filepath.Join(out, "ike-ca-key.pem")); err == nil {
				t.Error("the authority's key was copied")
			}
			// What others make of it.
			if b, err := exec.Command("openssl", "verify", "-x509_strict", "-crl_check", "-CRLfile", filepath.Join(out, "ike-ca.crl"),
				"-CAfile", filepath.Join(out, "ike-ca.pem"), filepath.Join(out, "web-1.pem")).CombinedOutput(); err != nil {
				t.Errorf("openssl: %s", b)
			}
		})
	}
}

func TestIKERevocationIsKeptAndGrows(t *testing.T) {
	dir := t.TempDir()
	ca, err := pki.MakeIKECA(dir, "Fleet CA", "ecdsa256", 1000*hour, 100*hour)
	must(t, err)
	out, p := secrets(t)
	for _, n := range []string{"web-1", "web-2", "web-3"} {
		must(t, ca.Issue(out, n, []string{n}, "ecdsa256", 100*hour))
		must(t, accepted(t, p, n, n))
	}
	revoke := func(want int, files ...string) {
		t.Helper()
		n, err := ca.Revoke(100*hour, files...)
		must(t, err)
		must(t, ca.Publish(out))
		if n != want {
			t.Errorf("%d on the CRL, want %d", n, want)
		}
	}
	revoke(1, filepath.Join(out, "web-1.pem"))
	revoke(2, filepath.Join(out, "web-2.pem"), filepath.Join(out, "web-1.pem"))
	revoke(2) // made anew
	for n, why := range map[string]error{"web-1": judge.WhyRevoked, "web-2": judge.WhyRevoked, "web-3": nil} {
		if err := accepted(t, p, n, n); !errors.Is(err, why) || (why == nil) != (err == nil) {
			t.Errorf("%s: got %v, want %v", n, err, why)
		}
	}
	// A CRL that has ended tells nothing, and hard means refused.
	_, err = ca.Revoke(-time.Minute)
	must(t, err)
	must(t, ca.Publish(out))
	if err := accepted(t, p, "web-3", "web-3"); !errors.Is(err, judge.WhyStatusUnknown) {
		t.Errorf("with a CRL that has ended: got %v", err)
	}
	other, err := pki.MakeIKECA(t.TempDir(), "Fleet CA", "ecdsa256", hour, hour)
	must(t, err)
	if _, err := other.Revoke(hour, filepath.Join(out, "web-1.pem")); err == nil || !strings.Contains(err.Error(), "not issued by this authority") {
		t.Errorf("another authority's certificate: got %v", err)
	}
}

func TestIKEAuthorityIsNotReplacedAndBadNamesAreRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := pki.OpenIKECA(dir); err == nil || !strings.Contains(err.Error(), "testudo pki ike-ca") {
		t.Errorf("no authority: got %v", err)
	}
	ca, err := pki.MakeIKECA(dir, "Fleet CA", "ecdsa256", hour, hour)
	must(t, err)
	if _, err := pki.MakeIKECA(dir, "Fleet CA", "ecdsa256", hour, hour); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("a second authority: got %v", err)
	}
	for _, tt := range []struct{ file, name, kind string }{
		{"ike-ca", "x", "ecdsa256"}, {"../x", "x", "ecdsa256"}, {"", "x", "ecdsa256"}, {"x", "*.fleet.example", "ecdsa256"}, {"x", "a b", "ecdsa256"},
		{"x", "", "ecdsa256"}, {"x", "x", "dsa"},
	} {
		if err := ca.Issue(dir, tt.file, []string{tt.name}, tt.kind, hour); err == nil {
			t.Errorf("%+v was made", tt)
		}
	}
}
