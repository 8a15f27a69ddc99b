package vault_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/cred/credtest"
	"github.com/testudo-ipsec/testudo/keymgr/cred/vault"
)

// authority mounts a PKI with a root of its own and a role "ike".
func (s *server) authority(t testing.TB, mount string, role map[string]any) {
	t.Helper()
	must(t, s.root.Sys().Mount(mount, &api.MountInput{Type: "pki", Config: api.MountConfigInput{MaxLeaseTTL: "8760h"}}))
	s.write(t, fmt.Sprintf("%s/root/generate/internal", mount), map[string]any{"common_name": "Fleet CA " + mount, "key_type": "ec", "key_bits": 256, "ttl": "8000h"})
	params := map[string]any{
		"allowed_domains": "fleet.example", "allow_subdomains": true, "key_type": "any", "ttl": "72h",
		"server_flag": false, "client_flag": false, "ext_key_usage_oids": "1.3.6.1.5.5.7.3.17", "require_cn": false,
	}
	for k, v := range role {
		params[k] = v
	}
	s.write(t, mount+"/roles/ike", params)
}

// signer lets the tokens of a policy sign with a role.
func (s *server) signer(t testing.TB, name, mount string) vault.AppRole {
	t.Helper()
	must(t, s.root.Sys().PutPolicy(name, fmt.Sprintf(`path "%s/sign/ike" { capabilities = ["update"] }`, mount)))
	return s.appRole(t, name, map[string]any{"token_policies": name})
}

func newPKI(t testing.TB, conf vault.Config, opt vault.PKIOptions) *vault.PKI {
	t.Helper()
	p, err := vault.NewPKI(newVault(t, conf), opt)
	must(t, err)
	return p
}

// mounted is a mount of its own in a shared server: a store for the conformance
// suite. A new key manager stands for a credential that is issued anew.
type mounted struct {
	*vault.PKI
	srv    *server
	mount  string
	conf   vault.Config
	issued map[string]bool
}

func (m *mounted) Trust() string           { return "vault:" + m.mount }
func (m *mounted) Nowhere() string         { return "vault:nowhere/" + m.mount }
func (m *mounted) Name(name string) string { return "vault:" + m.mount + "/ike#" + name }

func (m *mounted) Issue(t *testing.T, name string) {
	t.Helper()
	if m.issued[name] {
		m.PKI = newPKI(t, m.conf, vault.PKIOptions{})
	}
	m.issued[name] = true
}

func (m *mounted) Deny(t *testing.T, string string) {
	t.Helper()
	must(t, m.srv.root.Sys().PutPolicy(m.mount[len("pki/"):], `path "nothing" { capabilities = ["read"] }`))
}

func TestCertificateConformance(t *testing.T) {
	t.Parallel()
	srv := start(t)
	var n atomic.Int32
	credtest.RunCertificates(t, func(t *testing.T) credtest.Certificates {
		name := fmt.Sprintf("fleet%d", n.Add(1))
		m := &mounted{srv: srv, mount: "pki/" + name, issued: map[string]bool{}}
		srv.authority(t, m.mount, nil)
		m.conf = srv.config(t)
		m.conf.Auth = srv.signer(t, name, m.mount)
		m.PKI = newPKI(t, m.conf, vault.PKIOptions{})
		return m
	})
}

func leafOf(t testing.TB, c *cred.Credential, err error) *x509.Certificate {
	t.Helper()
	must(t, err)
	leaf, err := x509.ParseCertificate(c.Chain[0])
	must(t, err)
	return leaf
}

