package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

func TestFields(t *testing.T) {
	for _, b := range [][]byte{ip4(ProtoUDP, 0, ports...), ip6(ProtoUDP, ports...)} {
		v4 := b[0]>>4 == 4
		original := bytes.Clone(b)
		for tos := range 256 {
			SetTOS(b, uint8(tos))
			if TOS(b) != uint8(tos) || DSCP(b) != uint8(tos)>>2 || ECN(b) != uint8(tos)&3 {
				t.Fatalf("TOS %#x reads as %#x, %#x, %d", tos, TOS(b), DSCP(b), ECN(b))
			}
		}
		SetDSCP(b, 46)
		SetECN(b, ECT0)
		if TOS(b) != 46<<2|2 {
			t.Errorf("TOS %#x", TOS(b))
		}
		SetTOS(b, 0)
		SetTTL(b, 2)
		if why := DecTTL(b); why != WhyOK || TTL(b) != 1 {
			t.Errorf("TTL %d, %s", TTL(b), why)
		}
		if why := DecTTL(b); why != WhyTTL || TTL(b) != 1 {
			t.Errorf("TTL %d, %s", TTL(b), why)
		}
		SetTTL(b, 64)
		SetDF(b, true)
		if !DF(b) {
			t.Error("DF was set and is not")
		}
		SetDF(b, false)
		if DF(b) == v4 {
			t.Errorf("DF %v after it was cleared; IPv4 %v", DF(b), v4)
		}
		if v4 && VerifyChecksum4(b) != WhyOK {
			t.Error("the header checksum is wrong after edits")
		}
		if !bytes.Equal(b, original) {
			t.Errorf("edits that undo each other left\n%x, want\n%x", b, original)
		}
	}
	if SetLength(ip4(17, 0), 65536) != WhyTooBig || SetLength(ip6(17), 65576) != WhyTooBig || SetLength(ip6(17), 65575) != WhyOK {
		t.Error("lengths past what the field can hold")
	}
}

