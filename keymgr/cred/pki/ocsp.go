package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

const (
	// skew is how far a responder's clock may be ahead.
	skew = 5 * time.Minute
	// unended is how long an answer without nextUpdate is believed.
	unended = time.Hour
)

// answer is one OCSP answer about one certificate, its signature checked.
type answer struct {
	status                 status
	thisUpdate, nextUpdate time.Time
	reason                 int
}

// answerKey names an answer: who gave it, and about which certificate of whom.
type answerKey struct {
	url    string
	issuer [32]byte
	serial string
}

// askOCSP asks the responder at url, which the policy allows, about cert.
func (p *PKI) askOCSP(ctx context.Context, url string, cert, issuer *x509.Certificate, allowed []string) (*answer, error) {
	key := answerKey{url, sha256.Sum256(issuer.Raw), string(cert.SerialNumber.Bytes())}
	return p.answers.get(ctx, key, func() (*answer, time.Time, error) {
		// SHA-1 here only names the issuer; every responder knows it (RFC 6960 §4.3).
		request, err := ocsp.CreateRequest(cert, issuer, &ocsp.RequestOptions{Hash: crypto.SHA1})
		if err != nil {
			return nil, time.Time{}, err
		}
		der, err := p.fetcher.get(url, request, "application/ocsp-request", allowed, maxOCSP)
		if err != nil {
			return nil, time.Time{}, err
		}
		now := p.conf.Now()
		a, err := readAnswer(der, cert, issuer, now)
		if err != nil {
			return nil, time.Time{}, err
		}
		return a, later(a.nextUpdate, now.Add(p.conf.Retry)), nil
	})
}

// readAnswer checks an OCSP answer as RFC 6960 §3.2 says.
func readAnswer(der []byte, cert, issuer *x509.Certificate, now time.Time) (*answer, error) {
	resp, err := ocsp.ParseResponseForCert(der, cert, nil)
	if err != nil {
		return nil, fmt.Errorf("the OCSP answer: %s", brief(err))
	}
	if !slices.Contains(strong, resp.SignatureAlgorithm) {
		return nil, fmt.Errorf("the OCSP answer is signed with %s", resp.SignatureAlgorithm)
	}
	if !forIssuer(resp.TBSResponseData, cert.SerialNumber, issuer) {
		return nil, errors.New("the OCSP answer is about a certificate of another authority")
	}
	switch signer := resp.Certificate; {
	case signer == nil:
		if err := resp.CheckSignatureFrom(issuer); err != nil {
			return nil, fmt.Errorf("the OCSP answer's signature: %s", brief(err))
		}
	case bytes.Equal(signer.Raw, issuer.Raw): // the parser has checked its signature
	default:
		if err := checkResponder(signer, issuer, now); err != nil {
			return nil, err
		}
	}
	a := &answer{thisUpdate: resp.ThisUpdate, nextUpdate: resp.NextUpdate, reason: resp.RevocationReason}
	if a.nextUpdate.IsZero() {
		a.nextUpdate = a.thisUpdate.Add(unended)
	}
	switch resp.Status {
	case ocsp.Good:
		a.status = good
	case ocsp.Revoked:
		a.status = revoked
	default:
		a.status = undecided
	}
	return a, nil
}

// checkResponder checks the certificate of a delegated responder: issued by the
// very authority that issued the certificate in question, for signing OCSP
// answers (RFC 6960 §4.2.2.2). The parser has checked that it signed this one.
func checkResponder(c, issuer *x509.Certificate, now time.Time) error {
	if !slices.Contains(strong, c.SignatureAlgorithm) {
		return fmt.Errorf("the OCSP responder's certificate is signed with %s", c.SignatureAlgorithm)
	}
	if err := cred.CheckKey(c.PublicKey); err != nil {
		return fmt.Errorf("the OCSP responder has %s", err.Why)
	}
	if !bytes.Equal(c.RawIssuer, issuer.RawSubject) {
		return fmt.Errorf("the OCSP responder %s was not issued by the certificate's authority", quote(c.Subject.String()))
	}
	if err := c.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("the OCSP responder %s was not issued by the certificate's authority: %s", quote(c.Subject.String()), brief(err))
	}
	if !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
		return fmt.Errorf("the OCSP responder %s has no extended key usage OCSPSigning", quote(c.Subject.String()))
	}
	if c.KeyUsage != 0 && c.KeyUsage&(x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment) == 0 {
		return fmt.Errorf("the OCSP responder %s may not make signatures", quote(c.Subject.String()))
	}
	if now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return fmt.Errorf("the OCSP responder's certificate is valid from %s to %s", stamp(c.NotBefore), stamp(c.NotAfter))
	}
	if len(c.UnhandledCriticalExtensions) > 0 {
		return fmt.Errorf("the OCSP responder's certificate has the critical extension %s, which is not supported", c.UnhandledCriticalExtensions[0])
	}
	return nil
}

