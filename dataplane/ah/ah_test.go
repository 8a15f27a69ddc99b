package ah

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/esp"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

var packets = map[string][]byte{
	"IPv4":                      ipv4(nil, 100),
	"IPv4, no data":             ipv4(nil, 0),
	"IPv4, options":             ipv4([]byte{148, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 1}, 33),
	"IPv6":                      ipv6(packet.ProtoUDP, nil, 100),
	"IPv6, hop-by-hop options":  ipv6(packet.ProtoHopOpts, []byte{packet.ProtoUDP, 0, 5, 2, 0, 0, 1, 0}, 21),
	"IPv6, destination options": ipv6(packet.ProtoDestOpts, []byte{packet.ProtoUDP, 0, 0x3e, 4, 9, 9, 9, 9}, 21),
}

// What SealFrom protects, Open verifies and Strip gives back, octet for octet; the
// header has the length that RFC 4302 §2.2 and §3.3.3.2.1 say.
func TestTransportRoundTrip(t *testing.T) {
	eachAlgorithm(t, func(t *testing.T, name string, esn bool, seq uint64) {
		s, o := pair(t, name, esn)
		for what, p := range packets {
			b, at := seal(t, s, p, seq)
			if n := s.HeaderLen(b[0] >> 4); n%4 != 0 || b[0]>>4 == 6 && n%8 != 0 || (int(b[at+1])+2)*4 != n {
				t.Errorf("%s: header of %d octets, its length field is %d", what, n, b[at+1])
			}
			if b[0]>>4 == 4 && packet.VerifyChecksum4(b) != packet.WhyOK {
				t.Errorf("%s: IPv4 header checksum", what)
			}
			before := bytes.Clone(b)
			payload, _, why := o.Open(b, at, seq)
			if why != packet.WhyOK || !bytes.Equal(b, before) {
				t.Fatalf("%s: %s, packet changed: %t", what, why, !bytes.Equal(b, before))
			}
			if !bytes.HasSuffix(p, payload) {
				t.Errorf("%s: payload %x", what, payload)
			}
			if got, why := Strip(b, at); why != packet.WhyOK || !bytes.Equal(got, p) {
				t.Errorf("%s: stripped: %s\n%x, want\n%x", what, why, got, p)
			}
		}
	})
}

// Tunnel mode, all four combinations of families; a fragment inside is as good as
// any other inner packet (RFC 4302 §3.3.4).
func TestTunnelRoundTrip(t *testing.T) {
	eachAlgorithm(t, func(t *testing.T, name string, esn bool, seq uint64) {
		s, o := pair(t, name, esn)
		fragment := ipv4(nil, 64)
		fragment[6] = 0x20
		for _, outer := range [][]byte{ipv4(nil, 0)[:20], ipv6(packet.ProtoUDP, nil, 0)[:40]} {
			for _, inner := range [][]byte{ipv4(nil, 77), ipv6(packet.ProtoUDP, nil, 78), fragment} {
				next := uint8(packet.ProtoIPv4)
				if inner[0]>>4 == 6 {
					next = packet.ProtoIPv6
				}
				dst := make([]byte, len(outer)+s.HeaderLen(outer[0]>>4)+len(inner))
				copy(dst, outer)
				jobs := []SealJob{{Dst: dst, At: len(outer), Src: inner, Next: next, Seq: seq}}
				if s.SealBurst(jobs) != 1 || jobs[0].Len != len(dst) || jobs[0].Payload() != len(inner) {
					t.Fatalf("%s, %d octets", jobs[0].Why, jobs[0].Len)
				}
				in := []OpenJob{{Packet: dst, At: len(outer), Seq: seq}}
				if o.OpenBurst(in) != 1 || in[0].Next != next || !bytes.Equal(in[0].Payload, inner) {
					t.Fatalf("%s, next %d, %x", in[0].Why, in[0].Next, in[0].Payload)
				}
			}
		}
	})
}

// RFC 4302 §3.3.3.1: with each octet of a packet changed, the ICV fails where the
// RFC says immutable and holds where it says mutable.
func TestMutability(t *testing.T) {
	eachAlgorithm(t, func(t *testing.T, name string, esn bool, seq uint64) {
		s, o := pair(t, name, esn)
		for what, p := range packets {
			b, at := seal(t, s, p, seq)
			for i := range b {
				if what == "IPv4, options" && (i == 24 || i == 25) {
					continue // type and length of Record Route: another option then
				}
				for bit := range 8 {
					c := bytes.Clone(b)
					c[i] ^= 1 << bit
					_, _, why := o.Open(c, at, seq)
					if ok := why == packet.WhyOK; ok != mutable(b, i, byte(1)<<bit, at) {
						t.Fatalf("%s: octet %d, bit %d: %s, mutable %t", what, i, bit, why, !ok)
					}
				}
			}
			if esn {
				if _, _, why := o.Open(b, at, seq+1<<32); why != packet.WhyAuth {
					t.Errorf("%s: high half off by one: %s", what, why)
				}
			}
		}
	})
}

