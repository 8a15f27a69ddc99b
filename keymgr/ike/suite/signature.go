package suite

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"

	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// form is how a signature is computed and written.
type form uint8

const (
	formPKCS1 form = iota + 1 // RSASSA-PKCS1-v1_5
	formPSS                   // RSASSA-PSS, MGF1 with the same hash, salt as long as the hash
	formDER                   // ECDSA, Ecdsa-Sig-Value
	formRaw                   // ECDSA, r and s side by side (RFC 4754 §7)
	formPure                  // Ed25519 of the octets themselves (RFC 8420)
)

// Scheme is one way to sign the octets of AUTH.
type Scheme struct {
	Name      string
	Method    wire.AuthMethod
	Hash      wire.HashAlgorithm // what the verifier must have announced (method 14)
	Algorithm []byte             // AlgorithmIdentifier, DER (method 14)
	Legacy    bool               // only with allowLegacy

	also [][]byte // other encodings of Algorithm that peers may send
	form form
	hash crypto.Hash
	bits int // of the one curve it is for, 0 for any
}

func (s *Scheme) String() string { return s.Name }

// AlgorithmIdentifiers, as in RFC 7427 appendix A and RFC 8420 appendix A.
var (
	oidRSA     = "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01" // pkcs-1, and one octet
	oidECDSA   = "\x06\x08\x2a\x86\x48\xce\x3d\x04\x03"     // ecdsa-with-SHA2, and one octet
	oidSHA2    = "\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02" // and one octet
	oidEd25519 = "\x06\x03\x2b\x65\x70"
	derNull    = "\x05\x00"
)

func der(tag byte, parts ...string) string {
	body := strings.Join(parts, "")
	return string([]byte{tag, byte(len(body))}) + body
}

func sequence(parts ...string) string { return der(0x30, parts...) }

// pkcs1 has NULL parameters; RFC 4055 §5 wants absent ones accepted too.
func pkcs1(n string) (algorithm []byte, also [][]byte) {
	return []byte(sequence(oidRSA, n, derNull)), [][]byte{[]byte(sequence(oidRSA, n))}
}

// pss names the hashes and the salt: leaving them out means SHA-1. The hash's own
// parameters are NULL, or absent (RFC 4055 §2.1). The trailer, which has a default, is
// left out by a signer and read either way (RFC 4055 §3.1), though RFC 7427 A.4.3 writes
// it: Libreswan compares octets.
func pss(hash string, salt byte) (algorithm []byte, also [][]byte) {
	with := func(null, trailer string) []byte {
		h := sequence(oidSHA2, hash, null)
		return []byte(sequence(oidRSA, "\x0a", sequence(
			der(0xa0, h), der(0xa1, sequence(oidRSA, "\x08", h)),
			der(0xa2, "\x02\x01", string([]byte{salt})), trailer)))
	}
	trailer := der(0xa3, "\x02\x01\x01")
	return with(derNull, ""), [][]byte{with(derNull, trailer), with("", ""), with("", trailer)}
}

func ecdsaWith(n string) []byte { return []byte(sequence(oidECDSA, n)) }