// forIssuer reports whether the first answer about serial names issuer: the parser
// picks by the serial number alone, and two authorities may use the same.
func forIssuer(tbs []byte, serial *big.Int, issuer *x509.Certificate) bool {
	// ResponseData and CertID of RFC 6960 §4.2.1 and §4.1.1.
	var data, all cryptobyte.String
	input := cryptobyte.String(tbs)
	if !input.ReadASN1(&data, cbasn1.SEQUENCE) ||
		!data.SkipOptionalASN1(cbasn1.Tag(0).Constructed().ContextSpecific()) ||
		!data.ReadAnyASN1(new(cryptobyte.String), new(cbasn1.Tag)) || // responderID
		!data.SkipASN1(cbasn1.GeneralizedTime) ||
		!data.ReadASN1(&all, cbasn1.SEQUENCE) {
		return false
	}
	for !all.Empty() {
		var one, id, algorithm, nameHash, keyHash cryptobyte.String
		var oid asn1.ObjectIdentifier
		number := new(big.Int)
		if !all.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1(&id, cbasn1.SEQUENCE) ||
			!id.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&oid) ||
			!id.ReadASN1(&nameHash, cbasn1.OCTET_STRING) || !id.ReadASN1(&keyHash, cbasn1.OCTET_STRING) || !id.ReadASN1Integer(number) {
			return false
		}
		if number.Cmp(serial) != 0 {
			continue
		}
		hash, key := hashOf(oid), publicKeyBits(issuer)
		return hash != nil && key != nil && bytes.Equal(hash(issuer.RawSubject), nameHash) && bytes.Equal(hash(key), keyHash)
	}
	return false
}

// hashOf is the hash that a CertID names.
func hashOf(oid asn1.ObjectIdentifier) func([]byte) []byte {
	switch oid.String() {
	case "1.3.14.3.2.26":
		return func(b []byte) []byte { h := sha1.Sum(b); return h[:] } // names the issuer, and nothing else
	case "2.16.840.1.101.3.4.2.1":
		return func(b []byte) []byte { h := sha256.Sum256(b); return h[:] }
	}
	return nil
}

// publicKeyBits are the octets of the subjectPublicKey BIT STRING.
func publicKeyBits(c *x509.Certificate) []byte {
	var info cryptobyte.String
	var bits asn1.BitString
	input := cryptobyte.String(c.RawSubjectPublicKeyInfo)
	if !input.ReadASN1(&info, cbasn1.SEQUENCE) || !info.SkipASN1(cbasn1.SEQUENCE) || !info.ReadASN1BitString(&bits) {
		return nil
	}
	return bits.RightAlign()
}

// at is what the answer says at now.
func (a *answer) at(now time.Time) (status, error) {
	if a.status == revoked {
		return revoked, fmt.Errorf("the OCSP responder said so at %s with the reason %s", stamp(a.thisUpdate), reasonName(a.reason))
	}
	switch {
	case now.Add(skew).Before(a.thisUpdate):
		return undecided, fmt.Errorf("the OCSP answer begins at %s, and it is %s", stamp(a.thisUpdate), stamp(now))
	case !now.Before(a.nextUpdate):
		return undecided, fmt.Errorf("the OCSP answer ended at %s, and it is %s", stamp(a.nextUpdate), stamp(now))
	case a.status != good:
		return undecided, errors.New("the OCSP responder does not know the certificate")
	}
	return good, nil
}