// mutable is RFC 4302 §3.3.3.1 said a second time, for the packets above.
func mutable(b []byte, i int, bit byte, at int) bool {
	if b[0]>>4 == 6 {
		switch {
		case i == 0:
			return bit < 0x10 // traffic class
		case i < 4, i == 7: // traffic class, flow label; hop limit
			return true
		case i >= 44 && i < at && b[42] == 0x3e: // data of the option that may change
			return true
		}
		return false
	}
	switch i {
	case 1, 7, 8, 10, 11: // DSCP and ECN; fragment offset, see below; TTL; checksum
		return i != 7
	case 6: // the reserved flag and DF; the others make it a fragment
		return bit >= 0x40
	case 25: // length of Record Route
		return false
	case 24, 26, 27, 28, 29, 30: // Record Route
		return at == 32 && (i != 24 || bit != 0x80 && bit != 0x02 || mutableType(7^bit))
	}
	return false
}

// mutableType says whether Record Route with its type changed to this one is
// zeroed all the same.
func mutableType(o byte) bool {
	return o != 0 && o != 1 && o != 130 && o != 133 && o != 134 && o != 148 && o != 149
}

// RFC 4302 §3.3.4: fragments are refused on both sides; a Fragment header of a
// whole packet is as if it were not there (Appendix A2).
func TestFragments(t *testing.T) {
	s, o := pair(t, "sha256", true)
	for _, flags := range []uint16{0x2000, 1, 0x2001} {
		p := ipv4(nil, 64)
		binary.BigEndian.PutUint16(p[6:], flags)
		if _, why := s.SealFrom(make([]byte, 500), p, 1); why != packet.WhyFragment {
			t.Errorf("IPv4, flags %#x: sealed: %s", flags, why)
		}
		b, at := seal(t, s, ipv4(nil, 64), anyESNSeq)
		binary.BigEndian.PutUint16(b[6:], flags)
		if _, _, why := o.Open(b, at, anyESNSeq); why != packet.WhyFragment {
			t.Errorf("IPv4, flags %#x: opened: %s", flags, why)
		}
	}
	atomic := []byte{packet.ProtoUDP, 0, 0, 0, 1, 2, 3, 4}
	if _, why := s.SealFrom(make([]byte, 500), ipv6(packet.ProtoFragment, []byte{packet.ProtoUDP, 0, 0, 1, 1, 2, 3, 4}, 64), 1); why != packet.WhyFragment {
		t.Errorf("IPv6, more fragments: %s", why)
	}
	plain, at := seal(t, s, ipv6(packet.ProtoUDP, nil, 64), anyESNSeq)
	with, _ := seal(t, s, ipv6(packet.ProtoFragment, atomic, 64), anyESNSeq)
	if !bytes.Equal(with[48:], plain[40:]) {
		t.Error("the Fragment header of a whole packet is covered by the ICV")
	}
	if _, _, why := o.Open(with, at+8, anyESNSeq); why != packet.WhyOK {
		t.Errorf("IPv6, whole packet with a Fragment header: %s", why)
	}
	with[43] |= 1
	if _, _, why := o.Open(with, at+8, anyESNSeq); why != packet.WhyFragment {
		t.Errorf("IPv6, more fragments: opened: %s", why)
	}
}

// Transport adjacency (RFC 4301 §4.1): AH over ESP, and back in reverse.
func TestBundle(t *testing.T) {
	s, o := pair(t, "authaes256gmac", true)
	encr, _ := ipsec.AlgorithmByName("aes128gcm16")
	sa := ipsec.SA{ID: 8, Direction: ipsec.Outbound, Protocol: ipsec.ProtocolESP, SPI: 0x1000, Mode: ipsec.ModeTransport,
		Suite: ipsec.Suite{Protocol: ipsec.ProtocolESP, Encr: encr.Transform, ESN: true}, EncrKey: ipsec.NewSecret(count(20, 9))}
	sealer, err := esp.NewSealer(&sa)
	if err != nil {
		t.Fatal(err)
	}
	sa.Direction = ipsec.Inbound
	opener, err := esp.NewOpener(&sa)
	if err != nil {
		t.Fatal(err)
	}
	for what, p := range packets {
		h, _ := packet.Parse(p)
		at, next := int(h.Insert), p[h.InsertNext]
		e := make([]byte, at+sealer.SealedLen(len(p)-at))
		copy(e, p[:at])
		if _, why := sealer.SealFrom(e[at:], p[at:], next, 77); why != packet.WhyOK {
			t.Fatal(why)
		}
		packet.SetNext(e, h.InsertNext, packet.ProtoESP)
		packet.SetLength(e, len(e))

		b, ahAt := seal(t, s, e, 99)
		if b[ahAt] != packet.ProtoESP {
			t.Errorf("%s: AH is followed by %d", what, b[ahAt])
		}
		if _, next, why := o.Open(b, ahAt, 99); why != packet.WhyOK || next != packet.ProtoESP {
			t.Fatalf("%s: %s, next %d", what, why, next)
		}
		got, why := Strip(b, ahAt)
		if why != packet.WhyOK || !bytes.Equal(got, e) {
			t.Fatalf("%s: stripped: %s", what, why)
		}
		if payload, n, why := opener.Open(got[at:], 77); why != packet.WhyOK || n != next || !bytes.Equal(payload, p[at:]) {
			t.Errorf("%s: ESP: %s, next %d", what, why, n)
		}
	}
}

