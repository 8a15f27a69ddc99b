package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Probe sends small numbered UDP datagrams at a steady pace, has them echoed, and
// tells how many came back: what a rekey, a restart or a move costs.
type Probe struct {
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

// How long Stop waits for answers under way, those of a machine too.
const (
	probeDrain        = 500 * time.Millisecond
	probeDrainMachine = 20 * time.Second
)

// StartProbe begins to send from a node to an interface of another, one datagram
// an interval, until Stop.
func (n *Node) StartProbe(to *Interface, v6 bool, interval time.Duration) *Probe {
	t := n.lab.t
	t.Helper()
	addr := to.V4.Addr()
	if v6 {
		addr = to.V6.Addr()
	}
	p := &Probe{interval: interval, stop: make(chan struct{}), back: map[uint64]bool{}}
	at := netip.AddrPortFrom(addr, probePort)
	if to.Node.machine != nil {
		echo := to.Node.Start(Command{Args: []string{"/init", "echo", at.String()}})
		echo.WaitOutput("echo", machineLimit)
	} else {
		n.lab.must(to.Node.Do(func() (err error) {
			p.echo, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			return err
		}))
		p.readers.Go(p.answer)
	}
	n.lab.must(n.Do(func() (err error) {
		p.conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		return err
	}))
	p.readers.Go(p.collect)
	p.sender.Go(p.send)
	t.Cleanup(func() { p.Stop() })
	return p
}

func (p *Probe) send() {
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	var b [8]byte
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
		p.mu.Lock()
		binary.BigEndian.PutUint64(b[:], p.sent)
		p.sent++
		p.mu.Unlock()
		// An error (no route, EPERM of a block rule) is a loss like any other.
		_, _ = p.conn.Write(b[:])
	}
}

func (p *Probe) answer() {
	b := make([]byte, 64)
	for {
		k, from, err := p.echo.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		_, _ = p.echo.WriteToUDPAddrPort(b[:k], from)
	}
}

func (p *Probe) collect() {
	b := make([]byte, 64)
	for {
		k, err := p.conn.Read(b)
		select {
		case <-p.stop:
			if err != nil {
				return
			}
		default:
			if err != nil { // an ICMP error came back: the datagram is lost
				continue
			}
		}
		if k != 8 {
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

func (p *Probe) missing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return uint64(len(p.back)) < p.sent
}

// Stop ends the probe, waits a moment for answers under way, and counts.
func (p *Probe) Stop() ProbeResult {
	select {
	case <-p.stop:
	default:
		close(p.stop)
		p.sender.Wait()
		limit := time.Now().Add(probeDrain)
		for p.echo == nil && p.missing() && time.Since(limit) < probeDrainMachine {
			<-time.After(pollInterval)
		}
		_ = p.conn.SetReadDeadline(limit)
		if p.echo != nil {
			_ = p.echo.SetReadDeadline(limit)
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
