package ah

import (
	"fmt"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/ipsec/mac"
)

// BenchmarkAH is sealing and opening in transport mode, beside the bare primitive
// over as many octets as the packet has.
func BenchmarkAH(b *testing.B) {
	for _, name := range names {
		for _, n := range []int{64, 1400} {
			p := ipv4(nil, n-28)
			s, o := pair(b, name, true)
			dst := make([]byte, len(p)+s.HeaderLen(4))
			if _, why := s.SealFrom(dst, p, anyESNSeq); why != packet.WhyOK {
				b.Fatal(why)
			}
			run := func(what string, f func()) {
				b.Run(fmt.Sprintf("%s/%s/%d", what, name, n), func(b *testing.B) {
					b.SetBytes(int64(n))
					b.ReportAllocs()
					for b.Loop() {
						f()
					}
				})
			}
			run("open", func() { o.Open(dst, 20, anyESNSeq) })
			seq := uint64(1)
			out := make([]byte, len(dst))
			run("seal", func() { seq++; s.SealFrom(out, p, seq) })
			sum := make([]byte, 0, 64)
			if s.gmac != nil {
				run("bare", func() { s.gmac.Seal(sum, s.nonce[:], nil, dst) })
				continue
			}
			a, _ := ipsec.AlgorithmByName(name)
			m, err := mac.New(a, count(a.KeyLen, 1))
			if err != nil {
				b.Fatal(err)
			}
			run("bare", func() { m.Reset(); m.Write(dst); m.Sum(sum) })
		}
	}
}
