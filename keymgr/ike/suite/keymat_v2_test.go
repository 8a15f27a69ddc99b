package suite

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// readCases reads testdata/ikev2_kdf.txt.
func readCases(t *testing.T) []map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "ikev2_kdf.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var out []map[string]string
	for line := range strings.Lines(string(b)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " = ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		if name == "case" {
			out = append(out, map[string]string{})
		}
		out[len(out)-1][name] = value
	}
	if len(out) < 4 {
		t.Fatalf("%d cases, want 4", len(out))
	}
	return out
}

func parseSuite(t testing.TB, proto ipsec.Protocol, encr, integ, prf string) ipsec.Suite {
	t.Helper()
	return ipsec.Suite{Protocol: proto, Encr: transform(t, encr), Integ: transform(t, integ), PRF: transform(t, prf)}
}

func join(keys ...ipsec.Secret) []byte {
	var out []byte
	for _, k := range keys {
		out = append(out, k.Reveal()...)
	}
	return out
}

// samePrefix compares what both have; a vector of NIST is longer or shorter than
// what a suite takes.
func samePrefix(t *testing.T, what string, got, want []byte) {
	t.Helper()
	n := min(len(got), len(want))
	if n < 20 || !bytes.Equal(got[:n], want[:n]) {
		t.Errorf("%s: got %x, want %x", what, got, want)
	}
}

func TestKeyScheduleAgainstNIST(t *testing.T) {
	child := 0
	for _, v := range readCases(t) {
		name := v["case"]
		p := newPRF(t, v["prf"])
		ni, nr := unhex(t, v["Ni"]), unhex(t, v["Nr"])
		spiI, spiR := be64(unhex(t, v["SPIi"])), be64(unhex(t, v["SPIr"]))
		skeyseed := SKEYSEED(p, ni, nr, secret(t, v["gir"]))
		if !skeyseed.Equal(secret(t, v["skeyseed"])) {
			t.Errorf("%s: SKEYSEED is %x", name, skeyseed.Reveal())
		}
		for _, s := range []ipsec.Suite{
			parseSuite(t, ipsec.ProtocolIKE, "aes128gcm16", "-", v["prf"]),
			parseSuite(t, ipsec.ProtocolIKE, "chacha20poly1305", "-", v["prf"]),
			parseSuite(t, ipsec.ProtocolIKE, "aes128", "sha256", v["prf"]),
			parseSuite(t, ipsec.ProtocolIKE, "aes256", "sha512", v["prf"]),
		} {
			k, err := NewIKEKeys(s, skeyseed, ni, nr, spiI, spiR)
			if err != nil {
				t.Fatal(err)
			}
			samePrefix(t, name+" "+s.String(), join(k.SKd, k.SKai, k.SKar, k.SKei, k.SKer, k.SKpi, k.SKpr), unhex(t, v["dkm"]))
			if k.SKd.Len() != p.Size() || k.SKpi.Len() != p.Size() || k.SKpr.Len() != p.Size() {
				t.Errorf("%s: SK_d, SK_pi, SK_pr of %d, %d, %d octets, want %d", name, k.SKd.Len(), k.SKpi.Len(), k.SKpr.Len(), p.Size())
			}
			if _, _, err := k.Ciphers(s); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			rekey := RekeySKEYSEED(p, k.SKd, secret(t, v["girnew"]), ni, nr)
			if !rekey.Equal(secret(t, v["rekey"])) {
				t.Errorf("%s: SKEYSEED (rekey) is %x", name, rekey.Reveal())
			}
		}
		if v["child"] == "" {
			continue
		}
		child++
		skd := ipsec.CopySecret(unhex(t, v["dkm"])[:p.Size()])
		for _, s := range []ipsec.Suite{
			parseSuite(t, ipsec.ProtocolESP, "aes256gcm16", "-", "-"),
			parseSuite(t, ipsec.ProtocolESP, "aes128", "sha256", "-"),
			parseSuite(t, ipsec.ProtocolAH, "-", "sha512", "-"),
		} {
			for which, shared := range map[string]ipsec.Secret{"child": {}, "childdh": secret(t, v["girnew"])} {
				k, err := NewChildKeys(p, s, skd, shared, ni, nr)
				if err != nil {
					t.Fatal(err)
				}
				samePrefix(t, name+" "+which+" "+s.String(), join(k.EncrI, k.IntegI, k.EncrR, k.IntegR), unhex(t, v[which]))
			}
		}
	}
	if child < 2 {
		t.Errorf("%d cases with CHILD SA keys, want 2", child)
	}
}

