package esp

import (
	"bytes"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

const (
	anySeq    = 42
	anyESNSeq = 3<<32 + 42
)

func eachSuite(t *testing.T, f func(t *testing.T, s suite, esn bool, seq uint64)) {
	for _, s := range suites {
		t.Run(s.String(), func(t *testing.T) { f(t, s, false, anySeq) })
		t.Run(s.String()+"-esn", func(t *testing.T) { f(t, s, true, anyESNSeq) })
	}
}

// Every payload size from 0 to 1500, sealed in place, from elsewhere with room
// for the trailer, and from elsewhere without, opens to what it was.
func TestRoundTrip(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite, esn bool, seq uint64) {
		sealer, opener := s.pair(t, esn)
		source := count(1600, 3)
		for n := range 1501 {
			want, size := source[:n], sealer.SealedLen(n)
			inPlace := make([]byte, size+1)
			inPlace[size] = 0xee
			copy(inPlace[sealer.HeaderLen():], want)
			if got, why := sealer.Seal(inPlace, n, 4, seq); why != packet.WhyOK || got != size {
				t.Fatalf("Seal of %d octets: %s, %d octets, want %d", n, why, got, size)
			}
			from, copied := make([]byte, size+1), make([]byte, size)
			from[size] = 0xee
			if got, why := sealer.SealFrom(from, source[:n], 4, seq); why != packet.WhyOK || got != size {
				t.Fatalf("SealFrom of %d octets: %s, %d octets, want %d", n, why, got, size)
			}
			if _, why := sealer.SealFrom(copied, source[:n:n], 4, seq); why != packet.WhyOK {
				t.Fatalf("SealFrom of %d octets and no room: %s", n, why)
			}
			if inPlace[size] != 0xee || from[size] != 0xee {
				t.Fatalf("%d octets: wrote past the packet", n)
			}
			if !bytes.Equal(source, count(1600, 3)) {
				t.Fatalf("%d octets: SealFrom did not restore the octets after its payload", n)
			}
			if !bytes.Equal(inPlace[:size], from[:size]) || !bytes.Equal(from[:size], copied) {
				t.Fatalf("%d octets: the three ways of sealing differ", n)
			}
			got, next, why := opener.Open(copied, seq)
			if why != packet.WhyOK || next != 4 || !bytes.Equal(got, want) {
				t.Fatalf("Open of %d octets: %s, next %d, got %d octets", n, why, next, len(got))
			}
			if cap(got) > 0 && n > 0 && &got[0] != &copied[opener.HeaderLen()] {
				t.Fatal("the payload is not a part of the packet")
			}
			if back := sealer.MaxPayload(size); back < n || sealer.SealedLen(back) != size {
				t.Fatalf("MaxPayload(%d) = %d, which needs %d", size, back, sealer.SealedLen(back))
			}
			if size-n-sealer.HeaderLen() > sealer.TrailerLen() {
				t.Fatalf("%d octets: trailer of %d, TrailerLen says %d", n, size-n-sealer.HeaderLen(), sealer.TrailerLen())
			}
		}
		if got := sealer.MaxPayload(sealer.SealedLen(0) - 1); got >= 0 {
			t.Fatalf("MaxPayload of too little = %d", got)
		}
	})
}

