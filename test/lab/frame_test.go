package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listen opens a UDP socket on an interface of the lab.
func listen(t *testing.T, i *Interface, port uint16) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	if err := i.Node.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(i.V4.Addr(), port)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func esp(spi, seq uint32, size int) []byte {
	b := make([]byte, size)
	binary.BigEndian.PutUint32(b, spi)
	binary.BigEndian.PutUint32(b[4:], seq)
	return b
}

// sendRaw sends IP protocol proto, so the kernel writes the IP header.
func sendRaw(t *testing.T, from, to *Interface, proto int, v6 bool, b []byte) {
	t.Helper()
	err := from.Node.Do(func() error {
		family, dst := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: to.V4.Addr().As4()})
		if v6 {
			family, dst = unix.AF_INET6, &unix.SockaddrInet6{Addr: to.V6.Addr().As16()}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			return err
		}
		return errors.Join(unix.Sendto(fd, b, 0, dst), unix.Close(fd))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSnifferClassifiesWhatIsReallySent(t *testing.T) {
	p := NewPair(t, PairOptions{})
	natT, ike := listen(t, p.A, 4500), listen(t, p.A, 500)
	natTB, ikeB := listen(t, p.B, 4500), listen(t, p.B, 500)
	udp := func(c, to *net.UDPConn, b []byte) {
		if _, err := c.WriteToUDP(b, to.LocalAddr().(*net.UDPAddr)); err != nil {
			t.Error(err)
		}
	}
	fragment := make([]byte, 28)
	fragment[16] = 53 // the next payload is an Encrypted Fragment
	for _, tc := range []struct {
		name string
		want Class
		send func()
	}{
		{"ESP over IPv4", ESP, func() { sendRaw(t, p.A, p.B, unix.IPPROTO_ESP, false, esp(7, 1, 64)) }},
		{"ESP over IPv6", ESP, func() { sendRaw(t, p.A, p.B, unix.IPPROTO_ESP, true, esp(7, 1, 64)) }},
		{"ESP in fragments", ESP, func() { sendRaw(t, p.A, p.B, unix.IPPROTO_ESP, false, esp(7, 2, 4000)) }},
		{"AH", AH, func() { sendRaw(t, p.A, p.B, unix.IPPROTO_AH, false, append(make([]byte, 4), esp(7, 1, 64)...)) }},
		{"ESP in UDP", ESP, func() { udp(natT, natTB, esp(8, 1, 64)) }},
		{"IKE on 4500", IKE, func() { udp(natT, natTB, make([]byte, 4+28)) }},
		{"IKE on 500", IKE, func() { udp(ike, ikeB, make([]byte, 28)) }},
		{"IKE fragment on 500", IKEFragment, func() { udp(ike, ikeB, fragment) }},
		{"IKE fragment on 4500", IKEFragment, func() { udp(natT, natTB, append(make([]byte, 4), fragment...)) }},
		{"keepalive", Keepalive, func() { udp(natT, natTB, []byte{0xff}) }},
		{"too short for IKE", Cleartext, func() { udp(ike, ikeB, make([]byte, 27)) }},
		{"another IP protocol", Cleartext, func() { sendRaw(t, p.A, p.B, 253, false, make([]byte, 64)) }},
		{"fragments of another IP protocol", Cleartext, func() { sendRaw(t, p.A, p.B, 253, true, make([]byte, 4000)) }},
	} {
		wire := p.A.Sniff()
		tc.send()
		// The first packet to a neighbour waits until its address is resolved.
		WaitFor(t, 30*time.Second, fmt.Sprintf("%s to show as %s", tc.name, tc.want), func() error {
			if wire.Count(tc.want) == 0 {
				return errors.New(wire.Summary())
			}
			return nil
		})
		if n := wire.Count(Cleartext); (n > 0) != (tc.want == Cleartext) {
			t.Errorf("%s: %d in clear: %q", tc.name, n, wire.Violations())
		}
	}
}

func TestSnifferSeesARepeatedSequenceNumber(t *testing.T) {
	p := NewPair(t, PairOptions{})
	p.A.Node.WaitPing(p.B.V4.Addr(), 30*time.Second) // few packets wait for a neighbour's address
	wire := p.A.Sniff()
	for _, seq := range []uint32{1, 2, 3, 1 << 20, 0xffffffff} {
		sendRaw(t, p.A, p.B, unix.IPPROTO_ESP, false, esp(0x1001, seq, 64))
		sendRaw(t, p.A, p.B, unix.IPPROTO_ESP, false, esp(0x1002, seq, 64))
	}
	if v := wire.Violations(); len(v) != 0 {
		t.Fatalf("violations %q before any repeat", v)
	}
	sendRaw(t, p.A, p.B, unix.IPPROTO_ESP, false, esp(0x1001, 3, 64))
	if v := wire.Violations(); len(v) != 1 {
		t.Fatalf("violations %q; want the repeated number", v)
	}
	sas := wire.SAs()
	if len(sas) != 2 || sas[0].SPI != 0x1001 || sas[0].Packets != 6 || sas[0].Repeated != 1 ||
		sas[0].Lowest != 1 || sas[0].Highest != 0xffffffff || sas[1].Repeated != 0 {
		t.Errorf("SAs %+v", sas)
	}
}

// A dataplane that sends many datagrams by one UDP_SEGMENT call shows the packet
// socket one frame; each datagram in it counts.
func TestSnifferSplitsSegmentedUDP(t *testing.T) {
	p := NewPair(t, PairOptions{})
	p.A.Node.WaitPing(p.B.V4.Addr(), 30*time.Second)
	a, b := listen(t, p.A, 4500), listen(t, p.B, 4500)
	wire := p.A.Sniff()
	const datagrams, size = 20, 1000
	var super []byte
	for seq := range uint32(datagrams) {
		super = append(super, esp(9, seq+1, size)...)
	}
	super = super[:len(super)-100] // the last may be shorter
	raw, err := a.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sendErr error
	if err := raw.Control(func(fd uintptr) {
		sendErr = errors.Join(
			unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size),
			unix.Sendto(int(fd), super, 0, &unix.SockaddrInet4{Port: 4500, Addr: p.B.V4.Addr().As4()}))
	}); err != nil || sendErr != nil {
		t.Fatal(err, sendErr)
	}
	got := make([]byte, 2*size)
	for range datagrams {
		if n, err := b.Read(got); err != nil || n != size && n != size-100 {
			t.Fatalf("received %d octets, %v", n, err)
		}
	}
	sas := wire.SAs()
	if len(sas) != 1 || sas[0].Packets != datagrams || sas[0].Highest != datagrams || sas[0].Repeated != 0 || !sas[0].InUDP {
		t.Errorf("SAs %+v; want %d packets of one SA", sas, datagrams)
	}
}

