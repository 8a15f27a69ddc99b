package userspace

import (
	"encoding/json"
	"os"
	"os/exec"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// BenchmarkNamespaces measures one TCP stream and a flood of small UDP packets
// between two namespaces, in clear and protected, with iperf3. Everything shares
// this machine's cores; compare figures of one run only.
func BenchmarkNamespaces(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root, to make network namespaces")
	}
	if _, err := exec.LookPath("iperf3"); err != nil {
		b.Skip("needs iperf3:", err)
	}
	for _, p := range []pair{
		{ipsec.ModeTunnel, true, false, false, "aes128gcm16"},
		{ipsec.ModeTransport, true, false, false, "aes128gcm16"},
		{ipsec.ModeTunnel, false, false, false, "aes128gcm16"},
	} {
		b.Run(p.String(), func(b *testing.B) {
			l := newLab(b)
			l.a.startWorker(Config{})
			l.b.startWorker(Config{})
			l.protect(p)
			_, from := p.ends(l.a)
			_, to := p.ends(l.b)
			b.ReportMetric(l.iperf(from.String(), to.String()), "Gbit/s")
			b.ReportMetric(l.iperf(from.String(), to.String(), "-u", "-l", "64", "-b", "0")*1e9/8/64/1e3, "kpps-64B")
			b.ReportMetric(0, "ns/op")
		})
	}
	b.Run("clear", func(b *testing.B) {
		l := newLab(b)
		b.ReportMetric(l.iperf(l.a.v4.String(), l.b.v4.String()), "Gbit/s")
		b.ReportMetric(0, "ns/op")
	})
}

// iperf is the received rate in Gbit/s.
func (l *lab) iperf(from, to string, more ...string) float64 {
	l.t.Helper()
	server := exec.Command("ip", "netns", "exec", l.b.ns, "iperf3", "-s", "-1", "-B", to)
	if err := server.Start(); err != nil {
		l.t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	args := append([]string{"timeout", "20", "iperf3", "-J", "-t", "5", "-O", "1", "-c", to, "-B", from, "--connect-timeout", "3000"}, more...)
	var out string
	var err error
	for range 20 { // until the server listens
		if out, err = l.a.try(args...); err == nil {
			break
		}
	}
	if err != nil {
		l.t.Fatalf("iperf3: %v\n%s", err, out)
	}
	var r struct {
		End struct {
			SumReceived struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			Sum struct {
				BitsPerSecond float64 `json:"bits_per_second"`
				LostPercent   float64 `json:"lost_percent"`
			} `json:"sum"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		l.t.Fatal(err)
	}
	if r.End.SumReceived.BitsPerSecond == 0 {
		return r.End.Sum.BitsPerSecond / 1e9 * (1 - r.End.Sum.LostPercent/100)
	}
	return r.End.SumReceived.BitsPerSecond / 1e9
}
