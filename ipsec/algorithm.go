package ipsec

import (
	"fmt"
	"slices"
	"strings"
)

// TransformType is the kind of a transform (RFC 7296 §3.3.2).
type TransformType uint8

const (
	TransformENCR  TransformType = 1
	TransformPRF   TransformType = 2
	TransformINTEG TransformType = 3
	TransformKE    TransformType = 4 // "Diffie-Hellman group" in RFC 7296, "Key Exchange Method" since RFC 9370
	TransformESN   TransformType = 5
	TransformADDKE TransformType = 6 // to 12: Additional Key Exchange 1 to 7 (RFC 9370 §4.1)
)

// MaxADDKE is how many additional key exchanges an SA may have.
const MaxADDKE = 7

// AdditionalKE reports one of the seven types of additional key exchanges.
func (t TransformType) AdditionalKE() bool { return t >= TransformADDKE && t < TransformADDKE+MaxADDKE }

var transformTypeNames = [...]string{1: "ENCR", 2: "PRF", 3: "INTEG", 4: "KE", 5: "ESN",
	6: "ADDKE1", 7: "ADDKE2", 8: "ADDKE3", 9: "ADDKE4", 10: "ADDKE5", 11: "ADDKE6", 12: "ADDKE7"}

func (t TransformType) String() string {
	if t >= 1 && int(t) < len(transformTypeNames) {
		return transformTypeNames[t]
	}
	return fmt.Sprintf("TYPE-%d", uint8(t))
}

// Transform is one algorithm as IKEv2 negotiates it: IANA type and ID, and the
// Key Length attribute in bits (0 when the algorithm has a fixed key length).
type Transform struct {
	Type    TransformType
	ID      uint16
	KeyBits uint16
}

// String is the name operators write (aes256gcm16), or the numbers when the
// transform is unknown.
func (t Transform) String() string {
	if a, ok := LookupAlgorithm(t); ok {
		return a.Name
	}
	if t.KeyBits != 0 {
		return fmt.Sprintf("%s-%d/%d", t.Type, t.ID, t.KeyBits)
	}
	return fmt.Sprintf("%s-%d", t.Type, t.ID)
}

// IANA "Transform Type 1 - Encryption Algorithm Transform IDs".
const (
	EncrDES              uint16 = 2
	Encr3DES             uint16 = 3
	EncrNULL             uint16 = 11
	EncrAESCBC           uint16 = 12
	EncrAESCTR           uint16 = 13
	EncrAESCCM8          uint16 = 14
	EncrAESCCM12         uint16 = 15
	EncrAESCCM16         uint16 = 16
	EncrAESGCM8          uint16 = 18
	EncrAESGCM12         uint16 = 19
	EncrAESGCM16         uint16 = 20
	EncrNullAESGMAC      uint16 = 21
	EncrChaCha20Poly1305 uint16 = 28
)

// IANA "Transform Type 2 - Pseudorandom Function Transform IDs".
const (
	PRFHMACMD5     uint16 = 1
	PRFHMACSHA1    uint16 = 2
	PRFAES128XCBC  uint16 = 4
	PRFHMACSHA2256 uint16 = 5
	PRFHMACSHA2384 uint16 = 6
	PRFHMACSHA2512 uint16 = 7
	PRFAES128CMAC  uint16 = 8
)

// IANA "Transform Type 3 - Integrity Algorithm Transform IDs".
const (
	IntegNone          uint16 = 0
	IntegHMACMD596     uint16 = 1
	IntegHMACSHA196    uint16 = 2
	IntegAESXCBC96     uint16 = 5
	IntegAESCMAC96     uint16 = 8
	IntegAES128GMAC    uint16 = 9
	IntegAES192GMAC    uint16 = 10
	IntegAES256GMAC    uint16 = 11
	IntegHMACSHA256128 uint16 = 12
	IntegHMACSHA384192 uint16 = 13
	IntegHMACSHA512256 uint16 = 14
)

