package suite

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

func schemeByName(t testing.TB, name string) *Scheme {
	i := slices.IndexFunc(schemes, func(s *Scheme) bool { return s.Name == name })
	if i < 0 {
		t.Fatalf("no scheme %s", name)
	}
	return schemes[i]
}

// RFC 7427 appendix A, and RFC 8420 appendix A for Ed25519. RSASSA-PSS is without the
// trailer of A.4.3: "Implementations that perform signature generation MUST omit the
// trailerField field" (RFC 4055 §3.1).
func TestAlgorithmIdentifiersAreThoseOfTheRFCs(t *testing.T) {
	for name, want := range map[string]string{
		"rsa-sha256":   "300d 0609 2a86 4886 f70d 0101 0b05 00",
		"rsa-sha384":   "300d 0609 2a86 4886 f70d 0101 0c05 00",
		"rsa-sha512":   "300d 0609 2a86 4886 f70d 0101 0d05 00",
		"ecdsa-sha256": "300a 0608 2a86 48ce 3d04 0302",
		"ecdsa-sha384": "300a 0608 2a86 48ce 3d04 0303",
		"ecdsa-sha512": "300a 0608 2a86 48ce 3d04 0304",
		"rsa-pss-sha256": `3041 0609 2a86 4886 f70d 0101 0a30 34a0 0f30 0d06 0960 8648 0165 0304 0201 0500
			a11c 301a 0609 2a86 4886 f70d 0101 0830 0d06 0960 8648 0165 0304 0201 0500 a203 0201 20`,
		"ed25519": "3005 0603 2b65 70",
	} {
		b, err := hex.DecodeString(strings.Join(strings.Fields(want), ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := schemeByName(t, name).Algorithm; !bytes.Equal(got, b) {
			t.Errorf("%s:\n got %x\nwant %x", name, got, b)
		}
	}
}

// RFC 8247 §3.2: SHA-1, and RSASSA-PSS with empty or default parameters, which
// mean SHA-1, MUST NOT be used with method 14. (SLOTH: a signature hash whose
// collisions can be found lets a man in the middle splice transcripts.)
func TestWeakHashesAreRefusedInMethod14(t *testing.T) {
	for name, h := range map[string]string{
		"sha1WithRSAEncryption":   "300d06092a864886f70d0101050500",
		"md5WithRSAEncryption":    "300d06092a864886f70d0101040500",
		"dsa-with-sha1":           "300906072a8648ce380403",
		"ecdsa-with-sha1":         "300906072a8648ce3d0401",
		"PSS, empty parameters":   "300d06092a864886f70d01010a3000",
		"PSS, default parameters": "303e06092a864886f70d01010a3031a00b300906052b0e03021a0500a118301606092a864886f70d010108300906052b0e03021a0500a203020114a303020101",
	} {
		der, err := hex.DecodeString(h)
		if err != nil {
			t.Fatal(err)
		}
		auth := &wire.Auth{Method: wire.AuthSignature, Data: wire.SignatureAuth{Algorithm: der, Signature: []byte{1}}.Append(nil)}
		for _, legacy := range []bool{false, true} {
			if s, _, err := FindScheme(auth, Accepts{Hashes: Hashes(), Legacy: legacy}); err == nil {
				t.Errorf("%s is accepted as %s", name, s)
			}
		}
	}
	if slices.Contains(Hashes(), wire.HashSHA1) {
		t.Error("SHA-1 is announced")
	}
}

type testKey struct {
	crypto.Signer
	name string
}

func keys(t testing.TB) []testKey {
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	out := []testKey{{r, "rsa"}}
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, testKey{k, c.Params().Name})
	}
	_, e, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return append(out, testKey{e, "ed25519"})
}

