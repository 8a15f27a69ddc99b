package vault_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/cred/vault"
)

func TestTLSWithACAOfItsOwn(t *testing.T) {
	srv := start(t, "-tls")
	srv.put(t, "web-db", keyA)
	keys(t, cached(newVault(t, srv.config(t)), nil), keyA)

	t.Setenv("VAULT_SKIP_VERIFY", "true") // must not reach us
	t.Setenv("VAULT_CACERT", "")
	without := srv.config(t)
	without.CAFile = ""
	fails(t, cached(newVault(t, without), nil), ref, cred.Unavailable, "certificate")

	name := srv.config(t)
	name.ServerName = "other.example"
	fails(t, cached(newVault(t, name), nil), ref, cred.Unavailable, "other.example")
}

func TestTheEnvironmentIsNotRead(t *testing.T) {
	srv := start(t)
	srv.put(t, "web-db", keyA)
	t.Setenv("VAULT_ADDR", "http://127.0.0.1:1")
	t.Setenv("VAULT_TOKEN", "hvs.not-ours")
	t.Setenv("VAULT_NAMESPACE", "elsewhere")
	t.Setenv("VAULT_HEADERS", `{"X-Other":"1"}`)
	keys(t, cached(newVault(t, srv.config(t)), nil), keyA)
}

func TestLoginByCertificate(t *testing.T) {
	srv := start(t, "-tls")
	srv.put(t, "web-db", keyA)
	must(t, srv.root.Sys().EnableAuthWithOptions("cert", &api.EnableAuthOptions{Type: "cert"}))
	certFile, keyFile, certPEM := clientCert(t)
	srv.write(t, "auth/cert/certs/keymgrd", map[string]any{"certificate": certPEM, "token_policies": "keymgrd"})

	conf := srv.config(t)
	conf.Auth = vault.Cert{Role: "keymgrd", CertFile: certFile, KeyFile: keyFile}
	keys(t, cached(newVault(t, conf), nil), keyA)

	otherCert, otherKey, _ := clientCert(t)
	conf.Auth = vault.Cert{Role: "keymgrd", CertFile: otherCert, KeyFile: otherKey}
	fails(t, cached(newVault(t, conf), nil), ref, cred.Denied, "logging in")
}

func clientCert(t *testing.T) (certFile, keyFile, certPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "keymgrd"},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		IsCA:         true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	must(t, os.WriteFile(certFile, []byte(certPEM), 0o600))
	must(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	return certFile, keyFile, certPEM
}

func TestConfigMistakesAreNamed(t *testing.T) {
	auth := vault.AppRole{RoleID: "x"}
	for name, tt := range map[string]struct {
		conf vault.Config
		says string
	}{
		"no address":        {vault.Config{Auth: auth}, "want https://host:port"},
		"a host alone":      {vault.Config{Address: "vault.example:8200", Auth: auth}, "https"},
		"clear text":        {vault.Config{Address: "http://vault.example:8200", Auth: auth}, "in clear"},
		"a password":        {vault.Config{Address: "https://me:hunter2hunter2@vault.example", Auth: auth}, "remove it"},
		"a broken address":  {vault.Config{Address: "https://me:hunter2hunter2@vault.example:port", Auth: auth}, "not a URL"},
		"another scheme":    {vault.Config{Address: "unix:///run/vault.sock", Auth: auth}, "https"},
		"no auth":           {vault.Config{Address: "https://vault.example"}, "auth is missing"},
		"no role":           {vault.Config{Address: "https://vault.example", Auth: vault.AppRole{}}, "roleID"},
		"no token file":     {vault.Config{Address: "https://vault.example", Auth: vault.TokenFile{}}, "no path"},
		"half a pair":       {vault.Config{Address: "https://vault.example", Auth: vault.Cert{CertFile: "c"}}, "key file"},
		"a mount that goes": {vault.Config{Address: "https://vault.example", Auth: vault.AppRole{RoleID: "x", Mount: "../sys"}}, "bad mount"},
		"no CA file":        {vault.Config{Address: "https://vault.example", Auth: auth, CAFile: "/nonexistent"}, "no such file"},
		"a CA without CA":   {vault.Config{Address: "https://vault.example", Auth: auth, CAFile: "/dev/null"}, "no certificate"},
	} {
		_, err := vault.New(tt.conf)
		if err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v, want an error that says %q", name, err, tt.says)
		}
	}
	for _, addr := range []string{"https://vault.example:8200", "http://127.0.0.1:8200", "http://[::1]:8200", "http://localhost:8200"} {
		if _, err := vault.New(vault.Config{Address: addr, Auth: auth}); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func writeFile(name, text string) error { return os.WriteFile(name, []byte(text), 0o600) }

func openToAll(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "token")
	must(t, writeFile(name, "hvs.token"))
	must(t, os.Chmod(name, 0o644))
	return name
}