// RFC 4302 §3.3.2: numbers that must never be sent; and room.
func TestSealRefuses(t *testing.T) {
	s, _ := pair(t, "sha256", false)
	p := ipv4(nil, 10)
	for seq, want := range map[uint64]packet.Why{0: packet.WhySeqZero, 1 << 32: packet.WhySeqRange, 1<<32 - 1: packet.WhyOK} {
		if _, why := s.SealFrom(make([]byte, 100), p, seq); why != want {
			t.Errorf("sequence number %d: %s, want %s", seq, why, want)
		}
	}
	if _, why := s.SealFrom(make([]byte, len(p)+27), p, 1); why != packet.WhyNoRoom {
		t.Errorf("one octet short: %s", why)
	}
	big := make([]byte, 65535)
	copy(big, ipv4(nil, 0)[:20])
	binary.BigEndian.PutUint16(big[2:], 65535)
	if _, why := s.SealFrom(make([]byte, 70000), big, 1); why != packet.WhyTooBig {
		t.Errorf("65535 octets and AH: %s", why)
	}
	for what, j := range map[string]SealJob{
		"header cut off": {Dst: ipv4(nil, 100), At: 19, Size: 10, Seq: 1},
		"not a header":   {Dst: ipv4(nil, 100), At: 24, Size: 10, Seq: 1},
		"no destination": {At: 20, Src: []byte{1}, Seq: 1},
		"negative":       {Dst: ipv4(nil, 100), At: -5, Src: []byte{1}, Seq: 1},
		"no source":      {Dst: ipv4(nil, 100), Seq: 1},
	} {
		jobs := []SealJob{j}
		if s.SealBurst(jobs) != 0 || jobs[0].Why == packet.WhyOK {
			t.Errorf("%s: sealed", what)
		}
	}
}

