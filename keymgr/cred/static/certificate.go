package static

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"strings"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// Endings of the files behind a certificate's references.
const (
	certEnding = ".pem"
	keyEnding  = "-key.pem"
	crlEnding  = ".crl"
)

// maxPEM bounds a file of certificates or a key: base64 makes four characters of
// three octets, and lines take some.
const maxPEM = 64 << 10

// Credential reads NAME.pem, the chain with the leaf first, and NAME-key.pem,
// which only its owner may read. Both are read again when one has changed.
func (s *Store) Credential(ctx context.Context, ref string) (*cred.Credential, error) {
	name, err := locate(ctx, ref)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(name, certEnding) {
		return nil, cred.Errorf(cred.Invalid, ref, "a credential is a pair of files: want file:%s for %[1]s%[2]s and %[1]s%[3]s", strings.TrimSuffix(name, certEnding), certEnding, keyEnding)
	}
	return s.credentials.get(s, ref, []string{name + certEnding, name + keyEnding}, func() (*cred.Credential, error) {
		text, err := s.readFile(ref, name+certEnding, public, maxPEM)
		if err != nil {
			return nil, err
		}
		chain, err := cred.ParseChain(ref, text)
		if err != nil {
			return nil, err
		}
		text, err = s.readFile(ref, name+keyEnding, private, maxPEM)
		defer clear(text)
		if err != nil {
			return nil, err
		}
		key, err := cred.ParseKey(ref, text)
		if err != nil {
			return nil, err
		}
		return cred.NewCredential(ref, chain, key)
	})
}

// Anchors reads a file of certificates in PEM, and the CRLs in the file beside it
// that ends in .crl (fleet-ca.crl for fleet-ca.pem; PEM, or one in DER). They are
// read again when they have changed.
func (s *Store) Anchors(ctx context.Context, ref string) (*cred.Anchors, error) {
	name, err := locate(ctx, ref)
	if err != nil {
		return nil, err
	}
	crls := strings.TrimSuffix(name, certEnding) + crlEnding
	return s.anchors.get(s, ref, []string{name, crls}, func() (*cred.Anchors, error) {
		text, err := s.readFile(ref, name, public, cred.MaxAnchors*maxPEM)
		if err != nil {
			return nil, err
		}
		lists, err := s.readFile(ref, crls, public, 2*cred.MaxCRL)
		switch {
		case cred.KindOf(err) == cred.NotFound:
		case err != nil:
			return nil, err
		case bytes.Contains(lists, []byte("-----BEGIN X509 CRL-----")):
			text = append(append(text, '\n'), lists...)
		default:
			if _, err := x509.ParseRevocationList(lists); err != nil {
				return nil, cred.Errorf(cred.Invalid, ref, "%s: %w", crls, err)
			}
			text = append(append(text, '\n'), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: lists})...)
		}
		return cred.ParseAnchors(ref, text)
	})
}
