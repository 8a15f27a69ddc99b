package esp

import (
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// suite is one combination under test. Keys are the numbers 1, 2, 3, …
type suite struct{ encr, integ string }

var suites = []suite{
	{"aes128gcm16", ""},
	{"aes256gcm16", ""},
	{"chacha20poly1305", ""},
	{"aes128", "sha256"},
	{"aes128", "sha384"},
	{"aes128", "sha512"},
	{"aes256", "sha256"},
	{"aes256", "sha384"},
	{"aes256", "sha512"},
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
