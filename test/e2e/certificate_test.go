package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// byCertificate secures all traffic of a pair whose ends prove themselves so.
func byCertificate(certificate string) string {
	return policy(hostA, hostB, both, document("Authentication", "certs", "{methods: [{certificate: {"+certificate+"}}]}"),
		action("require", "action: secure"), rules("p", "", "{name: all, filters: both, action: require, authentication: certs}"),
		assign("p", "a"), assign("p", "b"))
}

// renewed closes the IKE SA and waits for the next one, with traffic all the while.
func (b *pairBench) renewed() {
	b.t.Helper()
	old := b.onlyIKE("a", "b").GetLocalSpi()
	b.Terminate("a", "b")
	b.waitNoSA("a", old)
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{Count: 2})
}

func (b *pairBench) waitNoSA(host string, spi uint64) {
	b.t.Helper()
	lab.WaitFor(b.t, limit, "the IKE SA to be gone", func() error {
		for _, s := range b.SAs(host) {
			if s.GetLocalSpi() == spi {
				return fmt.Errorf("SA %v", s)
			}
		}
		return nil
	})
}

// refusedWith wants no traffic, and a failure that says why.
func (b *pairBench) refusedWith(says string) {
	b.t.Helper()
	if err := b.A.Node.TryPing(b.B.V4.Addr(), lab.PingOptions{}); err == nil {
		b.t.Error("a ping passes")
	}
	lab.WaitFor(b.t, limit, "a failure that says why", func() error {
		fs := b.Failures("")
		for _, f := range fs {
			if strings.Contains(f.GetDetail(), says) && f.GetAdvice() != "" {
				return nil
			}
		}
		return fmt.Errorf("none says %q: %v", says, fs)
	})
}

// Two commands make a PKI; a policy of one line uses it for every node.
func TestCertificatesFromFiles(t *testing.T) {
	t.Parallel()
	b := newPair(t, "", fleet.Options{})
	b.CLI("pki", "ike-ca")
	b.CLI("pki", "ike", "a", "b", "--out", "secrets")
	b.Apply(byCertificate(`trust: "file:ike-ca.pem", credential: "file:{node}", revocation: hard`))
	b.WaitInSync()
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{Count: 3})
	if s := b.onlyIKE("a", "b"); s.GetLocalAuth() != "ecdsa-sha256" || s.GetRemoteAuth() != "ecdsa-sha256" {
		t.Errorf("authenticated with %s and %s", s.GetLocalAuth(), s.GetRemoteAuth())
	}

	// Another certificate with another kind of key: the next IKE SA has it.
	b.CLI("pki", "ike", "a", "--key", "ed25519", "--out", "secrets")
	b.renewed()
	if s := b.onlyIKE("a", "b"); s.GetLocalAuth() != "ed25519" {
		t.Errorf("authenticated with %s after the renewal; want ed25519", s.GetLocalAuth())
	}

	// Revoked: what is there goes on, nothing new comes up.
	b.CLI("pki", "ike-crl", "--revoke", "secrets/b.pem", "--out", "secrets")
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{Count: 2})
	old := b.onlyIKE("a", "b").GetLocalSpi()
	b.Terminate("a", "b")
	b.waitNoSA("a", old)
	b.refusedWith("a certificate is revoked")
}

// keymgrd makes the keys, Vault certifies them, and says what is trusted.
func TestCertificatesFromVault(t *testing.T) {
	t.Parallel()
	b := newPair(t, "", fleet.Options{})
	v := newVaultServer(t, b.Control)
	v.call("POST", "sys/mounts/pki/fleet", map[string]any{"type": "pki"})
	v.call("POST", "pki/fleet/"+"root/generate/internal", map[string]any{"common_name": "Fleet CA", "key_type": "ec", "key_bits": 256, "ttl": "700h"})
	v.call("POST", "pki/fleet/roles/ike", map[string]any{"allow_any_name": true, "enforce_hostnames": false, "key_type": "ec", "ttl": "1h"})
	v.call("PUT", "sys/policies/acl/keymgrd", map[string]any{"policy": `path "pki/fleet/sign/ike" { capabilities = ["update"] }`})
	b.Keymgrd.Kill9()
	b.Keymgrd.Start(v.flags()...)
	b.Apply(byCertificate(`trust: "vault:pki/fleet", credential: "vault:pki/fleet/ike#{identity}", revocation: hard`))
	b.WaitInSync()
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{Count: 3})
	b.renewed()

	// Sealed: what Vault certified is used to its end.
	v.control("seal")
	b.renewed()
	if fs := b.Failures(""); len(fs) != 0 {
		t.Errorf("failures with a sealed Vault: %v; want none", fs)
	}
	v.control("unseal")

	b.Apply(byCertificate(`trust: "vault:pki/fleet", credential: "vault:pki/fleet/other#{identity}"`))
	b.WaitInSync()
	old := b.onlyIKE("a", "b").GetLocalSpi()
	b.Terminate("a", "b")
	b.waitNoSA("a", old)
	b.refusedWith("pki/fleet/sign/other")
}
