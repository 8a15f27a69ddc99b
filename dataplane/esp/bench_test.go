package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
)

var benchSizes = []int{64, 512, 1400}

func eachBench(b *testing.B, f func(b *testing.B, s suite, n int)) {
	for _, s := range suites {
		for _, n := range benchSizes {
			b.Run(fmt.Sprintf("%s/%d", s, n), func(b *testing.B) {
				b.SetBytes(int64(n))
				b.ReportAllocs()
				f(b, s, n)
			})
		}
	}
}

// BenchmarkSeal is SealFrom: payload in one buffer, packet in another.
func BenchmarkSeal(b *testing.B) {
	eachBench(b, func(b *testing.B, s suite, n int) {
		sealer, _ := s.pair(b, true)
		src, dst := make([]byte, n, n+32), make([]byte, sealer.SealedLen(n))
		seq := uint64(0)
		for b.Loop() {
			seq++
			if _, why := sealer.SealFrom(dst, src, 4, seq); why != packet.WhyOK {
				b.Fatal(why)
			}
		}
	})
}

// BenchmarkOpen opens in place. An opened packet is plain text, so each is
// copied in first, in all benchmarks of opening alike.
func BenchmarkOpen(b *testing.B) {
	eachBench(b, func(b *testing.B, s suite, n int) {
		sealer, opener := s.pair(b, true)
		sealed := make([]byte, sealer.SealedLen(n))
		if _, why := sealer.SealFrom(sealed, make([]byte, n), 4, anyESNSeq); why != packet.WhyOK {
			b.Fatal(why)
		}
		buf := make([]byte, len(sealed))
		for b.Loop() {
			copy(buf, sealed)
			if _, _, why := opener.Open(buf, anyESNSeq); why != packet.WhyOK {
				b.Fatal(why)
			}
		}
	})
}

// BenchmarkBareAEAD is the standard library alone on as many octets as ESP
// encrypts: what BenchmarkSeal and BenchmarkOpen are to be compared with.
func BenchmarkBareAEAD(b *testing.B) {
	for _, v := range []struct {
		name string
		make func() (cipher.AEAD, error)
	}{
		{"aes128gcm16", func() (cipher.AEAD, error) { return newGCM(16) }},
		{"aes256gcm16", func() (cipher.AEAD, error) { return newGCM(32) }},
		{"chacha20poly1305", func() (cipher.AEAD, error) { return chacha20poly1305.New(make([]byte, 32)) }},
	} {
		aead, err := v.make()
		if err != nil {
			b.Fatal(err)
		}
		for _, n := range benchSizes {
			plain, dst := make([]byte, n), make([]byte, n+16)
			nonce, aad := make([]byte, 12), make([]byte, 12)
			b.Run(fmt.Sprintf("seal/%s/%d", v.name, n), func(b *testing.B) {
				b.SetBytes(int64(n))
				for b.Loop() {
					aead.Seal(dst[:0], nonce, plain, aad)
				}
			})
			b.Run(fmt.Sprintf("open/%s/%d", v.name, n), func(b *testing.B) {
				b.SetBytes(int64(n))
				sealed, buf := aead.Seal(nil, nonce, plain, aad), make([]byte, n+16)
				for b.Loop() {
					copy(buf, sealed)
					if _, err := aead.Open(buf[:0], nonce, buf, aad); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func newGCM(key int) (cipher.AEAD, error) {
	c, err := aes.NewCipher(make([]byte, key))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(c)
}
