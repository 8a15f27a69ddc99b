package pki

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

var oidIssuingDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}

// crl is a CRL in the form in which it is asked.
type crl struct {
	issuer     string // the issuer's name in DER
	thisUpdate time.Time
	nextUpdate time.Time
	revoked    map[string]int // reason by serial number

	// Why it cannot be used at all; nil when it can.
	unusable error
	// What it covers (RFC 5280 §5.2.5).
	users, authorities bool
	points             []string // URLs; empty for any

	list *x509.RevocationList // for its signature
}

func newCRL(list *x509.RevocationList) *crl {
	c := &crl{
		issuer: string(list.RawIssuer), thisUpdate: list.ThisUpdate, nextUpdate: list.NextUpdate,
		users: true, authorities: true, list: list, revoked: make(map[string]int, len(list.RevokedCertificateEntries)),
	}
	for _, e := range list.RevokedCertificateEntries {
		c.revoked[string(e.SerialNumber.Bytes())] = e.ReasonCode
	}
	switch {
	case !slices.Contains(strong, list.SignatureAlgorithm):
		c.unusable = fmt.Errorf("the CRL is signed with %s", list.SignatureAlgorithm)
	case list.NextUpdate.IsZero():
		c.unusable = errors.New("the CRL does not say when it ends (RFC 5280 §5.1.2.5)")
	}
	for _, ext := range list.Extensions {
		switch {
		case ext.Id.Equal(oidIssuingDistributionPoint):
			if err := c.readPoint(ext.Value); err != nil {
				c.unusable = err
			}
		case ext.Critical: // a delta CRL's indicator above all
			c.unusable = fmt.Errorf("the CRL has the critical extension %s, which is not supported", ext.Id)
		}
	}
	return c
}

// issuingPoint is RFC 5280 §5.2.5.
type issuingPoint struct {
	Point          pointName      `asn1:"optional,tag:0"`
	UsersOnly      bool           `asn1:"optional,tag:1"`
	AuthoritysOnly bool           `asn1:"optional,tag:2"`
	Reasons        asn1.BitString `asn1:"optional,tag:3"`
	Indirect       bool           `asn1:"optional,tag:4"`
	AttributesOnly bool           `asn1:"optional,tag:5"`
}

type pointName struct {
	FullName     []asn1.RawValue `asn1:"optional,tag:0"`
	RelativeName asn1.RawValue   `asn1:"optional,tag:1"`
}

func (c *crl) readPoint(der []byte) error {
	var p issuingPoint
	if rest, err := asn1.Unmarshal(der, &p); err != nil || len(rest) != 0 {
		return errors.New("the CRL's issuing distribution point cannot be read")
	}
	if p.Indirect || p.AttributesOnly || p.Reasons.BitLength != 0 || len(p.Point.RelativeName.FullBytes) != 0 {
		return errors.New("the CRL is indirect, or of some reasons or of attribute certificates only, which is not supported")
	}
	c.users, c.authorities = !p.AuthoritysOnly, !p.UsersOnly
	for _, n := range p.Point.FullName {
		const uri = 6 // GeneralName
		if n.Class == asn1.ClassContextSpecific && n.Tag == uri {
			c.points = append(c.points, string(n.Bytes))
		}
	}
	if len(p.Point.FullName) > 0 && len(c.points) == 0 {
		return errors.New("the CRL's issuing distribution point is no URL, which is not supported")
	}
	return nil
}

// covers reports whether the CRL speaks about cert. With a distribution point in
// the CRL the certificate must name it too, or one CRL could stand in for another
// (RFC 4945 §5.1.3.13).
func (c *crl) covers(cert *x509.Certificate) bool {
	if cert.IsCA && !c.authorities || !cert.IsCA && !c.users {
		return false
	}
	return len(c.points) == 0 || slices.ContainsFunc(c.points, func(p string) bool { return slices.Contains(cert.CRLDistributionPoints, p) })
}

// status is what a CRL that was checked says about cert.
func (c *crl) status(cert *x509.Certificate, now time.Time) (status, error) {
	if !c.covers(cert) {
		return undecided, errors.New("the CRL is for other certificates of the authority")
	}
	if reason, ok := c.revoked[string(cert.SerialNumber.Bytes())]; ok {
		return revoked, fmt.Errorf("the CRL of %s lists it with the reason %s", stamp(c.thisUpdate), reasonName(reason))
	}
	switch {
	case now.Before(c.thisUpdate):
		return undecided, fmt.Errorf("the CRL begins at %s, and it is %s", stamp(c.thisUpdate), stamp(now))
	case !now.Before(c.nextUpdate):
		return undecided, fmt.Errorf("the CRL ended at %s, and it is %s", stamp(c.nextUpdate), stamp(now))
	}
	return good, nil
}

// check checks that the CRL is issuer's, and one that can be used.
func (c *crl) check(issuer *x509.Certificate) error {
	if c.unusable != nil {
		return c.unusable
	}
	if c.issuer != string(issuer.RawSubject) {
		return errors.New("the CRL is of another authority")
	}
	if err := c.list.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("the CRL's signature: %s", brief(err))
	}
	return nil
}

// crlKey names a fetched CRL: where it is from and whose it must be.
type crlKey struct {
	url    string
	issuer [32]byte // SHA-256 of the authority's certificate
}

// fetchCRL gets the CRL of issuer at url, which the policy allows.
func (p *PKI) fetchCRL(ctx context.Context, url string, issuer *x509.Certificate, allowed []string) (*crl, error) {
	return p.crls.get(ctx, crlKey{url, sha256.Sum256(issuer.Raw)}, func() (*crl, time.Time, error) {
		der, err := p.fetcher.get(url, nil, "", allowed, cred.MaxCRL)
		if err != nil {
			return nil, time.Time{}, err
		}
		c, err := parseCRL(der)
		if err == nil {
			// Here, so that what somebody put in its place is not kept for its time.
			err = c.check(issuer)
		}
		if err != nil {
			return nil, time.Time{}, err
		}
		// One that has ended already is asked for again soon, not kept.
		return c, later(c.nextUpdate, p.conf.Now().Add(p.conf.Retry)), nil
	})
}

// parseCRL reads a CRL in DER, or in PEM as some servers send it.
func parseCRL(b []byte) (*crl, error) {
	list, err := x509.ParseRevocationList(derOf(b))
	if err != nil {
		return nil, fmt.Errorf("what came is no CRL: %s", brief(err))
	}
	return newCRL(list), nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
