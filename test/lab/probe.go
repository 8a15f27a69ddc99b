package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// numberLen is the length of a datagram's number.
const numberLen = 8

// Probe sends small numbered UDP datagrams at a steady pace, has them echoed, and
// tells how many came back: what a rekey, a restart or a move costs.
type Probe struct {
	size     int
	interval time.Duration
	conn     *net.UDPConn
	echo     *net.UDPConn // nil for one in a machine
	stop     chan struct{}
	sender   sync.WaitGroup
	readers  sync.WaitGroup

	mu   sync.Mutex
	sent uint64
	back map[uint64]bool
	last time.Time
	gap  time.Duration
}

// ProbeResult is what became of the datagrams.
type ProbeResult struct {
	Sent, Lost uint64
	LongestGap time.Duration // between two answers that followed each other
}

func (r ProbeResult) String() string {
	return fmt.Sprintf("%d of %d lost, longest gap %v", r.Lost, r.Sent, r.LongestGap.Round(time.Millisecond))
}

// probePort is where a probe's datagrams come back from.
const probePort = 7007

// How long after the last answer Stop takes the missing ones for lost, those of a
// machine too.
const (
	probeDrain        = 2 * time.Second
	probeDrainMachine = 20 * time.Second
)

// probeBuffer is what the kernel may hold while we are busy, in octets.
const probeBuffer = 4 << 20

// StartProbe begins to send from a node to an interface of another, one datagram
// an interval, until Stop.
func (n *Node) StartProbe(to *Interface, v6 bool, interval time.Duration) *Probe {
	n.lab.t.Helper()
	return n.StartProbeOf(numberLen, to, v6, interval)
}

// StartProbeOf is StartProbe with datagrams of so many octets.
func (n *Node) StartProbeOf(size int, to *Interface, v6 bool, interval time.Duration) *Probe {
	t := n.lab.t
	t.Helper()
	addr := to.V4.Addr()
	if v6 {
		addr = to.V6.Addr()
	}
	p := &Probe{size: size, interval: interval, stop: make(chan struct{}), back: map[uint64]bool{}}
	at := netip.AddrPortFrom(addr, probePort)
	if to.Node.machine != nil {
		echo := to.Node.Start(Command{Args: []string{"/init", "echo", at.String()}})
		echo.WaitOutput("echo", machineLimit)
	} else {
		n.lab.must(to.Node.Do(func() (err error) {
			p.echo, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			return err
		}))
		n.lab.must(receiveBuffer(p.echo, probeBuffer))
		p.readers.Go(p.answer)
	}
	n.lab.must(n.Do(func() (err error) {
		p.conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		return err
	}))
	n.lab.must(receiveBuffer(p.conn, probeBuffer))
	p.readers.Go(p.collect)
	p.sender.Go(p.send)
	t.Cleanup(func() { p.Stop() })
	return p
}

func receiveBuffer(c *net.UDPConn, octets int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if inner := raw.Control(func(fd uintptr) { err = setReceiveBuffer(int(fd), octets) }); inner != nil {
		return inner
	}
	return err
}

func (p *Probe) send() {
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	b := make([]byte, p.size)
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
		p.mu.Lock()
		binary.BigEndian.PutUint64(b, p.sent)
		p.sent++
		p.mu.Unlock()
		// An error (no route, EPERM of a block rule) is a loss like any other.
		_, _ = p.conn.Write(b)
	}
}

func (p *Probe) answer() {
	b := make([]byte, p.size+1)
	for {
		k, from, err := p.echo.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		_, _ = p.echo.WriteToUDPAddrPort(b[:k], from)
	}
}

func (p *Probe) collect() {
	b := make([]byte, p.size+1)
	for {
		k, err := p.conn.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil || k != p.size { // an ICMP error came back: the datagram is lost
			continue
		}
		now := time.Now()
		p.mu.Lock()
		p.back[binary.BigEndian.Uint64(b)] = true
		if !p.last.IsZero() {
			p.gap = max(p.gap, now.Sub(p.last))
		}
		p.last = now
		p.mu.Unlock()
	}
}

// Answered is the number of datagrams that came back so far.
func (p *Probe) Answered() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.back)
}

// drained waits for answers under way.
func (p *Probe) drained() {
	limit := probeDrain
	if p.echo == nil {
		limit = probeDrainMachine
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for before, since := -1, time.Now(); ; <-tick.C {
		n := p.Answered()
		if n != before {
			before, since = n, time.Now()
		}
		p.mu.Lock()
		all := uint64(n) == p.sent
		p.mu.Unlock()
		if all || time.Since(since) > limit {
			return
		}
	}
}

// Stop ends the probe, waits for answers under way, and counts.
func (p *Probe) Stop() ProbeResult {
	select {
	case <-p.stop:
	default:
		close(p.stop)
		p.sender.Wait()
		p.drained()
		_ = p.conn.SetReadDeadline(time.Now())
		if p.echo != nil {
			_ = p.echo.SetReadDeadline(time.Now())
		}
		p.readers.Wait()
		_ = p.conn.Close()
		if p.echo != nil {
			_ = p.echo.Close()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return ProbeResult{Sent: p.sent, Lost: p.sent - uint64(len(p.back)), LongestGap: p.gap}
}
