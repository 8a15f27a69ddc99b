package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// limit is how long a wait may take. Figures are printed; limits only end what hangs.
const limit = time.Minute

// bench is a fleet in a lab, and what has to hold at the end.
type bench struct {
	*fleet.Fleet
	t      *testing.T
	hosts  []*lab.Node
	before map[*lab.Node]string
	wires  []*lab.Sniffer // these must be protected
	min    uint64         // ESP packets that each must have seen
}

// pairBench is two hosts on a wire.
type pairBench struct {
	*bench
	*lab.Pair
	wire *lab.Sniffer
}

// newPair starts a pair. The policy may be empty: then none is applied.
func newPair(t *testing.T, policy string, o fleet.Options) *pairBench {
	t.Helper()
	p := lab.NewPair(t, lab.PairOptions{})
	b := &pairBench{Pair: p, wire: p.A.Sniff()}
	o.Hosts = []*lab.Node{p.A.Node, p.B.Node}
	b.bench = newBench(t, p.Lab, policy, o, b.wire)
	return b
}

func newBench(t *testing.T, l *lab.Lab, policy string, o fleet.Options, wires ...*lab.Sniffer) *bench {
	t.Helper()
	b := &bench{t: t, hosts: o.Hosts, wires: wires, min: 1, before: map[*lab.Node]string{}}
	for _, h := range o.Hosts {
		b.before[h] = state(h)
	}
	b.Fleet = fleet.New(t, l, o)
	t.Cleanup(b.finish)
	if policy != "" {
		b.Apply(policy)
		b.WaitInSync()
	}
	return b
}

// clearAllowed takes the wires from those that must be protected: the test says
// itself what may be in clear.
func (b *bench) clearAllowed() { b.wires = nil }

// finish asks what every test asks. A test that failed already has said enough.
func (b *bench) finish() {
	b.t.Helper()
	if b.t.Failed() || b.t.Skipped() {
		return
	}
	for _, w := range b.wires {
		w.RequireProtected(b.min)
	}
	if b.Keymgrd.Running() == nil {
		if n := b.Keymgrd.Metrics()["testudo_keymgr_panics_total"]; n != 0 {
			b.t.Errorf("%v machines in the key manager panicked; want 0", n)
		}
	}
	for _, h := range b.hosts {
		w := b.Worker(fleet.Name(h))
		if w.Running() != nil {
			w.Start() // was killed: what it left must go away with the next clean stop
			w.WaitUp()
		}
		w.Stop()
		if after := state(h); after != b.before[h] {
			b.t.Errorf("host %s after a clean stop:\n%s\nwant, as before:\n%s", h.Name, after, b.before[h])
		}
	}
}

// state is what a worker could leave behind on a host.
func state(h *lab.Node) string {
	out := ""
	for _, args := range [][]string{
		{"ip", "rule"}, {"ip", "-6", "rule"},
		{"ip", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"},
		{"ip", "-br", "link"}, {"ip", "-br", "-4", "addr"}, {"nft", "list", "ruleset"},
		{"sysctl", "net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter", "net.ipv4.conf.all.src_valid_mark"},
	} {
		for line := range strings.Lines(h.Run(args...)) {
			// The kernel makes these by itself, some time after a link is up; ctl is the
			// fleet's own.
			line = strings.ReplaceAll(line, " linkdown", "")
			if strings.HasPrefix(line, "local ") && strings.Contains(line, ":") {
				continue
			}
			if !strings.Contains(line, "fe80:") && !strings.Contains(line, "ctl") && !strings.Contains(line, "10.255.") && !strings.HasPrefix(line, "anycast") && !strings.HasPrefix(line, "multicast") {
				out += line
			}
		}
	}
	return out
}

// metric is a metric of a daemon; 0 when it is not there.
func metric(d *fleet.Daemon, name string) float64 { return d.Metrics()[name] }

// packets is the worker's counter of what became of packets.
func packets(d *fleet.Daemon, why string) float64 {
	return metric(d, fmt.Sprintf("testudo_worker_packets_total{why=%q}", why))
}

// onlyIKE returns the one IKE SA that node has with a peer.
func (b *bench) onlyIKE(node, peer string) *keymgrv1.IkeSa {
	b.t.Helper()
	var found []*keymgrv1.IkeSa
	for _, s := range b.SAs(node) {
		if s.GetPeer() == peer {
			found = append(found, s)
		}
	}
	if len(found) != 1 || len(found[0].GetChildren()) == 0 {
		b.t.Fatalf("node %s has %d IKE SAs with %s, %v; want one with a CHILD SA", node, len(found), peer, found)
	}
	return found[0]
}

// waitNoSAs waits until a node has no IKE SA and no SA in its worker.
func (b *bench) waitNoSAs(node string) {
	b.t.Helper()
	lab.WaitFor(b.t, limit, node+" to have no SAs", func() error {
		if s := b.SAs(node); len(s) != 0 {
			return fmt.Errorf("%d IKE SAs: %v", len(s), s)
		}
		if n := metric(b.Worker(node), "testudo_worker_sas"); n != 0 {
			return fmt.Errorf("%v SAs in the worker", n)
		}
		return nil
	})
}

// datagram sends one UDP datagram of a size to an interface of another host, which
// echoes it within the limit, and tells what was wrong with the answer.
func datagram(from *lab.Node, to *lab.Interface, addr netip.Addr, size int, limit time.Duration) error {
	var l, c *net.UDPConn
	if err := to.Node.Do(func() (err error) {
		l, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	}); err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	if err := from.Do(func() (err error) {
		c, err = net.DialUDP("udp", nil, l.LocalAddr().(*net.UDPAddr))
		return err
	}); err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	deadline := time.Now().Add(limit)
	_, _ = l.SetDeadline(deadline), c.SetDeadline(deadline)
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	if _, err := c.Write(data); err != nil {
		return fmt.Errorf("send %d octets: %w", size, err)
	}
	b := make([]byte, 1<<16)
	n, back, err := l.ReadFromUDPAddrPort(b)
	if err != nil {
		return fmt.Errorf("%d octets to %s: %w", size, addr, err)
	}
	if _, err := l.WriteToUDPAddrPort(b[:n], back); err != nil {
		return fmt.Errorf("answer with %d octets: %w", n, err)
	}
	if n, err = c.Read(b); err != nil {
		return fmt.Errorf("%d octets back from %s: %w", size, addr, err)
	}
	if string(b[:n]) != string(data) {
		return fmt.Errorf("%d octets came back as %d other ones", size, n)
	}
	return nil
}