// schemes are in order of preference for a signer, within what its key can do:
//
//   - Method 14 before the classic ones, which name no hash or only one, and
//     which RFC 7427 §3 forbids once both ends have announced hashes.
//   - RSASSA-PSS before PKCS #1 v1.5: it is MUST in RFC 8247 §3.2, and has a proof.
//   - SHA-256 first for RSA: it is the MUST of RFC 8247 §3.2, and no weaker than
//     the keys in use. SHA-512 before SHA-384 (SHOULD before MAY).
//   - ECDSA with the hash of the curve's size first: a longer one would be cut,
//     a shorter one would be the weakest part. See forKey.
//   - SHA-1 last, and never in method 14 (MUST NOT in RFC 8247 §3.2).
var schemes = func() []*Scheme {
	rsaRow := func(name string, f form, h wire.HashAlgorithm, ch crypto.Hash, algorithm []byte, also [][]byte) *Scheme {
		return &Scheme{Name: name, Method: wire.AuthSignature, Hash: h, Algorithm: algorithm, also: also, form: f, hash: ch}
	}
	pss256, pss256also := pss("\x01", 32)
	pss384, pss384also := pss("\x02", 48)
	pss512, pss512also := pss("\x03", 64)
	p256, p256also := pkcs1("\x0b")
	p384, p384also := pkcs1("\x0c")
	p512, p512also := pkcs1("\x0d")
	return []*Scheme{
		{Name: "ed25519", Method: wire.AuthSignature, Hash: wire.HashIdentity, Algorithm: []byte(sequence(oidEd25519)), form: formPure},

		{Name: "ecdsa-sha256", Method: wire.AuthSignature, Hash: wire.HashSHA256, Algorithm: ecdsaWith("\x02"), form: formDER, hash: crypto.SHA256},
		{Name: "ecdsa-sha384", Method: wire.AuthSignature, Hash: wire.HashSHA384, Algorithm: ecdsaWith("\x03"), form: formDER, hash: crypto.SHA384},
		{Name: "ecdsa-sha512", Method: wire.AuthSignature, Hash: wire.HashSHA512, Algorithm: ecdsaWith("\x04"), form: formDER, hash: crypto.SHA512},

		rsaRow("rsa-pss-sha256", formPSS, wire.HashSHA256, crypto.SHA256, pss256, pss256also),
		rsaRow("rsa-pss-sha512", formPSS, wire.HashSHA512, crypto.SHA512, pss512, pss512also),
		rsaRow("rsa-pss-sha384", formPSS, wire.HashSHA384, crypto.SHA384, pss384, pss384also),
		rsaRow("rsa-sha256", formPKCS1, wire.HashSHA256, crypto.SHA256, p256, p256also),
		rsaRow("rsa-sha512", formPKCS1, wire.HashSHA512, crypto.SHA512, p512, p512also),
		rsaRow("rsa-sha384", formPKCS1, wire.HashSHA384, crypto.SHA384, p384, p384also),

		{Name: "ecdsa-256", Method: wire.AuthECDSA256, form: formRaw, hash: crypto.SHA256, bits: 256},
		{Name: "ecdsa-384", Method: wire.AuthECDSA384, form: formRaw, hash: crypto.SHA384, bits: 384},
		{Name: "ecdsa-521", Method: wire.AuthECDSA521, form: formRaw, hash: crypto.SHA512, bits: 521},
		{Name: "rsa-sha1", Method: wire.AuthRSA, form: formPKCS1, hash: crypto.SHA1, Legacy: true},
	}
}()

// Hashes are announced in SIGNATURE_HASH_ALGORITHMS.
func Hashes() []wire.HashAlgorithm {
	return []wire.HashAlgorithm{wire.HashSHA256, wire.HashSHA512, wire.HashSHA384, wire.HashIdentity}
}

// Announcements are all schemes, for SUPPORTED_AUTH_METHODS. Classic ones are
// not announced: a peer that reads this has method 14.
func Announcements() []wire.Announcement {
	var out []wire.Announcement
	for _, s := range schemes {
		if s.Method == wire.AuthSignature {
			out = append(out, wire.Announcement{Method: s.Method, Algorithm: s.Algorithm})
		}
	}
	return out
}

// Accepts is what the verifier of a signature takes.
type Accepts struct {
	Hashes    []wire.HashAlgorithm // of its SIGNATURE_HASH_ALGORITHMS; nil: method 14 is not possible
	Announced []wire.Announcement  // of its SUPPORTED_AUTH_METHODS; nil: not known
	Legacy    bool                 // our policy's allowLegacy
}

// takes: RFC 7427 §3 makes method 14 a MUST once hashes were exchanged.
func (a Accepts) takes(s *Scheme) bool {
	if (a.Hashes != nil) != (s.Method == wire.AuthSignature) || s.Legacy && !a.Legacy {
		return false
	}
	if s.Method != wire.AuthSignature {
		return true
	}
	if !slices.Contains(a.Hashes, s.Hash) {
		return false
	}
	return a.Announced == nil || slices.ContainsFunc(a.Announced, func(x wire.Announcement) bool {
		return x.Method == s.Method && (x.Algorithm == nil || s.is(x.Algorithm))
	})
}

