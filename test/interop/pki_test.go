package interop

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// made is certificates for both ends by programs that operators use.
type made struct {
	dir          string // where openssl made them; "" for others
	trust        string // both ends'; PEM
	crl          string // PEM; "" for none
	ours, theirs lab.Cert
}

// files is what lies in keymgrd's folder of secrets.
func (m made) files() map[string]string {
	out := map[string]string{"ca.pem": m.trust, "us.pem": m.ours.Chain, "us-key.pem": m.ours.Key}
	if m.crl != "" {
		out["ca.crl"] = m.crl
	}
	return out
}

func (m made) crls() []string {
	if m.crl == "" {
		return nil
	}
	return []string{m.crl}
}

// office is a folder in which a PKI is made.
type office struct {
	t   *testing.T
	dir string
}

func (o office) run(stdin string, program string, args ...string) string {
	o.t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdin = o.dir, strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		o.t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

func (o office) write(name, text string) string {
	o.t.Helper()
	path := filepath.Join(o.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		o.t.Fatal(err)
	}
	return path
}

func (o office) read(name string) string {
	o.t.Helper()
	b, err := os.ReadFile(filepath.Join(o.dir, name))
	if err != nil {
		o.t.Fatal(err)
	}
	return string(b)
}

// bySwan makes a PKI with strongSwan's pki: keys of a kind such as "rsa 2048", and
// further arguments for the peer's certificate.
func bySwan(kind string, theirs ...string) func(*testing.T) made {
	return func(t *testing.T) made { return swanPKI(t, kind, "", theirs...) }
}

// revokedBySwan is bySwan with a CRL; revoke is whose certificate is on it: "us",
// "them" or "nobody".
func revokedBySwan(revoke string) func(*testing.T) made {
	return func(t *testing.T) made { return swanPKI(t, "ecdsa 256", revoke) }
}

func swanPKI(t *testing.T, kind, revoke string, theirs ...string) made {
	o := office{t, t.TempDir()}
	key := func(name string) (string, string) {
		typ, size, _ := strings.Cut(kind, " ")
		args := []string{"--gen", "--type", typ, "--outform", "pem"}
		if size != "" {
			args = append(args, "--size", size)
		}
		text := o.run("", "pki", args...)
		return o.write(name+".key", text), text
	}
	caKey, _ := key("ca")
	ca := o.write("ca.pem", o.run("", "pki", "--self", "--ca", "--in", caKey, "--type", "priv", "--dn", "C=CH, O=Fleet, CN=made by strongSwan", "--outform", "pem"))
	issue := func(name, id string, more ...string) lab.Cert {
		path, text := key(name)
		pub := o.run("", "pki", "--pub", "--in", path, "--type", "priv")
		cert := o.run(pub, "pki", append([]string{"--issue", "--cacert", ca, "--cakey", caKey, "--dn", "C=CH, O=Fleet, CN=" + id, "--san", id, "--outform", "pem"}, more...)...)
		o.write(name+".pem", cert)
		return lab.Cert{Chain: cert, Key: text}
	}
	m := made{trust: o.read("ca.pem"), ours: issue("us", ourID), theirs: issue("them", theirID, theirs...)}
	if revoke != "" {
		args := []string{"--signcrl", "--cacert", ca, "--cakey", caKey, "--outform", "pem"}
		if revoke != "nobody" {
			args = append(args, "--reason", "key-compromise", "--cert", filepath.Join(o.dir, revoke+".pem"))
		}
		m.crl = o.run("", "pki", args...)
	}
	return m
}

// byTestudo makes a PKI with the two commands that the documentation names.
func byTestudo(kind string) func(*testing.T) made {
	return func(t *testing.T) made {
		o := office{t, t.TempDir()}
		testudo := lab.Binary(t, "testudo")
		o.run("", testudo, "pki", "ike-ca", "--key", kind)
		o.run("", testudo, "pki", "ike", ourID, theirID, "--key", kind)
		cert := func(name string) lab.Cert {
			return lab.Cert{Chain: o.read("ike-pki/" + name + ".pem"), Key: o.read("ike-pki/" + name + "-key.pem")}
		}
		return made{trust: o.read("ike-pki/ike-ca.pem"), crl: o.read("ike-pki/ike-ca.crl"), ours: cert(ourID), theirs: cert(theirID)}
	}
}

// certificateAuth is the spec of an Authentication by certificates.
func certificateAuth(more string) string {
	return `{methods: [{certificate: {trust: "file:ca.pem", credential: "file:us"` + more + `}}]}`
}

// pkis are scenarios with PKIs that the usual programs made.
func pkis() []scenario {
	hard := policy{auth: certificateAuth(", revocation: hard")}
	strict := func(c *lab.SwanConn) { c.RemoteSettings = []string{"revocation = strict"} }
	return twice(
		scenario{name: "pki-strongswan-rsa", shows: "a PKI by strongSwan's pki, RSA", at: pair, ours: policy{auth: byCertificate}, made: bySwan("rsa 2048"),
			steps: authenticated("rsa-pss-sha256", "rsa-sha256")},
		scenario{name: "pki-strongswan-rsa-pss", shows: "RSASSA-PSS by both ends", at: pair, ours: policy{auth: byCertificate}, made: bySwan("rsa 3072"),
			swan: func(c *lab.SwanConn) { c.LocalAuth = "rsa/pss-sha256" }, steps: authenticated("rsa-pss-sha256", "rsa-pss-sha256")},
		scenario{name: "pki-strongswan-ecdsa", shows: "a PKI by strongSwan's pki, ECDSA on P-384", at: pair, ours: policy{auth: byCertificate}, made: bySwan("ecdsa 384"),
			steps: authenticated("ecdsa-sha384", "ecdsa-sha384")},
		scenario{name: "pki-strongswan-ed25519", shows: "a PKI by strongSwan's pki, Ed25519 throughout", at: pair, ours: policy{auth: byCertificate}, made: bySwan("ed25519"),
			steps: authenticated("ed25519", "ed25519")},
		scenario{name: "pki-testudo-ecdsa256", shows: "a PKI by `testudo pki`, both ends want its CRL", at: pair, ours: hard, swan: strict, made: byTestudo("ecdsa256"),
			steps: authenticated("ecdsa-sha256", "ecdsa-sha256")},
		scenario{name: "pki-testudo-rsa2048", shows: "a PKI by `testudo pki`, RSA", at: pair, ours: hard, swan: strict, made: byTestudo("rsa2048"),
			steps: authenticated("rsa-pss-sha256", "rsa-sha256")},
		scenario{name: "pki-testudo-ed25519", shows: "a PKI by `testudo pki`, Ed25519", at: pair, ours: hard, swan: strict, made: byTestudo("ed25519"),
			steps: authenticated("ed25519", "ed25519")},

		scenario{name: "pki-crl-nobody-revoked", shows: "revocation: hard with a CRL that revokes nobody", at: pair, ours: hard, made: revokedBySwan("nobody"),
			steps: authenticated("ecdsa-sha256", "ecdsa-sha256")},
		scenario{name: "pki-crl-peer-revoked", shows: "the peer's certificate is on the CRL: no SA", at: pair, ours: hard, made: revokedBySwan("them"),
			steps: refusedBecause("a certificate is revoked", "keyCompromise")},
		scenario{name: "pki-crl-we-are-revoked", shows: "our certificate is on strongSwan's CRL: no SA", at: pair, ours: policy{auth: byCertificate}, swan: strict, made: revokedBySwan("us"),
			steps: func(b *bed) {
				refused("AUTHENTICATION_FAILED", "PEER_NOT_AUTHENTICATED")(b)
				b.peerSaid("certificate was revoked")
			}},
		scenario{name: "pki-no-status", shows: "revocation: hard and no CRL: no SA, and what to do", at: pair, ours: hard, made: bySwan("ecdsa 256"),
			steps: refusedBecause("the revocation status cannot be had", "put a CRL beside the trust anchors")},
		scenario{name: "pki-soft-no-status", shows: "revocation: soft and no CRL: passed over", at: pair, ours: policy{auth: certificateAuth(", revocation: soft")}, made: bySwan("ecdsa 256"),
			steps: authenticated("ecdsa-sha256", "ecdsa-sha256")},
		scenario{name: "pki-expired", shows: "the peer's certificate has expired: no SA", at: pair, ours: policy{auth: byCertificate},
			made:  bySwan("ecdsa 256", "--dateform", "%Y-%m-%d", "--not-before", "2020-01-01", "--not-after", "2021-01-01"),
			steps: refusedBecause("a certificate has expired", "2021-01-01")},
		scenario{name: "pki-wrong-usage", shows: "the peer's certificate is for OCSP answers: no SA", at: pair, ours: policy{auth: byCertificate},
			made: bySwan("ecdsa 256", "--flag", "ocspSigning"), steps: refusedBecause("extended key usage does not allow IKE", "OCSPSigning")},
		scenario{name: "pki-peer-not-in-policy", shows: "the policy's peerIdentity leaves the peer out: no SA", at: pair, ours: policy{auth: certificateAuth(`, peerIdentity: "*.fleet.example"`)},
			made: bySwan("ecdsa 256"), steps: refusedBecause("not one that the policy accepts")},
	)
}

// refusedBecause starts, and wants the failure to tell the operator these things.
func refusedBecause(says ...string) func(*bed) {
	return func(b *bed) {
		if err := b.tryStart(); err == nil {
			b.Error("the IKE SA came up")
		}
		f := b.requireFailure("PEER_NOT_AUTHENTICATED", "PEER_IDENTITY")
		for _, s := range says {
			if !strings.Contains(f.GetDetail(), s) {
				b.Errorf("explained as %q; want it to say %q", f.GetDetail(), s)
			}
		}
		b.noChild()
	}
}
