package ipsec

import (
	"strings"
	"testing"
)

// The KEYMAT that each RFC asks for: key, and salt or nonce after it.
func TestKeymatLengths(t *testing.T) {
	for name, want := range map[string]int{
		"aes128gcm8": 20, "aes192gcm12": 28, "aes256gcm16": 36, // RFC 4106 §8.1
		"aes128ctr": 20, "aes192ctr": 28, "aes256ctr": 36, // RFC 3686 §5.1
		"aes128ccm8": 19, "aes192ccm12": 27, "aes256ccm16": 35, // RFC 4309 §7.1
		"aes128gmac": 20, "aes192gmac": 28, "aes256gmac": 36, // RFC 4543 §5.4
		"authaes128gmac": 20, "authaes192gmac": 28, "authaes256gmac": 36, // RFC 4543 §5.4
		"chacha20poly1305": 36,           // RFC 7634 §2
		"aes192":           24,           // RFC 3602 §2.2
		"3des":             24, "des": 8, // RFC 2451 §2.2, RFC 2405 §4
		"null": 0,                                                        // RFC 2410 §3
		"md5":  16, "sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64, // RFC 2403 §3, RFC 2404 §3, RFC 4868 §2.1.1
		"aesxcbc": 16, "aescmac": 16, // RFC 3566 §4, RFC 4494 §2
	} {
		a, ok := AlgorithmByName(name)
		if !ok {
			t.Errorf("no algorithm %s", name)
			continue
		}
		if got := a.KeyLen + a.SaltLen; got != want {
			t.Errorf("%s takes %d octets of KEYMAT, want %d", name, got, want)
		}
	}
}

// What RFC 8221 §5 and §6 and RFC 8247 §2 say SHOULD NOT or MUST NOT be used needs
// allowLegacy.
func TestLegacy(t *testing.T) {
	for _, name := range []string{"des", "3des", "md5", "sha1", "prfmd5", "prfsha1", "modp1024", "modp1536", "ke1_modp1024"} {
		if a, ok := AlgorithmByName(name); !ok || a.Standing != StandingLegacy {
			t.Errorf("%s is not a legacy row", name)
		}
	}
}

// A row is complete: AEAD and integrity say how long the ICV is, ciphers how they
// pad, and the Key Length attribute agrees with the key (RFC 7296 §3.3.5).
func TestRowsAreComplete(t *testing.T) {
	for _, a := range Algorithms() {
		switch {
		case a.Type == TransformENCR && a.Block == 0,
			(a.AEAD || a.Type == TransformINTEG) && a.ICVLen == 0,
			a.Type == TransformENCR && !a.AEAD && a.ICVLen != 0,
			a.KeyBits != 0 && int(a.KeyBits) != 8*a.KeyLen,
			a.Use == 0 || a.Standing == "",
			a.Type == TransformENCR && a.Use&UseAH != 0:
			t.Errorf("%s: %+v", a.Name, a)
		}
	}
}

func TestParseProposalRefusesNonsense(t *testing.T) {
	for _, v := range []struct {
		proto Protocol
		suite string
		want  string
	}{
		{ProtocolESP, "null", "without integrity"},
		{ProtocolESP, "aes128ctr", "without integrity"},
		{ProtocolESP, "aes128ccm8-sha256", "takes no integrity"},
		{ProtocolESP, "aes128gmac-aesxcbc", "takes no integrity"},
		{ProtocolESP, "aes128gmac-aes128-sha256", "proposals of their own"},
		{ProtocolESP, "null-authaes128gmac", "not for esp"},
		{ProtocolAH, "aes128gmac", "not for ah"},
		{ProtocolAH, "null-sha256", "not for ah"},
		{ProtocolAH, "esn", "without integrity"},
		{ProtocolIKE, "aes128gmac-prfsha256-x25519", "not for ike"},
		{ProtocolIKE, "null-sha256-x25519", "not for ike"},
		{ProtocolIKE, "aes128-authaes128gmac-x25519", "not for ike"},
		{ProtocolIKE, "aes128gcm16-prfsha256-mlkem768", "too large"},
		{ProtocolIKE, "aes128gcm16-prfsha256-ke1_mlkem768", "needs a first key exchange"},
		{ProtocolIKE, "aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke2_mlkem768", "want it once"},
		{ProtocolESP, "aes128gcm16-ke1_mlkem768", "needs a first key exchange"},
	} {
		if p, err := ParseProposal(v.proto, v.suite); err == nil || !strings.Contains(err.Error(), v.want) {
			t.Errorf("%s %s: %s, error %v, want one with %q", v.proto, v.suite, p, err, v.want)
		}
	}
	for suite, proto := range map[string]Protocol{
		"null-sha256": ProtocolESP, "aes192ctr-aescmac-esn": ProtocolESP, "aes256gmac": ProtocolESP, "3des-md5": ProtocolESP,
		"sha256-sha384": ProtocolAH, "authaes256gmac-esn": ProtocolAH, "aes192-sha256-x25519": ProtocolIKE, "aes128ctr-aesxcbc-modp6144": ProtocolIKE,
		"aes256ccm12-prfaescmac-ecp256": ProtocolIKE, "aes128-sha1-modp1024": ProtocolIKE, "aes256gcm16-prfsha256-x25519-ke1_mlkem768-ke7_ecp384": ProtocolIKE,
	} {
		if _, err := ParseProposal(proto, suite); err != nil {
			t.Errorf("%s %s: %v", proto, suite, err)
		}
	}
}
