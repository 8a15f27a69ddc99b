package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	snifferBuffer = 256 << 20 // octets the kernel may hold while we are busy
	vnetHeaderLen = 10        // struct virtio_net_hdr
	maxSamples    = 10        // cleartext packets quoted in a failure
)

// WireSA is what was seen of one SA: a destination, a protocol and an SPI.
type WireSA struct {
	Protocol Class // ESP or AH
	Dst      netip.Addr
	SPI      uint32
	InUDP    bool   // at least one packet was in UDP
	Packets  uint64 // all, repeated ones too
	Repeated uint64 // packets whose sequence number was seen before
	Lowest   uint32
	Highest  uint32
	Shortest int // packet of ESP, in octets
	Longest  int

	seen map[uint32]*[1 << 10]uint64 // by the upper 16 bits: a bit per number
}

// Sniffer records what passes an interface, in both directions, from its creation
// to the end of the test. Safe for use by several goroutines.
type Sniffer struct {
	t    testing.TB
	name string
	fd   int
	wake [2]int // closing the write end ends the reader
	done chan struct{}

	mu      sync.Mutex
	c       classifier
	buf     []byte
	count   [classes]uint64
	samples []string
	sas     map[saKey]*WireSA
	missed  uint64
	err     error
}

type saKey struct {
	protocol Class
	dst      netip.Addr
	spi      uint32
}

// Sniff opens a packet socket on an interface of the node.
func (n *Node) Sniff(dev string) *Sniffer {
	t := n.lab.t
	t.Helper()
	s := &Sniffer{t: t, name: n.Name + "/" + dev, fd: -1, done: make(chan struct{}),
		buf: make([]byte, vnetHeaderLen+256<<10), sas: map[saKey]*WireSA{}}
	n.lab.must(n.Do(func() error { return s.open(dev) }))
	if err := unix.Pipe2(s.wake[:], unix.O_CLOEXEC); err != nil {
		n.lab.must(err)
	}
	go s.run()
	t.Cleanup(s.close)
	return s
}

func (s *Sniffer) open(dev string) error {
	// Bound before it receives: protocol 0 here, ETH_P_ALL in Bind.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	s.fd = fd
	// The virtio header tells a UDP_SEGMENT super-packet from one datagram.
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return fmt.Errorf("PACKET_VNET_HDR: %w", err)
	}
	if err := setReceiveBuffer(fd, snifferBuffer); err != nil {
		return err
	}
	req, err := unix.NewIfreq(dev)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return fmt.Errorf("find interface %s: %w", dev, err)
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // in network order
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(req.Uint32())}); err != nil {
		return fmt.Errorf("bind to %s: %w", dev, err)
	}
	return nil
}

// setReceiveBuffer sets how many octets a socket holds for a reader that is busy.
func setReceiveBuffer(fd, octets int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, octets)
	if errors.Is(err, unix.EPERM) {
		// Root of a user namespace gets what net.core.rmem_max allows.
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, octets)
	}
	if err != nil {
		return fmt.Errorf("receive buffer: %w", err)
	}
	return nil
}

func (s *Sniffer) run() {
	defer close(s.done)
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.wake[0])}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			s.fail(err)
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		s.mu.Lock()
		s.drain()
		err := s.err
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *Sniffer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *Sniffer) close() {
	_ = unix.Close(s.wake[1])
	<-s.done
	_ = unix.Close(s.wake[0])
	_ = unix.Close(s.fd)
	if s.err != nil {
		s.t.Errorf("lab: sniffer on %s: %v", s.name, s.err)
	}
}

// drain reads all that the kernel holds. A frame is in the socket before the call
// that sent it returns, so after a drain nothing sent earlier is missing.
func (s *Sniffer) drain() {
	for s.err == nil {
		n, _, err := unix.Recvfrom(s.fd, s.buf, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN): // the link was switched off
			continue
		case err != nil:
			s.err = fmt.Errorf("read: %w", err)
		case n > len(s.buf) || n < vnetHeaderLen:
			s.err = fmt.Errorf("frame of %d octets; want %d to %d", n, vnetHeaderLen, len(s.buf))
		default:
			s.record(s.buf[:n])
		}
	}
}

