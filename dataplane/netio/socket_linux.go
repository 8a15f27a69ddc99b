package netio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SocketConfig says what a socket is for.
type SocketConfig struct {
	IPv6 bool
	Port uint16 // UDP port; ignored for a raw socket
	Raw  bool   // IP protocol 50 instead of UDP
	AH   bool   // IP protocol 51, with IP header: see header_linux.go

	// Whole is a socket that sends packets with the IP header they have, and
	// receives nothing.
	Whole bool

	// Queue of Queues sockets that share a port, or raw ESP: each receives the SPIs
	// that choose it (see steer_linux.go). They are opened in order, from 0.
	Queue, Queues int

	Mark uint32 // SO_MARK of what is sent; 0 for none

	// PathMTU is told what ICMP says of the path to an address, on the
	// goroutine that receives. ICMP is not authenticated: bound it. May be nil.
	PathMTU func(remote netip.Addr, mtu int)
}

// SocketFeatures is what a socket was found to do.
type SocketFeatures struct {
	GSO bool // UDP_SEGMENT
	GRO bool // UDP_GRO

	// Steered: with Queues above 1, others may be opened beside it. If not, this
	// one receives everything.
	Steered bool
}

// bufferSize is asked for in both directions: enough for what arrives while the
// receiver is not scheduled.
const bufferSize = 7 << 20

// batchSize is how many messages one system call moves at most.
const batchSize = 64

// Socket is a UDP or raw socket.
type Socket struct {
	file     *os.File
	conn     syscall.RawConn
	cfg      SocketConfig
	features SocketFeatures

	hdrs [batchSize]mmsghdr
	// A raw IPv4 socket delivers the IP header too. It goes into heads, so that
	// Data begins with the payload and keeps its whole capacity.
	iovs  [batchSize][2]unix.Iovec
	heads [batchSize][ipv4Header]byte
	names [batchSize]unix.RawSockaddrInet6 // large enough for both families
	ctl   [batchSize][controlRoom]byte
	n     int
	got   int
	errno syscall.Errno
	recv  func(uintptr) bool
}

// mmsghdr is struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// OpenSocket opens and binds a socket on all addresses of one family.
func OpenSocket(cfg SocketConfig) (*Socket, SocketFeatures, error) {
	family, kind, proto := unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP
	if cfg.IPv6 {
		family = unix.AF_INET6
	}
	switch {
	case cfg.Raw:
		kind, proto = unix.SOCK_RAW, unix.IPPROTO_ESP
	case cfg.AH:
		kind, proto = unix.SOCK_RAW, unix.IPPROTO_AH
	case cfg.Whole:
		kind, proto = unix.SOCK_RAW, unix.IPPROTO_RAW // implies IP_HDRINCL
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, SocketFeatures{}, fmt.Errorf("open %s: %w", cfg, err)
	}
	s := &Socket{cfg: cfg}
	if err := s.setUp(fd); err != nil {
		_ = unix.Close(fd)
		return nil, SocketFeatures{}, fmt.Errorf("open %s: %w", cfg, err)
	}
	s.file = os.NewFile(uintptr(fd), cfg.String())
	if s.conn, err = s.file.SyscallConn(); err != nil {
		_ = s.file.Close()
		return nil, SocketFeatures{}, fmt.Errorf("open %s: %w", cfg, err)
	}
	s.recv = s.recvmmsg
	return s, s.features, nil
}

func (c SocketConfig) String() string {
	v := 4
	if c.IPv6 {
		v = 6
	}
	switch {
	case c.Raw:
		return fmt.Sprintf("raw ESP socket over IPv%d", v)
	case c.AH:
		return fmt.Sprintf("raw AH socket over IPv%d", v)
	case c.Whole:
		return fmt.Sprintf("socket for whole IPv%d packets", v)
	}
	return fmt.Sprintf("UDP port %d over IPv%d", c.Port, v)
}

