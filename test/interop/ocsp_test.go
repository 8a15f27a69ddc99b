package interop

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// The two authorities of a PKI by openssl, and where their responders are: beside our
// key manager.
const (
	rootPort    = "2560" // of the authority of "between"
	betweenPort = "2561" // of the one that both ends' certificates are of

	betweenURL = "http://127.0.0.1:" + betweenPort + "/"
	allowed    = `, revocationURLs: ["http://127.0.0.1:` + rootPort + `/", "` + betweenURL + `"]`
)

// ocspConfig is openssl's: an authority is a folder with a database, of which its
// responder tells.
const ocspConfig = `[ca]
[root]
database = root-index.txt
rand_serial = yes
[between]
database = between-index.txt
rand_serial = yes
[request]
distinguished_name = name
[name]
[any]
organizationName = optional
commonName = supplied
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = keyCertSign, cRLSign
[middle]
basicConstraints = critical, CA:TRUE
keyUsage = keyCertSign, cRLSign
authorityInfoAccess = OCSP;URI:http://127.0.0.1:` + rootPort + `/
[end]
keyUsage = digitalSignature
extendedKeyUsage = ipsecIKE
authorityInfoAccess = OCSP;URI:` + betweenURL + `
subjectAltName = DNS:$ENV::SAN
[responder]
keyUsage = digitalSignature
extendedKeyUsage = OCSPSigning
`

// byOpenSSL makes a PKI with openssl: a root, an authority below, a certificate for
// each end, and responders for both authorities. It revokes these.
func byOpenSSL(revoke ...string) func(*testing.T) made {
	return func(t *testing.T) made {
		o := office{t, t.TempDir()}
		o.write("ca.cnf", ocspConfig)
		o.write("root-index.txt", "")
		o.write("between-index.txt", "")
		openssl := func(args ...string) { o.run("", "env", append([]string{"SAN=" + args[0], "openssl"}, args[1:]...)...) }
		request := func(name, subject string, more ...string) {
			openssl(append([]string{name, "req", "-config", "ca.cnf", "-new", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
				"-keyout", name + "-key.pem", "-subj", "/O=Fleet/CN=" + subject}, more...)...)
		}
		issue := func(by, name, subject, extensions string) {
			request(name, subject, "-out", name+".csr")
			openssl(subject, "ca", "-config", "ca.cnf", "-name", by, "-cert", by+".pem", "-keyfile", by+"-key.pem", "-policy", "any", "-md", "sha256",
				"-days", "3", "-outdir", ".", "-batch", "-notext", "-extensions", extensions, "-in", name+".csr", "-out", name+".pem")
		}
		self := func(name string) {
			request(name, name, "-x509", "-days", "3", "-extensions", "authority", "-out", name+".pem")
		}
		self("root")
		issue("root", "between", "between", "middle")
		issue("root", "root-responder", "tells of the root's", "responder")
		issue("between", "between-responder", "tells of between's", "responder")
		self("stranger") // no authority of anybody's
		issue("between", "us", ourID, "end")
		issue("between", "them", theirID, "end")
		for _, name := range revoke {
			by := "between"
			if name == by {
				by = "root"
			}
			openssl("none", "ca", "-config", "ca.cnf", "-name", by, "-cert", by+".pem", "-keyfile", by+"-key.pem", "-md", "sha256", "-revoke", name+".pem", "-crl_reason", "keyCompromise")
		}
		end := func(name string) lab.Cert {
			return lab.Cert{Chain: o.read(name+".pem") + o.read("between.pem"), Key: o.read(name + "-key.pem")}
		}
		return made{dir: o.dir, trust: o.read("root.pem"), ours: end("us"), theirs: end("them")}
	}
}

// respond starts openssl as the responder of an authority, where our key manager is. It
// signs with a certificate of the PKI.
func (b *bed) respond(authority, signer string, more ...string) *lab.Process {
	b.Helper()
	port := rootPort
	if authority == "between" {
		port = betweenPort
	}
	file := func(name string) string { return filepath.Join(b.pki.dir, name) }
	p := b.f.Control.Start(lab.Command{Args: append([]string{"openssl", "ocsp", "-port", port, "-index", file(authority + "-index.txt"), "-CA", file(authority + ".pem"),
		"-rsigner", file(signer + ".pem"), "-rkey", file(signer + "-key.pem"), "-nmin", "30"}, more...)})
	p.WaitOutput("waiting for OCSP client connections", limit)
	return p
}

// asked is how many questions a responder was asked.
func asked(p *lab.Process) int { return strings.Count(p.Output(), "Received request") }