// Linux pads AH over IPv4 to 8 octets unless its SA has the align4 flag.
func TestOpenTakesLinuxPadding(t *testing.T) {
	s, o := pair(t, "sha256", false) // 28 octets, which is no multiple of 8
	b, at := seal(t, s, ipv4(nil, 50), anySeq)
	for pad, want := range map[int]packet.Why{4: packet.WhyOK, 8: packet.WhyAlign} {
		p := append(append(bytes.Clone(b[:at+28]), make([]byte, pad)...), b[at+28:]...)
		p[at+1] += byte(pad / 4)
		packet.SetLength(p, len(p))
		icv, why := s.integrity(p, at, 28+pad, anySeq)
		if why != packet.WhyOK {
			t.Fatal(why)
		}
		copy(p[at+12:], icv)
		if _, _, why := o.Open(p, at, anySeq); why != want {
			t.Errorf("%d octets of padding: %s, want %s", pad, why, want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	s, o := pair(t, "aesxcbc", false)
	good, at := seal(t, s, ipv6(packet.ProtoHopOpts, []byte{packet.ProtoUDP, 0, 1, 4, 0, 0, 0, 0}, 50), anySeq)
	for what, v := range map[string]struct {
		change func(b []byte) []byte
		at     int
		seq    uint64
		want   packet.Why
	}{
		"nothing":            {func(b []byte) []byte { return b }, at, anySeq, packet.WhyOK},
		"octets appended":    {func(b []byte) []byte { return append(b, 0) }, at, anySeq, packet.WhyTruncated},
		"octets missing":     {func(b []byte) []byte { return b[:len(b)-1] }, at, anySeq, packet.WhyTruncated},
		"AH cut off":         {func(b []byte) []byte { return b[:at+20] }, at, anySeq, packet.WhyShort},
		"wrong offset":       {func(b []byte) []byte { return b }, at - 8, anySeq, packet.WhyShort},
		"offset past end":    {func(b []byte) []byte { return b }, 5000, anySeq, packet.WhyShort},
		"other SPI":          {func(b []byte) []byte { b[at+7] ^= 1; return b }, at, anySeq, packet.WhyNoSA},
		"other number":       {func(b []byte) []byte { return b }, at, anySeq + 1, packet.WhySeqRange},
		"high half":          {func(b []byte) []byte { return b }, at, 1<<32 + anySeq, packet.WhySeqRange},
		"length 0":           {func(b []byte) []byte { b[at+1] = 0; return b }, at, anySeq, packet.WhyShort},
		"named ESP":          {func(b []byte) []byte { b[40] = packet.ProtoESP; return b }, at, anySeq, packet.WhyNextHead},
		"an option too long": {func(b []byte) []byte { b[43] = 5; return b }, at, anySeq, packet.WhyHeader},
	} {
		if _, _, why := o.Open(v.change(bytes.Clone(good)), v.at, v.seq); why != v.want {
			t.Errorf("%s: %s, want %s", what, why, v.want)
		}
	}
}

func TestConstructorsRefuse(t *testing.T) {
	for _, v := range []struct {
		name   string
		change func(*ipsec.SA)
		want   string
	}{
		{"ESP", func(sa *ipsec.SA) { sa.Protocol = ipsec.ProtocolESP }, "protocol esp"},
		{"reserved SPI", func(sa *ipsec.SA) { sa.SPI = 255 }, "reserved"},
		{"short key", func(sa *ipsec.SA) { sa.IntegKey = ipsec.NewSecret(make([]byte, 16)) }, "32 octets"},
		{"encryption", func(sa *ipsec.SA) { sa.EncrKey = ipsec.NewSecret(make([]byte, 16)) }, "encrypts nothing"},
		{"unknown algorithm", func(sa *ipsec.SA) { sa.Suite.Integ.ID = 999 }, "not one for AH"},
		{"no algorithm", func(sa *ipsec.SA) { sa.Suite.Integ = ipsec.Transform{} }, "not one for AH"},
		{"UDP", func(sa *ipsec.SA) { sa.Encap = &ipsec.Encap{LocalPort: 4500, RemotePort: 4500} }, "UDP"},
		{"inbound SA", func(sa *ipsec.SA) { sa.Direction = ipsec.Inbound }, "direction in"},
	} {
		sa := testSA(t, "sha256", ipsec.Outbound, false)
		v.change(sa)
		if _, err := NewSealer(sa); err == nil || !strings.Contains(err.Error(), v.want) {
			t.Errorf("%s: error %v, want one with %q", v.name, err, v.want)
		}
	}
	if _, err := NewOpener(testSA(t, "sha256", ipsec.Outbound, false)); err == nil {
		t.Error("an opener for an outbound SA")
	}
}

// A clone has state and scratch of its own.
func TestClone(t *testing.T) {
	eachAlgorithm(t, func(t *testing.T, name string, esn bool, seq uint64) {
		a, o := pair(t, name, esn)
		b, err := a.Clone()
		if err != nil {
			t.Fatal(err)
		}
		p := ipv4(nil, 300)
		done := make(chan []byte)
		for i, s := range []*Sealer{a, b} {
			go func() {
				dst := make([]byte, len(p)+s.HeaderLen(4))
				for k := range uint64(50) {
					s.SealFrom(dst, p, seq+2*k+uint64(i))
				}
				done <- dst
			}()
		}
		for range 2 {
			d := <-done
			_, low, _ := Peek(d[20:])
			if _, _, why := o.Open(d, 20, seq>>32<<32|uint64(low)); why != packet.WhyOK {
				t.Errorf("sequence number %d: %s", low, why)
			}
		}
	})
}

func TestNoAllocations(t *testing.T) {
	eachAlgorithm(t, func(t *testing.T, name string, esn bool, seq uint64) {
		s, o := pair(t, name, esn)
		p := ipv6(packet.ProtoHopOpts, []byte{packet.ProtoUDP, 0, 5, 2, 0, 0, 1, 0}, 1300)
		dst := make([]byte, len(p)+s.HeaderLen(6))
		cycle := func() {
			if _, why := s.SealFrom(dst, p, seq); why != packet.WhyOK {
				t.Fatal(why)
			}
			if _, _, why := o.Open(dst, 48, seq); why != packet.WhyOK {
				t.Fatal(why)
			}
			if _, why := Strip(dst, 48); why != packet.WhyOK {
				t.Fatal(why)
			}
		}
		cycle()
		if n := testing.AllocsPerRun(100, cycle); n != 0 {
			t.Errorf("%v allocations per packet", n)
		}
	})
}
