package netio

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// StreamPrefix begins a TCP connection that carries IKE and ESP (RFC 9329 §4). Its
// originator sends it, once.
const StreamPrefix = "IKETCP"

// Bounds of TCP connections. A peer that hangs costs a connection and two
// goroutines, for as long as these say.
const (
	maxStreams       = 1024             // of one family
	maxStreamsPrefix = 64               // accepted from one /24 or /64
	streamQueue      = 256              // frames waiting to be sent on one connection
	streamBatch      = 64               // frames of one system call
	streamRecv       = 1024             // frames waiting for Recv
	prefixTime       = 5 * time.Second  // from accept to the whole prefix
	dialTime         = 10 * time.Second //
	sendTime         = 10 * time.Second // that a write may block
	strangerTime     = 30 * time.Second // an accepted connection that was never answered on
	frameHeader      = 2
)

// StreamConfig says what TCP connections are for.
type StreamConfig struct {
	IPv6 bool
	Port uint16 // the port to listen on
	Mark uint32 // SO_MARK of what is sent; 0 for none
}

// Streams carries datagrams of IKE and ESP in TCP connections, many of them
// behind one Conn:
//
//	 0                   1
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|  Length, with these 2 octets  |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	~   non-ESP marker and IKE, ESP, or 0xFF
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//
// A message goes out on the connection between its two addresses. Where there is
// none and its remote port is the configured one, one is opened, and the message
// waits for it; this end is then the originator, and opens it again when it was
// lost. To any other port only the other end can connect.
type Streams struct {
	cfg  StreamConfig
	recv chan frame
	done chan struct{}
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener
	conns    map[streamPath]*stream
	accepted map[netip.Prefix]int
	closed   bool

	refused atomic.Uint64
	dropped atomic.Uint64
}

var _ Conn = (*Streams)(nil)

type streamPath struct{ local, remote netip.AddrPort }

// frame is what a connection brought. Its buffer goes back to frames.
type frame struct {
	path streamPath
	data *[]byte
}

// frames are buffers of frames, with their length field.
var frames = sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }}

// NewStreams makes a Streams that does not listen yet.
func NewStreams(cfg StreamConfig) *Streams {
	ctx, stop := context.WithCancel(context.Background())
	return &Streams{cfg: cfg, recv: make(chan frame, streamRecv), done: make(chan struct{}), ctx: ctx, stop: stop,
		conns: map[streamPath]*stream{}, accepted: map[netip.Prefix]int{}}
}

// StreamCounts is what became of connections and frames.
type StreamCounts struct {
	Open    int    // connections at present
	Refused uint64 // connections over a bound, or that did not begin with the prefix
	Dropped uint64 // frames for a connection that does not keep up, or is not there
}

// Counts is a snapshot.
func (s *Streams) Counts() StreamCounts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return StreamCounts{Open: len(s.conns), Refused: s.refused.Load(), Dropped: s.dropped.Load()}
}

func (s *Streams) network() string {
	if s.cfg.IPv6 {
		return "tcp6"
	}
	return "tcp4"
}

// control marks a socket before it is bound.
func (s *Streams) control(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if err == nil && s.cfg.Mark != 0 {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(s.cfg.Mark))
		}
	})
	return errors.Join(cerr, err)
}

// Listen begins, or ends, to accept connections. Those that are open stay.
func (s *Streams) Listen(on bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return os.ErrClosed
	case on == (s.listener != nil):
		return nil
	case !on:
		err := s.listener.Close()
		s.listener = nil
		return err
	}
	lc := net.ListenConfig{Control: s.control}
	l, err := lc.Listen(s.ctx, s.network(), fmt.Sprintf(":%d", s.cfg.Port))
	if err != nil {
		return fmt.Errorf("listen on TCP port %d: %w", s.cfg.Port, err)
	}
	s.listener = l
	s.wg.Go(func() { s.accept(l) })
	return nil
}

