package packet

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ip4 is an IPv4 packet with a right header checksum.
func ip4(proto uint8, frag uint16, body ...byte) []byte {
	b := append(make([]byte, 20), body...)
	b[0], b[8], b[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], frag)
	copy(b[12:], []byte{10, 1, 0, 1, 10, 2, 0, 2})
	SetChecksum4(b)
	return b
}

// ip6 is an IPv6 packet whose first header is next.
func ip6(next uint8, body ...byte) []byte {
	b := append(make([]byte, 40), body...)
	b[0], b[6], b[7] = 0x60, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	copy(b[8:], netip.MustParseAddr("2001:db8::1").AsSlice())
	copy(b[24:], netip.MustParseAddr("2001:db8::2").AsSlice())
	return b
}

var ports = []byte{0x04, 0xd2, 0x16, 0x2e, 0, 8, 0, 0} // 1234, 5678

func cat(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func TestParse(t *testing.T) {
	ext := func(next, kind byte) []byte { return []byte{next, 0, kind, 0, 0, 0, 0, 0} }
	frag := func(next byte, off uint16) []byte { return []byte{next, 0, byte(off >> 8), byte(off), 0, 0, 0, 9} }
	many := func(n int) []byte {
		var b []byte
		for i := range n {
			next := byte(ProtoDestOpts)
			if i == n-1 {
				next = ProtoUDP
			}
			b = append(b, ext(next, 1)...)
		}
		return append(b, ports...)
	}
	options := ip4(ProtoUDP, 0, append([]byte{1, 1, 1, 0}, ports...)...)
	options[0] = 0x46

	for _, v := range []struct {
		name string
		b    []byte
		want Header
		why  Why
	}{
		{"v4 UDP", ip4(ProtoUDP, 0x4000, ports...),
			Header{Version: 4, Protocol: 17, HasPorts: true, SrcPort: 1234, DstPort: 5678, Length: 28, Upper: 20, Fixed: 20, Insert: 20, InsertNext: 9}, WhyOK},
		{"v4 with options", options,
			Header{Version: 4, Protocol: 17, HasPorts: true, SrcPort: 1234, DstPort: 5678, Length: 32, Upper: 24, Fixed: 24, Insert: 24, InsertNext: 9}, WhyOK},
		{"v4 and padding behind it", append(ip4(ProtoUDP, 0, ports...), make([]byte, 50)...),
			Header{Version: 4, Protocol: 17, HasPorts: true, SrcPort: 1234, DstPort: 5678, Length: 28, Upper: 20, Fixed: 20, Insert: 20, InsertNext: 9}, WhyOK},
		{"v4 ICMP echo", ip4(ProtoICMP, 0, 8, 0, 0, 0),
			Header{Version: 4, Protocol: 1, HasPorts: true, SrcPort: 0x800, DstPort: 0x800, Length: 24, Upper: 20, Fixed: 20, Insert: 20, InsertNext: 9}, WhyOK},
		{"v4 first fragment", ip4(ProtoUDP, 0x2000, ports...),
			Header{Version: 4, Protocol: 17, MoreFragments: true, HasPorts: true, SrcPort: 1234, DstPort: 5678, Length: 28, Upper: 20, Fixed: 20, Insert: 20, InsertNext: 9}, WhyOK},
		{"v4 later fragment", ip4(ProtoUDP, 0x0003, 1, 2),
			Header{Version: 4, Protocol: 17, FragmentOffset: 24, Length: 22, Upper: 20, Fixed: 20, Insert: 20, InsertNext: 9}, WhyOK},
		{"v4 protocol without ports", ip4(47, 0),
			Header{Version: 4, Protocol: 47, Length: 20, Upper: 20, Fixed: 20, Insert: 20, InsertNext: 9}, WhyOK},
		{"v6 UDP", ip6(ProtoUDP, ports...),
			Header{Version: 6, Protocol: 17, HasPorts: true, SrcPort: 1234, DstPort: 5678, Length: 48, Upper: 40, Fixed: 40, Insert: 40, InsertNext: 6}, WhyOK},
		{"v6 hop-by-hop, then destination options", ip6(ProtoHopOpts, cat(ext(ProtoDestOpts, 1), ext(ProtoUDP, 1), ports)...),
			Header{Version: 6, Protocol: 17, HasPorts: true, SrcPort: 1234, DstPort: 5678, Length: 64, Upper: 56, Fixed: 40, Insert: 48, InsertNext: 40}, WhyOK},
		{"v6 destination options, routing header", ip6(ProtoDestOpts, cat(ext(ProtoRouting, 1), []byte{ProtoUDP, 0, 2, 1, 0, 0, 0, 0}, ports)...),
			Header{Version: 6, Protocol: 17, HasPorts: true, SrcPort: 1234, DstPort: 5678, Routed: true, Length: 64, Upper: 56, Fixed: 40, Insert: 56, InsertNext: 48}, WhyOK},
		{"v6 first fragment", ip6(ProtoFragment, cat(frag(ProtoUDP, 1), ports)...),
			Header{Version: 6, Protocol: 17, MoreFragments: true, HasPorts: true, SrcPort: 1234, DstPort: 5678, Length: 56, Upper: 48, Fixed: 40, Insert: 48, InsertNext: 40}, WhyOK},
		{"v6 later fragment", ip6(ProtoFragment, cat(frag(ProtoDestOpts, 16), []byte{1})...),
			Header{Version: 6, Protocol: ProtoDestOpts, FragmentOffset: 16, Length: 49, Upper: 48, Fixed: 40, Insert: 48, InsertNext: 40}, WhyOK},
		{"v6 mobility header", ip6(ProtoMobility, 59, 0, 5, 0, 0, 0, 0, 0),
			Header{Version: 6, Protocol: 135, HasPorts: true, SrcPort: 0x500, DstPort: 0x500, Length: 48, Upper: 40, Fixed: 40, Insert: 40, InsertNext: 6}, WhyOK},
		{"v6 as many extension headers as we walk", ip6(ProtoDestOpts, many(maxExtensions)...),
			Header{Version: 6, Protocol: 17, HasPorts: true, SrcPort: 1234, DstPort: 5678, Length: 40 + 8*maxExtensions + 8, Upper: 40 + 8*maxExtensions, Fixed: 40, Insert: 40, InsertNext: 6}, WhyOK},

		{"empty", nil, Header{}, WhyTruncated},
		{"version 5", []byte{0x50}, Header{}, WhyVersion},
		{"v4 header cut", ip4(17, 0)[:19], Header{}, WhyTruncated},
		{"v4 header length 4 words", func() []byte { b := ip4(17, 0, ports...); b[0] = 0x44; return b }(), Header{}, WhyHeader},
		{"v4 total less than header", func() []byte { b := ip4(17, 0, ports...); b[3] = 19; return b }(), Header{}, WhyHeader},
		{"v4 total more than there is", func() []byte { b := ip4(17, 0, ports...); b[3]++; return b }(), Header{}, WhyTruncated},
		{"v4 UDP without room for ports", ip4(17, 0, 1, 2, 3), Header{}, WhyTruncated},
		{"v6 header cut", ip6(17)[:39], Header{}, WhyTruncated},
		{"v6 length more than there is", func() []byte { b := ip6(17, ports...); b[5]++; return b }(), Header{}, WhyTruncated},
		{"v6 extension header cut", ip6(ProtoDestOpts, 17, 0, 0, 0), Header{}, WhyTruncated},
		{"v6 extension header longer than the packet", ip6(ProtoDestOpts, 17, 1, 0, 0, 0, 0, 0, 0), Header{}, WhyTruncated},
		{"v6 hop-by-hop in second place", ip6(ProtoDestOpts, cat(ext(ProtoHopOpts, 1), ext(17, 1), ports)...), Header{}, WhyHeader},
		{"v6 one extension header too many", ip6(ProtoDestOpts, many(maxExtensions+1)...), Header{}, WhyExtensions},
		{"v6 too many octets of them", ip6(ProtoDestOpts, append([]byte{17, 128}, make([]byte, 1100)...)...), Header{}, WhyExtensions},
	} {
		if got, why := Parse(v.b); got != v.want || why != v.why {
			t.Errorf("%s: %s\n%+v, want %s\n%+v", v.name, why, got, v.why, v.want)
		}
	}
}

func TestFlow(t *testing.T) {
	b := ip4(ProtoUDP, 0, ports...)
	h, _ := Parse(b)
	me, peer := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.2.0.2")
	if got, want := h.Flow(b, ipsec.Outbound), (ipsec.Flow{Local: me, Remote: peer, Protocol: 17, LocalPort: 1234, RemotePort: 5678}); got != want {
		t.Errorf("outbound %s, want %s", got, want)
	}
	if got, want := h.Flow(b, ipsec.Inbound), (ipsec.Flow{Local: peer, Remote: me, Protocol: 17, LocalPort: 5678, RemotePort: 1234}); got != want {
		t.Errorf("inbound %s, want %s", got, want)
	}
	b = ip6(ProtoICMPv6, 135, 7, 0, 0)
	h, _ = Parse(b)
	if got := h.Flow(b, ipsec.Inbound); got.LocalPort != 135<<8|7 || got.RemotePort != 135<<8|7 || got.Local != netip.MustParseAddr("2001:db8::2") {
		t.Errorf("ICMPv6 %+v", got)
	}
	if n := testing.AllocsPerRun(100, func() {
		h, _ := Parse(b)
		_ = h.Flow(b, ipsec.Outbound)
	}); n != 0 {
		t.Errorf("%.0f allocations", n)
	}
}

// FuzzParse: whatever Parse accepts, all that works on a Header works on, and
// stays inside the packet.
func FuzzParse(f *testing.F) {
	for _, b := range [][]byte{
		ip4(ProtoUDP, 0, ports...), ip4(ProtoTCP, 0, make([]byte, 24)...), ip4(ProtoICMP, 0, 8, 0, 0, 0), ip4(6, 1, 1),
		ip6(ProtoUDP, ports...), ip6(ProtoHopOpts, cat([]byte{44, 0, 1, 0, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 9}, ports)...),
		ip6(ProtoTCP, unhex(f, "04d2 162e 00000001 00000000 6002 ffff 0000 0000 020405b4")...),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, why := Parse(b)
		if why != WhyOK {
			if h != (Header{}) {
				t.Fatalf("refused with %s, yet %+v", why, h)
			}
			return
		}
		if h.Length > len(b) || int(h.Upper) > h.Length || h.Insert > h.Upper || h.Fixed > h.Insert || h.InsertNext >= h.Insert {
			t.Fatalf("offsets of %d octets: %+v", len(b), h)
		}
		h.Flow(b, ipsec.Inbound)
		h.Flow(b, ipsec.Outbound)
		reply := make([]byte, TooBigLen)
		n, why := PutTooBig(reply, b, &h, h.Dst(b), 1400)
		if why == WhyOK {
			r, why := Parse(reply[:n])
			if why != WhyOK || r.Length != n || VerifyChecksum(reply[:n], &r) != WhyOK {
				t.Fatalf("a bad reply: %s %+v", why, r)
			}
		}
		ClampMSS(b, &h, 500)
		if SetChecksum(b, &h) == WhyOK && VerifyChecksum(b, &h) != WhyOK {
			t.Fatalf("the checksum that was set does not verify: %+v", h)
		}
		SetTOS(b, 0xb9)
		SetTTL(b, 3)
		if TOS(b) != 0xb9 || TTL(b) != 3 {
			t.Fatalf("TOS %#x, TTL %d", TOS(b), TTL(b))
		}
		if again, why := Parse(b); why != WhyOK || again.Upper != h.Upper || again.Protocol != h.Protocol {
			t.Fatalf("after edits: %s %+v, was %+v", why, again, h)
		}
	})
}
