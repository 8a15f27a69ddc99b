package engine

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// BenchmarkInstalledSAs installs 10,000 SAs, as many of each direction, and reports
// what one takes of the heap, all in all, and how long it takes to install.
func BenchmarkInstalledSAs(b *testing.B) {
	for _, window := range []uint32{64, 1024} {
		b.Run(fmt.Sprintf("window=%d", window), func(b *testing.B) {
			for b.Loop() {
				in, out := heapPerSA(b, window)
				b.ReportMetric(in, "B/in-SA")
				b.ReportMetric(out, "B/out-SA")
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

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