// RFC 7296 §2.17: initiator to responder first; encryption before integrity. RFC
// 5282 §7.1: salts after the keys.
func TestKeyLengthsOfASuite(t *testing.T) {
	p := newPRF(t, "prfsha256")
	for _, c := range []struct {
		suite       ipsec.Suite
		encr, integ int
	}{
		{parseSuite(t, ipsec.ProtocolESP, "aes128gcm16", "-", "-"), 20, 0},
		{parseSuite(t, ipsec.ProtocolESP, "chacha20poly1305", "-", "-"), 36, 0},
		{parseSuite(t, ipsec.ProtocolESP, "aes256", "sha384", "-"), 32, 48},
		{parseSuite(t, ipsec.ProtocolESP, "aes128ctr", "sha256", "-"), 20, 32},
		{parseSuite(t, ipsec.ProtocolESP, "aes128ccm8", "-", "-"), 19, 0},
		{parseSuite(t, ipsec.ProtocolESP, "null", "sha256", "-"), 0, 32},
		{parseSuite(t, ipsec.ProtocolAH, "-", "sha256", "-"), 0, 32},
		{parseSuite(t, ipsec.ProtocolAH, "-", "authaes128gmac", "-"), 0, 20},
	} {
		k, err := NewChildKeys(p, c.suite, ipsec.NewSecret([]byte("SK_d")), ipsec.Secret{}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if k.EncrI.Len() != c.encr || k.EncrR.Len() != c.encr || k.IntegI.Len() != c.integ || k.IntegR.Len() != c.integ {
			t.Errorf("%s: %+v, want %d and %d octets", c.suite, k, c.encr, c.integ)
		}
	}
}

func TestUnprotectedSuitesGetNoKeys(t *testing.T) {
	for _, s := range []ipsec.Suite{
		{Protocol: ipsec.ProtocolESP},
		parseSuite(t, ipsec.ProtocolESP, "aes128", "-", "-"),
		parseSuite(t, ipsec.ProtocolESP, "-", "sha256", "-"),
		parseSuite(t, ipsec.ProtocolESP, "aes128gcm16", "sha256", "-"),
		parseSuite(t, ipsec.ProtocolAH, "aes128", "sha256", "-"),
		parseSuite(t, ipsec.ProtocolESP, "sha256", "aes128", "-"),
		{Protocol: ipsec.ProtocolESP, Encr: ipsec.Transform{Type: ipsec.TransformENCR, ID: 999}, Integ: transform(t, "sha256")},
		{Protocol: ipsec.ProtocolESP, Encr: transform(t, "aes128"), Integ: ipsec.Transform{Type: ipsec.TransformINTEG, ID: 999}},
	} {
		if k, err := NewChildKeys(newPRF(t, "prfsha256"), s, ipsec.NewSecret([]byte("SK_d")), ipsec.Secret{}, nil, nil); err == nil {
			t.Errorf("%s: got %+v", s, k)
		}
	}
	if _, err := NewIKEKeys(parseSuite(t, ipsec.ProtocolIKE, "aes128gcm16", "-", "-"), ipsec.Secret{}, nil, nil, 1, 2); err == nil {
		t.Error("an IKE suite without a PRF gets keys")
	}
}

// RFC 9370 §2.2.4: SK(0) | Ni | Nr | SK(1) | ... | SK(n).
func TestAdditionalSecretsFollowTheNonces(t *testing.T) {
	p := newPRF(t, "prfsha512")
	skd, sk0, sk1, sk2 := ipsec.NewSecret([]byte("d")), ipsec.NewSecret([]byte("zero")), ipsec.NewSecret([]byte("one")), ipsec.NewSecret([]byte("two"))
	seed := []byte("zeroNiNronetwo")
	if got := RekeySKEYSEED(p, skd, sk0, []byte("Ni"), []byte("Nr"), sk1, sk2); !bytes.Equal(got.Reveal(), p.Sum(skd, seed)) {
		t.Error("SKEYSEED differs")
	}
	k, err := NewChildKeys(p, parseSuite(t, ipsec.ProtocolESP, "aes256", "sha512", "-"), skd, sk0, []byte("Ni"), []byte("Nr"), sk1, sk2)
	if err != nil {
		t.Fatal(err)
	}
	want, err := p.Plus(skd, seed, 2*(32+64))
	if err != nil || !bytes.Equal(join(k.EncrI, k.IntegI, k.EncrR, k.IntegR), want.Reveal()) {
		t.Errorf("KEYMAT differs (error %v)", err)
	}
}

// AUTH values made by other software (testdata/sk_payload.py).
func TestAuthPSK(t *testing.T) {
	seen := 0
	for _, v := range readVectors(t, "sk_payload.txt", 40) {
		if v[0] != "auth" {
			continue
		}
		seen++
		p, psk := newPRF(t, v[1]), secret(t, v[2])
		signed := SignedOctets(p, unhex(t, v[3]), unhex(t, v[4]), secret(t, v[5]), unhex(t, v[6]))
		want := unhex(t, v[7])
		got, err := AuthPSK(p, psk, signed)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %x (error %v), want %x", v[1], got, err, want)
		}
		if !VerifyPSK(p, psk, signed, want) {
			t.Errorf("%s: AUTH does not verify", v[1])
		}
		bad := slices.Clone(want)
		bad[len(bad)-1] ^= 1
		if VerifyPSK(p, psk, signed, bad) || VerifyPSK(p, psk, signed, want[:16]) || VerifyPSK(p, psk, signed, nil) ||
			VerifyPSK(p, psk, signed[1:], want) || VerifyPSK(p, ipsec.NewSecret([]byte("wrong")), signed, want) {
			t.Errorf("%s: a wrong AUTH verifies", v[1])
		}
		if _, err := AuthPSK(p, ipsec.Secret{}, signed); err == nil || VerifyPSK(p, ipsec.Secret{}, signed, p.Sum(ipsec.NewSecret(p.Sum(ipsec.Secret{}, []byte("Key Pad for IKEv2"))), signed)) {
			t.Errorf("%s: an empty shared secret authenticates", v[1])
		}
	}
	if seen != 3 {
		t.Errorf("%d AUTH vectors, want 3", seen)
	}
}

func TestWipe(t *testing.T) {
	s := parseSuite(t, ipsec.ProtocolIKE, "aes128", "sha256", "prfsha256")
	k, err := NewIKEKeys(s, ipsec.NewSecret([]byte("seed")), nil, nil, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewChildKeys(newPRF(t, "prfsha256"), parseSuite(t, ipsec.ProtocolESP, "aes128", "sha256", "-"), k.SKd, ipsec.Secret{}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	k.Wipe()
	c.Wipe()
	for _, o := range join(k.SKd, k.SKai, k.SKar, k.SKei, k.SKer, k.SKpi, k.SKpr, c.EncrI, c.IntegI, c.EncrR, c.IntegR) {
		if o != 0 {
			t.Fatal("an octet of a key is left")
		}
	}
}