func (s *Socket) setUp(fd int) error {
	type opt struct {
		name             string
		level, opt, want int
	}
	opts := []opt{
		{"IP_PKTINFO", unix.IPPROTO_IP, unix.IP_PKTINFO, 1},
		{"IP_RECVTOS", unix.IPPROTO_IP, unix.IP_RECVTOS, 1},
		{"IP_RECVERR", unix.IPPROTO_IP, unix.IP_RECVERR, 1},
		// DF is set while a packet fits the path MTU that the kernel knows, and
		// larger ones are fragmented here: nothing is lost while the inner
		// packets' senders learn the smaller size.
		{"IP_MTU_DISCOVER", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_WANT},
	}
	if s.cfg.IPv6 {
		opts = []opt{
			{"IPV6_RECVPKTINFO", unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1},
			{"IPV6_RECVTCLASS", unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1},
			{"IPV6_RECVERR", unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1},
			{"IPV6_MTU_DISCOVER", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_WANT},
		}
	}
	if s.cfg.AH && !s.cfg.IPv6 {
		opts = append(opts, opt{"IP_HDRINCL", unix.IPPROTO_IP, unix.IP_HDRINCL, 1})
	}
	if s.cfg.IPv6 && s.cfg.port() {
		opts = append(opts, opt{"IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1})
	}
	if s.cfg.Whole {
		opts = nil
	}
	if s.cfg.Mark != 0 {
		opts = append(opts, opt{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(s.cfg.Mark)})
	}
	for _, o := range opts {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.want); err != nil {
			return fmt.Errorf("set %s: %w", o.name, err)
		}
	}
	for _, o := range []struct{ force, plain int }{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		// FORCE needs CAP_NET_ADMIN in the first user namespace; without it the
		// kernel's limit applies.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.force, bufferSize) != nil {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.plain, bufferSize); err != nil {
				return fmt.Errorf("set the buffer size: %w", err)
			}
		}
	}
	if s.cfg.Queues > 1 {
		s.features.Steered = s.cfg.steer(fd) == nil
	}
	if !s.cfg.port() {
		return nil
	}
	s.features.GSO = probe(fd, unix.UDP_SEGMENT)
	s.features.GRO = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) == nil
	if s.cfg.IPv6 {
		return unix.Bind(fd, &unix.SockaddrInet6{Port: int(s.cfg.Port)})
	}
	return unix.Bind(fd, &unix.SockaddrInet4{Port: int(s.cfg.Port)})
}

func probe(fd, opt int) bool {
	_, err := unix.GetsockoptInt(fd, unix.SOL_UDP, opt)
	return err == nil
}

// Recv implements Conn.
func (s *Socket) Recv(ms []Message) (int, error) {
	if len(ms) > batchSize {
		ms = ms[:batchSize]
	}
	for i := range ms {
		ms[i].Data = ms[i].Data[:cap(ms[i].Data)]
		iov := s.iovs[i][:0]
		if s.cfg.Raw && !s.cfg.IPv6 {
			iov = append(iov, unix.Iovec{Base: &s.heads[i][0], Len: ipv4Header})
		}
		room := ms[i].Data[s.cfg.headRoom():]
		iov = append(iov, unix.Iovec{Base: &room[0]})
		iov[len(iov)-1].SetLen(len(room))
		h := &s.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&s.names[i]))
		h.Namelen = uint32(unsafe.Sizeof(s.names[i]))
		h.Iov = &s.iovs[i][0]
		h.SetIovlen(len(iov))
		h.Control = &s.ctl[i][0]
		h.SetControllen(controlRoom)
	}
	s.n = len(ms)
	for {
		if err := s.conn.Read(s.recv); err != nil {
			return 0, closedError(err)
		}
		if s.errno == 0 {
			break
		}
		// IP_RECVERR makes ICMP errors of earlier sends show up here. They are
		// about one peer and must not stop the socket.
		if !s.drainErrors() && !passing(s.errno) {
			return 0, os.NewSyscallError("recvmmsg", s.errno)
		}
	}
	n := 0
	for i := range ms[:s.got] {
		if s.take(&ms[i], i) {
			if n != i {
				ms[n], ms[i] = ms[i], ms[n]
			}
			n++
		}
	}
	return n, nil
}

// ipv4Header is the length of an IPv4 header without options.
const ipv4Header = 20

