package netio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// A buffer handed back to Recv any number of times keeps its whole room, and
// what it brings is the payload behind the IP header.
func TestRawReceiveKeepsBuffers(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(SocketConfig{Raw: true, IPv6: v6}.String(), func(t *testing.T) {
			s, _, err := OpenSocket(SocketConfig{Raw: true, IPv6: v6})
			if errors.Is(err, unix.EPERM) {
				t.Skip("needs CAP_NET_RAW:", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			to := netip.MustParseAddr("127.0.0.1")
			if v6 {
				to = netip.IPv6Loopback()
			}
			out := s.Sender()
			in := []Message{{Data: make([]byte, 0, MaxPacket)}, {Data: make([]byte, 0, MaxPacket)}}
			payload := make([]byte, 1200)
			copy(payload[4:], "testudo raw receive test")
			const rounds = 4000 // 20 octets lost in each would use the room up
			for i := range uint32(rounds) {
				binary.BigEndian.PutUint32(payload, i)
				if n, err := out.Send([]Message{{Data: payload, Local: netip.AddrPortFrom(to, 0), Remote: netip.AddrPortFrom(to, 0)}}); n != 1 || err != nil {
					t.Fatalf("send %d: %d accepted, %v", i, n, err)
				}
				for found := false; !found; { // others on this host may send ESP too
					n, err := s.Recv(in)
					if err != nil {
						t.Fatal(err)
					}
					for _, m := range in[:n] {
						found = found || bytes.Equal(m.Data, payload)
					}
				}
			}
			for _, m := range in {
				if cap(m.Data) != MaxPacket {
					t.Errorf("a buffer of %d octets has room for %d left", MaxPacket, cap(m.Data))
				}
			}
		})
	}
}
