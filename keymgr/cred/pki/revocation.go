package pki

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// status is what is known of a certificate's revocation.
type status uint8

const (
	undecided status = iota
	good
	revoked
)

// reasonName is a CRLReason (RFC 5280 §5.3.1).
func reasonName(n int) string {
	names := [...]string{
		"unspecified", "keyCompromise", "cACompromise", "affiliationChanged", "superseded", "cessationOfOperation",
		"certificateHold", "7", "removeFromCRL", "privilegeWithdrawn", "aACompromise",
	}
	if n < 0 || n >= len(names) {
		return fmt.Sprint(n)
	}
	return names[n]
}

// checkRevocation refuses a verified chain when a certificate in it is revoked, or
// its status cannot be had and the policy says hard; soft is true when one could
// not be had and the policy lets that pass. The certificates are asked about at the
// same time: whoever waits waits for the slowest, not for the sum.
func (p *PKI) checkRevocation(ctx context.Context, chain []*x509.Certificate, local []*crl, q cred.ChainQuestion) (soft bool, err error) {
	if q.Method.Revocation == ipsec.RevocationNone {
		return false, nil
	}
	type verdict struct {
		status status
		detail string
	}
	verdicts := make([]verdict, len(chain)-1)
	var wg sync.WaitGroup
	for i := range verdicts {
		wg.Go(func() {
			verdicts[i].status, verdicts[i].detail = p.statusOf(ctx, chain[i], chain[i+1], local, q.Method.RevocationURLs, q.Now)
		})
	}
	wg.Wait()
	for i, v := range verdicts {
		if v.status == revoked { // before what is not known of another one
			return false, refuse(WhyRevoked, "%s: %s; the peer needs a new one", name(chain[i]), v.detail)
		}
	}
	for i, v := range verdicts {
		switch {
		case v.status == undecided && q.Method.Revocation != ipsec.RevocationSoft:
			return false, unknown(WhyStatusUnknown, "%s: %s; mend that, put a CRL beside the trust anchors, or set certificate.revocation to soft", name(chain[i]), v.detail)
		case v.status == undecided:
			soft = true
		}
	}
	return soft, nil
}

// maxURLs bounds the responders, and the CRLs, of one certificate that are asked.
const maxURLs = 4

// statusOf asks about one certificate: the CRLs beside the anchors first, since
// what they revoke stays revoked; then its OCSP responders and CRLs below allowed
// URLs, which are newer; then a local CRL's word that it is good.
func (p *PKI) statusOf(ctx context.Context, cert, issuer *x509.Certificate, local []*crl, allowed []string, now time.Time) (status, string) {
	var details []string
	note := func(s status, err error) status {
		if err != nil {
			details = append(details, brief(err))
		}
		return s
	}
	best := undecided
	for _, c := range local {
		if c.issuer != string(issuer.RawSubject) {
			continue // one file may hold the CRLs of many authorities
		}
		if err := c.check(issuer); err != nil {
			note(undecided, err)
			continue
		}
		switch note(c.status(cert, now)) {
		case revoked:
			return revoked, last(details)
		case good:
			best = good
		}
	}
	for _, u := range cert.OCSPServer[:min(len(cert.OCSPServer), maxURLs)] {
		if !allows(allowed, u) {
			note(undecided, fmt.Errorf("its OCSP responder %s is not below certificate.revocationURLs", quote(u)))
			continue
		}
		a, err := p.askOCSP(ctx, u, cert, issuer, allowed)
		if err != nil {
			note(undecided, err)
			continue
		}
		if s := note(a.at(now)); s != undecided {
			return s, last(details)
		}
	}
	for _, u := range cert.CRLDistributionPoints[:min(len(cert.CRLDistributionPoints), maxURLs)] {
		if !allows(allowed, u) {
			note(undecided, fmt.Errorf("its CRL %s is not below certificate.revocationURLs", quote(u)))
			continue
		}
		c, err := p.fetchCRL(ctx, u, issuer, allowed)
		if err != nil {
			note(undecided, err)
			continue
		}
		if s := note(c.status(cert, now)); s != undecided {
			return s, last(details)
		}
	}
	if best == good {
		return good, ""
	}
	if len(details) == 0 {
		return undecided, "it names no CRL and no OCSP responder, and no CRL of its authority lies beside the trust anchors"
	}
	return undecided, strings.Join(details, "; ")
}

func last(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[len(s)-1]
}

// derOf is the DER of what may be PEM.
func derOf(b []byte) []byte {
	if block, _ := pem.Decode(b); block != nil {
		return block.Bytes
	}
	return b
}
