package cred

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

const (
	// MaxChain bounds how many certificates a chain may have, a peer's or ours.
	MaxChain = 8
	// MaxChainOctets bounds a chain in all.
	MaxChainOctets = 32 << 10
	// MaxAnchors bounds the certificates behind one reference of trust.
	MaxAnchors = 64
	// MaxCRL bounds a CRL, in octets.
	MaxCRL = 4 << 20
)

// Credential is a private key and its certificates, the leaf first, in DER. It
// is shared: nobody changes it.
type Credential struct {
	Chain    [][]byte
	Signer   crypto.Signer
	NotAfter time.Time // when the leaf ends
}

// Format keeps every verb from reaching the key.
func (c *Credential) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "[credential of %d certificates]", len(c.Chain))
}

// MarshalText keeps every encoding from reaching the key.
func (c *Credential) MarshalText() ([]byte, error) { return fmt.Append(nil, c), nil }

// Anchors are what stands behind a reference of trust: the certificates that
// chains may lead to, and CRLs that lie beside them. They are shared: nobody
// changes them.
type Anchors struct {
	Certificates []*x509.Certificate // at least one, at most MaxAnchors
	CRLs         []*x509.RevocationList
}

// ChainQuestion asks whether a peer's certificates prove its identity.
type ChainQuestion struct {
	// Chain is as the peer sent it, the leaf first, in DER; nothing in it is
	// believed. At most MaxChain of MaxChainOctets in all.
	Chain [][]byte
	// Identity is that of the peer's ID payload. The leaf must be bound to it.
	Identity ipsec.Identity
	// Method is what the policy asks for.
	Method ipsec.CertificateAuth
	Now    time.Time
}

// Certificates finds credentials and judges chains. It is safe for concurrent
// use, and slow: files, Vault, CRLs and OCSP answers are read. Errors are *Error.
type Certificates interface {
	// Credential returns our key and chain behind a reference.
	Credential(ctx context.Context, ref string) (*Credential, error)
	// Authorities returns the SHA-1 digests of the trust anchors' public keys, as
	// CERTREQ carries them (RFC 7296 §3.7).
	Authorities(ctx context.Context, trust []string) ([][20]byte, error)
	// Verify returns the public key of the leaf when the chain leads to an anchor
	// that the method trusts and the leaf is bound to the identity.
	Verify(ctx context.Context, q ChainQuestion) (crypto.PublicKey, error)
}