func (s *Streams) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // out of descriptors, or a connection that is gone already
			select {
			case <-s.done:
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		if st := s.admit(c); st == nil {
			s.refused.Add(1)
			_ = c.Close()
		}
	}
}

func pathOf(c net.Conn) streamPath {
	unmap := func(a net.Addr) netip.AddrPort {
		ap := a.(*net.TCPAddr).AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	return streamPath{unmap(c.LocalAddr()), unmap(c.RemoteAddr())}
}

func prefixOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, _ := a.Prefix(bits)
	return p
}

// admit takes an accepted connection, within the bounds.
func (s *Streams) admit(c net.Conn) *stream {
	p := pathOf(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	from := prefixOf(p.remote.Addr())
	if s.closed || len(s.conns) >= maxStreams || s.accepted[from] >= maxStreamsPrefix || s.conns[p] != nil {
		return nil
	}
	s.accepted[from]++
	st := s.add(p)
	s.wg.Go(func() { st.serve(c) })
	return st
}

// add is called with mu held.
func (s *Streams) add(p streamPath) *stream {
	st := &stream{s: s, path: p, out: make(chan *[]byte, streamQueue), done: make(chan struct{})}
	s.conns[p] = st
	return st
}

// find is the connection of a path, which is opened when this end can.
func (s *Streams) find(p streamPath) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.conns[p]; st != nil {
		return st
	}
	if s.closed || p.remote.Port() != s.cfg.Port || p.local.Port() == s.cfg.Port || len(s.conns) >= maxStreams {
		return nil
	}
	st := s.add(p)
	s.wg.Go(st.dial)
	return st
}

func (s *Streams) remove(st *stream, accepted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[st.path] == st {
		delete(s.conns, st.path)
	}
	if from := prefixOf(st.path.remote.Addr()); accepted {
		if s.accepted[from]--; s.accepted[from] == 0 {
			delete(s.accepted, from)
		}
	}
}

// Recv implements Conn.
func (s *Streams) Recv(ms []Message) (int, error) {
	var f frame
	select {
	case f = <-s.recv:
	case <-s.done:
		return 0, os.ErrClosed
	}
	for n := 0; ; n++ {
		m := &ms[n]
		m.Data = append(m.Data[:0], *f.data...)
		m.Segment, m.TOS, m.TTL, m.Local, m.Remote = 0, 0, 0, f.path.local, f.path.remote
		frames.Put(f.data)
		if n+1 == len(ms) {
			return n + 1, nil
		}
		select {
		case f = <-s.recv:
		default:
			return n + 1, nil
		}
	}
}

// Sender implements Conn.
func (s *Streams) Sender() Sender { return streamSender{s} }

type streamSender struct{ s *Streams }

// Send implements Sender. It never waits: what finds its connection's queue full
// is dropped, as on a link that is too slow.
func (x streamSender) Send(ms []Message) (sent int, err error) {
	for i := range ms {
		m := &ms[i]
		st := x.s.find(streamPath{m.Local, m.Remote})
		if st == nil {
			x.s.dropped.Add(1)
			err = errors.Join(err, fmt.Errorf("there is no TCP connection from %s to %s", m.Local, m.Remote))
			continue
		}
		whole := true
		for data := m.Data; len(data) > 0; {
			d := data
			if m.Segment != 0 && len(d) > m.Segment {
				d = d[:m.Segment]
			}
			data = data[len(d):]
			whole = st.queue(d) && whole
		}
		if whole {
			sent++
		}
	}
	return sent, err
}

