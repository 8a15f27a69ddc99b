package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Set to run the benchmark, which takes minutes and wants the machine to itself:
// the folder with the rivals' programs and a workerd built without a cipher. The
// others make it shorter: how many times each figure is taken, which contenders
// and which steps (separated by commas), and another workerd to run beside ours,
// perhaps with flags after its path.
const (
	benchVar   = "TESTUDO_BENCH"
	roundsVar  = "TESTUDO_BENCH_ROUNDS"
	onlyVar    = "TESTUDO_BENCH_ONLY"
	stepsVar   = "TESTUDO_BENCH_STEPS"
	againstVar = "TESTUDO_BENCH_AGAINST"
)

const (
	streamSeconds = 4
	floodSeconds  = 3
	echoRequests  = 500
)

// Contenders by name; the last line compares the first with the others.
const (
	oursUDP  = "testudo udp"
	rival    = "wireguard-go"
	oursNull = "testudo null"
	oursESP  = "testudo esp"
	swan     = "libipsec"
	clear    = "clear"
	against  = "against"
)

// Steps, in the order in which they are taken.
const (
	stepIdle = "idle" // round trips
	stepTCP  = "tcp"  // one stream
	stepUDP  = "udp"  // a flood of datagrams of 64 octets
	stepLoad = "load" // round trips beside a stream
)

// figures is what the rounds of one contender gave.
type figures struct {
	mbps, cpu, pps, cpuPacket, idle50, idle99, load50, load99 []float64
	idleRSS                                                   float64 // MiB, before anything was sent; 0 when not measured
}

// TestDataplane prints a table and one line of figures; `make bench-dataplane`.
func TestDataplane(t *testing.T) {
	dir := os.Getenv(benchVar)
	if dir == "" {
		t.Skipf("%s is not set: `make bench-dataplane` sets it and builds what is needed", benchVar)
	}
	rounds := rounds(t)
	steps := chosen(t, stepsVar, stepIdle, stepTCP, stepUDP, stepLoad)
	all := []struct {
		name string
		make func() contender
	}{
		{oursUDP, func() contender { return ours(t, oursUDP, "", true) }},
		{rival, func() contender { return wireguard(t, filepath.Join(dir, "wireguard-go")) }},
		{oursNull, func() contender { return ours(t, oursNull, filepath.Join(dir, "workerd-null"), true) }},
		{oursESP, func() contender { return ours(t, oursESP, "", false) }},
		{swan, func() contender { return libipsec(t) }},
		{clear, func() contender { return clearText(t) }},
	}
	var names []string
	for _, a := range all {
		names = append(names, a.name)
	}
	only := chosen(t, onlyVar, names...)
	var cs []contender
	for _, a := range all {
		if slices.Contains(only, a.name) {
			cs = append(cs, a.make())
		}
	}
	if command := strings.Fields(os.Getenv(againstVar)); len(command) > 0 {
		cs = append(cs, ours(t, against, command[0], true, command[1:]...))
	}

	got := make([]figures, len(cs))
	for i, c := range cs {
		if c.rss != nil {
			got[i].idleRSS = float64(c.rss()) / (1 << 20)
		}
	}
	for r := range rounds {
		// Each round begins with another one, so that none always runs on a
		// machine that the same rival has just warmed up or worn out.
		for k := range cs {
			i := (r + k) % len(cs)
			cs[i].round(t, steps, &got[i])
			fmt.Printf("round %d of %d  %-14s %s\n", r+1, rounds, cs[i].name, got[i].last())
		}
	}
	fmt.Printf("\nmedian of %d, interleaved; one TCP stream of %d s, both ends and iperf3 on this machine's processors\n", rounds, streamSeconds)
	fmt.Printf("%-14s %8s %8s %10s %10s %9s %9s %9s %9s %9s %9s\n", "", "Mbit/s", "CPU s/GB", "64B pkt/s", "CPU us/pkt",
		"idle p50", "idle p99", "load p50", "load p99", "idle MiB", "MiB after")
	byName := map[string]*figures{}
	for i, c := range cs {
		f, after := &got[i], 0.0
		if c.rss != nil {
			after = float64(c.rss()) / (1 << 20)
		}
		fmt.Printf("%-14s %8.0f %8.2f %10.0f %10.2f %9.3f %9.3f %9.3f %9.3f %9.1f %9.1f\n", c.name, median(f.mbps), median(f.cpu), median(f.pps),
			median(f.cpuPacket), median(f.idle50), median(f.idle99), median(f.load50), median(f.load99), f.idleRSS, after)
		byName[c.name] = f
	}
	if a, b, c, n := byName[oursUDP], byName[rival], byName[swan], byName[oursNull]; a != nil && b != nil && c != nil && n != nil && len(steps) == 4 {
		over := func(f func(*figures) []float64, x *figures) float64 { return median(f(a)) / median(f(x)) }
		mbps := func(f *figures) []float64 { return f.mbps }
		fmt.Printf("\nbench-dataplane: ours_mbps=%.0f wireguard_go_mbps=%.0f libipsec_mbps=%.0f ratio_wg=%.2f ratio_libipsec=%.1f null_ratio=%.2f udp64_pps_ratio_wg=%.2f"+
			" cpu_per_gb_ratio_wg=%.2f idle_latency_ratio_wg=%.2f load_latency_ratio_wg=%.2f idle_mib=%.1f\n",
			median(a.mbps), median(b.mbps), median(c.mbps), over(mbps, b), over(mbps, c), over(mbps, n),
			over(func(f *figures) []float64 { return f.pps }, b), over(func(f *figures) []float64 { return f.cpu }, b),
			over(func(f *figures) []float64 { return f.idle50 }, b), over(func(f *figures) []float64 { return f.load50 }, b), a.idleRSS)
	}
}

