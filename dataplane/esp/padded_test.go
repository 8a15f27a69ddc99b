package esp

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// innerIPv4 is an IPv4 packet of n octets.
func innerIPv4(n int) []byte {
	b := count(n, 1)
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	return b
}

// RFC 4303 §2.7: whatever the payload, the packet has the size asked for, less
// only what alignment takes, and the receiver finds the payload again.
func TestTrafficFlowPadding(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite, esn bool, seq uint64) {
		sealer, opener := s.pair(t, esn)
		for _, total := range []int{1200, 1203} {
			sizes := map[int]bool{}
			for _, n := range []int{20, 21, 100, 576, 1000} {
				dst := bytes.Repeat([]byte{0xaa}, total+1)
				jobs := []SealJob{{Dst: dst[:total], Src: innerIPv4(n), Next: 4, Seq: seq, Total: total}}
				if sealer.SealBurst(jobs) != 1 || jobs[0].Why != packet.WhyOK {
					t.Fatalf("%d octets: %s", n, jobs[0].Why)
				}
				sizes[jobs[0].Len] = true
				if jobs[0].Len > total || jobs[0].Len <= total-max(4, int(sealer.align)) {
					t.Fatalf("%d octets became %d, want %d less alignment", n, jobs[0].Len, total)
				}
				payload, next, why := opener.Open(dst[:jobs[0].Len], seq)
				if why != packet.WhyOK || next != 4 {
					t.Fatal(why)
				}
				if !bytes.Equal(payload[n:], make([]byte, len(payload)-n)) {
					t.Fatal("the padding holds what was in the buffer before")
				}
				if got, why := Trim(payload, next); why != packet.WhyOK || !bytes.Equal(got, innerIPv4(n)) {
					t.Fatalf("%d octets trimmed: %s, %d octets", n, why, len(got))
				}
			}
			if len(sizes) != 1 {
				t.Errorf("packets of different sizes: %v", sizes)
			}
		}
		if _, why := sealer.SealPadded(make([]byte, 2000), 500, 500, 4, seq); why != packet.WhyTooBig {
			t.Errorf("500 octets in a packet of 500: %s", why)
		}
		if _, why := sealer.SealPadded(make([]byte, 100), 20, 200, 4, seq); why != packet.WhyNoRoom {
			t.Errorf("no room: %s", why)
		}
	})
}

// RFC 4303 §2.6: a dummy packet is authentic and is discarded.
func TestDummyPackets(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite, esn bool, seq uint64) {
		sealer, opener := s.pair(t, esn)
		dst := make([]byte, 1400)
		jobs := []SealJob{{Dst: dst, Next: packet.ProtoNone, Seq: seq, Total: 1400}}
		if sealer.SealBurst(jobs) != 1 || jobs[0].Len > 1400 || jobs[0].Len < 1385 {
			t.Fatalf("%s, %d octets", jobs[0].Why, jobs[0].Len)
		}
		sealed := bytes.Clone(dst[:jobs[0].Len])
		if payload, next, why := opener.Open(dst[:jobs[0].Len], seq); why != packet.WhyDummy || next != packet.ProtoNone || payload != nil {
			t.Errorf("%s, next %d, payload of %d octets", why, next, len(payload))
		}
		sealed[len(sealed)-1] ^= 1
		if _, _, why := opener.Open(sealed, seq); why != packet.WhyAuth {
			t.Errorf("a forged dummy packet: %s, want %s", why, packet.WhyAuth)
		}
		if _, why := sealer.SealDummy(dst, 10, seq); why != packet.WhyTooBig {
			t.Errorf("10 octets: %s", why)
		}
	})
}

// In transport mode nothing says where the payload ends, so only dummies.
func TestTransportModeTakesNoTrafficFlowPadding(t *testing.T) {
	sa := suites[0].sa(t, ipsec.Outbound, false)
	sa.Mode = ipsec.ModeTransport
	s, err := NewSealer(sa)
	if err != nil {
		t.Fatal(err)
	}
	if _, why := s.SealPadded(make([]byte, 200), 20, 200, 17, 1); why != packet.WhyUnsupported {
		t.Errorf("padded: %s", why)
	}
	if n, why := s.SealDummy(make([]byte, 200), 200, 1); why != packet.WhyOK || n > 200 {
		t.Errorf("dummy: %s, %d octets", why, n)
	}
}

func TestTrim(t *testing.T) {
	v6 := make([]byte, 50)
	v6[0], v6[5] = 0x60, 5
	for _, v := range []struct {
		name string
		b    []byte
		next uint8
		n    int
		why  packet.Why
	}{
		{"IPv4", append(innerIPv4(30), 1, 2, 3), 4, 30, packet.WhyOK},
		{"IPv6", v6, 41, 45, packet.WhyOK},
		{"IPv6 as IPv4", v6, 4, 0, packet.WhyNextHead},
		{"IPv4 as IPv6", innerIPv4(60), 41, 0, packet.WhyNextHead},
		{"UDP", innerIPv4(60), 17, 0, packet.WhyNextHead},
		{"cut off", innerIPv4(60)[:59], 4, 0, packet.WhyTruncated},
		{"empty", nil, 4, 0, packet.WhyNextHead},
	} {
		if got, why := Trim(v.b, v.next); why != v.why || len(got) != v.n {
			t.Errorf("%s: %s, %d octets, want %s, %d", v.name, why, len(got), v.why, v.n)
		}
	}
}