// An ICMP error quotes a packet: fine when it quotes ESP, a leak when not.
func TestClassifyICMPErrorByWhatItQuotes(t *testing.T) {
	ipv4 := func(proto byte, payload []byte) []byte {
		b := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, proto, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2}
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
		return append(b, payload...)
	}
	for _, tc := range []struct {
		quoted byte
		want   Class
	}{{unix.IPPROTO_ESP, ICMPError}, {unix.IPPROTO_TCP, Cleartext}} {
		tooBig := append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, ipv4(tc.quoted, esp(1, 1, 8))...)
		frame := append(append(make([]byte, 12), 8, 0), ipv4(unix.IPPROTO_ICMP, tooBig)...)
		if got := (&classifier{}).frame(frame, 0); len(got) != 1 || got[0].Class != tc.want {
			t.Errorf("error about protocol %d: %v; want %s", tc.quoted, got, tc.want)
		}
	}
}

func FuzzClassify(f *testing.F) {
	f.Add(append(append(make([]byte, 12), 8, 0), 0x45), 0)
	f.Add(append(append(make([]byte, 12), 0x86, 0xdd), make([]byte, 60)...), 16)
	f.Fuzz(func(t *testing.T, b []byte, segment int) {
		var c classifier
		for range 2 {
			for _, p := range c.frame(b, segment) {
				if p.Class >= classes || p.String() == "" {
					t.Fatalf("class %d", p.Class)
				}
			}
		}
	})
}
