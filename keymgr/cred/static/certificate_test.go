package static_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/cred/credtest"
)

// office is a folder of certificates, and an authority that issues them.
type office struct {
	folder
	ca  *x509.Certificate
	key crypto.Signer
}

func openOffice(t *testing.T) *office {
	t.Helper()
	o := &office{folder: open(t)}
	var err error
	o.key, err = cred.GenerateKey("ecdsa256")
	must(t, err)
	tmpl := template("Fleet CA")
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, o.key.Public(), o.key)
	must(t, err)
	o.ca, err = x509.ParseCertificate(der)
	must(t, err)
	o.put(t, "fleet-ca.pem", 0o644, block("CERTIFICATE", der))
	return o
}

func template(cn string) *x509.Certificate {
	n, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	return &x509.Certificate{SerialNumber: n, Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func (o *office) put(t *testing.T, name string, mode os.FileMode, text string) {
	t.Helper()
	must(t, os.WriteFile(o.path(name)+".new", []byte(text), mode))
	must(t, os.Rename(o.path(name)+".new", o.path(name)))
}

func (o *office) sign(t *testing.T, name string, pub crypto.PublicKey) string {
	t.Helper()
	tmpl := template(name)
	tmpl.DNSNames = []string{name}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, o.ca, pub, o.key)
	must(t, err)
	return block("CERTIFICATE", der)
}

func (o *office) Trust() string           { return "file:fleet-ca.pem" }
func (o *office) Nowhere() string         { return "file:other-ca.pem" }
func (o *office) Name(name string) string { return "file:" + name }

func (o *office) Issue(t *testing.T, name string) {
	t.Helper()
	key, err := cred.GenerateKey("ecdsa256")
	must(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	o.put(t, name+".pem", 0o644, o.sign(t, name, key.Public()))
	o.put(t, name+"-key.pem", 0o600, block("PRIVATE KEY", der))
}

func (o *office) Deny(t *testing.T, name string) {
	t.Helper()
	must(t, os.Chmod(o.path(name+"-key.pem"), 0o640))
}

func TestCertificateConformance(t *testing.T) {
	credtest.RunCertificates(t, func(t *testing.T) credtest.Certificates { return openOffice(t) })
}

func TestFormsOfPrivateKeys(t *testing.T) {
	o := openOffice(t)
	for _, kind := range []string{"ecdsa256", "ecdsa384", "ecdsa521", "ed25519", "rsa2048"} {
		key, err := cred.GenerateKey(kind)
		must(t, err)
		der, err := x509.MarshalPKCS8PrivateKey(key)
		must(t, err)
		o.put(t, kind+".pem", 0o644, o.sign(t, "x", key.Public()))
		o.put(t, kind+"-key.pem", 0o600, block("PRIVATE KEY", der))
		forms := []string{""}
		switch {
		case strings.HasPrefix(kind, "ecdsa"):
			forms = append(forms, "ec")
		case strings.HasPrefix(kind, "rsa"):
			forms = append(forms, "rsa")
		}
		for _, form := range forms {
			if form != "" {
				out, err := exec.Command("openssl", form, "-in", o.path(kind+"-key.pem"), "-traditional").Output()
				if err != nil { // openssl ec writes nothing else
					out, err = exec.Command("openssl", form, "-in", o.path(kind+"-key.pem")).Output()
				}
				must(t, err)
				if !strings.Contains(string(out), strings.ToUpper(form)+" PRIVATE KEY") {
					t.Fatalf("openssl wrote %.30s", out)
				}
				o.put(t, kind+"-key.pem", 0o400, string(out))
			}
			if c, err := o.Credential(t.Context(), "file:"+kind); err != nil || !c.Signer.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
				t.Errorf("%s, form %q: %v", kind, form, err)
			}
		}
	}
}

func TestWhatIsNoCredential(t *testing.T) {
	o := openOffice(t)
	o.Issue(t, "good")
	o.Issue(t, "other")
	read := func(name string) string {
		b, err := os.ReadFile(o.path(name))
		must(t, err)
		return string(b)
	}
	cert, key, ca := read("good.pem"), read("good-key.pem"), read("fleet-ca.pem")
	sealed, err := exec.Command("openssl", "pkcs8", "-topk8", "-in", o.path("good-key.pem"), "-passout", "pass:x").Output()
	must(t, err)
	old, err := exec.Command("openssl", "ec", "-in", o.path("good-key.pem"), "-aes128", "-passout", "pass:x").Output()
	must(t, err)
	for _, tt := range []struct {
		name, cert, key string
		kind            cred.Kind
		says            string
	}{
		{"another's key", cert, read("other-key.pem"), cred.Invalid, "not that of the first certificate"},
		{"no certificate", "", key, cred.Invalid, "no certificate"},
		{"no key", cert, "", cred.Invalid, "no private key"},
		{"a certificate for a key", cert, cert, cred.Invalid, "no private key"},
		{"the key in the certificates", cert + key, key, cred.Invalid, "PRIVATE KEY"},
		{"an encrypted key", cert, string(sealed), cred.Invalid, "encrypted"},
		{"an encrypted key of the old form", cert, string(old), cred.Invalid, "encrypted"},
		{"junk in the key", cert, block("PRIVATE KEY", []byte("junk")), cred.Invalid, "cannot be read"},
		{"the wrong order", ca + cert, key, cred.Invalid, "leaf first"},
		{"too many certificates", cert + strings.Repeat(ca, 8), key, cred.Invalid, "1 to 8"},
	} {
		o.put(t, "web-1.pem", 0o644, tt.cert)
		o.put(t, "web-1-key.pem", 0o600, tt.key)
		_, err := o.Credential(t.Context(), "file:web-1")
		if cred.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %v, want %q saying %q", tt.name, err, tt.kind, tt.says)
		}
	}
	o.put(t, "web-1.pem", 0o644, cert+ca)
	o.put(t, "web-1-key.pem", 0o600, key)
	if c, err := o.Credential(t.Context(), "file:web-1"); err != nil || len(c.Chain) != 1 {
		t.Errorf("with the root in the file: got %v, %v, want it left out", c, err)
	}
	must(t, os.Chmod(o.path("web-1.pem"), 0o666))
	if _, err := o.Credential(t.Context(), "file:web-1"); cred.KindOf(err) != cred.Denied || !strings.Contains(err.Error(), "chmod go-w") {
		t.Errorf("a certificate that all may change: got %v", err)
	}
	if _, err := o.Credential(t.Context(), "file:web-1.pem"); cred.KindOf(err) != cred.Invalid || !strings.Contains(err.Error(), "file:web-1 for web-1.pem and web-1-key.pem") {
		t.Errorf("the name of the file: got %v", err)
	}
	must(t, os.Remove(o.path("web-1-key.pem")))
	if _, err := o.Credential(t.Context(), "file:web-1"); cred.KindOf(err) != cred.NotFound && cred.KindOf(err) != cred.Denied {
		t.Errorf("without the key: got %v", err)
	}
}