// Close implements Conn.
func (s *Streams) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.done)
	s.stop()
	if s.listener != nil {
		_ = s.listener.Close()
	}
	for _, st := range s.conns {
		st.close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// stream is one connection.
type stream struct {
	s        *Streams
	path     streamPath
	out      chan *[]byte
	done     chan struct{}
	once     sync.Once
	answered atomic.Bool // something was sent: a key manager knows this peer
}

func (st *stream) close() { st.once.Do(func() { close(st.done) }) }

// queue copies a datagram; false when the connection does not keep up.
func (st *stream) queue(d []byte) bool {
	if len(d)+frameHeader > MaxPacket {
		st.s.dropped.Add(1)
		return false
	}
	b := frames.Get().(*[]byte)
	*b = append(binary.BigEndian.AppendUint16((*b)[:0], uint16(len(d)+frameHeader)), d...)
	select {
	case st.out <- b:
		return true
	default:
		frames.Put(b)
		st.s.dropped.Add(1)
		return false
	}
}

// dial opens the connection, as its originator.
func (st *stream) dial() {
	defer st.s.remove(st, false)
	d := net.Dialer{Timeout: dialTime, LocalAddr: net.TCPAddrFromAddrPort(st.path.local), Control: st.s.control}
	c, err := d.DialContext(st.s.ctx, st.s.network(), st.path.remote.String())
	if err != nil {
		return // what waited is lost, as datagrams may be
	}
	if _, err := c.Write([]byte(StreamPrefix)); err != nil {
		_ = c.Close()
		return
	}
	st.answered.Store(true)
	st.carry(c, bufio.NewReaderSize(c, MaxPacket))
}

// serve carries an accepted connection, once it has begun as it must.
func (st *stream) serve(c net.Conn) {
	defer st.s.remove(st, true)
	r := bufio.NewReaderSize(c, MaxPacket)
	var prefix [len(StreamPrefix)]byte
	_ = c.SetReadDeadline(time.Now().Add(prefixTime))
	if _, err := io.ReadFull(r, prefix[:]); err != nil || string(prefix[:]) != StreamPrefix {
		st.s.refused.Add(1)
		_ = c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	st.carry(c, r)
}

// carry moves frames both ways until the connection or the Streams ends.
func (st *stream) carry(c net.Conn, r *bufio.Reader) {
	stranger := time.AfterFunc(strangerTime, func() {
		if !st.answered.Load() {
			st.close()
		}
	})
	defer stranger.Stop()
	var wg sync.WaitGroup
	wg.Go(func() { st.write(c) })
	wg.Go(func() {
		defer st.close()
		st.read(r)
	})
	<-st.done
	_ = c.Close()
	wg.Wait()
}

// read hands frames to Recv. "The receiver MUST treat these values [0 and 1] as
// fatal errors and MUST close TCP connection" (RFC 9329 §3).
func (st *stream) read(r *bufio.Reader) {
	for {
		var length [frameHeader]byte
		if _, err := io.ReadFull(r, length[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(length[:]))
		if n < frameHeader {
			return
		}
		b := frames.Get().(*[]byte)
		if n -= frameHeader; cap(*b) < n {
			*b = make([]byte, 0, n)
		}
		*b = (*b)[:n]
		if _, err := io.ReadFull(r, *b); err != nil {
			return
		}
		select {
		case st.s.recv <- frame{st.path, b}:
		case <-st.done:
			return
		}
	}
}

// write sends what is queued, as much as there is in one system call.
func (st *stream) write(c net.Conn) {
	defer st.close()
	var batch [streamBatch]*[]byte
	var vec [streamBatch][]byte
	for {
		select {
		case <-st.done:
			return
		case batch[0] = <-st.out:
		}
		n := 1
		for more := true; more && n < streamBatch; {
			select {
			case batch[n] = <-st.out:
				n++
			default:
				more = false
			}
		}
		for i, b := range batch[:n] {
			vec[i] = *b
		}
		_ = c.SetWriteDeadline(time.Now().Add(sendTime))
		out := net.Buffers(vec[:n])
		_, err := out.WriteTo(c)
		for _, b := range batch[:n] {
			frames.Put(b)
		}
		if err != nil {
			return
		}
		st.answered.Store(true)
	}
}
