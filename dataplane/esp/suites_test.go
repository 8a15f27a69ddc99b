package esp

import (
	"cmp"
	"slices"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// suite is one combination under test. Keys are the numbers 1, 2, 3, …
type suite struct{ encr, integ string }

var suites = append([]suite{
	{"aes128gcm16", ""},
	{"aes256gcm16", ""},
	{"chacha20poly1305", ""},
	{"aes128", "sha256"},
	{"aes128", "sha384"},
	{"aes128", "sha512"},
	{"aes256", "sha256"},
	{"aes256", "sha384"},
	{"aes256", "sha512"},
}, everyOther()...)

// everyOther goes through the table: each combined mode, each other cipher with
// one integrity algorithm, and each integrity algorithm with one cipher.
func everyOther() (all []suite) {
	for _, a := range ipsec.Algorithms() {
		if a.Use&ipsec.UseESP == 0 {
			continue
		}
		switch {
		case a.Type == ipsec.TransformENCR && a.ID != ipsec.EncrAESGCM16 && a.ID != ipsec.EncrChaCha20Poly1305 || a.Name == "aes192gcm16":
			s := suite{a.Name, ""}
			if !a.AEAD {
				s.integ = "sha256"
			}
			if a.ID != ipsec.EncrAESCBC || a.KeyBits == 192 {
				all = append(all, s)
			}
		case a.Type == ipsec.TransformINTEG:
			if a.ID < ipsec.IntegHMACSHA256128 {
				all = append(all, suite{"aes128", a.Name})
			}
			all = append(all, suite{"null", a.Name}, suite{"aes128ctr", a.Name})
		}
	}
	slices.SortFunc(all, func(a, b suite) int { return cmp.Or(cmp.Compare(a.encr, b.encr), cmp.Compare(a.integ, b.integ)) })
	return slices.Compact(all)
}

func (s suite) String() string {
	if s.integ == "" {
		return s.encr
	}
	return s.encr + "-" + s.integ
}

const testSPI ipsec.SPI = 0xc0ffee01

func count(n, from int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(from + i)
	}
	return b
}

func (s suite) sa(t testing.TB, dir ipsec.Direction, esn bool) *ipsec.SA {
	t.Helper()
	encr, ok := ipsec.AlgorithmByName(s.encr)
	if !ok {
		t.Fatalf("no algorithm %s", s.encr)
	}
	sa := &ipsec.SA{
		ID: 7, Direction: dir, Protocol: ipsec.ProtocolESP, SPI: testSPI, Mode: ipsec.ModeTunnel,
		Suite:   ipsec.Suite{Protocol: ipsec.ProtocolESP, Encr: encr.Transform, ESN: esn},
		EncrKey: ipsec.NewSecret(count(encr.KeyLen+encr.SaltLen, 1)),
	}
	if s.integ != "" {
		integ, ok := ipsec.AlgorithmByName(s.integ)
		if !ok {
			t.Fatalf("no algorithm %s", s.integ)
		}
		sa.Suite.Integ = integ.Transform
		sa.IntegKey = ipsec.NewSecret(count(integ.KeyLen, 101))
	}
	return sa
}

func (s suite) pair(t testing.TB, esn bool) (*Sealer, *Opener) {
	t.Helper()
	sealer, err := NewSealer(s.sa(t, ipsec.Outbound, esn))
	if err != nil {
		t.Fatal(err)
	}
	opener, err := NewOpener(s.sa(t, ipsec.Inbound, esn))
	if err != nil {
		t.Fatal(err)
	}
	return sealer, opener
}
