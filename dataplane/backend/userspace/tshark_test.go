package userspace

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// capture records what passes eth0 until the function it returns is called.
func (n *node) capture(file string) func() { return n.captureOn("eth0", file) }

func (n *node) captureOn(device, file string) func() {
	n.l.t.Helper()
	cmd := exec.Command("ip", "netns", "exec", n.ns, "tcpdump", "-i", device, "-U", "-Z", "root", "--immediate-mode", "-w", file)
	said, err := cmd.StderrPipe()
	if err != nil {
		n.l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.l.t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	for lines.Scan() && !strings.Contains(lines.Text(), "listening on") {
	}
	return func() {
		n.l.t.Helper()
		// What it has not read when it is told to end is lost, so it is asked first.
		for whole := false; !whole; {
			_ = cmd.Process.Signal(syscall.SIGUSR1)
			if !lines.Scan() {
				n.l.t.Fatalf("tcpdump ended before it was told to: %v", cmd.Wait())
			}
			m := captured.FindStringSubmatch(lines.Text())
			whole = m != nil && m[1] == m[2]
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		for lines.Scan() {
		}
		if err := cmd.Wait(); err != nil {
			n.l.t.Fatalf("tcpdump: %v", err)
		}
	}
}

// captured is what tcpdump answers to SIGUSR1.
var captured = regexp.MustCompile(`(\d+) packets? captured, (\d+) packets? received by filter`)

// tsharkNames are the algorithms of a suite as tshark knows them.
var tsharkNames = map[string][2]string{
	"aes128gcm16":      {"AES-GCM with 16 octet ICV [RFC4106]", "NULL"},
	"aes256gcm16":      {"AES-GCM with 16 octet ICV [RFC4106]", "NULL"},
	"aes128gcm8":       {"AES-GCM with 8 octet ICV [RFC4106]", "NULL"},
	"aes128-sha256":    {"AES-CBC [RFC3602]", "HMAC-SHA-256-128 [RFC4868]"},
	"aes256-sha512":    {"AES-CBC [RFC3602]", "HMAC-SHA-512-256 [RFC4868]"},
	"aes128ctr-sha384": {"AES-CTR [RFC3686]", "HMAC-SHA-384-192 [RFC4868]"},
	"3des-sha1":        {"TripleDES-CBC [RFC2451]", "HMAC-SHA-1-96 [RFC2404]"},
	"null-sha256":      {"NULL", "HMAC-SHA-256-128 [RFC4868]"},
}

// tshark, given the keys, must see in the capture what was sent, with good ICVs:
// what the workers put on the wire is ESP as somebody else reads it.
func TestTsharkReadsWhatTheWorkersSend(t *testing.T) {
	for _, tool := range []string{"tshark", "tcpdump"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs the tool %s: %v", tool, err)
		}
	}
	l := newLab(t)
	l.noESN = true // tshark 4.0 knows no others
	for _, p := range []pair{
		{mode: ipsec.ModeTunnel, suite: "aes128gcm16"},
		{mode: ipsec.ModeTunnel, encap: true, inner6: true, suite: "aes256gcm16"},
		{mode: ipsec.ModeTunnel, outer6: true, suite: "aes128-sha256"},
		{mode: ipsec.ModeTunnel, outer6: true, inner6: true, encap: true, suite: "aes128ctr-sha384"},
		{mode: ipsec.ModeTransport, suite: "aes256-sha512"},
		{mode: ipsec.ModeTransport, encap: true, suite: "aes128gcm8"},
		{mode: ipsec.ModeTransport, outer6: true, inner6: true, suite: "3des-sha1"},
		{mode: ipsec.ModeTransport, outer6: true, inner6: true, encap: true, suite: "null-sha256"},
	} {
		t.Run(p.String(), func(t *testing.T) {
			l.t = t
			for _, n := range []*node{l.a, l.b} {
				n.startWorker(Config{})
			}
			l.protect(p)
			file := filepath.Join(t.TempDir(), "wire.pcap")
			stop := l.a.capture(file)
			_, to := p.ends(l.b)
			at := netip.AddrPortFrom(to, 9999).String()
			l.b.child("udp-serve", at).must()
			l.a.child("udp-dial", at, "small").must()
			stop()
			for _, n := range []*node{l.a, l.b} {
				n.worker.do("close", nil)
			}
			readByTshark(t, l, p, file)
		})
	}
	l.t = t
}

func readByTshark(t *testing.T, l *lab, p pair, file string) {
	t.Helper()
	args := []string{"-r", file, "-Y", "esp", "-T", "fields", "-E", "occurrence=a", "-e", "esp.spi", "-e", "esp.icv_good", "-e", "udp.dstport", "-e", "data.data",
		"-o", "esp.enable_encryption_decode:TRUE", "-o", "esp.enable_authentication_check:TRUE",
		"-o", "ip.defragment:TRUE", "-o", "ipv6.defragment:TRUE"}
	for _, s := range p.specs(l.a) {
		sa, err := s.sa()
		if err != nil {
			t.Fatal(err)
		}
		from, to := s.Local, s.Remote
		if s.Direction == ipsec.Inbound {
			from, to = to, from
		}
		family := "IPv4"
		if from.Is6() {
			family = "IPv6"
		}
		key := func(s ipsec.Secret) string {
			if s.Len() == 0 {
				return ""
			}
			return "0x" + hex.EncodeToString(s.Reveal())
		}
		names := tsharkNames[p.suite]
		args = append(args, "-o", fmt.Sprintf(`uat:esp_sa:"%s","%s","%s","0x%08x","%s","%s","%s","%s"`,
			family, from, to, uint32(s.SPI), names[0], key(sa.EncrKey), names[1], key(sa.IntegKey)))
	}
	var said bytes.Buffer
	cmd := exec.Command("tshark", args...)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, said.String())
	}
	want := hex.EncodeToString(datagram(1))
	var there, back int
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if strings.Contains(f[1], "0") || strings.Contains(f[1], "False") {
			t.Errorf("tshark finds an ICV wrong: SPI %s", f[0])
		}
		if f[1] == "" && !strings.Contains(tsharkNames[p.suite][0], "GCM") {
			t.Errorf("tshark has not checked the ICV of SPI %s", f[0])
		}
		if len(f) == 4 && strings.Contains(f[3], want) {
			if strings.Contains(f[0], "0x00000101") && strings.Contains(f[2], "9999") {
				there++
			} else if strings.Contains(f[0], "0x00000102") {
				back++
			}
		}
	}
	if there == 0 || back == 0 {
		t.Errorf("tshark sees the datagram %d times going and %d times coming back; want both\n%.2000s\n%s", there, back, out, said.String())
	}
}