// RFC 4301 §5.1.2 and RFC 6040 §4.1.
func TestOuter(t *testing.T) {
	a4, b4 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	a6, b6 := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	for _, v := range []struct {
		name    string
		c       OuterConfig
		tos     uint8
		df      bool
		wantTOS uint8
		wantDF  bool
		wantTTL uint8
	}{
		{"copies DSCP and ECN, copies DF", OuterConfig{Local: a4, Remote: b4}, 0xba, true, 0xba, true, 64},
		{"copies a clear DF", OuterConfig{Local: a4, Remote: b4}, 0, false, 0, false, 64},
		{"sets DF", OuterConfig{Local: a4, Remote: b4, DF: DFSet, TTL: 9}, 0, false, 0, true, 9},
		{"clears DF", OuterConfig{Local: a4, Remote: b4, DF: DFClear}, 0, true, 0, false, 64},
		{"fixed DSCP keeps ECN", OuterConfig{Local: a4, Remote: b4, FixedDSCP: true, DSCP: 10}, 0xbb, false, 10<<2 | CE, false, 64},
		{"compatibility ECN", OuterConfig{Local: a4, Remote: b4, CompatECN: true}, 0xbb, false, 0xb8, false, 64},
		{"IPv6", OuterConfig{Local: a6, Remote: b6, FlowLabel: 0xabcde}, 0xba, false, 0xba, true, 64},
		{"IPv6, fixed DSCP", OuterConfig{Local: a6, Remote: b6, FixedDSCP: true, DSCP: 63, TTL: 255}, 0x01, false, 0xfd, true, 255},
	} {
		t.Run(v.name, func(t *testing.T) {
			v.c.Protocol = ProtoESP
			o, err := NewOuter(v.c)
			if err != nil {
				t.Fatal(err)
			}
			b := bytes.Repeat([]byte{0xee}, o.Len()+100)
			if why := o.Put(b, v.tos, v.df, 0x1234); why != WhyOK {
				t.Fatal(why)
			}
			h, why := Parse(b)
			if why != WhyOK || h.Length != len(b) || h.Protocol != ProtoESP || h.Src(b) != v.c.Local || h.Dst(b) != v.c.Remote {
				t.Fatalf("%s %+v", why, h)
			}
			if TOS(b) != v.wantTOS || DF(b) != v.wantDF || TTL(b) != v.wantTTL || o.TOS(v.tos) != v.wantTOS {
				t.Errorf("TOS %#x, DF %v, TTL %d, want %#x, %v, %d", TOS(b), DF(b), TTL(b), v.wantTOS, v.wantDF, v.wantTTL)
			}
			if v.c.Local.Is4() {
				if VerifyChecksum4(b) != WhyOK || binary.BigEndian.Uint16(b[4:]) != 0x1234 {
					t.Errorf("header %x", b[:20])
				}
			} else if binary.BigEndian.Uint32(b)&0xfffff != v.c.FlowLabel {
				t.Errorf("flow label in %x", b[:4])
			}
			if why := o.Put(b[:o.Len()-1], 0, false, 0); why != WhyNoRoom {
				t.Errorf("short buffer: %s", why)
			}
			if why := o.Put(make([]byte, 65536+40), 0, false, 0); why != WhyTooBig {
				t.Errorf("long buffer: %s", why)
			}
		})
	}
	for _, c := range []OuterConfig{{Local: a4, Remote: b6}, {Local: a4}, {}, {Local: a4, Remote: b4, DSCP: 64}, {Local: a6, Remote: b6, FlowLabel: 1 << 20}} {
		if _, err := NewOuter(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

// Every checksum Put makes is the one a full computation gives.
func TestOuterChecksum(t *testing.T) {
	o, err := NewOuter(OuterConfig{Local: netip.MustParseAddr("255.255.255.255"), Remote: netip.MustParseAddr("255.255.255.254"), Protocol: ProtoUDP, TTL: 255})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 65535)
	for id := range 65536 {
		p := b[:20+id%60000]
		o.Put(p, uint8(id), id%2 == 0, uint16(id))
		if VerifyChecksum4(p) != WhyOK {
			t.Fatalf("%x", p[:20])
		}
	}
}

// RFC 6040 §4.2, Figure 4. Rows: the arriving inner header; columns: the outer.
func TestDecapECN(t *testing.T) {
	const drop = 0xff
	codes := []uint8{NotECT, ECT0, ECT1, CE}
	figure4 := [4][4]uint8{
		{NotECT, NotECT, NotECT, drop},
		{ECT0, ECT0, ECT1, CE},
		{ECT1, ECT1, ECT1, CE},
		{CE, CE, CE, CE},
	}
	for i, inner := range codes {
		for j, outer := range codes {
			for _, b := range [][]byte{ip4(17, 0, ports...), ip6(17, ports...)} {
				SetTOS(b, 46<<2|inner)
				why := DecapECN(b, outer)
				if want := figure4[i][j]; want == drop {
					if why != WhyECN {
						t.Errorf("inner %d, outer %d: %s, want a drop", inner, outer, why)
					}
				} else if why != WhyOK || TOS(b) != 46<<2|want {
					t.Errorf("inner %d, outer %d: %s, TOS %#x, want ECN %d", inner, outer, why, TOS(b), want)
				}
				if b[0]>>4 == 4 && VerifyChecksum4(b) != WhyOK {
					t.Errorf("inner %d, outer %d: wrong header checksum", inner, outer)
				}
			}
		}
	}
}

// RFC 7634 Appendix A has a real ICMP packet, RFC 3602 §4 others.
func TestChecksumsOfKnownPackets(t *testing.T) {
	for _, s := range []string{
		`45000054 a6f20000 4001e778 c6336405 c0000205 08005b7a 3a080000 553bec10 00073627 08090a0b 0c0d0e0f
		10111213 14151617 18191a1b 1c1d1e1f 20212223 24252627 28292a2b 2c2d2e2f 30313233 34353637`,
		`45000030 08fe0000 4001fa16 c0a87b03 c0a87b64 0800b5e8 a80a0500 a69c083d 0b660e00 77777777 77777777 77777777`,
	} {
		b := unhex(t, s)
		h, why := Parse(b)
		if why != WhyOK || VerifyChecksum4(b) != WhyOK || VerifyChecksum(b, &h) != WhyOK {
			t.Fatalf("%s: header %s, ICMP %s", why, VerifyChecksum4(b), VerifyChecksum(b, &h))
		}
		want := bytes.Clone(b)
		b[22], b[23], b[10], b[11] = 1, 2, 3, 4
		if VerifyChecksum4(b) != WhyChecksum || VerifyChecksum(b, &h) != WhyChecksum {
			t.Error("wrong checksums pass")
		}
		SetChecksum4(b)
		if SetChecksum(b, &h); !bytes.Equal(b, want) {
			t.Errorf("%x, want %x", b, want)
		}
	}
}

func TestTransportChecksum(t *testing.T) {
	tcp := make([]byte, 20+33)
	tcp[12] = 0x50
	udp := append([]byte{0, 1, 0, 2, 0, 41, 0, 0}, make([]byte, 33)...)
	for name, b := range map[string][]byte{
		"TCP over 4": ip4(ProtoTCP, 0, tcp...), "TCP over 6": ip6(ProtoTCP, tcp...),
		"UDP over 4": ip4(ProtoUDP, 0, udp...), "UDP over 6": ip6(ProtoUDP, udp...),
		"ICMPv6": ip6(ProtoICMPv6, tcp...),
	} {
		h, why := Parse(b)
		if why != WhyOK {
			t.Fatal(name, why)
		}
		if why := SetChecksum(b, &h); why != WhyOK {
			t.Fatal(name, why)
		}
		at, _ := checksumAt(h.Version, h.Protocol)
		field := b[int(h.Upper)+at:][:2]
		full := binary.BigEndian.Uint16(field)
		// The slow way: pseudo header spelled out (RFC 8200 §8.1).
		field[0], field[1] = 0, 0
		pseudo := cat(h.Src(b).AsSlice(), h.Dst(b).AsSlice(), []byte{0, 0, 0, byte(h.Length - int(h.Upper)), 0, 0, 0, h.Protocol})
		if want := ^slowSum(b[h.Upper:h.Length], slowSum(pseudo, 0)); want != full {
			t.Errorf("%s: %#04x, want %#04x", name, full, want)
		}
		// What a sender with checksum offload leaves: the pseudo header's sum.
		binary.BigEndian.PutUint16(field, PseudoSum(h.Src(b), h.Dst(b), h.Protocol, h.Length-int(h.Upper)))
		if why := CompleteChecksum(b[:h.Length], int(h.Upper), at, h.Protocol == ProtoUDP); why != WhyOK || VerifyChecksum(b, &h) != WhyOK {
			t.Errorf("%s: completed to %x: %s", name, field, why)
		}
		for i := int(h.Upper); i < h.Length; i++ {
			b[i] ^= 0x10
			if i-int(h.Upper) != 6 || h.Protocol != ProtoUDP { // not the UDP field itself
				if VerifyChecksum(b, &h) == WhyOK {
					t.Errorf("%s: a change of octet %d passes", name, i)
				}
			}
			b[i] ^= 0x10
		}
	}
	none := ip4(ProtoUDP, 0, 0, 1, 0, 2, 0, 8, 0, 0)
	h, _ := Parse(none)
	if why := VerifyChecksum(none, &h); why != WhyOK {
		t.Errorf("UDP over IPv4 without checksum: %s", why)
	}
	none = ip6(ProtoUDP, 0, 1, 0, 2, 0, 8, 0, 0)
	h, _ = Parse(none)
	if why := VerifyChecksum(none, &h); why != WhyChecksum {
		t.Errorf("UDP over IPv6 without checksum: %s", why)
	}
	part := ip4(ProtoUDP, 0x2000, udp...)
	h, _ = Parse(part)
	if SetChecksum(part, &h) != WhyUnsupported || VerifyChecksum(part, &h) != WhyUnsupported {
		t.Error("the checksum of a fragment")
	}
	if CompleteChecksum(part, 40, len(part)-41, false) != WhyTruncated || CompleteChecksum(part, -1, 2, false) != WhyTruncated {
		t.Error("a checksum field outside the packet")
	}
}

func TestClampMSS(t *testing.T) {
	syn := func(options string) []byte {
		opt := unhex(t, options)
		tcp := append(make([]byte, 20), opt...)
		tcp[12], tcp[13] = byte(len(tcp)/4)<<4, 0x02
		b := ip4(ProtoTCP, 0, tcp...)
		h, _ := Parse(b)
		SetChecksum(b, &h)
		return b
	}
	for _, v := range []struct {
		name string
		b    []byte
		mss  uint16
		want string // options afterwards; empty: unchanged
	}{
		{"lowered", syn("020405b4"), 1360, "02040550"},
		{"after no-operation, at an odd offset", syn("01020405b4 010101"), 1360, "0102040550 010101"},
		{"after SACK permitted and timestamps", syn("0402 080a0000000100000000 020405b4"), 1, "0402 080a0000000100000000 02040001"},
		{"low enough", syn("02040200"), 512, ""},
		{"no MSS option", syn("01010101"), 512, ""},
		{"option of length 0", syn("03000000 020405b4"), 512, ""},
		{"option past the header", syn("0208 0000"), 512, ""},
		{"end of options first", syn("00000000 020405b4"), 512, ""},
	} {
		h, why := Parse(v.b)
		if why != WhyOK {
			t.Fatal(v.name, why)
		}
		before := bytes.Clone(v.b)
		changed := ClampMSS(v.b, &h, v.mss)
		if changed != (v.want != "") {
			t.Errorf("%s: changed %v", v.name, changed)
		}
		if v.want == "" && !bytes.Equal(v.b, before) || v.want != "" && !bytes.Equal(v.b[40:], unhex(t, v.want)) {
			t.Errorf("%s: options %x", v.name, v.b[40:])
		}
		if VerifyChecksum(v.b, &h) != WhyOK {
			t.Errorf("%s: wrong checksum", v.name)
		}
	}
	ack := syn("020405b4")
	ack[33] = 0x10
	h, _ := Parse(ack)
	if ClampMSS(ack, &h, 100) {
		t.Error("a segment without SYN was changed")
	}
}

func TestPutTooBig(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")
	big4, big6 := ip4(ProtoUDP, 0x4000, append(ports, make([]byte, 1400)...)...), ip6(ProtoUDP, append(ports, make([]byte, 1400)...)...)
	reply := make([]byte, TooBigLen)

	h, _ := Parse(big4)
	n, why := PutTooBig(reply, big4, &h, v4, 1400)
	r, _ := Parse(reply[:n])
	if why != WhyOK || n != 576 || r.Src(reply) != v4 || r.Dst(reply) != h.Src(big4) || r.SrcPort != 3<<8|4 ||
		binary.BigEndian.Uint16(reply[26:]) != 1400 || !bytes.Equal(reply[28:n], big4[:n-28]) ||
		VerifyChecksum4(reply) != WhyOK || VerifyChecksum(reply, &r) != WhyOK {
		t.Errorf("ICMP: %s, %d octets %x", why, n, reply[:40])
	}
	h, _ = Parse(big6)
	n, why = PutTooBig(reply, big6, &h, v6, 1300)
	r, _ = Parse(reply[:n])
	if why != WhyOK || n != 1280 || r.Src(reply) != v6 || r.SrcPort != 2<<8 || binary.BigEndian.Uint32(reply[44:]) != 1300 ||
		!bytes.Equal(reply[48:n], big6[:n-48]) || VerifyChecksum(reply, &r) != WhyOK {
		t.Errorf("ICMPv6: %s, %d octets %x", why, n, reply[:60])
	}
	if n, _ := PutTooBig(reply, big6, &h, v6, 1); binary.BigEndian.Uint32(reply[44:]) != 1280 || n == 0 {
		t.Errorf("an IPv6 MTU under 1280 was sent: %x", reply[44:48])
	}
	if _, why := PutTooBig(reply[:100], big6, &h, v6, 1400); why != WhyNoRoom {
		t.Errorf("short buffer: %s", why)
	}
	if _, why := PutTooBig(reply, big6, &h, v4, 1400); why != WhyFamily {
		t.Errorf("IPv4 source for IPv6: %s", why)
	}

	multicast := bytes.Clone(big4)
	multicast[16] = 224
	nobody := bytes.Clone(big4)
	clear(nobody[12:16])
	for name, b := range map[string][]byte{
		"later fragment": ip4(ProtoUDP, 9, 1, 2), "ICMP error": ip4(ProtoICMP, 0, 3, 1, 0, 0), "multicast": multicast, "source 0.0.0.0": nobody,
	} {
		h, _ := Parse(b)
		if _, why := PutTooBig(reply, b, &h, v4, 1400); why != WhyUnsupported {
			t.Errorf("%s: %s, want %s", name, why, WhyUnsupported)
		}
	}
	for kind, want := range map[byte]Why{1: WhyUnsupported, 137: WhyUnsupported, 128: WhyOK} {
		b := ip6(ProtoICMPv6, kind, 0, 0, 0)
		h, _ := Parse(b)
		if _, why := PutTooBig(reply, b, &h, v6, 1400); why != want {
			t.Errorf("ICMPv6 type %d: %s, want %s", kind, why, want)
		}
	}
	echo := ip4(ProtoICMP, 0, 8, 0, 0, 0)
	h, _ = Parse(echo)
	if _, why := PutTooBig(reply, echo, &h, v4, 1400); why != WhyOK {
		t.Errorf("echo request: %s", why)
	}
}

// Names are labels of metrics: each is there, and no two are the same.
func TestWhyNames(t *testing.T) {
	seen := map[string]Why{}
	for w := range NumWhys {
		n := w.String()
		if other, dup := seen[n]; dup || n == "" {
			t.Errorf("reason %d is named %q, as is %d", w, n, other)
		}
		seen[n] = w
	}
	if NumWhys.String() == "" {
		t.Error("an unknown reason has no name")
	}
}
