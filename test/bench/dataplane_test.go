package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Set to run the benchmark, which takes minutes and wants the machine to itself:
// the folder with the rivals' programs and a workerd built without a cipher.
// TESTUDO_BENCH_ROUNDS changes how many times each figure is taken.
const (
	benchVar  = "TESTUDO_BENCH"
	roundsVar = "TESTUDO_BENCH_ROUNDS"
)

const (
	streamSeconds = 4
	floodSeconds  = 3
	echoRequests  = 500
)

// TestDataplane prints a table and one line of figures; `make bench-dataplane`.
func TestDataplane(t *testing.T) {
	dir := os.Getenv(benchVar)
	if dir == "" {
		t.Skipf("%s is not set: `make bench-dataplane` sets it and builds what is needed", benchVar)
	}
	rounds := rounds(t)
	cs := []contender{
		ours(t, "testudo udp", "", true),
		wireguard(t, filepath.Join(dir, "wireguard-go")),
		ours(t, "testudo null", filepath.Join(dir, "workerd-null"), true),
		ours(t, "testudo esp", "", false),
		libipsec(t),
		clearText(t),
	}
	type figures struct{ mbps, cpu, pps, idle50, idle99, load50, load99 []float64 }
	got := make([]figures, len(cs))
	for r := range rounds {
		// Each round begins with another one, so that none always runs on a
		// machine that the same rival has just warmed up or worn out.
		for k := range cs {
			i := (r + k) % len(cs)
			c, f := cs[i], &got[i]
			idle := c.ping(t, echoRequests)
			s := c.tcp(t, streamSeconds)
			pps := c.udp64(t, floodSeconds)
			var load latency
			var wg sync.WaitGroup
			wg.Go(func() { c.tcp(t, streamSeconds) })
			<-time.After(time.Second) // the stream is at full speed by then
			load = c.ping(t, echoRequests)
			wg.Wait()
			f.mbps, f.cpu, f.pps = append(f.mbps, s.mbps), append(f.cpu, s.cpuPerGB), append(f.pps, pps)
			f.idle50, f.idle99 = append(f.idle50, idle.p50), append(f.idle99, idle.p99)
			f.load50, f.load99 = append(f.load50, load.p50), append(f.load99, load.p99)
			fmt.Printf("round %d of %d  %-14s %6.0f Mbit/s  %5.2f CPU s/GB  %7.0f packets/s  idle %.3f ms  loaded %.3f ms\n",
				r+1, rounds, c.name, s.mbps, s.cpuPerGB, pps, idle.p50, load.p50)
		}
	}
	fmt.Printf("\nmedian of %d, interleaved; one TCP stream of %d s, both ends and iperf3 on this machine's processors\n", rounds, streamSeconds)
	fmt.Printf("%-14s %10s %10s %12s %10s %10s %10s %10s %8s\n", "", "Mbit/s", "CPU s/GB", "64B pkt/s", "idle p50", "idle p99", "load p50", "load p99", "RSS MiB")
	for i, c := range cs {
		f, rss := &got[i], "-"
		if c.rss != nil {
			rss = fmt.Sprintf("%.1f", float64(c.rss())/(1<<20))
		}
		fmt.Printf("%-14s %10.0f %10.2f %12.0f %10.3f %10.3f %10.3f %10.3f %8s\n", c.name, median(f.mbps), median(f.cpu), median(f.pps),
			median(f.idle50), median(f.idle99), median(f.load50), median(f.load99), rss)
	}
	a, b, n, c := &got[0], &got[1], &got[2], &got[4]
	fmt.Printf("\nbench-dataplane: ours_mbps=%.0f wireguard_go_mbps=%.0f libipsec_mbps=%.0f ratio_wg=%.2f ratio_libipsec=%.1f null_ratio=%.2f udp64_pps_ratio_wg=%.2f cpu_per_gb_ratio_wg=%.2f idle_latency_ratio_wg=%.2f\n",
		median(a.mbps), median(b.mbps), median(c.mbps), median(a.mbps)/median(b.mbps), median(a.mbps)/median(c.mbps), median(a.mbps)/median(n.mbps),
		median(a.pps)/median(b.pps), median(a.cpu)/median(b.cpu), median(a.idle50)/median(b.idle50))
}
