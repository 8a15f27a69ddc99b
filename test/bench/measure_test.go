package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// stream is what one TCP stream showed.
type stream struct {
	mbps     float64
	cpuPerGB float64 // CPU seconds of the whole machine for 10^9 octets
}

// tcp runs one TCP stream for some seconds.
func (c contender) tcp(t *testing.T, seconds int) stream {
	t.Helper()
	before := busy(t)
	bits, octets := c.iperf(t, seconds)
	return stream{bits / 1e6, (busy(t) - before) / (octets / 1e9)}
}

// flood is what a flood of datagrams of 64 octets showed.
type flood struct {
	pps          float64 // that arrived
	cpuPerPacket float64 // CPU seconds of the whole machine for one that arrived
}

// udp64 floods 64-octet datagrams for some seconds.
func (c contender) udp64(t *testing.T, seconds int) flood {
	t.Helper()
	before := busy(t)
	bits, octets := c.iperf(t, seconds, "-u", "-l", "64", "-b", "0")
	return flood{bits / 8 / 64, (busy(t) - before) / (octets / 64)}
}

// iperf returns the receiver's rate in bit/s and what it received in octets.
func (c contender) iperf(t *testing.T, seconds int, more ...string) (bits, octets float64) {
	t.Helper()
	server := c.b.Start(lab.Command{Args: []string{"iperf3", "-s", "-1", "--forceflush"}})
	server.WaitOutput("Server listening", 5*time.Second)
	out, err := c.a.Try(append([]string{"iperf3", "-J", "-c", c.to.String(), "-t", strconv.Itoa(seconds), "--connect-timeout", "5000"}, more...)...)
	if err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	if err := server.Wait(10 * time.Second); err != nil {
		t.Fatalf("%s: iperf3 server: %v", c.name, err)
	}
	var r struct {
		End struct {
			SumReceived struct {
				Bits  float64 `json:"bits_per_second"`
				Bytes float64 `json:"bytes"`
			} `json:"sum_received"`
			Sum struct {
				Bits    float64 `json:"bits_per_second"`
				Bytes   float64 `json:"bytes"`
				Lost    float64 `json:"lost_packets"`
				Packets float64 `json:"packets"`
			} `json:"sum"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%s: iperf3 says %q: %v", c.name, out, err)
	}
	if s := r.End.Sum; s.Packets > 0 { // UDP: what was sent, and what of it was lost
		arrived := 1 - s.Lost/s.Packets
		return s.Bits * arrived, s.Bytes * arrived
	}
	return r.End.SumReceived.Bits, r.End.SumReceived.Bytes
}

// latency is round-trip times in milliseconds.
type latency struct{ p50, p99 float64 }

// ping sends echo requests two milliseconds apart.
func (c contender) ping(t *testing.T, count int) latency {
	t.Helper()
	out, err := c.a.Try("ping", "-n", "-i", "0.002", "-W", "2", "-c", strconv.Itoa(count), c.to.String())
	if err != nil && out == "" {
		t.Fatalf("%s: %v", c.name, err)
	}
	var times []float64
	for line := range strings.SplitSeq(out, "\n") {
		if _, v, ok := strings.Cut(line, "time="); ok {
			var ms float64
			if _, err := fmt.Sscan(v, &ms); err == nil {
				times = append(times, ms)
			}
		}
	}
	if len(times) < count/2 {
		t.Fatalf("%s: %d of %d echo requests were answered", c.name, len(times), count)
	}
	slices.Sort(times)
	return latency{times[len(times)/2], times[len(times)*99/100]}
}

// busy is the CPU time that the whole machine has spent, in seconds.
func busy(t *testing.T) float64 {
	t.Helper()
	f, err := os.Open("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Scan()
	fields := strings.Fields(s.Text())
	if len(fields) < 9 || fields[0] != "cpu" {
		t.Fatalf("/proc/stat begins with %q", s.Text())
	}
	const hertz = 100 // USER_HZ, which is 100 on every Linux that Go runs on
	total := 0.0
	for i, v := range fields[1:9] { // user nice system idle iowait irq softirq steal
		n, err := strconv.ParseFloat(v, 64)
		if err != nil {
			t.Fatal(err)
		}
		if i != 3 && i != 4 && i != 7 {
			total += n
		}
	}
	return total / hertz
}

// median is 0 of nothing.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if len(v)%2 == 1 {
		return v[len(v)/2]
	}
	return (v[len(v)/2-1] + v[len(v)/2]) / 2
}

func sum(v []float64) (total float64) {
	for _, x := range v {
		total += x
	}
	return total
}

// rounds is how many times each figure is taken.
func rounds(t *testing.T) int {
	t.Helper()
	v := os.Getenv(roundsVar)
	if v == "" {
		return 5
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q; want a number of at least 1", roundsVar, v)
	}
	return n
}

// cpuOf tells the CPU time that a process has used so far, in nanoseconds. Its
// clock is exact where /proc counts hundredths of a second.
func cpuOf(t *testing.T, pid int) func() uint64 {
	t.Helper()
	const perProcess = 2 // CPUCLOCK_SCHED of include/linux/posix-timers.h
	clock := int32(^pid)<<3 | perProcess
	return func() uint64 {
		var ts unix.Timespec
		if err := unix.ClockGettime(clock, &ts); err != nil {
			t.Fatalf("CPU clock of process %d: %v", pid, err)
		}
		return uint64(ts.Nano())
	}
}
