package netio

import (
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// An SPI comes to one of four sockets, always the same; what has none to the first.
func TestSPIsChooseTheirSocket(t *testing.T) {
	const queues = 4
	for _, v6 := range []bool{false, true} {
		for _, raw := range []bool{false, true} {
			cfg := SocketConfig{IPv6: v6, Raw: raw, Queues: queues}
			to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 0)
			if v6 {
				to = netip.AddrPortFrom(netip.IPv6Loopback(), 0)
			}
			if raw {
				if os.Geteuid() != 0 {
					t.Log("raw sockets need root")
					continue
				}
			} else {
				free, _, addr := loopback(t, v6)
				cfg.Port, to = free.cfg.Port, addr
				to = netip.AddrPortFrom(to.Addr(), cfg.Port)
				_ = free.Close()
			}
			var sockets [queues]*Socket
			for i := range sockets {
				cfg.Queue = i
				s, have, err := OpenSocket(cfg)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = s.Close() }()
				if !have.Steered {
					t.Fatalf("%s %d of %d: not steered; it is a matter of Linux 4.5", cfg, i, queues)
				}
				sockets[i] = s
			}
			send := sockets[queues-1].Sender()
			put := func(b []byte) {
				if _, err := send.Send([]Message{{Data: b, Remote: to}}); err != nil {
					t.Fatal(err)
				}
			}
			spis := []uint32{256, 257, 258, 259, 0xffffffff, 0x12345678}
			for _, spi := range spis {
				put(binary.BigEndian.AppendUint32(nil, spi))
			}
			want := [queues]int{}
			for _, spi := range spis {
				want[spi%queues]++
			}
			if !raw {
				put([]byte{0xff})               // NAT-keepalive
				put(append(make([]byte, 4), 1)) // IKE
				want[0] += 2
			}
			for i, s := range sockets {
				got := receiveAll(t, s)
				if len(got) != want[i] {
					t.Errorf("%s: socket %d received %d messages (%x), want %d", cfg, i, len(got), got, want[i])
				}
				for _, b := range got {
					if len(b) == 4 && binary.BigEndian.Uint32(b)%queues != uint32(i) {
						t.Errorf("%s: SPI %x came to socket %d", cfg, b, i)
					}
				}
			}
		}
	}
}

// receiveAll is what has arrived at a socket: the loopback device delivers at once.
func receiveAll(t *testing.T, s *Socket) (got [][]byte) {
	t.Helper()
	for {
		var waiting int
		if err := s.conn.Control(func(fd uintptr) {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			waiting, _ = unix.Poll(p, 0)
		}); err != nil {
			t.Fatal(err)
		}
		if waiting == 0 {
			return got
		}
		ms := buffers(8)
		n, err := s.Recv(ms)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range ms[:n] {
			got = append(got, m.Data)
		}
	}
}
