package ikeload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// portNATT is where IKE has a marker of four zero octets before it (RFC 3948 §2.2).
const portNATT = 4500

var marker = make([]byte, 4)

// network is the sockets of a run, and who waits for which SPI.
type network struct {
	sockets  []*socket
	readers  sync.WaitGroup
	sent     atomic.Uint64
	received atomic.Uint64
	ignored  atomic.Uint64

	mu      sync.RWMutex
	waiting map[uint64]chan<- ike.Event // by initiator's SPI
}

// socket is one source address.
type socket struct {
	net   *network
	conn  *net.UDPConn
	local netip.AddrPort
}

// open binds a socket to each source address.
func open(o *Options) (*network, error) {
	n := &network{waiting: make(map[uint64]chan<- ike.Event)}
	from := o.From
	if len(from) == 0 {
		a, err := routeTo(o.To)
		if err != nil {
			return nil, err
		}
		from = []netip.Addr{a}
	}
	for _, a := range from {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		if err != nil {
			n.close()
			return nil, fmt.Errorf("source address %s: %w", a, err)
		}
		port := c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		// What others send while this machine is busy should wait, not be lost.
		_ = c.SetReadBuffer(1 << 20)
		s := &socket{net: n, conn: c, local: netip.AddrPortFrom(a, port)}
		n.sockets = append(n.sockets, s)
		n.readers.Go(s.read)
	}
	return n, nil
}

// routeTo is the source address that the host would choose.
func routeTo(to netip.AddrPort) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)) // sends nothing
	if err != nil {
		return netip.Addr{}, fmt.Errorf("no route to the responder: %w", err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

func (n *network) close() {
	for _, s := range n.sockets {
		_ = s.conn.Close()
	}
	n.readers.Wait()
}

func (n *network) listen(spi uint64, ch chan<- ike.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.waiting[spi] = ch
}

func (n *network) forget(spi uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.waiting, spi)
}

func (s *socket) read() {
	buf := make([]byte, 65536)
	for {
		size, from, err := s.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			// ICMP may tell of an earlier datagram; the next read does not have it.
			if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) {
				continue
			}
			return
		}
		s.net.received.Add(1)
		b := buf[:size]
		if from.Port() == portNATT {
			if size < len(marker) || binary.BigEndian.Uint32(b) != 0 {
				s.net.ignored.Add(1)
				continue
			}
			b = b[len(marker):]
		}
		h, err := wire.ParseHeader(b)
		if err != nil {
			s.net.ignored.Add(1)
			continue
		}
		s.net.mu.RLock()
		ch := s.net.waiting[h.SPIi]
		s.net.mu.RUnlock()
		path := ike.Path{Local: s.local, Remote: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}
		select {
		case ch <- ike.Datagram{Path: path, Data: append([]byte(nil), b...)}:
		default: // nobody waits, or does not keep up
			s.net.ignored.Add(1)
		}
	}
}

func (s *socket) send(p ike.Path, data []byte) {
	if p.Remote.Port() == portNATT {
		data = append(append(make([]byte, 0, len(marker)+len(data)), marker...), data...)
	}
	s.net.sent.Add(1)
	// A datagram that could not be sent is one that was lost: it is sent again.
	_, _ = s.conn.WriteToUDPAddrPort(data, p.Remote)
}