// A change of any octet of a packet, its length or its ESN half is noticed.
func TestTampering(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite, esn bool, seq uint64) {
		sealer, opener := s.pair(t, esn)
		b := make([]byte, sealer.SealedLen(37))
		if _, why := sealer.SealFrom(b, count(37, 1), 4, seq); why != packet.WhyOK {
			t.Fatal(why)
		}
		for i := range b {
			for _, flip := range []byte{0x01, 0x80, 0xff} {
				c := bytes.Clone(b)
				c[i] ^= flip
				want := packet.WhyAuth
				switch {
				case i < 4:
					want = packet.WhyNoSA
				case i < 8:
					want = packet.WhySeqRange // the caller infers seq from these octets
				}
				if _, _, why := opener.Open(c, seq); why != want {
					t.Fatalf("octet %d ^ %#x: %s, want %s", i, flip, why, want)
				}
			}
		}
		if esn {
			if _, _, why := opener.Open(bytes.Clone(b), seq+1<<32); why != packet.WhyAuth {
				t.Fatalf("high half off by one: %s, want %s", why, packet.WhyAuth)
			}
		}
		for n := range b {
			if _, _, why := opener.Open(bytes.Clone(b[:n]), seq); why == packet.WhyOK {
				t.Fatalf("opened the first %d of %d octets", n, len(b))
			}
		}
		if _, _, why := opener.Open(append(bytes.Clone(b), make([]byte, 16)...), seq); why != packet.WhyAuth {
			t.Fatalf("with a block appended: %s", why)
		}
		if _, _, why := opener.Open(b, seq); why != packet.WhyOK {
			t.Fatalf("untouched: %s", why)
		}
	})
}

// sealBody seals a hand-made body: payload, padding, pad length and next header.
func sealBody(s *Sealer, body []byte, seq uint64) []byte {
	head := s.HeaderLen()
	b := make([]byte, head+len(body)+int(s.icv))
	s.header(b, seq)
	if s.aead != nil {
		s.aead.Seal(b[head:head], s.nonce[s.skip:], body, s.additional(seq))
		return b
	}
	copy(b[head:], body)
	switch {
	case s.cbc != nil:
		s.cbc.SetIV(b[espLen:head])
		s.cbc.CryptBlocks(b[head:head+len(body)], body)
	case s.ctr != nil:
		s.ctr.xor(s.nonce[:], b[head:head+len(body)])
	}
	copy(b[head+len(body):], s.integrity(b[:head+len(body)], uint32(seq>>32)))
	return b
}

// RFC 4303 §2.4 (padding), §2.6 (dummy packets), §2.7 (traffic-flow padding).
func TestTrailerOnReceipt(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite, esn bool, seq uint64) {
		sealer, opener := s.pair(t, esn)
		for _, v := range []struct {
			name string
			body []byte
			want []byte
			why  packet.Why
		}{
			{"least padding", append(count(14, 0), 0, 4), count(14, 0), packet.WhyOK},
			{"more padding than needed", append(count(2, 7), 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12, 4), count(2, 7), packet.WhyOK},
			{"only padding", []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 14, 4}, nil, packet.WhyOK},
			{"padding longer than the packet", append(count(14, 1), 15, 4), nil, packet.WhyPadding},
			{"padding of 255", append(count(14, 1), 255, 4), nil, packet.WhyPadding},
			{"no padding and next header 0", make([]byte, 16), make([]byte, 14), packet.WhyOK},
			{"padding of zeros", append(make([]byte, 14), 2, 4), nil, packet.WhyPadding},
			{"padding 1, 3", append(count(12, 1), 1, 3, 2, 4), nil, packet.WhyPadding},
			{"dummy", append(count(14, 1), 0, packet.ProtoNone), nil, packet.WhyDummy},
		} {
			got, next, why := opener.Open(sealBody(sealer, v.body, seq), seq)
			if why != v.why || !bytes.Equal(got, v.want) {
				t.Errorf("%s: %s, payload %x, want %s, %x", v.name, why, got, v.why, v.want)
			}
			if why == packet.WhyOK && next != v.body[len(v.body)-1] {
				t.Errorf("%s: next header %d", v.name, next)
			}
		}
		for pad := range 256 { // the longest padding that can be said is 255
			body := make([]byte, 0, 272)
			body = append(body, make([]byte, (16-(pad+2)%16)%16)...)
			plain := len(body)
			body = append(body, count(pad, 1)...)
			body = append(body, byte(pad), 41)
			if got, _, why := opener.Open(sealBody(sealer, body, seq), seq); why != packet.WhyOK || len(got) != plain {
				t.Fatalf("%d octets of padding: %s, payload of %d, want %d", pad, why, len(got), plain)
			}
		}
		if why := openLen(opener, sealer.HeaderLen()+int(sealer.align)+int(sealer.icv)+1); why != packet.WhyAlign {
			t.Errorf("misaligned: %s", why)
		}
		if why := openLen(opener, sealer.HeaderLen()+int(sealer.align)+int(sealer.icv)-1); why != packet.WhyShort {
			t.Errorf("short: %s", why)
		}
	})
}

