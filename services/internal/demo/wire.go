package demo

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// wire counts what passes on one device, as a tap in the middle would see it.
type wire struct {
	ESP   atomic.Uint64
	IKE   atomic.Uint64
	Clear atomic.Uint64

	fd int
	wg sync.WaitGroup

	mu    sync.Mutex
	first []byte // start of the first clear frame, to show when there is one
}

func watch(device string) (*wire, error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	proto := int(htons(unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifi.Index}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watch %s: %w", device, err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000})
	w := &wire{fd: fd}
	return w, nil
}

// run counts until stop is closed and everything queued was read.
func (w *wire) run(stop <-chan struct{}) {
	w.wg.Go(func() {
		defer unix.Close(w.fd)
		buf := make([]byte, 128) // headers are enough
		for {
			n, err := unix.Read(w.fd, buf)
			if err == nil {
				w.frame(buf[:n])
				continue
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (w *wire) frame(b []byte) {
	if len(b) < 14 {
		return
	}
	var proto byte
	var l4 []byte
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_IP:
		ip := b[14:]
		if len(ip) < 20 {
			return
		}
		proto, l4 = ip[9], ip[min(len(ip), int(ip[0]&15)*4):]
		if proto == unix.IPPROTO_IGMP {
			return
		}
	case unix.ETH_P_IPV6:
		ip := b[14:]
		if len(ip) < 40 {
			return
		}
		proto, l4 = ip[6], ip[40:]
		if proto == 0 && len(l4) >= 8 { // hop-by-hop options: MLD has a router alert
			proto, l4 = l4[0], l4[8:]
		}
		if proto == unix.IPPROTO_ICMPV6 && len(l4) > 0 && l4[0] >= 130 { // MLD and neighbour discovery
			return
		}
	default:
		return // ARP and other link matters
	}
	switch {
	case proto == unix.IPPROTO_ESP:
		w.ESP.Add(1)
	case proto == unix.IPPROTO_UDP && len(l4) >= 12 && isIKEPort(l4):
		natt := binary.BigEndian.Uint16(l4) == 4500 || binary.BigEndian.Uint16(l4[2:]) == 4500
		if natt && binary.BigEndian.Uint32(l4[8:]) != 0 {
			w.ESP.Add(1)
		} else {
			w.IKE.Add(1)
		}
	default:
		w.Clear.Add(1)
		w.mu.Lock()
		if w.first == nil {
			w.first = append([]byte(nil), b...)
		}
		w.mu.Unlock()
	}
}

func isIKEPort(udp []byte) bool {
	for _, p := range []uint16{binary.BigEndian.Uint16(udp), binary.BigEndian.Uint16(udp[2:])} {
		if p == 500 || p == 4500 {
			return true
		}
	}
	return false
}

// firstClear describes the first clear frame; empty when there was none.
func (w *wire) firstClear() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.first == nil {
		return ""
	}
	return fmt.Sprintf("first clear frame: %x", w.first)
}