// IANA "Transform Type 4 - Key Exchange Method Transform IDs".
const (
	KENone      uint16 = 0
	KEMODP768   uint16 = 1
	KEMODP1024  uint16 = 2
	KEMODP1536  uint16 = 5
	KEMODP2048  uint16 = 14
	KEMODP3072  uint16 = 15
	KEMODP4096  uint16 = 16
	KEMODP6144  uint16 = 17
	KEMODP8192  uint16 = 18
	KEP256      uint16 = 19
	KEP384      uint16 = 20
	KEP521      uint16 = 21
	KEX25519    uint16 = 31
	KEMLKEM512  uint16 = 35
	KEMLKEM768  uint16 = 36
	KEMLKEM1024 uint16 = 37
)

// IANA "Transform Type 5 - Extended Sequence Numbers Transform IDs".
const (
	ESNNo  uint16 = 0
	ESNYes uint16 = 1
)

// Standing is what RFC 8247 (IKE) and RFC 8221 (ESP, AH) say of an algorithm.
type Standing string

const (
	StandingMust   Standing = "MUST"
	StandingShould Standing = "SHOULD"
	StandingMay    Standing = "MAY"
	StandingLegacy Standing = "legacy" // SHOULD NOT or MUST NOT: only with allowLegacy
)

// Use says which protocols an algorithm may serve in.
type Use uint8

const (
	UseIKE Use = 1 << iota
	UseESP
	UseAH
)

// Algorithm is one row of the attribute table: everything code outside the
// crypto constructors needs to know of a transform. Lengths are in octets.
type Algorithm struct {
	Transform
	Name     string   // as strongSwan users write it; unique
	Aliases  []string // other spellings that are accepted
	Standing Standing
	Use      Use
	KeyLen   int // octets of key taken from KEYMAT, without SaltLen
	SaltLen  int // octets of salt taken after the key (AEAD, CTR, GMAC)
	IVLen    int // octets of explicit IV on the wire
	Block    int // padding granularity in octets; 1 for stream and AEAD modes
	ICVLen   int // octets of ICV on the wire: AEAD tag, or truncated MAC
	AEAD     bool
}

// Algorithms is the table. Row order has no meaning; preference is policy.
// It is read-only: callers must not change it.
func Algorithms() []Algorithm { return slices.Clone(algorithms) }