func openLen(o *Opener, n int) packet.Why {
	_, _, why := o.Open(make([]byte, n), 0)
	return why
}

// A burst does to each packet what the single calls do, and skips jobs that
// have failed before.
func TestBurst(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite, esn bool, seq uint64) {
		sealer, opener := s.pair(t, esn)
		jobs := make([]SealJob, 20)
		for i := range jobs {
			jobs[i] = SealJob{Dst: make([]byte, sealer.SealedLen(i)), Next: 4, Seq: seq + uint64(i)}
			if i%2 == 0 {
				jobs[i].Src = count(i, i)
			} else {
				jobs[i].Size = i
				copy(jobs[i].Dst[sealer.HeaderLen():], count(i, i))
			}
		}
		jobs[3].Dst = jobs[3].Dst[:10]
		jobs[4].Why = packet.WhyNoLease
		if n := sealer.SealBurst(jobs); n != 18 || jobs[3].Why != packet.WhyNoRoom || jobs[4].Why != packet.WhyNoLease || jobs[4].Len != 0 {
			t.Fatalf("sealed %d, %s, %s", n, jobs[3].Why, jobs[4].Why)
		}
		in := make([]OpenJob, len(jobs))
		for i, j := range jobs {
			in[i] = OpenJob{Packet: j.Dst[:j.Len], Seq: j.Seq, Why: j.Why}
		}
		if n := opener.OpenBurst(in); n != 18 {
			t.Fatalf("opened %d, want 18", n)
		}
		for i, j := range in {
			if j.Why == packet.WhyOK && !bytes.Equal(j.Payload, count(i, i)) {
				t.Errorf("job %d: payload %x", i, j.Payload)
			}
		}
	})
}

// Sequence numbers that must never be sent are refused before anything is
// written (RFC 4303 §3.3.3).
func TestSealRefusesNumbers(t *testing.T) {
	sealer, _ := suites[0].pair(t, false)
	for seq, want := range map[uint64]packet.Why{0: packet.WhySeqZero, 1 << 32: packet.WhySeqRange, 1<<32 - 1: packet.WhyOK} {
		buf := make([]byte, 100)
		if _, why := sealer.Seal(buf, 10, 4, seq); why != want {
			t.Errorf("sequence number %d: %s, want %s", seq, why, want)
		}
		if want != packet.WhyOK && !bytes.Equal(buf, make([]byte, 100)) {
			t.Errorf("sequence number %d: wrote to the buffer", seq)
		}
	}
	if _, why := sealer.Seal(make([]byte, 20), 10, 4, 1); why != packet.WhyNoRoom {
		t.Errorf("short buffer: %s", why)
	}
}

