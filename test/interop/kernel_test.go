package interop

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// TestKernel has strongSwan in a virtual machine, where the kernel does ESP and AH:
// what kernel-libipsec cannot do.
func TestKernel(t *testing.T) {
	for _, s := range kernels() {
		t.Run(s.fullName(), func(t *testing.T) {
			t.Parallel()
			t.Cleanup(func() { results.add(s, t.Failed()) })
			s.run(t)
		})
	}
}

// kernelSA is what both ends must have.
type kernelSA struct {
	suite string     // as we call it
	ah    bool       // instead of ESP
	mode  ipsec.Mode // as both ends have it
	inUDP bool
}

func kernels() []scenario {
	const transport, tunnel = ipsec.ModeTransport, ipsec.ModeTunnel
	var out []scenario
	add := func(name, shows string, at topology, v6 bool, r role, want kernelSA) {
		s := scenario{name: "kernel-" + name, shows: shows, role: r, at: at, v6: v6, kernel: true}
		s.ours.mode = map[ipsec.Mode]string{transport: "transport", tunnel: "tunnel"}[want.mode]
		algorithm := strings.TrimSuffix(want.suite, "-esn")
		s.swan = func(c *lab.SwanConn) {
			c.Mode = want.mode
			c.ESPProposals = []string{want.suite}
			if want.ah {
				c.ESPProposals, c.AHProposals = nil, []string{want.suite}
			}
		}
		if want.ah {
			s.ours.ah = algorithm
		} else {
			s.ours.esp = []string{algorithm}
		}
		s.steps = func(b *bed) { b.kernelCarries(want) }
		out = append(out, s)
	}
	add("esp-transport-ipv4", "ESP in transport mode as IP protocol 50, extended sequence numbers", pair, false, initiator,
		kernelSA{suite: "aes128gcm16-esn", mode: transport})
	add("esp-transport-ipv6", "ESP in transport mode over IPv6, AES-CBC", pair, true, responder,
		kernelSA{suite: "aes256-sha256-esn", mode: transport})
	add("esp-tunnel-ipv4", "ESP in tunnel mode as IP protocol 50, ChaCha20-Poly1305, without extended sequence numbers", sites, false, responder,
		kernelSA{suite: "chacha20poly1305", mode: tunnel})
	add("esp-nat", "we are behind a NAT, ESP in UDP by the kernel", sitesNAT, false, initiator,
		kernelSA{suite: "aes256gcm16-esn", mode: tunnel, inUDP: true})
	add("ah-transport-ipv4", "AH in transport mode, extended sequence numbers", pair, false, responder,
		kernelSA{suite: "sha256-esn", ah: true, mode: transport})
	add("ah-transport-ipv6", "AH in transport mode over IPv6, SHA-512", pair, true, initiator,
		kernelSA{suite: "sha512-esn", ah: true, mode: transport})
	add("ah-tunnel-ipv4", "AH in tunnel mode, SHA-256, without extended sequence numbers", sites, false, initiator,
		kernelSA{suite: "sha256", ah: true, mode: tunnel})
	add("ah-tunnel-ipv6", "AH in tunnel mode over IPv6, SHA-384", sites, true, responder,
		kernelSA{suite: "sha384-esn", ah: true, mode: tunnel})
	return out
}

// kernelCarries moves traffic, and has it go on through rekeys by both ends.
func (b *bed) kernelCarries(want kernelSA) {
	ours, _ := b.start()
	b.ping()
	b.transfer(1 << 20)
	probe := b.ourHost.Node.StartProbe(b.theirHost, b.v6, probeInterval)
	b.answered(probe, 20)
	for _, rekey := range []func(*bed, *ikeSA){(*bed).rekeyOurChild, (*bed).rekeyTheirChild} {
		b.requireKernelSA(want)
		b.replaceChild(ours, rekey)
		ours, _ = b.up()
	}
	b.requireKernelSA(want)
	b.requireKernelLoss(probe)
	for _, w := range b.wire {
		for _, sa := range w.SAs() {
			protocol := lab.ESP
			if want.ah {
				protocol = lab.AH
			}
			if sa.Protocol != protocol || sa.InUDP != want.inUDP {
				b.Errorf("the wire has an SA %+v; want %v, in UDP: %t", sa, protocol, want.inUDP)
			}
		}
	}
	b.noFailures()
}