// Every scheme verifies what it signed, and nothing else: another message, a
// changed signature, another key, another scheme.
func TestEverySchemeSignsAndVerifies(t *testing.T) {
	ks, others := keys(t), keys(t)
	used := map[string]bool{}
	for i, k := range ks {
		for _, s := range schemes {
			if !s.fits(k.Public()) {
				if _, err := s.Sign(rand.Reader, k, []byte("octets")); err == nil {
					t.Errorf("%s signs with a key for %s", s, k.name)
				}
				continue
			}
			used[s.Name] = true
			auth, err := s.Sign(rand.Reader, k, []byte("octets"))
			if err != nil {
				t.Fatalf("%s with %s: %v", s, k.name, err)
			}
			accept := Accepts{Legacy: s.Legacy}
			if s.Method == wire.AuthSignature {
				accept.Hashes = []wire.HashAlgorithm{s.Hash}
			}
			got, sig, err := FindScheme(auth, accept)
			if err != nil || got != s {
				t.Fatalf("%s is found as %v, %v", s, got, err)
			}
			if err := got.Verify(k.Public(), []byte("octets"), sig); err != nil {
				t.Errorf("%s with %s: %v", s, k.name, err)
			}
			flipped := bytes.Clone(sig)
			flipped[len(flipped)-1] ^= 1
			for what, err := range map[string]error{
				"another message":    got.Verify(k.Public(), []byte("Octets"), sig),
				"a changed octet":    got.Verify(k.Public(), []byte("octets"), flipped),
				"an empty signature": got.Verify(k.Public(), []byte("octets"), nil), // CVE-2013-2944
				"an octet more":      got.Verify(k.Public(), []byte("octets"), append(bytes.Clone(sig), 0)),
				"another key":        got.Verify(others[i].Public(), []byte("octets"), sig),
			} {
				if !errors.Is(err, ErrSignature) {
					t.Errorf("%s with %s: %s gives %v", s, k.name, what, err)
				}
			}
			for _, o := range schemes {
				if o != s && o.fits(k.Public()) && o.Verify(k.Public(), []byte("octets"), sig) == nil {
					t.Errorf("what %s signed verifies as %s", s, o)
				}
			}
		}
	}
	if len(used) != len(schemes) {
		t.Errorf("used %d of %d schemes", len(used), len(schemes))
	}
}

// RFC 4754 §7: r and s, each as long as the curve's order.
func TestClassicECDSASignaturesHaveTheLengthsOfTheRFC(t *testing.T) {
	for _, k := range keys(t) {
		for _, s := range schemes {
			if s.form != formRaw || !s.fits(k.Public()) {
				continue
			}
			a, err := s.Sign(rand.Reader, k, []byte("x"))
			if err != nil {
				t.Fatal(err)
			}
			if want := map[wire.AuthMethod]int{9: 64, 10: 96, 11: 132}[a.Method]; len(a.Data) != want {
				t.Errorf("%s: %d octets, want %d", s, len(a.Data), want)
			}
		}
	}
}

func TestSchemeFollowsWhatThePeerAnnounces(t *testing.T) {
	ks := map[string]crypto.PublicKey{}
	for _, k := range keys(t) {
		ks[k.name] = k.Public()
	}
	all := Hashes()
	tests := []struct {
		key    string
		accept Accepts
		want   string // scheme, or part of the error
	}{
		{"rsa", Accepts{Hashes: all}, "rsa-pss-sha256"},
		{"rsa", Accepts{Hashes: []wire.HashAlgorithm{wire.HashSHA384}}, "rsa-pss-sha384"},
		{"rsa", Accepts{Hashes: all, Announced: []wire.Announcement{{Method: 14, Algorithm: schemeByName(t, "rsa-sha256").Algorithm}}}, "rsa-sha256"},
		{"rsa", Accepts{Hashes: []wire.HashAlgorithm{wire.HashSHA1}, Legacy: true}, "takes no signature"},
		{"rsa", Accepts{}, "takes no signature"}, // SHA-1 needs allowLegacy
		{"rsa", Accepts{Legacy: true}, "rsa-sha1"},
		{"P-256", Accepts{Hashes: all}, "ecdsa-sha256"},
		{"P-384", Accepts{Hashes: all}, "ecdsa-sha384"},
		{"P-521", Accepts{Hashes: all}, "ecdsa-sha512"},
		{"P-384", Accepts{Hashes: []wire.HashAlgorithm{wire.HashSHA256, wire.HashSHA512}}, "ecdsa-sha512"},
		{"P-384", Accepts{Hashes: []wire.HashAlgorithm{wire.HashSHA256}}, "ecdsa-sha256"},
		{"P-256", Accepts{}, "ecdsa-256"},
		{"P-384", Accepts{}, "ecdsa-384"},
		{"P-521", Accepts{}, "ecdsa-521"},
		{"ed25519", Accepts{Hashes: all}, "ed25519"},
		{"ed25519", Accepts{Hashes: []wire.HashAlgorithm{wire.HashSHA512}}, "takes no signature"}, // RFC 8420 §2
		{"ed25519", Accepts{Legacy: true}, "takes no signature"},
	}
	for _, tc := range tests {
		s, err := ChooseScheme(ks[tc.key], tc.accept)
		if got := s; err == nil && got.Name != tc.want || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s, %+v: got %v, %v; want %s", tc.key, tc.accept, got, err, tc.want)
		}
	}
}