func (s *Scheme) is(algorithm []byte) bool {
	return bytes.Equal(s.Algorithm, algorithm) || slices.ContainsFunc(s.also, func(a []byte) bool { return bytes.Equal(a, algorithm) })
}

// ChooseScheme is the best scheme for a key that the verifier takes.
func ChooseScheme(key crypto.PublicKey, a Accepts) (*Scheme, error) {
	kind, err := CheckKey(key)
	if err != nil {
		return nil, err
	}
	var mine []*Scheme
	for _, s := range schemes {
		if s.fits(key) {
			mine = append(mine, s)
		}
	}
	// The hash of the curve's size first, then longer ones, then shorter ones.
	if k, ok := key.(*ecdsa.PublicKey); ok {
		size := k.Curve.Params().BitSize
		slices.SortStableFunc(mine, func(x, y *Scheme) int { return x.unfit(size) - y.unfit(size) })
	}
	for _, s := range mine {
		if a.takes(s) {
			return s, nil
		}
	}
	names := make([]string, len(mine))
	for i, s := range mine {
		names[i] = s.Name
	}
	return nil, fmt.Errorf("the peer takes no signature that our %s key can make (%s): it announced hashes %v", kind, strings.Join(names, " "), a.Hashes)
}

// unfit is how badly the hash fits a curve.
func (s *Scheme) unfit(curve int) int {
	d := min(s.hash.Size()*8, 512) - min(curve, 512)
	if d < 0 {
		return 1000 - d
	}
	return d
}

// fits reports whether a key can make, and check, such signatures.
func (s *Scheme) fits(key crypto.PublicKey) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return s.form == formPKCS1 || s.form == formPSS
	case *ecdsa.PublicKey:
		return s.form == formDER || s.form == formRaw && k.Curve.Params().BitSize == s.bits
	case ed25519.PublicKey:
		return s.form == formPure
	}
	return false
}

// Bounds on RSA keys. Below 2048 bits is SHOULD NOT (RFC 8247 §3.1); a small
// exponent invites forgeries that a sloppy verifier lets pass; a very large
// modulus makes the verifier work for its sender.
const (
	minRSA      = 2048
	maxRSA      = 8192
	minExponent = 65537
)

// CheckKey refuses keys that no scheme takes, and names the kind of the others.
func CheckKey(key crypto.PublicKey) (kind string, err error) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		bits := k.N.BitLen()
		if bits < minRSA || bits > maxRSA || k.E < minExponent {
			return "", fmt.Errorf("RSA key of %d bits with exponent %d, want %d to %d bits and an exponent of at least %d", bits, k.E, minRSA, maxRSA, minExponent)
		}
		return fmt.Sprintf("rsa-%d", bits), nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return fmt.Sprintf("ecdsa-%d", k.Curve.Params().BitSize), nil
		}
		return "", fmt.Errorf("ECDSA key on %s, want P-256, P-384 or P-521", k.Curve.Params().Name)
	case ed25519.PublicKey:
		return "ed25519", nil
	}
	return "", fmt.Errorf("key of type %T, want RSA, ECDSA or Ed25519", key)
}

func (s *Scheme) digest(octets []byte) []byte {
	switch s.hash {
	case crypto.SHA1:
		d := sha1.Sum(octets)
		return d[:]
	case crypto.SHA256:
		d := sha256.Sum256(octets)
		return d[:]
	case crypto.SHA384:
		d := sha512.Sum384(octets)
		return d[:]
	case crypto.SHA512:
		d := sha512.Sum512(octets)
		return d[:]
	}
	return octets
}

type ecdsaSignature struct{ R, S *big.Int }