func TestNamesAndKindsOfKeys(t *testing.T) {
	t.Parallel()
	srv := start(t)
	srv.authority(t, "pki", nil)
	conf := srv.config(t)
	conf.Auth = srv.signer(t, "ike", "pki")
	for kind, is := range map[string]func(any) bool{
		"ecdsa384": func(k any) bool { e, ok := k.(*ecdsa.PublicKey); return ok && e.Curve.Params().BitSize == 384 },
		"ed25519":  func(k any) bool { _, ok := k.(ed25519.PublicKey); return ok },
		"rsa2048":  func(k any) bool { r, ok := k.(*rsa.PublicKey); return ok && r.N.BitLen() == 2048 },
	} {
		p := newPKI(t, conf, vault.PKIOptions{Key: kind})
		c, err := p.Credential(t.Context(), "vault:pki/ike#web-1.fleet.example,10.0.1.11,2001:db8::1")
		leaf := leafOf(t, c, err)
		if !is(leaf.PublicKey) || len(leaf.IPAddresses) != 2 || leaf.DNSNames[0] != "web-1.fleet.example" || len(leaf.UnknownExtKeyUsage) != 1 {
			t.Errorf("%s: got %T for %v %v, usages %v", kind, leaf.PublicKey, leaf.DNSNames, leaf.IPAddresses, leaf.UnknownExtKeyUsage)
		}
	}
	if _, err := vault.NewPKI(newVault(t, conf), vault.PKIOptions{Key: "dsa"}); err == nil || !strings.Contains(err.Error(), "ecdsa256") {
		t.Errorf("a kind that is none: %v", err)
	}
	p := newPKI(t, conf, vault.PKIOptions{})
	for ref, says := range map[string]string{
		"vault:pki/ike":                         "#NAME",
		"vault:pki/ike#":                        "name of a field",
		"vault:pki/ike#a.fleet.example,":        "empty",
		"vault:pki/ike#web-1.elsewhere.example": "not allowed",
		"vault:pki/other#web-1.fleet.example":   "update on pki/sign/other",
		"vault:pki#web-1.fleet.example":         "#NAME",
	} {
		if _, err := p.Credential(t.Context(), ref); err == nil || cred.Retryable(err) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want it to say %q", ref, err, says)
		}
	}
	// A role that drops what was asked for.
	srv.write(t, "pki/roles/ike", map[string]any{"allowed_domains": "fleet.example", "allow_subdomains": true, "key_type": "any", "use_csr_sans": true, "allow_ip_sans": false})
	if _, err := p.Credential(t.Context(), "vault:pki/ike#web-2.fleet.example,10.0.1.12"); err == nil {
		t.Error("a certificate without the address that was asked for")
	}
}

// An intermediate mount: the peer gets the intermediate, the policy trusts the
// intermediate's key and not all that its root may certify.
func TestAnIntermediateMount(t *testing.T) {
	t.Parallel()
	srv := start(t)
	srv.authority(t, "root", nil)
	must(t, srv.root.Sys().Mount("pki", &api.MountInput{Type: "pki", Config: api.MountConfigInput{MaxLeaseTTL: "4000h"}}))
	csr := srv.write(t, "pki/intermediate/generate/internal", map[string]any{"common_name": "Site CA", "key_type": "ec", "key_bits": 256}).Data["csr"]
	signed := srv.write(t, "root/root/sign-intermediate", map[string]any{"csr": csr, "common_name": "Site CA", "ttl": "4000h"})
	srv.write(t, "pki/intermediate/set-signed", map[string]any{"certificate": signed.Data["certificate"].(string) + "\n" + signed.Data["issuing_ca"].(string)})
	srv.write(t, "pki/roles/ike", map[string]any{"allowed_domains": "fleet.example", "allow_subdomains": true, "key_type": "ec", "ttl": "1h"})
	conf := srv.config(t)
	conf.Auth = srv.signer(t, "ike", "pki")
	p := newPKI(t, conf, vault.PKIOptions{})
	c, err := p.Credential(t.Context(), "vault:pki/ike#web-1.fleet.example")
	leafOf(t, c, err)
	if len(c.Chain) != 2 {
		t.Errorf("a chain of %d, want the leaf and the intermediate, without the root", len(c.Chain))
	}
	a, err := p.Anchors(t.Context(), "vault:pki")
	must(t, err)
	if len(a.Certificates) != 1 || a.Certificates[0].Subject.CommonName != "Site CA" || len(a.CRLs) != 1 {
		t.Errorf("anchors %v and %d CRLs, want the Site CA alone, and its CRL", a.Certificates, len(a.CRLs))
	}
}

