package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// maxPaths bounds the ways to an anchor that are looked at for one leaf.
const maxPaths = 4

// strong are the signature algorithms that certificates, CRLs and OCSP answers may
// carry. MD5 and SHA-1 are not among them: collisions can be made.
var strong = []x509.SignatureAlgorithm{
	x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
	x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
	x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
	x509.PureEd25519,
}

var oidIPsecIKE = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 17} // RFC 4945 §5.1.3.12

// parseChain reads what a peer sent. A certificate that comes twice is read once.
func parseChain(chain [][]byte) ([]*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, refuse(WhyMalformed, "the peer sent none; it needs a certificate, and to send it (strongSwan: leftsendcert, or local.certs)")
	}
	octets := 0
	for _, der := range chain {
		octets += len(der)
	}
	if len(chain) > cred.MaxChain || octets > cred.MaxChainOctets {
		return nil, refuse(WhyTooMany, "got %d certificates with %d octets, want at most %d with %d; let the peer send its own chain only", len(chain), octets, cred.MaxChain, cred.MaxChainOctets)
	}
	certs := make([]*x509.Certificate, 0, len(chain))
	for i, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, refuse(WhyMalformed, "certificate %d of %d: %s; issue it anew", i+1, len(chain), brief(err))
		}
		if !slices.ContainsFunc(certs, cert.Equal) {
			certs = append(certs, cert)
		}
	}
	if err := cred.CheckKey(certs[0].PublicKey); err != nil {
		return nil, refuse(WhyWeakKey, "%s has %s; issue it anew with another key", name(certs[0]), err.Why)
	}
	return certs, nil
}

// verifyChain finds the chains from the leaf to an anchor that hold at now and
// that IKE may use: at least one, and at most maxPaths.
func verifyChain(certs []*x509.Certificate, roots *x509.CertPool, now time.Time) ([][]*x509.Certificate, error) {
	leaf := certs[0]
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // checkUsages does, as RFC 4945 says
	})
	if err != nil {
		return nil, explain(err, certs, now)
	}
	var first error
	good := chains[:0]
	for _, chain := range chains[:min(len(chains), maxPaths)] {
		err := checkUsages(chain)
		if err == nil {
			good = append(good, chain)
		} else if first == nil {
			first = err
		}
	}
	if len(good) == 0 {
		return nil, first
	}
	return good, nil
}

// checkUsages checks what crypto/x509 leaves to its callers. The anchor, last in
// the chain, is trusted as it is; its signature means nothing.
func checkUsages(chain []*x509.Certificate) error {
	leaf, below := chain[0], chain[:len(chain)-1]
	for _, c := range chain {
		if err := cred.CheckKey(c.PublicKey); err != nil {
			return refuse(WhyWeakKey, "%s has %s; issue it anew with another key", name(c), err.Why)
		}
	}
	for _, c := range below {
		if !slices.Contains(strong, c.SignatureAlgorithm) {
			return weakSignature(c)
		}
	}
	// RFC 4945 §5.1.3.2.
	if leaf.KeyUsage != 0 && leaf.KeyUsage&(x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment) == 0 {
		return refuse(WhyKeyUsage, "%s has neither digitalSignature nor nonRepudiation; issue it with digitalSignature", name(leaf))
	}
	for _, c := range chain[:max(1, len(below))] { // a leaf may be the anchor itself
		if !forIKE(c) {
			return refuse(WhyExtKeyUsage, "%s allows %s, want ipsecIKE, anyExtendedKeyUsage, serverAuth or clientAuth, or no such extension", name(c), usages(c))
		}
	}
	return nil
}

// forIKE is RFC 4945 §5.1.3.12, and accepts the two usages that most authorities
// can give.
func forIKE(c *x509.Certificate) bool {
	if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.ContainsFunc(c.ExtKeyUsage, func(u x509.ExtKeyUsage) bool {
		return u == x509.ExtKeyUsageAny || u == x509.ExtKeyUsageServerAuth || u == x509.ExtKeyUsageClientAuth
	}) || slices.ContainsFunc(c.UnknownExtKeyUsage, oidIPsecIKE.Equal)
}

