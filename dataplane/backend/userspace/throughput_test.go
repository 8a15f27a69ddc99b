package userspace

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// BenchmarkNamespaces measures one TCP stream and a flood of small UDP packets
// between two namespaces, in clear and protected, with iperf3. Everything shares
// this machine's cores; compare figures of one run on an idle machine only.
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
			l.measure(b, from.String(), to.String())
		})
	}
	b.Run("clear", func(b *testing.B) {
		l := newLab(b)
		l.measure(b, l.a.v4.String(), l.b.v4.String())
	})
}

func (l *lab) measure(b *testing.B, from, to string) {
	b.Helper()
	tcp := l.iperf(from, to)
	b.ReportMetric(tcp.BitsPerSecond/1e9, "Gbit/s")
	udp := l.iperf(from, to, "-u", "-l", "64", "-b", "0")
	b.ReportMetric((udp.Packets-udp.LostPackets)/udp.Seconds/1e3, "kpps-64B")
	b.ReportMetric(0, "ns/op")
}

// received is what the receiving application says it got. The sender's view of a
// flood, and the kernel's counters (which hold outer datagrams too), say more.
type received struct {
	Seconds       float64 `json:"seconds"`
	BitsPerSecond float64 `json:"bits_per_second"`
	Packets       float64 `json:"packets"` // UDP: numbered by the sender, lost ones included
	LostPackets   float64 `json:"lost_packets"`
}

// iperf runs one measurement and returns the server's report. iperf3 -J ends
// with status 0 whatever happens; what went wrong is in its document.
func (l *lab) iperf(from, to string, more ...string) received {
	l.t.Helper()
	var out bytes.Buffer
	server := exec.Command("ip", "netns", "exec", l.b.ns, "timeout", "30", "iperf3", "-s", "-1", "-J", "-B", to)
	server.Stdout = &out
	if err := server.Start(); err != nil {
		l.t.Fatal(err)
	}
	args := append([]string{"timeout", "20", "iperf3", "-J", "-t", "5", "-c", to, "-B", from, "--connect-timeout", "3000"}, more...)
	type document struct {
		Error string `json:"error"`
		End   struct {
			Sum         received `json:"sum"`
			SumReceived received `json:"sum_received"`
		} `json:"end"`
	}
	var d document
	for range 50 { // refused: the server does not listen yet
		text, err := l.a.try(args...)
		d = document{}
		if jsonErr := json.Unmarshal([]byte(text), &d); err != nil || jsonErr != nil {
			_ = server.Process.Kill()
			l.t.Fatalf("iperf3: %v, %v\n%s", err, jsonErr, text)
		}
		if !strings.Contains(d.Error, "refused") {
			break
		}
	}
	if d.Error != "" {
		_ = server.Process.Kill()
		l.t.Fatalf("iperf3 %v: %s", args, d.Error)
	}
	if err := server.Wait(); err != nil {
		l.t.Fatalf("iperf3 server: %v\n%s", err, &out)
	}
	d = document{}
	if err := json.Unmarshal(out.Bytes(), &d); err != nil || d.Error != "" {
		l.t.Fatalf("iperf3 server: %v, %s", err, d.Error)
	}
	r := d.End.SumReceived
	if len(more) > 0 {
		r = d.End.Sum
	}
	if r.Seconds == 0 || r.Packets == 0 && r.BitsPerSecond == 0 {
		l.t.Fatalf("iperf3's server reported nothing received:\n%s", &out)
	}
	return r
}