// Sign makes an AUTH payload.
func (s *Scheme) Sign(random io.Reader, key crypto.Signer, octets []byte) (*wire.Auth, error) {
	if !s.fits(key.Public()) {
		return nil, fmt.Errorf("signature scheme %s does not go with a key of type %T", s, key.Public())
	}
	var opts crypto.SignerOpts = s.hash
	if s.form == formPSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: s.hash}
	}
	sig, err := key.Sign(random, s.digest(octets), opts)
	if err != nil {
		return nil, fmt.Errorf("sign with %s: %w", s, err)
	}
	if s.form == formRaw {
		if sig, err = rawECDSA(sig, s.bits); err != nil {
			return nil, err
		}
	}
	a := &wire.Auth{Method: s.Method, Data: sig}
	if s.Method == wire.AuthSignature {
		a.Data = wire.SignatureAuth{Algorithm: s.Algorithm, Signature: sig}.Append(nil)
	}
	return a, nil
}

func rawECDSA(sig []byte, bits int) ([]byte, error) {
	var x ecdsaSignature
	if rest, err := asn1.Unmarshal(sig, &x); err != nil || len(rest) != 0 {
		return nil, errors.New("the signer returned no ECDSA signature in DER")
	}
	n := (bits + 7) / 8
	out := make([]byte, 2*n)
	if x.R.BitLen() > 8*n || x.S.BitLen() > 8*n {
		return nil, fmt.Errorf("the signer returned an ECDSA signature too long for %d bits", bits)
	}
	x.R.FillBytes(out[:n])
	x.S.FillBytes(out[n:])
	return out, nil
}

// ErrSignature: the signature does not verify.
var ErrSignature = errors.New("the signature does not verify")

// FindScheme is the scheme of a peer's AUTH payload, and the signature in it.
// ours says whether hashes were exchanged and what is allowed: a classic method
// after an exchange of hashes is a downgrade, and refused (RFC 7427 §3).
func FindScheme(auth *wire.Auth, ours Accepts) (*Scheme, []byte, error) {
	sig := auth.Data
	var algorithm []byte
	if auth.Method == wire.AuthSignature {
		a, err := wire.ParseSignatureAuth(auth.Data)
		if err != nil {
			return nil, nil, err
		}
		algorithm, sig = a.Algorithm, a.Signature
	}
	for _, s := range schemes {
		if s.Method != auth.Method || algorithm != nil && !s.is(algorithm) {
			continue
		}
		if !ours.takes(s) {
			return nil, nil, fmt.Errorf("the peer signs with %s, which is not accepted here: we announced hashes %v%s", s, ours.Hashes, legacyHint(s, ours))
		}
		return s, sig, nil
	}
	if algorithm != nil {
		return nil, nil, fmt.Errorf("the peer signs with an algorithm that is not accepted here: AlgorithmIdentifier %x", algorithm)
	}
	return nil, nil, fmt.Errorf("the peer authenticates with %s, which is not accepted here", auth.Method)
}

func legacyHint(s *Scheme, ours Accepts) string {
	if s.Legacy && !ours.Legacy {
		return ", and allowLegacy is not set"
	}
	return ""
}

// Verify checks a signature. Its error is ErrSignature, or says what is wrong
// with the key.
func (s *Scheme) Verify(key crypto.PublicKey, octets, sig []byte) error {
	if kind, err := CheckKey(key); err != nil {
		return err
	} else if !s.fits(key) {
		return fmt.Errorf("signature scheme %s does not go with the %s key in the certificate", s, kind)
	}
	ok := false
	switch k := key.(type) {
	case *rsa.PublicKey:
		if s.form == formPSS {
			ok = rsa.VerifyPSS(k, s.hash, s.digest(octets), sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: s.hash}) == nil
		} else {
			ok = rsa.VerifyPKCS1v15(k, s.hash, s.digest(octets), sig) == nil
		}
	case *ecdsa.PublicKey:
		if s.form == formRaw {
			n := (s.bits + 7) / 8
			if len(sig) != 2*n {
				return ErrSignature
			}
			var err error
			if sig, err = asn1.Marshal(ecdsaSignature{new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:])}); err != nil {
				return ErrSignature
			}
		}
		ok = ecdsa.VerifyASN1(k, s.digest(octets), sig)
	case ed25519.PublicKey:
		ok = len(sig) == ed25519.SignatureSize && ed25519.Verify(k, octets, sig)
	}
	if !ok {
		return ErrSignature
	}
	return nil
}