func ocsps() []scenario {
	hard, soft := policy{auth: certificateAuth(", revocation: hard" + allowed)}, policy{auth: certificateAuth(", revocation: soft" + allowed)}
	responders := func(b *bed) { b.respond("root", "root-responder"); b.respond("between", "between-responder") }
	// told is one answer of between's responder that is no proof.
	told := func(name, shows, signer string, says []string, more ...string) scenario {
		return scenario{name: "ocsp-" + name, shows: shows, role: initiator, at: pair, ours: hard, made: byOpenSSL(),
			steps: func(b *bed) {
				b.respond("root", "root-responder")
				between := b.respond("between", signer, more...)
				refusedBecause(append([]string{"the revocation status cannot be had"}, says...)...)(b)
				if n := asked(between); n != 1 {
					b.Errorf("the responder was asked %d times; want once, and the answer refused", n)
				}
			}}
	}
	return append(twice(
		scenario{name: "ocsp-good", shows: "openssl's responders say that the chain is good, and are asked once", at: pair, ours: hard, made: byOpenSSL("us"), steps: ocspGood},
		scenario{name: "ocsp-revoked", shows: "openssl's responder says that the peer's certificate is revoked: no SA, and we say why", at: pair, ours: soft, made: byOpenSSL("them"),
			steps: func(b *bed) {
				responders(b)
				refusedBecause("a certificate is revoked", theirID, "the OCSP responder said so", "keyCompromise")(b)
			}},
	),
		scenario{name: "ocsp-authority-revoked", shows: "the root's responder says that the authority below is revoked: no SA", role: initiator, at: pair, ours: hard, made: byOpenSSL("between"),
			steps: func(b *bed) {
				responders(b)
				refusedBecause("a certificate is revoked", "CN=between", "keyCompromise")(b)
			}},
		scenario{name: "ocsp-away", shows: "no responder is there: no SA with hard, one with soft", role: initiator, at: pair, ours: hard, made: byOpenSSL(),
			steps: func(b *bed) {
				refusedBecause("the revocation status cannot be had", "connection refused", "set certificate.revocation to soft")(b)
				b.soften(soft)
			}},
		scenario{name: "ocsp-silent", shows: "the responders take the question and say nothing: the peer waits a moment, no SA with hard, one with soft", role: responder, at: pair, ours: hard, made: byOpenSSL(),
			steps: func(b *bed) {
				for _, port := range []string{rootPort, betweenPort} {
					b.must(b.f.Control.Do(func() error {
						l, err := net.Listen("tcp", "127.0.0.1:"+port) // its backlog takes connections
						if err == nil {
							b.Cleanup(func() { _ = l.Close() })
						}
						return err
					}))
				}
				begin := time.Now()
				refusedBecause("the revocation status cannot be had", "set certificate.revocation to soft")(b)
				b.Logf("refused after %v", time.Since(begin))
				b.soften(soft)
			}},
		scenario{name: "ocsp-not-listed", shows: "the policy does not list the responder: nobody asks it", role: responder, at: pair, made: byOpenSSL("them"),
			ours: policy{auth: certificateAuth(`, revocation: hard, revocationURLs: ["http://127.0.0.1:` + rootPort + `/", "` + betweenURL + `below/"]`)},
			steps: func(b *bed) {
				b.respond("root", "root-responder")
				between := b.respond("between", "between-responder")
				refusedBecause("the revocation status cannot be had", betweenURL, "not below certificate.revocationURLs")(b)
				if n := asked(between); n != 0 {
					b.Errorf("the responder was asked %d times, and the policy does not list it", n)
				}
			}},
		scenario{name: "ocsp-direct", shows: "the authorities sign their answers themselves", role: responder, at: pair, ours: hard, made: byOpenSSL(),
			steps: func(b *bed) {
				b.respond("root", "root", "-resp_key_id")
				b.respond("between", "between", "-resp_no_certs")
				authenticated("ecdsa-sha256", "ecdsa-sha256")(b)
			}},
		told("stranger", "the answer is signed by nobody we know: no SA", "stranger", []string{"was not issued by the certificate's authority"}),
		told("stranger-unnamed", "the same without the signer's certificate", "stranger", []string{"signature"}, "-resp_no_certs"),
		told("other-authority", "the answer is signed by another authority's responder: no SA", "root-responder", []string{"was not issued by the certificate's authority"}),
		told("not-a-responder", "the answer is signed with a certificate that is not for that: no SA", "us", []string{"no extended key usage OCSPSigning"}),
		told("bad-signature", "the answer's signature is wrong: no SA", "between-responder", []string{"signature"}, "-badsig"),
		told("weak-signature", "the answer is signed with SHA-1: no SA", "between-responder", []string{"signed with ECDSA-SHA1"}, "-rmd", "sha1"),
		told("unknown", "the responder does not know the certificate: no SA", "between-responder", []string{"does not know the certificate"}, "-index", "/dev/null"),
	)
}

// ocspGood comes up, and once more when the responders are gone: their answers hold.
func ocspGood(b *bed) {
	root, between := b.respond("root", "root-responder"), b.respond("between", "between-responder")
	authenticated("ecdsa-sha256", "ecdsa-sha256")(b)
	if r, m := asked(root), asked(between); r != 1 || m != 1 {
		b.Errorf("the root's responder was asked %d times, the other %d; want each once", r, m)
	}
	b.f.Terminate(b.node, "swan")
	b.gone(limit)
	_, _ = root.Stop(), between.Stop()
	b.start()
	m := b.f.Keymgrd.Metrics()
	got := fmt.Sprint(m[`testudo_certificates_accepted_total{status="known"}`], m[`testudo_revocation_answers_total{source="fetched"}`], m[`testudo_revocation_answers_total{source="failed"}`])
	if got != "2 2 0" {
		b.Errorf("chains accepted, answers fetched, fetches failed: %s; want 2 2 0", got)
	}
	b.noFailures()
}

// soften applies another policy, with which the SA comes up and the status counts as
// unknown.
func (b *bed) soften(p policy) {
	b.Helper()
	p.local, p.remote, p.raw = b.ours.local, b.ours.remote, b.ours.raw
	b.f.Apply(p.yaml(b.ends))
	b.f.WaitInSync()
	b.start()
	b.ping()
	if n := b.f.Keymgrd.Metrics()[`testudo_certificates_accepted_total{status="soft"}`]; n == 0 {
		b.Error("no chain was accepted without a status; want the peer's")
	}
}