// chosen is what a variable names of all there is; all when it is not set.
func chosen(t *testing.T, variable string, all ...string) []string {
	t.Helper()
	v := os.Getenv(variable)
	if v == "" {
		return all
	}
	list := strings.Split(v, ",")
	for _, x := range list {
		if !slices.Contains(all, x) {
			t.Fatalf("%s names %q; want some of %s", variable, x, strings.Join(all, ","))
		}
	}
	return list
}

// round takes each figure of a contender once.
func (c contender) round(t *testing.T, steps []string, f *figures) {
	t.Helper()
	if slices.Contains(steps, stepIdle) {
		idle := c.ping(t, echoRequests)
		f.idle50, f.idle99 = append(f.idle50, idle.p50), append(f.idle99, idle.p99)
	}
	if slices.Contains(steps, stepTCP) {
		s := c.tcp(t, streamSeconds)
		f.mbps, f.cpu = append(f.mbps, s.mbps), append(f.cpu, s.cpuPerGB)
	}
	if slices.Contains(steps, stepUDP) {
		s := c.udp64(t, floodSeconds)
		f.pps, f.cpuPacket = append(f.pps, s.pps), append(f.cpuPacket, s.cpuPerPacket*1e6)
	}
	if slices.Contains(steps, stepLoad) {
		var wg sync.WaitGroup
		wg.Go(func() { c.tcp(t, streamSeconds) })
		<-time.After(time.Second) // the stream is at full speed by then
		load := c.ping(t, echoRequests)
		wg.Wait()
		f.load50, f.load99 = append(f.load50, load.p50), append(f.load99, load.p99)
	}
}

// last is the figures of the last round in words.
func (f *figures) last() string {
	var s []string
	for _, x := range []struct {
		format string
		v      []float64
	}{
		{"%6.0f Mbit/s", f.mbps}, {"%5.2f CPU s/GB", f.cpu}, {"%7.0f packets/s", f.pps}, {"%5.2f CPU us/packet", f.cpuPacket},
		{"idle %.3f ms", f.idle50}, {"loaded %.3f ms", f.load50},
	} {
		if n := len(x.v); n > 0 {
			s = append(s, fmt.Sprintf(x.format, x.v[n-1]))
		}
	}
	return strings.Join(s, "  ")
}