func TestCRLsBesideTheAnchors(t *testing.T) {
	o := openOffice(t)
	crls := func() int {
		t.Helper()
		a, err := o.Anchors(t.Context(), o.Trust())
		must(t, err)
		return len(a.CRLs)
	}
	if n := crls(); n != 0 {
		t.Fatalf("%d CRLs without a file", n)
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, o.ca, o.key)
	must(t, err)
	o.put(t, "fleet-ca.crl", 0o644, string(der))
	if n := crls(); n != 1 {
		t.Errorf("%d CRLs, want one from DER", n)
	}
	o.put(t, "fleet-ca.crl", 0o644, block("X509 CRL", der)+block("X509 CRL", der))
	if n := crls(); n != 2 {
		t.Errorf("%d CRLs, want two from PEM", n)
	}
	o.put(t, "fleet-ca.crl", 0o644, "junk")
	if _, err := o.Anchors(t.Context(), o.Trust()); cred.KindOf(err) != cred.Invalid || !strings.Contains(err.Error(), "fleet-ca.crl") {
		t.Errorf("junk: got %v", err)
	}
	must(t, os.Remove(o.path("fleet-ca.crl")))
	if n := crls(); n != 0 {
		t.Errorf("%d CRLs after the file went", n)
	}
}

// What is kept parsed is given out only while the files are the same.
func TestFilesThatSettledAreNotParsedAgain(t *testing.T) {
	o := openOffice(t)
	o.Issue(t, "web-1")
	o.Settle()
	kept := func() bool {
		c1, err := o.Credential(t.Context(), "file:web-1")
		must(t, err)
		c2, err := o.Credential(t.Context(), "file:web-1")
		must(t, err)
		return c1 == c2
	}
	if !kept() {
		t.Fatal("the credential is parsed each time")
	}
	before, err := o.Credential(t.Context(), "file:web-1")
	must(t, err)
	o.Issue(t, "web-1")
	after, err := o.Credential(t.Context(), "file:web-1")
	must(t, err)
	if string(before.Chain[0]) == string(after.Chain[0]) {
		t.Error("the old certificate after its file changed")
	}
	if !kept() {
		t.Fatal("the new credential is parsed each time")
	}
	must(t, os.Chmod(o.path("web-1-key.pem"), 0o644))
	if _, err := o.Credential(t.Context(), "file:web-1"); cred.KindOf(err) != cred.Denied {
		t.Errorf("after the key was opened to all: got %v", err)
	}
}
