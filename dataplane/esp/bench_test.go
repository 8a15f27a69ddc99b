package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/ipsec/mac"
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

// BenchmarkRatio runs ESP and the bare primitives in turns of a few microseconds,
// so that both see the same machine, and reports ours ÷ theirs from the medians, and
// ours in cycles of the frequency that the kernel names.
func BenchmarkRatio(b *testing.B) {
	for _, s := range suites {
		for _, n := range benchSizes {
			sealer, opener := s.pair(b, true)
			src, dst := make([]byte, n, n+32), make([]byte, sealer.SealedLen(n))
			sealed := make([]byte, sealer.SealedLen(n))
			sealer.SealFrom(sealed, src, 4, anyESNSeq)
			seal, open := bare(b, s.sa(b, ipsec.Outbound, true), n)
			seq := uint64(0)
			inTurns(b, fmt.Sprintf("seal/%s/%d", s, n), func() {
				seq++
				sealer.SealFrom(dst, src, 4, seq)
			}, seal)
			inTurns(b, fmt.Sprintf("open/%s/%d", s, n), func() {
				copy(dst, sealed)
				opener.Open(dst, anyESNSeq)
			}, open)
		}
	}
}

// bare is what a suite is made of, alone, on n octets: of the standard library
// where that has it. Its counter mode allocates; CCM and the AES MACs are ours.
func bare(b *testing.B, sa *ipsec.SA, n int) (seal, open func()) {
	encr, _ := ipsec.LookupAlgorithm(sa.Suite.Encr)
	key := sa.EncrKey.Reveal()[:encr.KeyLen]
	plain, out, buf := make([]byte, n), make([]byte, n+32), make([]byte, n+16)
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	if encr.AEAD {
		aead, err := aeads[encr.ID](key, encr.ICVLen)
		if encr.ID == ipsec.EncrAESGCM8 {
			aead, err = newGCM(key, 16)
		}
		must(err)
		nonce, aad := make([]byte, aead.NonceSize()), make([]byte, 12)
		if encr.ID == ipsec.EncrNullAESGMAC {
			aead, err = newGCM(key, 16)
			must(err)
			f := func() { aead.Seal(out[:0], nonce, nil, plain) }
			return f, f
		}
		sealed := aead.Seal(nil, nonce, plain, aad)
		return func() { aead.Seal(out[:0], nonce, plain, aad) }, func() {
			copy(buf, sealed)
			_, _ = aead.Open(buf[:0], nonce, buf[:len(sealed)], aad)
		}
	}
	integ, _ := ipsec.LookupAlgorithm(sa.Suite.Integ)
	m, err := mac.New(integ, sa.IntegKey.Reveal())
	must(err)
	sum := make([]byte, 0, 64)
	auth := func(x []byte) { m.Reset(); m.Write(x); m.Sum(sum) }
	switch {
	case encr.ID == ipsec.EncrNULL:
		f := func() { copy(out, plain); auth(out[:n]) }
		return f, f
	case encr.ID == ipsec.EncrAESCTR:
		c, err := aes.NewCipher(key)
		must(err)
		iv := make([]byte, 16)
		f := func() { cipher.NewCTR(c, iv).XORKeyStream(out, plain); auth(out[:n]) }
		return f, f
	}
	c, err := blocks[encr.ID](key)
	must(err)
	iv := make([]byte, c.BlockSize())
	e, d := cipher.NewCBCEncrypter(c, iv), cipher.NewCBCDecrypter(c, iv)
	whole := plain[:n/len(iv)*len(iv)]
	return func() { e.CryptBlocks(out, whole); auth(out[:n]) }, func() { auth(plain); d.CryptBlocks(out, whole) }
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
		if ghz := frequency(); ghz != 0 {
			b.ReportMetric(x*ghz, "cycles/esp")
		}
		b.ReportMetric(0, "ns/op")
	})
}

// frequency is that of the first processor in GHz, 0 if it is not known.
func frequency() float64 {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.SplitSeq(string(text), "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "cpu MHz" {
			mhz, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return mhz / 1000
		}
	}
	return 0
}