func TestConstructorsRefuse(t *testing.T) {
	for _, v := range []struct {
		name   string
		change func(*ipsec.SA)
		want   string
	}{
		{"AH", func(sa *ipsec.SA) { sa.Protocol = ipsec.ProtocolAH }, "protocol ah"},
		{"reserved SPI", func(sa *ipsec.SA) { sa.SPI = 255 }, "reserved"},
		{"short key", func(sa *ipsec.SA) { sa.EncrKey = ipsec.NewSecret(make([]byte, 16)) }, "20 octets"},
		{"integrity beside AEAD", func(sa *ipsec.SA) { sa.IntegKey = ipsec.NewSecret(make([]byte, 32)) }, "authenticates by itself"},
		{"unknown algorithm", func(sa *ipsec.SA) { sa.Suite.Encr.ID = 999 }, "not one for ESP"},
		{"inbound SA", func(sa *ipsec.SA) { sa.Direction = ipsec.Inbound }, "direction in"},
		{"CBC without integrity", func(sa *ipsec.SA) {
			sa.Suite.Encr = ipsec.Transform{Type: ipsec.TransformENCR, ID: ipsec.EncrAESCBC, KeyBits: 128}
			sa.EncrKey = ipsec.NewSecret(make([]byte, 16))
		}, "needs an integrity algorithm"},
	} {
		sa := suites[0].sa(t, ipsec.Outbound, false)
		v.change(sa)
		if _, err := NewSealer(sa); err == nil || !strings.Contains(err.Error(), v.want) {
			t.Errorf("%s: error %v, want one with %q", v.name, err, v.want)
		}
	}
	if _, err := NewOpener(suites[0].sa(t, ipsec.Outbound, false)); err == nil {
		t.Error("an opener for an outbound SA")
	}
}

func TestNoAllocations(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite, esn bool, seq uint64) {
		sealer, opener := s.pair(t, esn)
		src, dst := count(1500, 1)[:1400], make([]byte, sealer.SealedLen(1400))
		cycle := func() {
			if _, why := sealer.SealFrom(dst, src, 4, seq); why != packet.WhyOK {
				t.Fatal(why)
			}
			if _, _, why := opener.Open(dst, seq); why != packet.WhyOK {
				t.Fatal(why)
			}
			if _, why := sealer.Seal(dst, 1400, 4, seq); why != packet.WhyOK {
				t.Fatal(why)
			}
			if _, _, why := opener.Open(dst, seq); why != packet.WhyOK {
				t.Fatal(why)
			}
		}
		if n := testing.AllocsPerRun(100, cycle); n != 0 {
			t.Errorf("%.1f allocations per cycle, want 0", n)
		}
	})
}

// FuzzOpen: no octets make Open panic or succeed unless they are what Seal made.
func FuzzOpen(f *testing.F) {
	var sealers []*Sealer
	var openers []*Opener
	for _, s := range suites {
		sealer, opener := s.pair(f, true)
		sealers, openers = append(sealers, sealer), append(openers, opener)
		b := make([]byte, sealer.SealedLen(50))
		sealer.SealFrom(b, count(50, 1), 4, anyESNSeq)
		f.Add(uint8(len(sealers)-1), b, uint64(anyESNSeq), []byte{1, 2, 3})
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte, seq uint64, payload []byte) {
		i := int(which) % len(suites)
		if _, _, why := openers[i].Open(bytes.Clone(b), seq); why == packet.WhyOK {
			if seq != anyESNSeq {
				t.Fatalf("forged %d octets", len(b))
			}
		}
		if seq == 0 {
			return
		}
		sealed := make([]byte, sealers[i].SealedLen(len(payload)))
		if _, why := sealers[i].SealFrom(sealed, payload, 6, seq); why != packet.WhyOK {
			t.Fatal(why)
		}
		if got, next, why := openers[i].Open(sealed, seq); why != packet.WhyOK || next != 6 || !bytes.Equal(got, payload) {
			t.Fatalf("%s: next %d, %x, want %x", why, next, got, payload)
		}
	})
}

// Room on the wire, for whoever computes an MTU.
func TestLengths(t *testing.T) {
	for name, want := range map[string][4]int{
		"aes128gcm16":   {16, 1436, 1438, 21},
		"aes128-sha256": {24, 1448, 1422, 33},
		"aes256-sha512": {24, 1464, 1406, 49},
	} {
		for _, s := range suites {
			if s.String() != name {
				continue
			}
			x, _ := s.pair(t, true)
			if got := [4]int{x.HeaderLen(), x.SealedLen(1400), x.MaxPayload(1472), x.TrailerLen()}; got != want {
				t.Errorf("%s: header, sealed 1400, payload of 1472, trailer = %v, want %v", name, got, want)
			}
		}
	}
}
