package engine

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// BenchmarkInstalledSAs installs 10,000 SAs, as many of each direction, each with a peer,
// an address and selectors of its own, and reports what one takes of the heap, all in
// all; and what of that is the standard library's AES-GCM.
func BenchmarkInstalledSAs(b *testing.B) {
	for _, window := range []uint32{64, 1024} {
		b.Run(fmt.Sprintf("window=%d", window), func(b *testing.B) {
			for b.Loop() {
				in, out := heapPerSA(b, window)
				b.ReportMetric(in, "B/in-SA")
				b.ReportMetric(out, "B/out-SA")
				b.ReportMetric(heapPerGCM(b), "B/AES-GCM")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

const manySAs = 5000 // of each direction

// heapPerSA is what one inbound and one outbound SA take.
func heapPerSA(t testing.TB, window uint32) (in, out float64) {
	x, y := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	x.policy(t, ipsec.ModeTunnel, an, bn)
	y.policy(t, ipsec.ModeTunnel, bn, an)
	install := func(h *host, pick int) float64 {
		before := heap()
		for i := range manySAs {
			ops := make([]backend.Op, 2)
			ops[0], ops[1] = simplex(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, ipsec.SAID(i+1), x, y, an, bn)
			ops[1].SA.ReplayWindow = window
			own := netip.AddrFrom4([4]byte{10, 128 | byte(i>>16), byte(i >> 8), byte(i)})
			for _, op := range ops {
				sa := op.SA
				sa.Remote, sa.Selectors[0].Remote, sa.Peer = own, ipsec.AddrSelector(own), fmt.Sprint("peer-", i)
			}
			if err := h.Apply(ops[pick : pick+1]); err != nil {
				t.Fatal(err)
			}
		}
		return float64(heap()-before) / manySAs
	}
	out = install(x, 0)
	in = install(y, 1)
	runtime.KeepAlive(x)
	runtime.KeepAlive(y)
	return in, out
}

// heapPerGCM is what the key of one SA takes in the standard library's form.
func heapPerGCM(t testing.TB) float64 {
	all := make([]cipher.AEAD, manySAs)
	before := heap()
	for i := range all {
		block, err := aes.NewCipher(make([]byte, 16))
		if err != nil {
			t.Fatal(err)
		}
		if all[i], err = cipher.NewGCM(block); err != nil {
			t.Fatal(err)
		}
	}
	each := float64(heap()-before) / manySAs
	runtime.KeepAlive(all)
	return each
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