// take reads the i-th received message into m.
func (s *Socket) take(m *Message, i int) bool {
	h := &s.hdrs[i]
	if h.hdr.Flags&unix.MSG_TRUNC != 0 {
		return false
	}
	head := 0
	if s.cfg.Raw && !s.cfg.IPv6 {
		if h.len < ipv4Header {
			return false
		}
		head = ipv4Header
	}
	m.Data = m.Data[:int(h.len)-head+s.cfg.headRoom()]
	m.Segment, m.TOS = 0, 0
	m.Local = netip.AddrPortFrom(netip.Addr{}, s.port())
	if s.cfg.IPv6 {
		a := &s.names[i]
		m.Remote = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), ntohs(a.Port))
	} else {
		a := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.names[i]))
		m.Remote = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), ntohs(a.Port))
	}
	readControl(s.ctl[i][:min(int(h.hdr.Controllen), controlRoom)], m)
	if s.cfg.AH {
		m.Remote = netip.AddrPortFrom(m.Remote.Addr(), 0)
		return s.putHeader(m)
	}
	if s.cfg.Raw {
		m.Remote = netip.AddrPortFrom(m.Remote.Addr(), 0)
		if !s.cfg.IPv6 {
			m.TOS = s.heads[i][1]
			options := int(s.heads[i][0]&15)*4 - ipv4Header
			if options < 0 || options > len(m.Data) {
				return false
			}
			// Moved, not sliced off: a slice that lost its beginning would come
			// back for the next receive with less room.
			m.Data = m.Data[:copy(m.Data, m.Data[options:])]
		}
	}
	if m.Segment >= len(m.Data) {
		m.Segment = 0
	}
	return true
}

func (s *Socket) port() uint16 {
	if !s.cfg.port() {
		return 0
	}
	return s.cfg.Port
}

// port reports a socket that has one.
func (c SocketConfig) port() bool { return !c.Raw && !c.AH && !c.Whole }

func (s *Socket) recvmmsg(fd uintptr) bool {
	for {
		n, _, e := syscall.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&s.hdrs[0])), uintptr(s.n), unix.MSG_DONTWAIT, 0, 0)
		if e == unix.EINTR {
			continue
		}
		s.got, s.errno = int(n), e
		return e != unix.EAGAIN
	}
}

// passing errors are about one packet or one peer.
func passing(e syscall.Errno) bool {
	switch e {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN, unix.ENONET,
		unix.EMSGSIZE, unix.EPROTO, unix.EOPNOTSUPP, unix.EACCES, unix.EPERM, unix.ENOPROTOOPT, unix.ENOBUFS, unix.ENOMEM:
		return true
	}
	return false
}

// drainErrors empties the error queue and passes on what it says of path MTUs.
// It reports whether there was anything.
func (s *Socket) drainErrors() bool {
	any := false
	err := s.conn.Control(func(fd uintptr) {
		var data [64]byte
		var ctl [512]byte
		for {
			_, n, _, from, err := unix.Recvmsg(int(fd), data[:], ctl[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			any = true
			s.pathMTU(ctl[:n], from)
		}
	})
	return any && err == nil
}

// pathMTU looks for EMSGSIZE in struct sock_extended_err {errno u32, origin,
// type, code, pad u8, info, data u32}: info is the MTU.
func (s *Socket) pathMTU(ctl []byte, from unix.Sockaddr) {
	msgs, err := unix.ParseSocketControlMessage(ctl)
	if err != nil || s.cfg.PathMTU == nil {
		return
	}
	for _, m := range msgs {
		isErr := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR ||
			m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if !isErr || len(m.Data) < 16 || binary.NativeEndian.Uint32(m.Data) != uint32(unix.EMSGSIZE) {
			continue
		}
		mtu := int(binary.NativeEndian.Uint32(m.Data[8:]))
		switch a := from.(type) {
		case *unix.SockaddrInet4:
			s.cfg.PathMTU(netip.AddrFrom4(a.Addr), mtu)
		case *unix.SockaddrInet6:
			s.cfg.PathMTU(netip.AddrFrom16(a.Addr), mtu)
		}
	}
}

// Close implements Conn.
func (s *Socket) Close() error {
	if err := s.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// The kernel keeps ports in network order; Go's structs hold the raw field.
func ntohs(p uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], p)
	return binary.BigEndian.Uint16(b[:])
}
