package userspace

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/ipsec"
)

const (
	orderFlows   = 16
	orderPackets = 4000 // of each flow
	orderWindow  = 64   // packets of a flow that are under way at most
)

// orderReport is what a receiver of numbered datagrams saw.
type orderReport struct{ Flows, Packets, Reordered int }

// Many flows over four queues, with SAs for each queue and a fallback SA: packets of
// one flow arrive in order, and more than one SA carries them.
func TestFlowsKeepTheirOrderOverQueues(t *testing.T) {
	const queues = 4
	for _, encap := range []bool{true, false} {
		t.Run(fmt.Sprintf("encap=%t", encap), func(t *testing.T) {
			l := newLab(t)
			p := pair{mode: ipsec.ModeTunnel, encap: encap, suite: "aes128gcm16"}
			for _, n := range []*node{l.a, l.b} {
				n.startWorker(Config{Queues: queues})
			}
			l.protect(p)
			for _, n := range []*node{l.a, l.b} {
				var more []saSpec
				for q := range queues {
					for _, s := range p.specs(n) {
						s.ID += ipsec.SAID(10 * (q + 1))
						s.SPI += ipsec.SPI(16*(q+1) + q) // each to another queue of the receiver
						if s.Direction == ipsec.Outbound {
							s.Resource = uint32(q + 1)
						}
						more = append(more, s)
					}
				}
				n.worker.do("install", more)
			}
			_, from := p.ends(l.a)
			_, to := p.ends(l.b)
			server := l.b.child("order-serve", net.JoinHostPort(to.String(), "5002"))
			server.must()
			l.a.child("order-dial", net.JoinHostPort(to.String(), "5002"), from.String()).must()
			var got orderReport
			if err := json.Unmarshal([]byte(server.must()), &got); err != nil {
				t.Fatal(err)
			}
			if got.Flows != orderFlows || got.Packets < orderFlows*orderPackets/2 {
				t.Errorf("%d packets of %d flows arrived, want most of %d of %d", got.Packets, got.Flows, orderFlows*orderPackets, orderFlows)
			}
			if got.Reordered != 0 {
				t.Errorf("%d of %d packets arrived after a later one of their flow", got.Reordered, got.Packets)
			}
			var k backend.Counters
			if err := json.Unmarshal([]byte(l.a.worker.do("counters", nil)), &k); err != nil {
				t.Fatal(err)
			}
			carried := 0
			for _, s := range k.SAs {
				if s.ID%10 == 1 && s.Packets > 0 { // outbound
					carried++
				}
			}
			if carried < 2 {
				t.Errorf("%d outbound SAs carried packets, want those of several queues: %+v", carried, k.SAs)
			}
		})
	}
}

// childOrderServe receives numbered datagrams, answers every orderWindow-th, and
// reports when it is told that all were sent.
func childOrderServe() error {
	c, err := net.ListenPacket("udp", os.Args[1])
	if err != nil {
		return err
	}
	fmt.Println("ok listening")
	last := map[string]uint32{}
	var r orderReport
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		number := binary.BigEndian.Uint32(b)
		if number%orderWindow == 0 {
			if _, err := c.WriteTo(b[:n], from); err != nil {
				return err
			}
		}
		if number == 0 {
			r.Flows = len(last)
			text, err := json.Marshal(r)
			fmt.Println("ok", string(text))
			return err
		}
		r.Packets++
		if number <= last[from.String()] {
			r.Reordered++
		}
		last[from.String()] = max(last[from.String()], number)
	}
}

// childOrderDial sends what childOrderServe receives, each flow from its own port.
func childOrderDial() error {
	errs := make([]error, orderFlows)
	var wg sync.WaitGroup
	for i := range orderFlows {
		wg.Go(func() { errs[i] = sendNumbered(i) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	c, err := orderSocket()
	if err != nil {
		return err
	}
	for range 20 {
		if err := answered(c, 0, 64); err == nil {
			fmt.Println("ok sent")
			return nil
		}
	}
	return errors.New("the receiver does not answer")
}

func orderSocket() (*net.UDPConn, error) {
	to, err := net.ResolveUDPAddr("udp", os.Args[1])
	if err != nil {
		return nil, err
	}
	return net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(os.Args[2])}, to)
}

func sendNumbered(flow int) error {
	c, err := orderSocket()
	if err != nil {
		return err
	}
	b := make([]byte, 1200)
	for i := uint32(1); i <= orderPackets; i++ {
		size := 64 // mostly alike, so that they travel in trains
		if i%50 == 0 {
			size = 100 + 40*flow
		}
		if i%orderWindow == 0 {
			_ = answered(c, i, size) // lost, perhaps
			continue
		}
		binary.BigEndian.PutUint32(b, i)
		if _, err := c.Write(b[:size]); err != nil {
			return err
		}
	}
	return nil
}

// answered sends a datagram and waits for its answer.
func answered(c *net.UDPConn, number uint32, size int) error {
	b := make([]byte, size)
	binary.BigEndian.PutUint32(b, number)
	if _, err := c.Write(b); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		return err
	}
	for {
		if n, err := c.Read(b); err != nil || n >= 4 && binary.BigEndian.Uint32(b) == number {
			return err
		}
	}
}
