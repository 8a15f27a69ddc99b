package netio

import (
	"errors"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Limits of one UDP_SEGMENT send: UDP_MAX_SEGMENTS before Linux 6.9, and what
// fits an IP packet with the largest headers.
const (
	MaxSegments   = 64
	MaxTrainBytes = 65535 - 40 - 8
)

// SocketSender sends on a Socket for one goroutine.
type SocketSender struct {
	s     *Socket
	noGSO *atomic.Bool

	hdrs  [batchSize]mmsghdr
	iovs  [batchSize]unix.Iovec
	names [batchSize]unix.RawSockaddrInet6
	ctl   [batchSize]control
	n     int
	sent  int
	errno syscall.Errno
	send  func(uintptr) bool
	one   [1]Message
}

// Sender implements Conn.
func (s *Socket) Sender() Sender {
	t := &SocketSender{s: s, noGSO: new(atomic.Bool)}
	t.noGSO.Store(!s.features.GSO)
	t.send = t.sendmmsg
	return t
}

// Send implements Sender.
func (t *SocketSender) Send(ms []Message) (int, error) {
	ok := 0
	var first error
	for len(ms) > 0 {
		n := 0
		for n < len(ms) && n < batchSize && (ms[n].Segment == 0 || !t.noGSO.Load()) {
			t.fill(n, &ms[n])
			n++
		}
		if n == 0 {
			if err := t.cutUp(&ms[0]); err == nil {
				ok++
			} else if first == nil {
				first = err
			}
			ms = ms[1:]
			continue
		}
		sent, err := t.flush(n)
		ok += sent
		ms = ms[sent:]
		if err == nil {
			continue
		}
		if errno := (*os.SyscallError)(nil); !errors.As(err, &errno) {
			return ok, err // closed
		}
		// The message after those that were sent is the one refused.
		m := &ms[0]
		if m.FlowLabel != 0 && t.errno == unix.EINVAL {
			m.FlowLabel = 0 // somebody on the host has leased labels: the kernel's will do
			continue
		}
		if m.Segment != 0 {
			// EIO: the device cannot checksum, so never segment here again.
			// EMSGSIZE, EINVAL: a segment is larger than the path MTU.
			if t.errno == unix.EIO {
				t.noGSO.Store(true)
			}
			if err = t.cutUp(m); err == nil {
				ok++
			}
		} else if t.errno == unix.EMSGSIZE || passing(t.errno) {
			// The error may be about an earlier packet (IP_RECVERR): once more.
			t.fill(0, m)
			var again int
			if again, err = t.flush(1); err == nil {
				ok += again
			} else if t.errno == unix.EMSGSIZE && t.cuts(m) {
				if err = t.fragment(m); err == nil {
					ok++
				}
			}
		}
		if err != nil && first == nil {
			first = err
		}
		ms = ms[1:]
	}
	return ok, first
}

// cuts says whether a packet that comes with its header may be sent in fragments. AH
// does not cover DF, and its packets are as large as they are.
func (t *SocketSender) cuts(m *Message) bool {
	return !t.s.cfg.IPv6 && (t.s.cfg.AH || t.s.cfg.Whole && len(m.Data) >= ipv4Header && m.Data[6]&0x40 == 0)
}

// cutUp sends a train as single datagrams.
func (t *SocketSender) cutUp(m *Message) error {
	data, seg := m.Data, m.Segment
	for len(data) > 0 {
		n := 0
		for n < batchSize && len(data) > 0 {
			t.one[0] = *m
			t.one[0].Segment = 0
			t.one[0].Data = data[:min(seg, len(data))]
			data = data[len(t.one[0].Data):]
			t.fill(n, &t.one[0])
			n++
		}
		t.one[0].Data = nil
		if _, err := t.flush(n); err != nil {
			return err
		}
	}
	return nil
}

func (t *SocketSender) fill(i int, m *Message) {
	h := &t.hdrs[i].hdr
	v4 := m.Remote.Addr().Is4()
	h.Name = (*byte)(unsafe.Pointer(&t.names[i]))
	if v4 {
		a := (*unix.RawSockaddrInet4)(unsafe.Pointer(&t.names[i]))
		*a = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: ntohs(t.port(m.Remote)), Addr: m.Remote.Addr().As4()}
		h.Namelen = unix.SizeofSockaddrInet4
	} else {
		t.names[i] = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: ntohs(t.port(m.Remote)), Addr: m.Remote.Addr().As16()}
		h.Namelen = unix.SizeofSockaddrInet6
	}
	t.iovs[i] = unix.Iovec{}
	if data := m.Data[min(len(m.Data), t.s.cfg.headRoom()):]; len(data) > 0 {
		t.iovs[i].Base = &data[0]
		t.iovs[i].SetLen(len(data))
	}
	h.Iov = &t.iovs[i]
	h.SetIovlen(1)
	c := &t.ctl[i]
	c.n = 0
	if m.Local.Addr().IsValid() {
		c.source(m.Local.Addr())
	}
	if m.TOS != 0 {
		c.tos(v4, m.TOS)
	}
	if m.TTL != 0 {
		c.ttl(v4, m.TTL)
	}
	if m.FlowLabel != 0 && !v4 {
		c.flowLabel(m.FlowLabel)
	}
	if m.Segment != 0 {
		c.segment(m.Segment)
	}
	h.Control = nil
	if c.n > 0 {
		h.Control = &c.buf[0]
	}
	h.SetControllen(c.n)
}

// port is 0 for a raw socket, which refuses any other (RFC 3493 leaves it open;
// Linux checks it against the protocol).
func (t *SocketSender) port(to netip.AddrPort) uint16 {
	if !t.s.cfg.port() {
		return 0
	}
	return to.Port()
}

// flush sends the first n filled messages; it waits while the socket's buffer
// is full.
func (t *SocketSender) flush(n int) (sent int, err error) {
	for sent < n {
		t.n = n
		t.sent = sent
		if err := t.s.conn.Write(t.send); err != nil {
			return sent, closedError(err)
		}
		if t.errno != 0 {
			return sent, os.NewSyscallError("sendmmsg", t.errno)
		}
		sent = t.sent
	}
	clear(t.iovs[:n]) // keep no caller's buffer alive
	return sent, nil
}

func (t *SocketSender) sendmmsg(fd uintptr) bool {
	for {
		n, _, e := syscall.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&t.hdrs[t.sent])), uintptr(t.n-t.sent), unix.MSG_DONTWAIT, 0, 0)
		if e == unix.EINTR {
			continue
		}
		t.errno = e
		if e == 0 {
			t.sent += int(n)
		}
		return e != unix.EAGAIN
	}
}
