package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/netio/netiotest"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// host is one engine on an in-memory wire.
type host struct {
	*Engine
	tun    *netiotest.Tun
	encap  *netiotest.Conn
	raw    *netiotest.Conn
	ah     *netiotest.Conn
	events chan backend.Event
	addr   netip.Addr
}

// twoHosts makes two engines that are joined by wires for ESP in UDP, raw ESP and
// AH.
func twoHosts(t testing.TB, v6 bool) (a, b *host) {
	t.Helper()
	aa, ba := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	if v6 {
		aa, ba = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	}
	ae, be := netiotest.NewWire(netip.AddrPortFrom(aa, 4500), netip.AddrPortFrom(ba, 4500), 512)
	ar, br := netiotest.NewWire(netip.AddrPortFrom(aa, 0), netip.AddrPortFrom(ba, 0), 512)
	ah, bh := netiotest.NewWire(netip.AddrPortFrom(aa, 0), netip.AddrPortFrom(ba, 0), 512)
	a, b = newHost(t, aa, ae, ar, ah), newHost(t, ba, be, br, bh)
	t.Cleanup(func() {
		for _, h := range []*host{a, b} {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return a, b
}

func newHost(t testing.TB, addr netip.Addr, encap, raw, ah *netiotest.Conn) *host {
	t.Helper()
	h := &host{tun: netiotest.NewTun(512), encap: encap, raw: raw, ah: ah, events: make(chan backend.Event, 256), addr: addr}
	var err error
	h.Engine, err = New(Config{
		Tun: []netio.Tun{h.tun},
		Sockets: []Socket{
			{Conn: encap, IPv6: addr.Is6(), Port: 4500, Encap: true},
			{Conn: raw, IPv6: addr.Is6()},
			{Conn: ah, IPv6: addr.Is6(), AH: true},
		},
		TrainUDP: true,
		Emit: func(e backend.Event) {
			select {
			case h.events <- e:
			default:
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Start()
	return h
}

// policy gives a host one secure rule for everything between two networks.
func (h *host) policy(t testing.TB, mode ipsec.Mode, local, remote netip.Prefix) {
	t.Helper()
	err := h.SetPolicy(context.Background(), &ipsec.NodePolicy{
		Node:    "n",
		Default: ipsec.ActionBlock,
		Rules: []ipsec.Rule{{
			Name: "r", Weight: 1, Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: "p",
			Selector: ipsec.Selector{Local: ipsec.PrefixSelector(local), Remote: ipsec.PrefixSelector(remote)},
			Template: &ipsec.Template{Mode: mode},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// saSpec says what the SAs of a test are.
type saSpec struct {
	mode  ipsec.Mode
	encap bool
	suite string
	ah    bool
}

// simplex makes both ends of one SA from x to y.
func simplex(t testing.TB, s saSpec, id ipsec.SAID, x, y *host, xNet, yNet netip.Prefix) (out, in backend.Op) {
	t.Helper()
	proto := ipsec.ProtocolESP
	if s.ah {
		proto = ipsec.ProtocolAH
	}
	prop, err := ipsec.ParseProposal(proto, s.suite)
	if err != nil {
		t.Fatal(err)
	}
	suite := ipsec.Suite{Protocol: proto, ESN: true}
	var encrKey []byte
	if e := prop.OfType(ipsec.TransformENCR); len(e) > 0 {
		suite.Encr = e[0]
		encr, _ := ipsec.LookupAlgorithm(suite.Encr)
		encrKey = bytes.Repeat([]byte{byte(id)}, encr.KeyLen+encr.SaltLen)
	}
	var integKey []byte
	if i := prop.OfType(ipsec.TransformINTEG); len(i) > 0 {
		suite.Integ = i[0]
		integ, _ := ipsec.LookupAlgorithm(i[0])
		integKey = bytes.Repeat([]byte{byte(id) + 1}, integ.KeyLen+integ.SaltLen)
	}
	sa := ipsec.SA{
		ID: id, Direction: ipsec.Outbound, Protocol: proto, SPI: ipsec.SPI(0x1000 + uint32(id)),
		Mode: s.mode, Local: x.addr, Remote: y.addr, Suite: suite,
		EncrKey: ipsec.CopySecret(encrKey), IntegKey: ipsec.CopySecret(integKey),
		Selectors:    []ipsec.Selector{{Local: ipsec.PrefixSelector(xNet), Remote: ipsec.PrefixSelector(yNet)}},
		ReplayWindow: 1024, Lease: ipsec.Lease{First: 1, Last: 1 << 40}, Rule: "r", Peer: "p", Child: uint64(id),
	}
	if s.encap {
		sa.Encap = &ipsec.Encap{LocalPort: 4500, RemotePort: 4500}
	}
	rev := sa
	rev.Direction, rev.Local, rev.Remote, rev.Lease = ipsec.Inbound, y.addr, x.addr, ipsec.Lease{}
	rev.EncrKey, rev.IntegKey = ipsec.CopySecret(encrKey), ipsec.CopySecret(integKey)
	rev.Selectors = []ipsec.Selector{sa.Selectors[0].Swap()}
	return backend.Op{Kind: backend.OpInstall, SA: &sa}, backend.Op{Kind: backend.OpInstall, SA: &rev}
}

// join installs SAs in both directions.
func join(t testing.TB, s saSpec, a, b *host, aNet, bNet netip.Prefix) {
	t.Helper()
	aOut, bIn := simplex(t, s, 1, a, b, aNet, bNet)
	bOut, aIn := simplex(t, s, 2, b, a, bNet, aNet)
	// Who receives comes first: packets may be waiting to be sent.
	for _, x := range []struct {
		*host
		op backend.Op
	}{{a, aIn}, {b, bIn}, {a, aOut}, {b, bOut}} {
		if err := x.Apply([]backend.Op{x.op}); err != nil {
			t.Fatal(err)
		}
	}
}

// udp makes a UDP packet with right checksums.
func udp(src, dst netip.AddrPort, payload []byte) []byte {
	n := 8 + len(payload)
	b := ipHeader(src.Addr(), dst.Addr(), packet.ProtoUDP, n)
	u := b[len(b)-n:]
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(n))
	copy(u[8:], payload)
	return withChecksum(b)
}

// tcp makes a TCP segment with right checksums.
func tcp(src, dst netip.AddrPort, seq uint32, flags byte, payload []byte) []byte {
	n := 20 + len(payload)
	b := ipHeader(src.Addr(), dst.Addr(), packet.ProtoTCP, n)
	u := b[len(b)-n:]
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	binary.BigEndian.PutUint32(u[4:], seq)
	binary.BigEndian.PutUint32(u[8:], 77)
	u[12], u[13], u[15] = 0x50, flags, 200
	copy(u[20:], payload)
	return withChecksum(b)
}

func ipHeader(src, dst netip.Addr, proto uint8, n int) []byte {
	if src.Is4() {
		b := make([]byte, 20+n)
		b[0], b[6], b[8], b[9] = 0x45, 0x40, 64, proto
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		s, d := src.As4(), dst.As4()
		copy(b[12:], s[:])
		copy(b[16:], d[:])
		packet.SetChecksum4(b)
		return b
	}
	b := make([]byte, 40+n)
	b[0], b[6], b[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(b[4:], uint16(n))
	s, d := src.As16(), dst.As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	return b
}

func withChecksum(b []byte) []byte {
	h, _ := packet.Parse(b)
	packet.SetChecksum(b, &h)
	return b
}

// tcpTrain makes what a kernel hands over for a large write: one packet whose
// checksum holds the sum of the pseudo header.
func tcpTrain(src, dst netip.AddrPort, seq uint32, segment int, payload []byte) netio.Packet {
	const ack = 0x10
	b := tcp(src, dst, seq, ack|tcpPSH, payload)
	h, _ := packet.Parse(b)
	binary.BigEndian.PutUint16(b[h.Upper+16:], packet.PseudoSum(h.Src(b), h.Dst(b), packet.ProtoTCP, h.Length-int(h.Upper)))
	o := netio.Offload{NeedsChecksum: true, ChecksumStart: h.Upper, ChecksumOffset: 16, GSO: netio.GSOTCP4, HeaderLen: h.Upper + 20, Segment: uint16(segment)}
	if h.Version == 6 {
		o.GSO = netio.GSOTCP6
	}
	return netio.Packet{Data: b, Offload: o}
}

// arrived is the next packet that an engine gave to its TUN, as the kernel
// would see it: a train or a partial checksum is checked and made whole.
func (h *host) arrived(t testing.TB) (netio.Packet, packet.Header) {
	t.Helper()
	p := <-h.tun.FromEngine
	hdr, why := packet.Parse(p.Data)
	if why != packet.WhyOK || hdr.Length != len(p.Data) {
		t.Fatalf("packet from the engine: %s, length %d of %d", why, hdr.Length, len(p.Data))
	}
	if p.Offload.NeedsChecksum {
		if why := packet.CompleteChecksum(p.Data, int(p.Offload.ChecksumStart), int(p.Offload.ChecksumOffset), hdr.Protocol == packet.ProtoUDP); why != packet.WhyOK {
			t.Fatal(why)
		}
	}
	if why := packet.VerifyChecksum(p.Data, &hdr); why != packet.WhyOK {
		t.Fatalf("packet from the engine: %s", why)
	}
	if hdr.Version == 4 && packet.VerifyChecksum4(p.Data) != packet.WhyOK {
		t.Fatal("packet from the engine: IPv4 header checksum is wrong")
	}
	return p, hdr
}

func (h *host) why(why packet.Why) uint64 {
	for _, c := range h.Counters().Whys {
		if c.Why == why.String() {
			return c.Packets
		}
	}
	return 0
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// waitFor polls what other goroutines count; it fails after half a minute.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(30 * time.Second)
	for !done() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("did not happen within 30 s")
		}
	}
}
