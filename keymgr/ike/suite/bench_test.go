package suite

import (
	"crypto/rand"
	"fmt"
	"math/big"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

func BenchmarkKE(b *testing.B) {
	for _, m := range keMethods {
		name, ok := ipsec.LookupAlgorithm(ipsec.Transform{Type: ipsec.TransformKE, ID: m.ID})
		label := fmt.Sprint("method-", m.ID)
		if ok {
			label = name.Name
		}
		pair, err := m.Generate(rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		public, _, err := m.Respond(rand.Reader, pair.Public)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(label+"/generate", func(b *testing.B) {
			for b.Loop() {
				if _, err := m.Generate(rand.Reader); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(label+"/shared", func(b *testing.B) {
			for b.Loop() {
				if _, err := pair.Shared(public); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(label+"/respond", func(b *testing.B) {
			for b.Loop() {
				if _, _, err := m.Respond(rand.Reader, pair.Public); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What constant time costs: the power that each step of a MODP exchange takes, by
// bigmod and by math/big.
func BenchmarkMODPPower(b *testing.B) {
	for _, g := range modpGroups() {
		x, p := draw(b, g.exponent), g.prime()
		x[0] |= 0x80
		base := new(big.Int).Mod(new(big.Int).SetBytes(draw(b, g.p.Size())), p)
		r, err := g.peerValue(base.FillBytes(make([]byte, g.p.Size())))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint(g.p.BitLen(), "/bigmod"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				g.power(r, x)
			}
		})
		b.Run(fmt.Sprint(g.p.BitLen(), "/math-big"), func(b *testing.B) {
			b.ReportAllocs()
			exponent := new(big.Int).SetBytes(x)
			for b.Loop() {
				new(big.Int).Exp(base, exponent, p)
			}
		})
	}
}

func BenchmarkPRF(b *testing.B) {
	for _, name := range []string{"prfsha256", "prfsha384", "prfsha512"} {
		p := newPRF(b, name)
		key, data := ipsec.NewSecret(make([]byte, 32)), make([]byte, 64)
		b.Run(name+"/sum", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Sum(key, data)
			}
		})
		b.Run(name+"/plus", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Plus(key, data, 7*32); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The key schedule of an IKE SA with one CHILD SA.
func BenchmarkKeySchedule(b *testing.B) {
	ike := parseSuite(b, ipsec.ProtocolIKE, "aes256gcm16", "-", "prfsha256")
	esp := parseSuite(b, ipsec.ProtocolESP, "aes128gcm16", "-", "-")
	p := newPRF(b, "prfsha256")
	ni, nr, shared := make([]byte, 32), make([]byte, 32), ipsec.NewSecret(make([]byte, 32))
	b.ReportAllocs()
	for b.Loop() {
		k, err := NewIKEKeys(ike, SKEYSEED(p, ni, nr, shared), ni, nr, 1, 2)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := k.Ciphers(ike); err != nil {
			b.Fatal(err)
		}
		if _, err := NewChildKeys(p, esp, k.SKd, ipsec.Secret{}, ni, nr); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCipher(b *testing.B) {
	for _, s := range cipherSuites {
		c := testCipher(b, s, 1)
		aad, plain := make([]byte, 32), make([]byte, 300)
		body, err := c.Seal(rand.Reader, nil, aad, plain)
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 0, 1024)
		b.Run(s+"/seal", func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(plain)))
			for b.Loop() {
				if _, err := c.Seal(rand.Reader, buf, aad, plain); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(s+"/open", func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(plain)))
			for b.Loop() {
				if _, err := c.Open(buf, aad, body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