func (s *Sniffer) record(b []byte) {
	segment := 0
	if b[1] == unix.VIRTIO_NET_HDR_GSO_UDP_L4 {
		segment = int(binary.NativeEndian.Uint16(b[4:]))
	}
	for _, p := range s.c.frame(b[vnetHeaderLen:], segment) {
		s.count[p.Class]++
		switch p.Class {
		case ESP, AH:
			s.recordSA(p)
		case Cleartext:
			if len(s.samples) < maxSamples {
				s.samples = append(s.samples, p.String())
			}
		}
	}
}

func (s *Sniffer) recordSA(p Packet) {
	k := saKey{p.Class, p.Dst, p.SPI}
	sa := s.sas[k]
	if sa == nil {
		sa = &WireSA{Protocol: p.Class, Dst: p.Dst, SPI: p.SPI, Lowest: p.Seq, Shortest: p.Len, seen: map[uint32]*[1 << 10]uint64{}}
		s.sas[k] = sa
	}
	sa.Packets++
	sa.InUDP = sa.InUDP || p.InUDP
	sa.Lowest, sa.Highest = min(sa.Lowest, p.Seq), max(sa.Highest, p.Seq)
	sa.Shortest, sa.Longest = min(sa.Shortest, p.Len), max(sa.Longest, p.Len)
	page := sa.seen[p.Seq>>16]
	if page == nil {
		page = new([1 << 10]uint64)
		sa.seen[p.Seq>>16] = page
	}
	word, bit := &page[p.Seq>>6&(1<<10-1)], uint64(1)<<(p.Seq&63)
	if *word&bit != 0 {
		sa.Repeated++
	}
	*word |= bit
}

// Count is the number of packets of a class so far.
func (s *Sniffer) Count(c Class) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain()
	return s.count[c]
}

// Summary is one line of counts, for logs.
func (s *Sniffer) Summary() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain()
	var b strings.Builder
	fmt.Fprintf(&b, "%s:", s.name)
	for c, n := range s.count {
		if n > 0 {
			fmt.Fprintf(&b, " %s %d", Class(c), n)
		}
	}
	return b.String()
}

// SAs lists the SAs seen so far, by destination and SPI.
func (s *Sniffer) SAs() []WireSA {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain()
	var out []WireSA
	for _, sa := range s.sas {
		out = append(out, *sa)
		out[len(out)-1].seen = nil
	}
	slices.SortFunc(out, func(a, b WireSA) int {
		if c := a.Dst.Compare(b.Dst); c != 0 {
			return c
		}
		return int(int64(a.SPI) - int64(b.SPI))
	})
	return out
}

// Violations says what a protected wire must not show, one line each: a packet in
// clear, a sequence number used twice under an SA (a nonce used twice, for AEAD
// ciphers), and frames that the sniffer missed, for then it cannot tell.
func (s *Sniffer) Violations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain()
	var out []string
	if n := s.count[Cleartext]; n > 0 {
		out = append(out, fmt.Sprintf("%s: %d packets in clear, the first: %s", s.name, n, strings.Join(s.samples, "; ")))
	}
	for _, sa := range s.sas {
		if sa.Repeated > 0 {
			out = append(out, fmt.Sprintf("%s: %s SPI %08x to %s: %d of %d packets repeat a sequence number",
				s.name, sa.Protocol, sa.SPI, sa.Dst, sa.Repeated, sa.Packets))
		}
	}
	stats, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		s.err = errors.Join(s.err, fmt.Errorf("PACKET_STATISTICS: %w", err))
	} else {
		s.missed += uint64(stats.Drops) // reading resets the kernel's count
	}
	if s.missed > 0 {
		out = append(out, fmt.Sprintf("%s: missed %d frames; send less, or sniff less", s.name, s.missed))
	}
	if s.err != nil {
		out = append(out, fmt.Sprintf("%s: %v", s.name, s.err))
	}
	return out
}

// RequireProtected fails the test on any violation, and when fewer than min ESP or
// AH packets, or such of TCP that carry them, passed: a wire without traffic proves nothing.
func (s *Sniffer) RequireProtected(min uint64) {
	s.t.Helper()
	for _, v := range s.Violations() {
		s.t.Errorf("lab: %s", v)
	}
	if n := s.Count(ESP) + s.Count(AH) + s.Count(InTCP); n < min {
		s.t.Errorf("lab: %s: %d protected packets; want at least %d", s.Summary(), n, min)
	}
}
