package engine

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
	"net/netip"
)

// cut fragments a packet into pieces of n payload octets, a multiple of 8.
func cut(b []byte, n int) [][]byte {
	h, _ := packet.Parse(b)
	var out [][]byte
	data := b[h.Fixed:]
	for at := 0; at < len(data); at += n {
		piece := data[at:min(at+n, len(data))]
		more := at+n < len(data)
		var f []byte
		if h.Version == 4 {
			f = append(bytes.Clone(b[:20]), piece...)
			v := uint16(at / 8)
			if more {
				v |= 0x2000
			}
			binary.BigEndian.PutUint16(f[6:], v)
		} else {
			f = append(bytes.Clone(b[:40]), b[6], 0, 0, 0, 0, 0, 0, 7)
			f[6] = packet.ProtoFragment
			v := uint16(at)
			if more {
				v |= 1
			}
			binary.BigEndian.PutUint16(f[42:], v)
			f = append(f, piece...)
		}
		packet.SetLength(f, len(f))
		if h.Version == 4 {
			packet.SetChecksum4(f)
		}
		out = append(out, f)
	}
	return out
}

// RFC 4303 §3.1.1: transport mode protects whole packets.
func TestFragmentsAreReassembledForTransportMode(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		a, b := twoHosts(t, v6)
		a.policy(t, ipsec.ModeTransport, single(a.addr), single(b.addr))
		b.policy(t, ipsec.ModeTransport, single(b.addr), single(a.addr))
		join(t, saSpec{mode: ipsec.ModeTransport, encap: true, suite: "aes128gcm16"}, a, b, single(a.addr), single(b.addr))
		whole := udp(netip.AddrPortFrom(a.addr, 5), netip.AddrPortFrom(b.addr, 6), pattern(4000))
		pieces := cut(whole, 1024)
		rand.New(rand.NewPCG(3, 4)).Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		for _, f := range pieces {
			a.tun.ToEngine <- netio.Packet{Data: f}
		}
		p, h := b.arrived(t)
		w, _ := packet.Parse(whole)
		if h.Fragment() || !bytes.Equal(p.Data[h.Upper:], whole[w.Upper:]) {
			t.Errorf("v6=%t: what arrived is not the whole packet", v6)
		}
	}
}

// In tunnel mode with ANY ports fragments travel as they are (RFC 4301 §7).
func TestFragmentsTravelInTunnelMode(t *testing.T) {
	a, b := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	a.policy(t, ipsec.ModeTunnel, an, bn)
	b.policy(t, ipsec.ModeTunnel, bn, an)
	join(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, a, b, an, bn)
	pieces := cut(udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), pattern(3000)), 1024)
	for _, f := range pieces {
		a.tun.ToEngine <- netio.Packet{Data: f}
	}
	for i := range pieces {
		if p := <-b.tun.FromEngine; !bytes.Equal(p.Data, pieces[i]) {
			t.Errorf("fragment %d was changed", i)
		}
	}
}

func TestReassemblyIsBoundedAndRefusesOverlap(t *testing.T) {
	var n counts
	r := reassembler{counts: &n}
	add := func(b []byte, now int64) []byte {
		h, why := packet.Parse(b)
		if why != packet.WhyOK {
			t.Fatal(why)
		}
		return r.add(0, b, &h, now)
	}
	whole := udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), pattern(3000))
	pieces := cut(whole, 1024)
	first, again := add(pieces[0], 1), add(pieces[0], 1)
	if first != nil || again != nil || n.n[packet.WhyFragmentOverlap].Load() != 2 {
		t.Error("the same fragment twice is an overlap: the datagram must be dropped")
	}
	// What is left of it never completes from the rest.
	if add(pieces[1], 1) != nil || add(pieces[2], 1) != nil {
		t.Error("a datagram was completed without its first fragment")
	}
	// More datagrams than there is room for: the oldest goes.
	for i := range maxReassembly + 1 {
		f := bytes.Clone(pieces[0])
		binary.BigEndian.PutUint16(f[4:], uint16(1000+i))
		add(f, int64(10+i))
	}
	used := 0
	for i := range r.pending {
		if r.pending[i].used {
			used++
		}
	}
	if used != maxReassembly {
		t.Errorf("%d datagrams pending, want %d", used, maxReassembly)
	}
	if n.n[packet.WhyFragmentFlood].Load() == 0 {
		t.Error("datagrams made room for others, and that was not counted")
	}
	// Time runs out.
	late := int64(100) + int64(reassemblyTimeout)*2
	for i := 1; i < 3; i++ {
		f := bytes.Clone(pieces[i])
		binary.BigEndian.PutUint16(f[4:], 1005)
		if add(f, late) != nil {
			t.Error("a datagram was completed after its time")
		}
	}
}