var algorithms = []Algorithm{
	// Encryption. RFC 8221 §5 asks for keys of 128 and 256 bits; 192 bits remain at
	// MAY, and what it does not name is MAY as well. KeyLen and SaltLen are the
	// KEYMAT of RFC 4106 §8.1, RFC 7634 §2, RFC 3686 §5.1 (nonce of 4 octets),
	// RFC 4309 §7.1 (salt of 3) and RFC 4543 §5.4.
	{Transform: Transform{TransformENCR, EncrAESGCM16, 128}, Name: "aes128gcm16", Aliases: []string{"aes128gcm128", "aes128gcm"}, Standing: StandingMust, Use: UseIKE | UseESP, KeyLen: 16, SaltLen: 4, IVLen: 8, Block: 1, ICVLen: 16, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESGCM16, 192}, Name: "aes192gcm16", Aliases: []string{"aes192gcm128", "aes192gcm"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 24, SaltLen: 4, IVLen: 8, Block: 1, ICVLen: 16, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESGCM16, 256}, Name: "aes256gcm16", Aliases: []string{"aes256gcm128", "aes256gcm"}, Standing: StandingMust, Use: UseIKE | UseESP, KeyLen: 32, SaltLen: 4, IVLen: 8, Block: 1, ICVLen: 16, AEAD: true},
	{Transform: Transform{TransformENCR, EncrChaCha20Poly1305, 0}, Name: "chacha20poly1305", Standing: StandingShould, Use: UseIKE | UseESP, KeyLen: 32, SaltLen: 4, IVLen: 8, Block: 1, ICVLen: 16, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESCBC, 128}, Name: "aes128", Aliases: []string{"aes128cbc"}, Standing: StandingMust, Use: UseIKE | UseESP, KeyLen: 16, IVLen: 16, Block: 16},
	{Transform: Transform{TransformENCR, EncrAESCBC, 192}, Name: "aes192", Aliases: []string{"aes192cbc"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 24, IVLen: 16, Block: 16},
	{Transform: Transform{TransformENCR, EncrAESCBC, 256}, Name: "aes256", Aliases: []string{"aes256cbc"}, Standing: StandingMust, Use: UseIKE | UseESP, KeyLen: 32, IVLen: 16, Block: 16},
	{Transform: Transform{TransformENCR, EncrAESGCM8, 128}, Name: "aes128gcm8", Aliases: []string{"aes128gcm64"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 16, SaltLen: 4, IVLen: 8, Block: 1, ICVLen: 8, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESGCM8, 192}, Name: "aes192gcm8", Aliases: []string{"aes192gcm64"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 24, SaltLen: 4, IVLen: 8, Block: 1, ICVLen: 8, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESGCM8, 256}, Name: "aes256gcm8", Aliases: []string{"aes256gcm64"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 32, SaltLen: 4, IVLen: 8, Block: 1, ICVLen: 8, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESGCM12, 128}, Name: "aes128gcm12", Aliases: []string{"aes128gcm96"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 16, SaltLen: 4, IVLen: 8, Block: 1, ICVLen: 12, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESGCM12, 192}, Name: "aes192gcm12", Aliases: []string{"aes192gcm96"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 24, SaltLen: 4, IVLen: 8, Block: 1, ICVLen: 12, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESGCM12, 256}, Name: "aes256gcm12", Aliases: []string{"aes256gcm96"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 32, SaltLen: 4, IVLen: 8, Block: 1, ICVLen: 12, AEAD: true},
	// RFC 8221 §5: AES-CCM-8 is SHOULD for the Internet of Things, with 128-bit keys.
	{Transform: Transform{TransformENCR, EncrAESCCM8, 128}, Name: "aes128ccm8", Aliases: []string{"aes128ccm64"}, Standing: StandingShould, Use: UseIKE | UseESP, KeyLen: 16, SaltLen: 3, IVLen: 8, Block: 1, ICVLen: 8, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESCCM8, 192}, Name: "aes192ccm8", Aliases: []string{"aes192ccm64"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 24, SaltLen: 3, IVLen: 8, Block: 1, ICVLen: 8, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESCCM8, 256}, Name: "aes256ccm8", Aliases: []string{"aes256ccm64"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 32, SaltLen: 3, IVLen: 8, Block: 1, ICVLen: 8, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESCCM12, 128}, Name: "aes128ccm12", Aliases: []string{"aes128ccm96"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 16, SaltLen: 3, IVLen: 8, Block: 1, ICVLen: 12, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESCCM12, 192}, Name: "aes192ccm12", Aliases: []string{"aes192ccm96"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 24, SaltLen: 3, IVLen: 8, Block: 1, ICVLen: 12, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESCCM12, 256}, Name: "aes256ccm12", Aliases: []string{"aes256ccm96"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 32, SaltLen: 3, IVLen: 8, Block: 1, ICVLen: 12, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESCCM16, 128}, Name: "aes128ccm16", Aliases: []string{"aes128ccm128"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 16, SaltLen: 3, IVLen: 8, Block: 1, ICVLen: 16, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESCCM16, 192}, Name: "aes192ccm16", Aliases: []string{"aes192ccm128"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 24, SaltLen: 3, IVLen: 8, Block: 1, ICVLen: 16, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESCCM16, 256}, Name: "aes256ccm16", Aliases: []string{"aes256ccm128"}, Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 32, SaltLen: 3, IVLen: 8, Block: 1, ICVLen: 16, AEAD: true},
	{Transform: Transform{TransformENCR, EncrAESCTR, 128}, Name: "aes128ctr", Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 16, SaltLen: 4, IVLen: 8, Block: 1},
	{Transform: Transform{TransformENCR, EncrAESCTR, 192}, Name: "aes192ctr", Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 24, SaltLen: 4, IVLen: 8, Block: 1},
	{Transform: Transform{TransformENCR, EncrAESCTR, 256}, Name: "aes256ctr", Standing: StandingMay, Use: UseIKE | UseESP, KeyLen: 32, SaltLen: 4, IVLen: 8, Block: 1},
	// Authentication without secrecy: RFC 4543 §3 as a combined mode, RFC 2410 beside
	// an integrity algorithm.
	{Transform: Transform{TransformENCR, EncrNullAESGMAC, 128}, Name: "aes128gmac", Standing: StandingMay, Use: UseESP, KeyLen: 16, SaltLen: 4, IVLen: 8, Block: 1, ICVLen: 16, AEAD: true},
	{Transform: Transform{TransformENCR, EncrNullAESGMAC, 192}, Name: "aes192gmac", Standing: StandingMay, Use: UseESP, KeyLen: 24, SaltLen: 4, IVLen: 8, Block: 1, ICVLen: 16, AEAD: true},
	{Transform: Transform{TransformENCR, EncrNullAESGMAC, 256}, Name: "aes256gmac", Standing: StandingMay, Use: UseESP, KeyLen: 32, SaltLen: 4, IVLen: 8, Block: 1, ICVLen: 16, AEAD: true},
	{Transform: Transform{TransformENCR, EncrNULL, 0}, Name: "null", Standing: StandingMust, Use: UseESP, Block: 1},
	// Blocks of 64 bits: 3DES is SHOULD NOT, DES is MUST NOT (RFC 8221 §5).
	{Transform: Transform{TransformENCR, Encr3DES, 0}, Name: "3des", Aliases: []string{"3descbc"}, Standing: StandingLegacy, Use: UseIKE | UseESP, KeyLen: 24, IVLen: 8, Block: 8},
	{Transform: Transform{TransformENCR, EncrDES, 0}, Name: "des", Aliases: []string{"descbc"}, Standing: StandingLegacy, Use: UseIKE | UseESP, KeyLen: 8, IVLen: 8, Block: 8},

	// Integrity. Key lengths equal the hash output: RFC 4868 §2.1.1, RFC 2403 §3,
	// RFC 2404 §3; those of AES are fixed at 128 bits: RFC 3566 §4, RFC 4494 §2.
	{Transform: Transform{TransformINTEG, IntegHMACSHA256128, 0}, Name: "sha256", Aliases: []string{"sha2_256"}, Standing: StandingMust, Use: UseIKE | UseESP | UseAH, KeyLen: 32, ICVLen: 16},
	{Transform: Transform{TransformINTEG, IntegHMACSHA384192, 0}, Name: "sha384", Aliases: []string{"sha2_384"}, Standing: StandingMay, Use: UseIKE | UseESP | UseAH, KeyLen: 48, ICVLen: 24},
	{Transform: Transform{TransformINTEG, IntegHMACSHA512256, 0}, Name: "sha512", Aliases: []string{"sha2_512"}, Standing: StandingShould, Use: UseIKE | UseESP | UseAH, KeyLen: 64, ICVLen: 32},
	{Transform: Transform{TransformINTEG, IntegAESXCBC96, 0}, Name: "aesxcbc", Aliases: []string{"aesxcbc96"}, Standing: StandingMay, Use: UseIKE | UseESP | UseAH, KeyLen: 16, ICVLen: 12},
	{Transform: Transform{TransformINTEG, IntegAESCMAC96, 0}, Name: "aescmac", Aliases: []string{"aescmac96"}, Standing: StandingMay, Use: UseIKE | UseESP | UseAH, KeyLen: 16, ICVLen: 12},
	// AH only: in ESP the same is a combined mode (RFC 4543 §3, §5.3). The key length
	// is in the ID, so there is no Key Length attribute.
	{Transform: Transform{TransformINTEG, IntegAES128GMAC, 0}, Name: "authaes128gmac", Aliases: []string{"auth_aes_128_gmac"}, Standing: StandingMay, Use: UseAH, KeyLen: 16, SaltLen: 4, IVLen: 8, ICVLen: 16},
	{Transform: Transform{TransformINTEG, IntegAES192GMAC, 0}, Name: "authaes192gmac", Aliases: []string{"auth_aes_192_gmac"}, Standing: StandingMay, Use: UseAH, KeyLen: 24, SaltLen: 4, IVLen: 8, ICVLen: 16},
	{Transform: Transform{TransformINTEG, IntegAES256GMAC, 0}, Name: "authaes256gmac", Aliases: []string{"auth_aes_256_gmac"}, Standing: StandingMay, Use: UseAH, KeyLen: 32, SaltLen: 4, IVLen: 8, ICVLen: 16},
	// HMAC-MD5 is MUST NOT; HMAC-SHA1 is MUST-, on its way out, and no default of
	// ours or of a current peer needs it (RFC 8221 §6).
	{Transform: Transform{TransformINTEG, IntegHMACSHA196, 0}, Name: "sha1", Aliases: []string{"sha1_96", "sha"}, Standing: StandingLegacy, Use: UseIKE | UseESP | UseAH, KeyLen: 20, ICVLen: 12},
	{Transform: Transform{TransformINTEG, IntegHMACMD596, 0}, Name: "md5", Aliases: []string{"md5_96"}, Standing: StandingLegacy, Use: UseIKE | UseESP | UseAH, KeyLen: 16, ICVLen: 12},

	// Pseudorandom functions. KeyLen is the preferred key length (RFC 7296 §2.13).
	{Transform: Transform{TransformPRF, PRFHMACSHA2256, 0}, Name: "prfsha256", Standing: StandingMust, Use: UseIKE, KeyLen: 32},
	{Transform: Transform{TransformPRF, PRFHMACSHA2384, 0}, Name: "prfsha384", Standing: StandingMay, Use: UseIKE, KeyLen: 48},
	{Transform: Transform{TransformPRF, PRFHMACSHA2512, 0}, Name: "prfsha512", Standing: StandingShould, Use: UseIKE, KeyLen: 64},
	// RFC 8247 §2.2: SHOULD for the Internet of Things; AES-CMAC is not named there.
	{Transform: Transform{TransformPRF, PRFAES128XCBC, 0}, Name: "prfaesxcbc", Standing: StandingShould, Use: UseIKE, KeyLen: 16},
	{Transform: Transform{TransformPRF, PRFAES128CMAC, 0}, Name: "prfaescmac", Standing: StandingMay, Use: UseIKE, KeyLen: 16},
	// MUST- and MUST NOT (RFC 8247 §2.2), judged as the integrity algorithms above.
	{Transform: Transform{TransformPRF, PRFHMACSHA1, 0}, Name: "prfsha1", Standing: StandingLegacy, Use: UseIKE, KeyLen: 20},
	{Transform: Transform{TransformPRF, PRFHMACMD5, 0}, Name: "prfmd5", Standing: StandingLegacy, Use: UseIKE, KeyLen: 16},

	// Key exchange methods.
	{Transform: Transform{TransformKE, KEX25519, 0}, Name: "x25519", Aliases: []string{"curve25519", "ecp_x25519"}, Standing: StandingShould, Use: UseIKE | UseESP},
	{Transform: Transform{TransformKE, KEP256, 0}, Name: "ecp256", Aliases: []string{"p256"}, Standing: StandingShould, Use: UseIKE | UseESP},
	{Transform: Transform{TransformKE, KEP384, 0}, Name: "ecp384", Aliases: []string{"p384"}, Standing: StandingMay, Use: UseIKE | UseESP},
	{Transform: Transform{TransformKE, KEP521, 0}, Name: "ecp521", Aliases: []string{"p521"}, Standing: StandingMay, Use: UseIKE | UseESP},
	{Transform: Transform{TransformKE, KEMODP2048, 0}, Name: "modp2048", Standing: StandingMust, Use: UseIKE | UseESP},
	{Transform: Transform{TransformKE, KEMODP3072, 0}, Name: "modp3072", Standing: StandingMay, Use: UseIKE | UseESP},
	{Transform: Transform{TransformKE, KEMODP4096, 0}, Name: "modp4096", Standing: StandingMay, Use: UseIKE | UseESP},
	{Transform: Transform{TransformKE, KEMODP6144, 0}, Name: "modp6144", Standing: StandingMay, Use: UseIKE | UseESP},
	{Transform: Transform{TransformKE, KEMODP8192, 0}, Name: "modp8192", Standing: StandingMay, Use: UseIKE | UseESP},
	// SHOULD NOT (RFC 8247 §2.4).
	{Transform: Transform{TransformKE, KEMODP1536, 0}, Name: "modp1536", Standing: StandingLegacy, Use: UseIKE | UseESP},
	{Transform: Transform{TransformKE, KEMODP1024, 0}, Name: "modp1024", Standing: StandingLegacy, Use: UseIKE | UseESP},
	// draft-ietf-ipsecme-ikev2-mlkem. FIPS 203 recommends ML-KEM-768 as the default.
	{Transform: Transform{TransformKE, KEMLKEM512, 0}, Name: "mlkem512", Standing: StandingMay, Use: UseIKE | UseESP},
	{Transform: Transform{TransformKE, KEMLKEM768, 0}, Name: "mlkem768", Standing: StandingMay, Use: UseIKE | UseESP},
	{Transform: Transform{TransformKE, KEMLKEM1024, 0}, Name: "mlkem1024", Standing: StandingMay, Use: UseIKE | UseESP},

	// Extended sequence numbers.
	{Transform: Transform{TransformESN, ESNYes, 0}, Name: "esn", Standing: StandingMust, Use: UseESP | UseAH},
	{Transform: Transform{TransformESN, ESNNo, 0}, Name: "noesn", Standing: StandingMust, Use: UseESP | UseAH},
}

