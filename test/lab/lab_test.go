package lab

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m) }

func TestPairCarriesPingAndTCP(t *testing.T) {
	p := NewPair(t, PairOptions{})
	wire := p.A.Sniff()
	for _, dst := range []netip.Addr{p.B.V4.Addr(), p.B.V6.Addr()} {
		p.A.Node.Ping(dst, PingOptions{Count: 3})
	}
	for _, v6 := range []bool{false, true} {
		r := p.A.Node.Transfer(p.B, v6, 8<<20)
		t.Logf("v6=%v: %.0f Mbit/s", v6, r.BitsPerSecond()/1e6)
	}
	// Nothing protects this wire, and the sniffer must say so.
	if n := wire.Count(Cleartext); n < 12 {
		t.Errorf("%d packets in clear; want at least 6 requests and 6 answers", n)
	}
	if v := wire.Violations(); len(v) == 0 || !strings.Contains(v[0], "in clear") {
		t.Errorf("violations %q; want the packets in clear", v)
	}
	if wire.Count(Neighbor) == 0 {
		t.Error("no ARP or neighbour discovery seen")
	}
}

func TestPingFailsWhileTheLinkIsCut(t *testing.T) {
	t.Parallel()
	p := NewPair(t, PairOptions{})
	p.B.Cut()
	if err := p.A.Node.TryPing(p.B.V4.Addr(), PingOptions{}); err == nil {
		t.Fatal("ping over a link that is cut was answered")
	}
	p.B.Mend()
	p.A.Node.WaitPing(p.B.V4.Addr(), 30*time.Second)
}

func TestSitesWANDoesNotKnowTheSubnets(t *testing.T) {
	t.Parallel()
	s := NewSites(t, SitesOptions{})
	for _, dst := range []netip.Addr{s.GWB.V4.Addr(), s.GWB.V6.Addr()} {
		s.GWA.Node.Ping(dst, PingOptions{})
	}
	for _, dst := range []netip.Addr{s.HostB.V4.Addr(), s.HostB.V6.Addr()} {
		if err := s.HostA.Node.TryPing(dst, PingOptions{}); err == nil {
			t.Errorf("host A reaches %s without a tunnel", dst)
		}
	}
}

func TestSitesNATHidesGatewayA(t *testing.T) {
	t.Parallel()
	s := NewSites(t, SitesOptions{NAT: true})
	wire := s.GWB.Sniff()
	s.GWA.Node.Ping(s.GWB.V4.Addr(), PingOptions{})
	s.GWA.Node.Ping(s.GWB.V6.Addr(), PingOptions{})
	wire.mu.Lock()
	defer wire.mu.Unlock()
	for _, sample := range wire.samples[:2] {
		if strings.Contains(sample, s.GWA.V4.Addr().String()) || !strings.Contains(sample, s.WANB.V4.Addr().String()) {
			t.Errorf("gateway B got %q; want the address of the NAT, %s", sample, s.WANB.V4.Addr())
		}
	}
}

func TestLoseDropsSomeOfWhatIsForwarded(t *testing.T) {
	t.Parallel()
	s := NewSites(t, SitesOptions{})
	s.WAN().Lose(100)
	if err := s.GWA.Node.TryPing(s.GWB.V4.Addr(), PingOptions{}); err == nil {
		t.Error("a ping passed a router that loses everything")
	}
	s.WAN().Lose(0)
	s.GWA.Node.Ping(s.GWB.V4.Addr(), PingOptions{Count: 5})
}

func TestSmallWANMTUAnswersTooBig(t *testing.T) {
	t.Parallel()
	s := NewSites(t, SitesOptions{WANMTU: 1280})
	if err := s.GWA.Node.TryPing(s.GWB.V4.Addr(), PingOptions{Size: 1400, DontFragment: true}); err == nil {
		t.Error("a packet of 1428 octets passed an MTU of 1280")
	}
	s.GWA.Node.Ping(s.GWB.V4.Addr(), PingOptions{Size: 1280 - 28, DontFragment: true})
}

func TestProbeCountsAnOutage(t *testing.T) {
	p := NewPair(t, PairOptions{})
	probe := p.A.Node.StartProbe(p.B, false, 2*time.Millisecond)
	answered := func(n int) {
		WaitFor(t, 30*time.Second, "probe answers", func() error {
			if probe.Answered() < n {
				return errNotYet
			}
			return nil
		})
	}
	answered(50)
	sent := func() uint64 {
		probe.mu.Lock()
		defer probe.mu.Unlock()
		return probe.sent
	}
	p.B.Cut()
	cut, lost := time.Now(), sent()
	WaitFor(t, 30*time.Second, "an outage", func() error {
		if sent() < lost+30 || time.Since(cut) < 200*time.Millisecond {
			return errNotYet
		}
		return nil
	})
	p.B.Mend()
	answered(probe.Answered() + 50)
	r := probe.Stop()
	t.Log(r)
	if r.Lost < 20 || r.LongestGap < 150*time.Millisecond {
		t.Errorf("%v; want the outage of 200 ms and 30 datagrams to show", r)
	}

	calm := p.A.Node.StartProbe(p.B, true, 2*time.Millisecond)
	WaitFor(t, 30*time.Second, "probe answers", func() error {
		if calm.Answered() < 50 {
			return errNotYet
		}
		return nil
	})
	if r := calm.Stop(); r.Lost != 0 {
		t.Errorf("calm wire: %v", r)
	}
}

func TestProcessOutputAndEnd(t *testing.T) {
	p := NewPair(t, PairOptions{})
	n := p.A.Node
	echo := n.Start(Command{Args: []string{"sh", "-c", `echo "$GREETING" >/run/greeting; cat /run/greeting; exec sleep 60`}, Env: []string{"GREETING=good morning"}})
	echo.WaitOutput("good morning", 30*time.Second)
	if err := echo.Running(); err != nil {
		t.Fatal(err)
	}
	if got := n.Run("cat", "/run/greeting"); got != "good morning\n" {
		t.Errorf("/run of the same node holds %q", got)
	}
	if _, err := p.B.Node.Try("cat", "/run/greeting"); err == nil {
		t.Error("another node sees this node's /run")
	}
	echo.Kill()
	if err := echo.Running(); err == nil {
		t.Error("running after a kill")
	}
	if err := unix.Kill(echo.PID(), 0); err == nil {
		t.Errorf("process %d is still there", echo.PID())
	}
}

var errNotYet = errors.New("not yet")