// RFC 4301 §7.3: what an SA with ports carries in pieces is compared with its
// selectors when it is whole, and no SA adds to what another one carries.
func TestFragmentsInAnSAWithPorts(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
		if v6 {
			an, bn = netip.MustParsePrefix("2001:db8:1::/64"), netip.MustParsePrefix("2001:db8:2::/64")
		}
		a, b := twoHosts(t, v6)
		a.policy(t, ipsec.ModeTunnel, an, bn)
		b.policy(t, ipsec.ModeTunnel, bn, an)
		spec := saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}
		out, in := simplex(t, spec, 1, a, b, an, bn)
		for _, s := range []*ipsec.TrafficSelector{&in.SA.Selectors[0].Local, &in.SA.Selectors[0].Remote} {
			s.Protocol = packet.ProtoUDP
		}
		in.SA.Selectors[0].Local.PortFirst, in.SA.Selectors[0].Local.PortLast = 53, 53
		for h, op := range map[*host]backend.Op{a: out, b: in} {
			if err := h.Apply([]backend.Op{op}); err != nil {
				t.Fatal(err)
			}
		}
		from, to := netip.AddrPortFrom(an.Addr().Next(), 1000), bn.Addr().Next()
		send := func(port uint16, pieces ...int) []byte {
			whole := udp(from, netip.AddrPortFrom(to, port), pattern(1100))
			all := cut(whole, 512)
			for _, i := range pieces {
				a.tun.ToEngine <- netio.Packet{Data: all[i]}
			}
			return whole
		}
		whole := send(53, 2, 0, 1)
		w, _ := packet.Parse(whole)
		if p, h := b.arrived(t); h.Fragment() || h.DstPort != 53 || !bytes.Equal(p.Data[h.Upper:], whole[w.Upper:]) {
			t.Errorf("v6=%t: what arrived is not the packet to port 53", v6)
		}
		send(54, 0, 1, 2)
		waitFor(t, func() bool { return b.why(packet.WhyInner) == 1 })
		if len(b.tun.FromEngine) != 0 {
			t.Errorf("v6=%t: a packet in pieces passed the inner check", v6)
		}
	}
}

func TestNoSACompletesWhatAnotherOneCarries(t *testing.T) {
	var n counts
	r := reassembler{counts: &n}
	pieces := cut(udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:53"), pattern(1500)), 1024)
	for i, sa := range []ipsec.SAID{1, 2} {
		h, _ := packet.Parse(pieces[i])
		if r.add(sa, pieces[i], &h, 1) != nil {
			t.Error("two SAs made one packet")
		}
	}
	h, _ := packet.Parse(pieces[1])
	if r.add(1, pieces[1], &h, 1) == nil {
		t.Error("one SA's pieces made no packet")
	}
}

// A gateway reassembles to find a rule; the other one must not hand its routers
// IPv6 packets that they cannot forward (RFC 8200 §5).
func TestALargeIPv6PacketIsCutAgain(t *testing.T) {
	an, bn := netip.MustParsePrefix("2001:db8:1::/64"), netip.MustParsePrefix("2001:db8:2::/64")
	a, b := twoHosts(t, false)
	b.SetMTU(1400)
	a.policy(t, ipsec.ModeTunnel, an, bn)
	b.policy(t, ipsec.ModeTunnel, bn, an)
	join(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, a, b, an, bn)
	plain := udp(netip.AddrPortFrom(an.Addr().Next(), 1), netip.AddrPortFrom(bn.Addr().Next(), 2), pattern(4000))
	// The same behind hop-by-hop options, which stand in every fragment.
	options := append(bytes.Clone(plain[:40]), plain[6], 0, 1, 4, 0, 0, 0, 0)
	options[6] = packet.ProtoHopOpts
	options = append(options, plain[40:]...)
	packet.SetLength(options, len(options))
	for _, whole := range [][]byte{plain, options} {
		a.tun.ToEngine <- netio.Packet{Data: bytes.Clone(whole)}
		first, _ := packet.Parse(whole)
		var got []byte
		for more := true; more; {
			p := <-b.tun.FromEngine
			h, why := packet.Parse(p.Data)
			if why != packet.WhyOK || !h.Fragment() || h.Length > packet.MinMTU6 || h.Length != len(p.Data) {
				t.Fatalf("a piece of %d octets: %v, fragment=%t", len(p.Data), why, h.Fragment())
			}
			if int(h.FragmentOffset) != len(got) || h.Protocol != packet.ProtoUDP {
				t.Fatalf("a piece of protocol %d at %d, want UDP at %d", h.Protocol, h.FragmentOffset, len(got))
			}
			got = append(got, p.Data[h.Insert:h.Length]...)
			more = h.MoreFragments
		}
		if !bytes.Equal(got, whole[first.Insert:]) {
			t.Error("the pieces are not the packet")
		}
	}
	// What fits is left alone.
	small := udp(netip.AddrPortFrom(an.Addr().Next(), 1), netip.AddrPortFrom(bn.Addr().Next(), 2), pattern(1300))
	a.tun.ToEngine <- netio.Packet{Data: small}
	if _, h := b.arrived(t); h.Fragment() {
		t.Error("a packet that fits was cut")
	}
}