func TestRevokedInVault(t *testing.T) {
	t.Parallel()
	srv, now := start(t), newClock()
	srv.authority(t, "pki", nil)
	conf := srv.config(t)
	conf.Auth, conf.Now = srv.signer(t, "ike", "pki"), now.Now
	p := newPKI(t, conf, vault.PKIOptions{})
	c, err := p.Credential(t.Context(), "vault:pki/ike#web-1.fleet.example")
	leaf := leafOf(t, c, err)
	revoked := func() bool {
		a, err := p.Anchors(t.Context(), "vault:pki")
		must(t, err)
		for _, e := range a.CRLs[0].RevokedCertificateEntries {
			if e.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
				return true
			}
		}
		return false
	}
	if revoked() {
		t.Fatal("revoked from the start")
	}
	var octets []string
	for _, b := range leaf.SerialNumber.Bytes() {
		octets = append(octets, fmt.Sprintf("%02x", b))
	}
	srv.write(t, "pki/revoke", map[string]any{"serial_number": strings.Join(octets, ":")})
	now.advance(7 * time.Minute) // past the refresh
	for until := time.Now().Add(30 * time.Second); !revoked(); {
		if time.Now().After(until) {
			t.Fatal("not on the CRL that was read again")
		}
	}
}

// A credential is replaced before its end; while Vault is away the last one is
// used, to its end and no longer.
func TestRenewalAndAVaultThatIsAway(t *testing.T) {
	t.Parallel()
	srv, now, j := start(t), newClock(), newJournal()
	srv.authority(t, "pki", nil)
	conf := srv.config(t)
	conf.Auth, conf.Now, conf.Log = srv.signer(t, "ike", "pki"), now.Now, j.logger()
	p := newPKI(t, conf, vault.PKIOptions{MaxStale: time.Hour})
	const ref = "vault:pki/ike#web-1.fleet.example"
	get := func() *x509.Certificate { c, err := p.Credential(t.Context(), ref); return leafOf(t, c, err) }
	first := get()
	j.await(t, "a certificate from Vault")
	_, err := p.Anchors(t.Context(), "vault:pki")
	must(t, err)

	now.advance(40 * time.Hour) // of 72: too early
	if !get().Equal(first) {
		t.Fatal("replaced before its time")
	}
	now.advance(15 * time.Hour) // past two thirds and the jitter
	if !get().Equal(first) {
		t.Fatal("who asked waited for the replacement")
	}
	j.await(t, "a certificate from Vault")
	second := get()
	if second.Equal(first) {
		t.Fatal("not replaced at two thirds of its life")
	}

	srv.control(t, "seal")
	now.advance(14 * time.Hour) // its life began by the real clock: 3 of 72 hours are left
	if !get().Equal(second) {
		t.Fatal("the last certificate is not used while Vault is away")
	}
	j.await(t, "could not be replaced")
	if s, _ := p.Stats(); s.Overdue != 1 || s.Held != 1 || s.Failures == 0 || s.Issued != 2 {
		t.Errorf("stats %+v", s)
	}
	now.advance(4 * time.Hour)
	if _, err := p.Credential(t.Context(), ref); cred.KindOf(err) != cred.Unavailable {
		t.Errorf("after its end: got %v", err)
	}
	if _, err := p.Anchors(t.Context(), "vault:pki"); cred.KindOf(err) != cred.Unavailable {
		t.Errorf("anchors after maxStale: got %v", err)
	}
	srv.control(t, "unseal")
	now.advance(2 * time.Minute) // past the breaker's pause
	// By this clock Vault's certificates have ended, which is said.
	if _, err := p.Credential(t.Context(), ref); err == nil || !strings.Contains(err.Error(), "clocks") {
		t.Errorf("got %v", err)
	}
	credtest.Leak(t, j.String())
}

func TestRunReplacesWithoutBeingAsked(t *testing.T) {
	t.Parallel()
	srv, now, j := start(t), newClock(), newJournal()
	srv.authority(t, "pki", nil)
	conf := srv.config(t)
	conf.Auth, conf.Now, conf.Log = srv.signer(t, "ike", "pki"), now.Now, j.logger()
	p := newPKI(t, conf, vault.PKIOptions{})
	_, err := p.Credential(t.Context(), "vault:pki/ike#web-1.fleet.example")
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(ctx) })
	j.await(t, "a certificate from Vault")
	now.advance(55 * time.Hour)
	j.await(t, "a certificate from Vault")
	cancel()
	wg.Wait()
	if s, _ := p.Stats(); s.Issued != 2 {
		t.Errorf("stats %+v", s)
	}
}