// additional are the key exchange methods once more, as each of the additional
// ones: ke1_mlkem768, as strongSwan writes it.
var additional []Algorithm

// Both indexes hold pointers into the tables, so a lookup allocates nothing.
var (
	algorithmByTransform = map[Transform]*Algorithm{}
	algorithmByName      = map[string]*Algorithm{}
)

func init() {
	for _, a := range algorithms {
		for n := TransformType(0); a.Type == TransformKE && n < MaxADDKE; n++ {
			x := a
			x.Transform.Type, x.Aliases = TransformADDKE+n, nil
			for _, name := range append([]string{a.Name}, a.Aliases...) {
				x.Aliases = append(x.Aliases, fmt.Sprintf("ke%d_%s", n+1, name))
			}
			x.Name, x.Aliases = x.Aliases[0], x.Aliases[1:]
			additional = append(additional, x)
		}
	}
	index(algorithms)
	index(additional)
}

func index(rows []Algorithm) {
	for i := range rows {
		a := &rows[i]
		algorithmByTransform[a.Transform] = a
		for _, n := range append([]string{a.Name}, a.Aliases...) {
			if _, dup := algorithmByName[n]; dup {
				panic("ipsec: algorithm name used twice: " + n)
			}
			algorithmByName[n] = a
		}
	}
}

// LookupAlgorithm finds the row of a transform. A variable-length cipher
// without its key length is not found (RFC 7296 §3.3.5).
func LookupAlgorithm(t Transform) (*Algorithm, bool) {
	a, ok := algorithmByTransform[t]
	return a, ok
}

// PostQuantum reports a key exchange that a quantum computer is not known to break.
func (t Transform) PostQuantum() bool {
	return (t.Type == TransformKE || t.Type.AdditionalKE()) && (t.ID == KEMLKEM512 || t.ID == KEMLKEM768 || t.ID == KEMLKEM1024)
}

// AlgorithmByName finds a row by the name or an alias, in any case.
func AlgorithmByName(name string) (*Algorithm, bool) {
	a, ok := algorithmByName[strings.ToLower(name)]
	return a, ok
}