// requireKernelLoss is requireNoLoss but for what the peer's kernel has dropped itself: a
// packet on its way out when its SA is deleted (XfrmOutStateInvalid).
func (b *bed) requireKernelLoss(p *lab.Probe) {
	b.Helper()
	r, dropped := p.Stop(), b.kernelDrops()
	b.Logf("probe: %v; dropped by the peer's kernel on the way out: %d", r, dropped)
	if r.Lost > dropped {
		b.Errorf("probe: %v; the peer's kernel says it dropped %d", r, dropped)
	}
}

func (b *bed) kernelDrops() uint64 {
	b.Helper()
	stat := b.them.Node.Run("cat", "/proc/net/xfrm_stat")
	m := regexp.MustCompile(`XfrmOutStateInvalid\s+(\d+)`).FindStringSubmatch(stat)
	if m == nil {
		b.Fatalf("the peer's kernel counts %q; want XfrmOutStateInvalid among it", stat)
	}
	dropped, err := strconv.ParseUint(m[1], 10, 64)
	b.must(err)
	return dropped
}

// requireKernelSA compares what both ends have with what was to be agreed on.
func (b *bed) requireKernelSA(want kernelSA) {
	b.Helper()
	ours, theirs := b.up()
	c, sa := theirs.Child("INSTALLED"), ours.GetChildren()[0]
	protocol, mode := "ESP", "TUNNEL"
	if want.ah {
		protocol = "AH"
	}
	if want.mode == ipsec.ModeTransport {
		mode = "TRANSPORT"
	}
	esn := slices.Contains(strings.Split(want.suite, "-"), "esn")
	if c.Protocol != protocol || c.Mode != mode || c.InUDP != want.inUDP || c.ESN != esn {
		b.Errorf("strongSwan has %+v; want %s in %s mode, in UDP: %t, extended sequence numbers: %t", c, protocol, mode, want.inUDP, esn)
	}
	if got := fmt.Sprint(sa.GetSuite(), sa.GetEncap()); got != fmt.Sprint(want.suite, want.inUDP) {
		b.Errorf("we have %v; want %s, in UDP: %t", sa, want.suite, want.inUDP)
	}
}

// kernelUp waits until there is one IKE SA with one CHILD SA, another than that of the
// SPI, whose SPIs are those that the kernel of the peer's machine has.
func (b *bed) kernelUp(not uint32) (ours *ikeSA) {
	b.Helper()
	lab.WaitFor(b, 2*limit, "a CHILD SA that both ends have", func() error {
		sas := b.f.SAs(b.node)
		if len(sas) != 1 || len(sas[0].GetChildren()) != 1 || sas[0].GetChildren()[0].GetSpiIn() == not {
			return fmt.Errorf("we have %v", sas)
		}
		ours = sas[0]
		c := ours.GetChildren()[0]
		kernel := b.them.Node.Run("ip", "xfrm", "state")
		for spi, dst := range map[uint32]netip.Addr{c.GetSpiIn(): b.conn.Remote, c.GetSpiOut(): b.conn.Local} {
			if !strings.Contains(kernel, fmt.Sprintf("dst %s\n\tproto esp spi %#08x", dst, spi)) {
				return fmt.Errorf("its kernel has no SA %#08x to %s: %s", spi, dst, kernel)
			}
		}
		if n := strings.Count(kernel, "proto esp spi"); n != 2 {
			return fmt.Errorf("its kernel has %d SAs; want 2: %s", n, kernel)
		}
		return nil
	})
	return ours
}
