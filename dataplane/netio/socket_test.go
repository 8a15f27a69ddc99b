package netio

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
)

// loopback opens two sockets on free ports of the loopback address.
func loopback(t *testing.T, v6 bool) (a, b *Socket, to netip.AddrPort) {
	t.Helper()
	addr := netip.MustParseAddr("127.0.0.1")
	if v6 {
		addr = netip.IPv6Loopback()
	}
	open := func() (*Socket, uint16) {
		probe, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		if err != nil {
			t.Skip("needs this address family on the loopback device:", err)
		}
		port := uint16(probe.LocalAddr().(*net.UDPAddr).Port)
		_ = probe.Close()
		s, _, err := OpenSocket(SocketConfig{IPv6: v6, Port: port})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s, port
	}
	a, _ = open()
	b, port := open()
	return a, b, netip.AddrPortFrom(addr, port)
}

func buffers(n int) []Message {
	ms := make([]Message, n)
	for i := range ms {
		ms[i].Data = make([]byte, 0, MaxPacket)
	}
	return ms
}

func TestTrainsAndSinglesArriveInOrder(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		a, b, to := loopback(t, v6)
		train := make([]byte, 10*1000+300)
		for i := range train {
			train[i] = byte(i / 1000)
		}
		s := a.Sender()
		n, err := s.Send([]Message{
			{Data: []byte("one"), Local: netip.AddrPortFrom(to.Addr(), 0), Remote: to, TOS: 0x2e<<2 | 2, TTL: 9},
			{Data: train, Segment: 1000, Remote: to},
			{Data: []byte("last"), Remote: to},
		})
		if n != 3 || err != nil {
			t.Fatalf("sent %d messages, %v; want 3", n, err)
		}
		var got [][]byte
		in := buffers(4)
		for len(got) < 13 {
			n, err := b.Recv(in)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range in[:n] {
				if m.Local != to || m.Remote.Addr() != to.Addr() {
					t.Errorf("message from %s to %s, want to %s", m.Remote, m.Local, to)
				}
				if len(got) == 0 && m.TOS != 0x2e<<2|2 {
					t.Errorf("TOS %#x, want %#x", m.TOS, 0x2e<<2|2)
				}
				for d := m.Data; len(d) > 0; {
					n := len(d)
					if m.Segment != 0 {
						n = min(n, m.Segment)
					}
					got = append(got, bytes.Clone(d[:n]))
					d = d[n:]
				}
			}
		}
		if string(got[0]) != "one" || string(got[12]) != "last" || !bytes.Equal(bytes.Join(got[1:12], nil), train) || len(got[11]) != 300 {
			t.Errorf("v6=%t: what arrived is not what was sent", v6)
		}
	}
}

func TestATrainIsCutUpWhereTheKernelDoesNot(t *testing.T) {
	a, b, to := loopback(t, false)
	s := a.Sender().(*SocketSender)
	s.noGSO.Store(true)
	train := bytes.Repeat([]byte{7}, 70*900+1)
	if n, err := s.Send([]Message{{Data: train, Segment: 900, Remote: to}}); n != 1 || err != nil {
		t.Fatalf("sent %d, %v", n, err)
	}
	got, in := 0, buffers(8)
	for got < len(train) {
		n, err := b.Recv(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range in[:n] {
			got += len(m.Data)
		}
	}
	if got != len(train) {
		t.Errorf("%d octets arrived, want %d", got, len(train))
	}
}

// With IP_RECVERR an ICMP error of an earlier packet is reported on the socket;
// it must stop neither the sender nor the receiver.
func TestAnUnreachablePeerDoesNotStopTheSocket(t *testing.T) {
	a, b, to := loopback(t, false)
	closed := netip.AddrPortFrom(to.Addr(), 1) // nobody listens on port 1
	s := a.Sender()
	for i := range 20 {
		if _, err := s.Send([]Message{{Data: []byte("x"), Remote: closed}, {Data: []byte{byte(i)}, Remote: to}}); err != nil {
			t.Logf("round %d: %v", i, err)
		}
	}
	in := buffers(32)
	seen := 0
	for seen < 20 {
		n, err := b.Recv(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range in[:n] {
			if m.Segment == 0 {
				seen++
			} else {
				seen += len(m.Data)
			}
		}
	}
	if _, err := b.Sender().Send([]Message{{Data: []byte("back"), Remote: netip.AddrPortFrom(to.Addr(), a.cfg.Port)}}); err != nil {
		t.Fatal(err)
	}
	if n, err := a.Recv(in); err != nil || string(in[0].Data) != "back" {
		t.Errorf("received %d messages, %v; want the answer", n, err)
	}
}

func TestCloseEndsRecv(t *testing.T) {
	a, _, _ := loopback(t, false)
	done := make(chan error)
	go func() {
		_, err := a.Recv(buffers(1))
		done <- err
	}()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want os.ErrClosed", err)
	}
}
