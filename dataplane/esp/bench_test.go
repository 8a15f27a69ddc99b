package esp

import (
	"crypto/cipher"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
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
		{"aes128gcm16", func() (cipher.AEAD, error) { return newGCM(make([]byte, 16), 16) }},
		{"aes256gcm16", func() (cipher.AEAD, error) { return newGCM(make([]byte, 32), 16) }},
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

// BenchmarkRatio runs ESP and the bare AEAD in turns of a few microseconds, so
// that both see the same machine, and reports ours ÷ theirs from the medians.
func BenchmarkRatio(b *testing.B) {
	for _, s := range suites[:3] {
		for _, n := range benchSizes {
			sealer, opener := s.pair(b, true)
			key := count(36, 1)
			src, dst := make([]byte, n, n+32), make([]byte, sealer.SealedLen(n))
			nonce, aad := make([]byte, 12), make([]byte, 12)
			aead, err := aeads[s.sa(b, ipsec.Outbound, true).Suite.Encr.ID](key[:len(s.sa(b, ipsec.Outbound, true).EncrKey.Reveal())-4], 16)
			if err != nil {
				b.Fatal(err)
			}
			sealed := make([]byte, sealer.SealedLen(n))
			sealer.SealFrom(sealed, src, 4, anyESNSeq)
			bare, out := aead.Seal(nil, nonce, src, aad), make([]byte, n+16)
			seq := uint64(0)
			inTurns(b, fmt.Sprintf("seal/%s/%d", s, n), func() {
				seq++
				sealer.SealFrom(dst, src, 4, seq)
			}, func() { aead.Seal(out[:0], nonce, src, aad) })
			inTurns(b, fmt.Sprintf("open/%s/%d", s, n), func() {
				copy(dst, sealed)
				opener.Open(dst, anyESNSeq)
			}, func() {
				copy(out, bare)
				_, _ = aead.Open(out[:0], nonce, out, aad)
			})
		}
	}
}

func inTurns(b *testing.B, name string, ours, theirs func()) {
	b.Run(name, func(b *testing.B) {
		const turn = 50
		var a, z []time.Duration
		for b.Loop() {
			t0 := time.Now()
			for range turn {
				ours()
			}
			t1 := time.Now()
			for range turn {
				theirs()
			}
			a, z = append(a, t1.Sub(t0)), append(z, time.Since(t1))
		}
		slices.Sort(a)
		slices.Sort(z)
		x, y := float64(a[len(a)/2])/turn, float64(z[len(z)/2])/turn
		b.ReportMetric(x, "ns/esp")
		b.ReportMetric(y, "ns/bare")
		b.ReportMetric(x/y, "ratio")
		b.ReportMetric(0, "ns/op")
	})
}
