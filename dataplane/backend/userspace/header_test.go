package userspace

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// The outer header is what policy says (RFC 4301 §5.1.2.1, §8.1), as somebody else
// reads it off the wire.
func TestOuterHeaderFollowsPolicy(t *testing.T) {
	for _, tool := range []string{"tshark", "tcpdump"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs the tool %s: %v", tool, err)
		}
	}
	l := newLab(t)
	for _, n := range []*node{l.a, l.b} {
		n.startWorker(Config{MTU: 3000}) // more than the link's: what is sent may have to be cut
	}
	for i, c := range []struct {
		name  string
		outer ipsec.OuterHeader
		ping  []string
		suite string
		encap bool
		want  string // DF, DSCP, more fragments of the first frame
	}{
		{"auto", ipsec.OuterHeader{}, []string{"-M", "dont", "-Q", "0xb8"}, "aes128gcm16", false, "1 46 0"},
		{"copied when clear", ipsec.OuterHeader{DF: ipsec.DFCopy}, []string{"-M", "dont", "-Q", "0xb8"}, "aes128gcm16", false, "0 46 0"},
		{"copied when clear, in UDP", ipsec.OuterHeader{DF: ipsec.DFCopy}, []string{"-M", "dont"}, "aes128gcm16", true, "0 0 0"},
		{"copied when set", ipsec.OuterHeader{DF: ipsec.DFCopy}, []string{"-M", "do"}, "aes128gcm16", true, "1 0 0"},
		{"clear, DSCP hidden", ipsec.OuterHeader{DF: ipsec.DFClear, FixedDSCP: true, DSCP: 10}, []string{"-M", "do", "-Q", "0xb8"}, "aes128gcm16", false, "0 10 0"},
		{"clear and cut", ipsec.OuterHeader{DF: ipsec.DFClear}, []string{"-M", "dont", "-s", "2000"}, "aes128gcm16", true, "0 0 1"},
		{"set, DSCP hidden", ipsec.OuterHeader{DF: ipsec.DFSet, FixedDSCP: true}, []string{"-M", "dont", "-Q", "0xb8"}, "aes128gcm16", true, "1 0 0"},
		{"clear, AH", ipsec.OuterHeader{DF: ipsec.DFClear, FixedDSCP: true, DSCP: 1}, []string{"-M", "do", "-Q", "0xb8"}, "sha256", false, "0 1 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.t = t
			p := pair{mode: ipsec.ModeTunnel, encap: c.encap, suite: c.suite}
			for _, n := range []*node{l.a, l.b} {
				_, local := p.ends(n)
				_, remote := p.ends(n.peer())
				r := secureRule(p.mode, local, remote)
				policy := func(h ipsec.OuterHeader) {
					r.Template.Outer = h
					n.worker.do("policy", n.policy(ipsec.ActionPermit, r))
				}
				policy(c.outer)
				if i%2 == 1 { // SAs that are there follow, too
					policy(ipsec.OuterHeader{DF: ipsec.DFSet, DSCP: 7, FixedDSCP: true})
				}
				n.worker.do("install", p.specs(n))
				policy(c.outer)
			}
			file := filepath.Join(t.TempDir(), "wire.pcap")
			stop := l.a.capture(file)
			args := append([]string{"ping", "-c", "1", "-W", "10", "-I", l.a.in4.String()}, c.ping...)
			out, err := l.a.try(append(args, l.b.in4.String())...)
			stop()
			if err != nil {
				t.Errorf("%v: %s\nat a %s\nat b %s", err, out, l.a.worker.do("counters", nil), l.b.worker.do("counters", nil))
			}
			got := run(t, "tshark", "-r", file, "-Y", "ip.src==192.0.2.1 && (esp || ah || ip.flags.mf==1)", "-T", "fields", "-E", "separator=/s", "-E", "occurrence=f",
				"-e", "ip.flags.df", "-e", "ip.dsfield.dscp", "-e", "ip.flags.mf", "-o", "ip.defragment:FALSE")
			for line := range strings.Lines(got) {
				if line = strings.TrimSpace(line); strings.Contains(line, "Running as") {
					continue
				}
				if line != c.want {
					t.Errorf("DF, DSCP, MF are %s, want %s", line, c.want)
				}
				break
			}
			if !strings.Contains(got, c.want) {
				t.Errorf("tshark: %q, want %s", got, c.want)
			}
			for _, n := range []*node{l.a, l.b} {
				n.worker.do("remove", []ipsec.SAID{1, 2})
			}
		})
	}
	l.t = t
}