// RFC 7427 §3: "If both ends send and receive SIGNATURE_HASH_ALGORITHMS ... the
// authentication method specified ... MUST be used". Accepting less would let a
// peer's weaker implementation decide.
func TestClassicMethodAfterAnExchangeOfHashesIsADowngrade(t *testing.T) {
	for _, m := range []wire.AuthMethod{wire.AuthRSA, wire.AuthECDSA256, wire.AuthECDSA384, wire.AuthECDSA521} {
		if s, _, err := FindScheme(&wire.Auth{Method: m, Data: []byte{1}}, Accepts{Hashes: Hashes(), Legacy: true}); err == nil {
			t.Errorf("%s is accepted", s)
		}
	}
	a := &wire.Auth{Method: wire.AuthSignature, Data: wire.SignatureAuth{Algorithm: schemeByName(t, "ed25519").Algorithm, Signature: []byte{1}}.Append(nil)}
	if s, _, err := FindScheme(a, Accepts{}); err == nil {
		t.Errorf("%s is accepted without an exchange of hashes", s)
	}
}

// CVE-2018-16151, CVE-2018-16152, CVE-2026-50721: PKCS #1 v1.5 with what does not
// belong into the padding, under a small exponent. The exponent is refused, and
// the encoding compared as a whole.
func TestForgedPKCS1SignaturesAreRefused(t *testing.T) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s := schemeByName(t, "rsa-sha256")
	small := &rsa.PublicKey{N: k.N, E: 3}
	if err := s.Verify(small, []byte("x"), make([]byte, 256)); err == nil || !strings.Contains(err.Error(), "exponent 3") {
		t.Errorf("exponent 3: %v", err)
	}
	d := sha256.Sum256([]byte("x"))
	info, _ := hex.DecodeString("3031300d060960864801650304020105000420")
	for name, em := range map[string][]byte{
		"garbage after the digest": slices.Concat([]byte{0, 1}, bytes.Repeat([]byte{0xff}, 8), []byte{0}, info, d[:]),
		"short padding":            slices.Concat([]byte{0, 1, 0xff, 0}, info, d[:]),
	} {
		m := make([]byte, 256)
		copy(m, em)
		sig := new(big.Int).Exp(new(big.Int).SetBytes(m), k.D, k.N).FillBytes(make([]byte, 256))
		if err := s.Verify(&k.PublicKey, []byte("x"), sig); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnfitKeysAreRefused(t *testing.T) {
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n := func(bits uint) *big.Int {
		return new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), bits-1), big.NewInt(1))
	}
	for name, k := range map[string]crypto.PublicKey{
		"RSA of 1024 bits":  &rsa.PublicKey{N: n(1024), E: 65537},
		"RSA of 16384 bits": &rsa.PublicKey{N: n(16384), E: 65537},
		"RSA, exponent 3":   &rsa.PublicKey{N: n(2048), E: 3},
		"P-224":             &p224.PublicKey,
		"no key":            nil,
	} {
		if kind, err := CheckKey(k); err == nil {
			t.Errorf("%s passes as %s", name, kind)
		}
		if err := schemeByName(t, "ecdsa-sha256").Verify(k, []byte("x"), []byte{1}); err == nil {
			t.Errorf("%s verifies", name)
		}
	}
}

// RFC 7427 A.4.3, which writes the trailer: "Implementations that perform signature
// validation MUST recognize both a present trailerField field with value 1 and an absent
// trailerField field" (RFC 4055 §3.1).
func TestPSSWithATrailerIsTheSameScheme(t *testing.T) {
	algorithm, err := hex.DecodeString("304606092a864886f70d01010a3039a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402010500a203020120a303020101")
	if err != nil {
		t.Fatal(err)
	}
	auth := &wire.Auth{Method: wire.AuthSignature, Data: wire.SignatureAuth{Algorithm: algorithm, Signature: []byte{1}}.Append(nil)}
	s, _, err := FindScheme(auth, Accepts{Hashes: Hashes()})
	if err != nil || s.Name != "rsa-pss-sha256" {
		t.Errorf("got %v, %v", s, err)
	}
}
