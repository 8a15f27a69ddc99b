package cred

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
)

// What keys may be: RSA of MinRSA to MaxRSA bits, ECDSA on P-256, P-384 or P-521,
// Ed25519. An RSA key above MaxRSA would let a peer buy much of our time with
// one signature.
const (
	MinRSA = 2048
	MaxRSA = 8192
)

// CheckKey refuses a public key that is too weak, or of a kind that nobody here
// could use.
func CheckKey(pub crypto.PublicKey) *Error {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < MinRSA || n > MaxRSA {
			return Errorf(TooWeak, "", "an RSA key of %d bits, want %d to %d", n, MinRSA, MaxRSA)
		}
		return nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return Errorf(TooWeak, "", "an ECDSA key on %s, want P-256, P-384 or P-521", k.Curve.Params().Name)
	case ed25519.PublicKey:
		return nil
	}
	return Errorf(Invalid, "", "a key of type %T, want RSA, ECDSA or Ed25519", pub)
}

// ParseAnchors reads what stands behind a reference of trust: certificates and
// CRLs in PEM, in any order.
func ParseAnchors(ref string, text []byte) (*Anchors, error) {
	var a Anchors
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "CERTIFICATE":
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, Errorf(Invalid, ref, "certificate %d: %w", len(a.Certificates)+1, err)
			}
			a.Certificates = append(a.Certificates, cert)
		case "X509 CRL":
			crl, err := x509.ParseRevocationList(block.Bytes)
			if err != nil {
				return nil, Errorf(Invalid, ref, "CRL %d: %w", len(a.CRLs)+1, err)
			}
			a.CRLs = append(a.CRLs, crl)
		default: // a private key above all
			return nil, Errorf(Invalid, ref, "got a PEM block %q among trust anchors, want CERTIFICATE and X509 CRL only", block.Type)
		}
		if len(a.Certificates) > MaxAnchors || len(a.CRLs) > MaxAnchors {
			return nil, Errorf(Invalid, ref, "more than %d certificates or CRLs behind one reference", MaxAnchors)
		}
	}
	if len(a.Certificates) == 0 {
		return nil, Errorf(Invalid, ref, "no certificate in PEM: want one or more trust anchors")
	}
	return &a, nil
}

// NewCredential checks that a chain, leaf first, and a key belong together and
// may be used, and makes a credential of them. A self-signed end of the chain is
// left out: a peer must have it already (RFC 7296 §3.6).
func NewCredential(ref string, chain [][]byte, key crypto.Signer) (*Credential, error) {
	if len(chain) == 0 || len(chain) > MaxChain {
		return nil, Errorf(Invalid, ref, "got %d certificates, want 1 to %d, the leaf first", len(chain), MaxChain)
	}
	octets := 0
	var certs []*x509.Certificate
	for i, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, Errorf(Invalid, ref, "certificate %d: %w", i+1, err)
		}
		if i > 0 && string(certs[i-1].RawIssuer) != string(cert.RawSubject) {
			return nil, Errorf(Invalid, ref, "certificate %d was not issued by certificate %d (%s): want the leaf first, and after each the one that issued it", i, i+1, cert.Subject)
		}
		certs = append(certs, cert)
		octets += len(der)
	}
	if octets > MaxChainOctets {
		return nil, Errorf(Invalid, ref, "the chain has %d octets, want at most %d", octets, MaxChainOctets)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(certs[0].PublicKey) {
		return nil, Errorf(Invalid, ref, "the private key is not that of the first certificate (%s)", certs[0].Subject)
	}
	if err := CheckKey(key.Public()); err != nil {
		return nil, &Error{Kind: err.Kind, Ref: ref, Why: err.Why}
	}
	if last := len(certs) - 1; last > 0 && string(certs[last].RawIssuer) == string(certs[last].RawSubject) {
		chain = chain[:last]
	}
	return &Credential{Chain: chain, Signer: key, NotAfter: certs[0].NotAfter}, nil
}

// ParseChain reads the certificates of a credential in PEM, the leaf first.
func ParseChain(ref string, text []byte) ([][]byte, error) {
	var chain [][]byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, Errorf(Invalid, ref, "got a PEM block %q among certificates, want CERTIFICATE only", block.Type)
		}
		chain = append(chain, block.Bytes)
	}
	if len(chain) == 0 {
		return nil, Errorf(Invalid, ref, "no certificate in PEM")
	}
	return chain, nil
}

// ParseKey reads a private key in PEM: PKCS #8, or the older forms of RSA and
// ECDSA keys. Errors do not quote anything of it.
func ParseKey(ref string, text []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return nil, Errorf(Invalid, ref, "the private key is encrypted, and keymgrd starts without anybody to ask for the passphrase: store it decrypted with mode 0600")
		}
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "EC PARAMETERS": // openssl ecparam writes them before the key
			continue
		default:
			return nil, Errorf(Invalid, ref, "got a PEM block that is no private key; want PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY")
		}
		clear(block.Bytes)
		signer, ok := key.(crypto.Signer)
		if err != nil || !ok {
			return nil, Errorf(Invalid, ref, "the private key cannot be read; want RSA, ECDSA on a NIST curve, or Ed25519")
		}
		return signer, nil
	}
	return nil, Errorf(Invalid, ref, "no private key in PEM")
}