// The outer IPv6 flow label: the kernel's or the inner packet's in tunnel mode, by
// policy; always the packet's own in transport mode (RFC 4301 §5.1.2.2).
func TestFlowLabelFollowsPolicy(t *testing.T) {
	for _, tool := range []string{"tshark", "tcpdump"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs the tool %s: %v", tool, err)
		}
	}
	l := newLab(t)
	for _, n := range []*node{l.a, l.b} {
		n.startWorker(Config{})
	}
	label := func(file, filter string) string {
		out := run(t, "tshark", "-r", file, "-Y", filter, "-T", "fields", "-E", "occurrence=f", "-e", "ipv6.flow")
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "0x") {
				return line
			}
		}
		return out
	}
	for _, c := range []struct {
		name   string
		p      pair
		copied bool
		same   bool
	}{
		{"auto", pair{mode: ipsec.ModeTunnel, outer6: true, inner6: true, suite: "aes128gcm16", encap: true}, false, false},
		{"copied", pair{mode: ipsec.ModeTunnel, outer6: true, inner6: true, suite: "aes128gcm16", encap: true}, true, true},
		{"copied, without UDP", pair{mode: ipsec.ModeTunnel, outer6: true, inner6: true, suite: "aes128gcm16"}, true, true},
		{"copied, AH", pair{mode: ipsec.ModeTunnel, outer6: true, inner6: true, suite: "sha256"}, true, true},
		{"transport", pair{mode: ipsec.ModeTransport, outer6: true, suite: "aes128gcm16"}, false, true},
		{"transport, AH", pair{mode: ipsec.ModeTransport, outer6: true, suite: "sha256"}, false, true},
		// While somebody has an exclusive lease the kernel takes no label without one.
		{"leased by others", pair{mode: ipsec.ModeTunnel, outer6: true, inner6: true, suite: "aes128gcm16", encap: true}, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.t = t
			_, from := c.p.ends(l.a)
			_, to := c.p.ends(l.b)
			for _, n := range []*node{l.a, l.b} {
				_, local := c.p.ends(n)
				_, remote := c.p.ends(n.peer())
				r := secureRule(c.p.mode, local, remote)
				r.Template.Outer.CopyLabel = c.copied
				n.worker.do("policy", n.policy(ipsec.ActionPermit, r))
				n.worker.do("install", c.p.specs(n))
			}
			if c.name == "leased by others" {
				lease := exec.Command("ip", "netns", "exec", l.a.ns, "ping", "-F", "0x77", "-I", l.a.v6.String(), l.b.v6.String())
				said, err := lease.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := lease.Start(); err != nil {
					t.Fatal(err)
				}
				defer func() {
					_ = lease.Process.Kill()
					_ = lease.Wait()
				}()
				if lines := bufio.NewScanner(said); !lines.Scan() || !strings.Contains(lines.Text(), "flow") {
					t.Fatalf("ping -F said %q", lines.Text())
				}
			}
			dir := t.TempDir()
			stopWire := l.a.capture(filepath.Join(dir, "wire.pcap"))
			stopTun := l.a.captureOn("tst0", filepath.Join(dir, "tun.pcap"))
			out, err := l.a.try("ping", "-c", "1", "-W", "5", "-I", from.String(), to.String())
			stopTun()
			stopWire()
			if err != nil {
				t.Fatalf("%v: %s\nat a %s\nat b %s", err, out, l.a.worker.do("counters", nil), l.b.worker.do("counters", nil))
			}
			inner := label(filepath.Join(dir, "tun.pcap"), "icmpv6.type==128")
			outer := label(filepath.Join(dir, "wire.pcap"), "(esp || ah) && ipv6.src=="+l.a.v6.String())
			if !strings.HasPrefix(inner, "0x") || inner == "0x00000" || outer == "0x00000" || (inner == outer) != c.same {
				t.Errorf("flow label inside %q, outside %q, want them the same: %t", inner, outer, c.same)
			}
			for _, n := range []*node{l.a, l.b} {
				n.worker.do("remove", []ipsec.SAID{1, 2})
			}
		})
	}
	l.t = t
}
