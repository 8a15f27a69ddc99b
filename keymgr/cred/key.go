package cred

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
)

// KeyKinds are the kinds of private keys that GenerateKey makes, the usual one
// first.
var KeyKinds = []string{"ecdsa256", "ecdsa384", "ecdsa521", "ed25519", "rsa2048", "rsa3072", "rsa4096"}

// GenerateKey makes a private key of one of KeyKinds.
func GenerateKey(kind string) (crypto.Signer, error) {
	switch kind {
	case "ecdsa256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ecdsa384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ecdsa521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "ed25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case "rsa2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "rsa3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "rsa4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, CheckKeyKind(kind)
}

// CheckKeyKind reports a kind of key that GenerateKey does not make.
func CheckKeyKind(kind string) error {
	if slices.Contains(KeyKinds, kind) {
		return nil
	}
	return fmt.Errorf("key: got %q, want one of %s", kind, strings.Join(KeyKinds, ", "))
}
