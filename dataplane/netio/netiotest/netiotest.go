// Package netiotest is netio in memory: a TUN device whose other side is the
// test, and sockets joined by a wire that the test can make unreliable.
package netiotest

import (
	"bytes"
	"net/netip"
	"os"
	"sync"

	"github.com/testudo-ipsec/testudo/dataplane/netio"
)

// Tun is a netio.Tun. What the engine reads is what the test put into ToEngine;
// what the engine writes arrives in FromEngine, with its parts joined.
type Tun struct {
	ToEngine   chan netio.Packet
	FromEngine chan netio.Packet
	closed     chan struct{}
	once       sync.Once
}

// NewTun makes a Tun whose channels hold n packets.
func NewTun(n int) *Tun {
	return &Tun{ToEngine: make(chan netio.Packet, n), FromEngine: make(chan netio.Packet, n), closed: make(chan struct{})}
}

// Read implements netio.Tun.
func (t *Tun) Read(ps []netio.Packet) (int, error) {
	select {
	case p := <-t.ToEngine:
		t.take(&ps[0], p)
	case <-t.closed:
		return 0, os.ErrClosed
	}
	for n := 1; n < len(ps); n++ {
		select {
		case p := <-t.ToEngine:
			t.take(&ps[n], p)
		default:
			return n, nil
		}
	}
	return len(ps), nil
}

func (t *Tun) take(dst *netio.Packet, p netio.Packet) {
	dst.Data = append(dst.Data[:0], p.Data...)
	dst.Offload = p.Offload
}

// Writer implements netio.Tun.
func (t *Tun) Writer() netio.TunWriter { return t }

// Write implements netio.TunWriter.
func (t *Tun) Write(o netio.Offload, parts [][]byte) error {
	select {
	case t.FromEngine <- netio.Packet{Data: bytes.Join(parts, nil), Offload: o}:
		return nil
	case <-t.closed:
		return os.ErrClosed
	}
}

// Close implements netio.Tun.
func (t *Tun) Close() error {
	t.once.Do(func() { close(t.closed) })
	return nil
}

// Conn is one end of a wire.
type Conn struct {
	in     chan netio.Message
	peer   *Conn
	local  netip.AddrPort
	closed chan struct{}
	once   sync.Once

	// Tamper, when set, decides what happens to each datagram sent here: it
	// returns what arrives instead (nothing, the same, copies, in any order).
	// It is called by one sender at a time and may keep the data.
	Tamper func(data []byte) [][]byte
	mu     sync.Mutex
}

// NewWire joins two sockets; n datagrams fit in each direction. A datagram that
// does not fit waits.
func NewWire(a, b netip.AddrPort, n int) (*Conn, *Conn) {
	x := &Conn{in: make(chan netio.Message, n), local: a, closed: make(chan struct{})}
	y := &Conn{in: make(chan netio.Message, n), local: b, closed: make(chan struct{}), peer: x}
	x.peer = y
	return x, y
}

// Recv implements netio.Conn.
func (c *Conn) Recv(ms []netio.Message) (int, error) {
	select {
	case m := <-c.in:
		take(&ms[0], m)
	case <-c.closed:
		return 0, os.ErrClosed
	}
	for n := 1; n < len(ms); n++ {
		select {
		case m := <-c.in:
			take(&ms[n], m)
		default:
			return n, nil
		}
	}
	return len(ms), nil
}

func take(dst *netio.Message, m netio.Message) {
	data := append(dst.Data[:0], m.Data...)
	*dst = m
	dst.Data = data
}

// Sender implements netio.Conn.
func (c *Conn) Sender() netio.Sender { return c }

// Send implements netio.Sender. A train arrives as a train unless the wire
// tampers.
func (c *Conn) Send(ms []netio.Message) (int, error) {
	for i, m := range ms {
		if m.Local.Port() == 0 {
			m.Local = c.local
		}
		m.Local, m.Remote = m.Remote, m.Local
		m.TTL = 0
		m.Data = bytes.Clone(m.Data)
		if c.Tamper == nil {
			if err := c.deliver(m); err != nil {
				return i, err
			}
			continue
		}
		for _, d := range c.tamper(m.Data, m.Segment) {
			m.Data, m.Segment = d, 0
			if err := c.deliver(m); err != nil {
				return i, err
			}
		}
	}
	return len(ms), nil
}

func (c *Conn) tamper(data []byte, segment int) [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if segment == 0 {
		return c.Tamper(data)
	}
	var out [][]byte
	for len(data) > 0 {
		n := min(segment, len(data))
		out = append(out, c.Tamper(data[:n:n])...)
		data = data[n:]
	}
	return out
}

func (c *Conn) deliver(m netio.Message) error {
	select {
	case c.peer.in <- m:
		return nil
	case <-c.closed:
		return os.ErrClosed
	case <-c.peer.closed:
		return nil // a datagram to nobody is lost
	}
}

// Inject makes a datagram arrive at this end.
func (c *Conn) Inject(m netio.Message) { c.in <- m }

// Close implements netio.Conn.
func (c *Conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}