// usages names what is there instead.
func usages(c *x509.Certificate) string {
	known := map[x509.ExtKeyUsage]string{
		x509.ExtKeyUsageCodeSigning: "codeSigning", x509.ExtKeyUsageEmailProtection: "emailProtection", x509.ExtKeyUsageTimeStamping: "timeStamping",
		x509.ExtKeyUsageOCSPSigning: "OCSPSigning", x509.ExtKeyUsageIPSECEndSystem: "ipsecEndSystem (obsolete)",
		x509.ExtKeyUsageIPSECTunnel: "ipsecTunnel (obsolete)", x509.ExtKeyUsageIPSECUser: "ipsecUser (obsolete)",
	}
	var out []string
	for _, u := range c.ExtKeyUsage {
		if known[u] == "" {
			known[u] = fmt.Sprintf("usage %d", u)
		}
		out = append(out, known[u])
	}
	for _, oid := range c.UnknownExtKeyUsage {
		out = append(out, oid.String())
	}
	return brief(strings.Join(out, ", "))
}

// explain turns the error of crypto/x509 into a refusal with its why.
func explain(err error, certs []*x509.Certificate, now time.Time) error {
	leaf := certs[0]
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch e.Reason {
		case x509.Expired:
			if now.Before(e.Cert.NotBefore) {
				return refuse(WhyNotYetValid, "%s begins at %s, and it is %s; set the clocks, or wait", name(e.Cert), stamp(e.Cert.NotBefore), stamp(now))
			}
			return refuse(WhyExpired, "%s ended at %s, and it is %s; renew it, or set the clocks", name(e.Cert), stamp(e.Cert.NotAfter), stamp(now))
		case x509.TooManyIntermediates:
			return refuse(WhyPathLength, "above %s; leave an intermediate authority out, or raise pathLenConstraint", name(e.Cert))
		case x509.CANotAuthorizedForThisName, x509.NameConstraintsWithoutSANs, x509.TooManyConstraints, x509.UnconstrainedName:
			return refuse(WhyNameConstraint, "%s: %s; use a name that the authority may certify", name(leaf), brief(e.Detail))
		case x509.NotAuthorizedToSign:
			return refuse(WhyNotAuthority, "%s has no basicConstraints with CA:TRUE, or a keyUsage without keyCertSign", name(e.Cert))
		case x509.NoValidChains:
			return refuse(WhyPolicy, "%s: %s (RFC 5280 §6.1)", name(leaf), brief(err))
		}
		return refuse(WhyMalformed, "%s: %s", name(e.Cert), brief(err))
	}
	if _, ok := errors.AsType[x509.UnhandledCriticalExtension](err); ok {
		for _, c := range certs {
			for _, oid := range c.UnhandledCriticalExtensions {
				return refuse(WhyCriticalExtension, "%s has %s; issue it without, or not critical", name(c), oid)
			}
		}
		return refuse(WhyCriticalExtension, "%s; issue the chain without it", brief(err))
	}
	// No way to an anchor: say why the most likely one was not one.
	for _, c := range certs {
		if !slices.Contains(strong, c.SignatureAlgorithm) {
			return weakSignature(c)
		}
	}
	if bytes.Equal(leaf.RawIssuer, leaf.RawSubject) && leaf.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature) == nil {
		return refuse(WhySelfSigned, "%s; have it issued by an authority in certificate.trust, or name this very certificate there", name(leaf))
	}
	for _, c := range certs[1:] {
		if bytes.Equal(leaf.RawIssuer, c.RawSubject) && !c.IsCA {
			return refuse(WhyNotAuthority, "%s issued %s and has no basicConstraints with CA:TRUE", name(c), name(leaf))
		}
	}
	return refuse(WhyUnknownAuthority, "%s was issued by %s; name its authority in certificate.trust, or let the peer send the intermediate certificates", name(leaf), quote(leaf.Issuer.String()))
}

func weakSignature(c *x509.Certificate) error {
	return refuse(WhyWeakSignature, "%s is signed with %s, want SHA-256 or better with RSA or ECDSA, or Ed25519; issue it anew", name(c), c.SignatureAlgorithm)
}

// name shows which certificate is meant: a peer's text, so quoted and short.
func name(c *x509.Certificate) string {
	s := c.Subject.String()
	if s == "" {
		s = strings.Join(c.DNSNames, ", ")
	}
	return fmt.Sprintf("the certificate %s (serial %s)", quote(s), brief(fmt.Sprintf("%x", c.SerialNumber)))
}

func quote(s string) string { return fmt.Sprintf("%q", brief(s)) }

// brief bounds what is repeated of somebody else's words.
func brief(s any) string {
	text := fmt.Sprint(s)
	if len(text) > 160 {
		text = text[:160] + "…"
	}
	return text
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
