package ah

import (
	"bytes"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
)

// RFC 4302 Appendix A1, the whole table, by copy flag, class and number.
func TestIPv4OptionTable(t *testing.T) {
	immutable := map[byte]string{130: "Security", 133: "Extended Security", 134: "Commercial Security", 148: "Router Alert", 149: "Sender Directed Multi-Destination Delivery"}
	zeroed := map[byte]string{
		131: "Loose Source Route", 68: "Time Stamp", 7: "Record Route", 137: "Strict Source Route", 82: "Traceroute",
		136: "Stream ID", 11: "MTU Probe", 12: "MTU Reply", 145: "Extended Internet Protocol", 10: "Experimental Measurement",
		205: "Experimental Flow Control", 142: "Experimental Access Ctl", 15: "???", 144: "IMI Traffic Descriptor", 147: "Address Extension",
	}
	for o := range 256 {
		if o == 0 || o == 1 {
			continue
		}
		options := []byte{1, byte(o), 7, 8, 1, 2, 3, 4, 1, 0, 0, 0} // NOP, option, NOP, EOL; a route that is through
		p := ipv4(options, 0)
		got, why := appendCanonical(nil, p, 32)
		if why != packet.WhyOK {
			t.Fatalf("option %d: %s", o, why)
		}
		want := bytes.Clone(options)
		if immutable[byte(o)] == "" { // an option that is not in the table is zeroed, too
			clear(want[1:8])
		}
		if !bytes.Equal(got[20:], want) {
			t.Errorf("option %d (%s%s): %x, want %x", o, immutable[byte(o)], zeroed[byte(o)], got[20:], want)
		}
	}
	for o := range zeroed {
		if immutable4[o] {
			t.Errorf("option %d is not zeroed", o)
		}
	}
}

// RFC 4302 §3.3.3.1.1.1: with source routing the destination is the last one.
func TestIPv4SourceRoute(t *testing.T) {
	s, o := pair(t, "sha256", false)
	for _, kind := range []byte{131, 137} {
		sent := ipv4([]byte{kind, 11, 4, 10, 9, 9, 1, 10, 9, 9, 2, 0}, 40)
		b, at := seal(t, s, sent, anySeq)
		// What the two routers make of it (RFC 791 §3.1): each takes the next address
		// as the destination, writes its own in its place and moves the pointer on.
		copy(b[16:20], []byte{10, 9, 9, 2})
		copy(b[23:31], []byte{10, 2, 0, 2, 10, 9, 9, 1})
		b[22], b[8] = 12, 7
		if _, _, why := o.Open(b, at, anySeq); why != packet.WhyOK {
			t.Errorf("option %d: %s", kind, why)
		}
		b[19] = 3
		if _, _, why := o.Open(b, at, anySeq); why != packet.WhyAuth {
			t.Errorf("option %d: delivered elsewhere: %s", kind, why)
		}
	}
}

// RFC 4302 Appendix A2: a routing header is covered as it is at the destination.
func TestRoutingHeader(t *testing.T) {
	s, o := pair(t, "sha384", true)
	dst := ipv6(0, nil, 0)[24:40]
	a1, a2 := count(16, 0x20), count(16, 0x40)
	header := func(kind, left byte, addrs ...[]byte) []byte {
		h := []byte{packet.ProtoUDP, byte(len(addrs) * 2), kind, left, 0, 0, 0, 0}
		for _, a := range addrs {
			h = append(h, a...)
		}
		return h
	}
	for what, v := range map[string]struct{ sent, arrived, at []byte }{
		"type 0, two hops": {header(0, 2, a1, a2), header(0, 0, dst, a1), a2},
		"type 0, one left": {header(0, 1, a1, a2), header(0, 0, a1, dst), a2},
		"type 0, through":  {header(0, 0, a1, a2), header(0, 0, a1, a2), dst},
		"type 2":           {header(2, 1, a1), header(2, 0, dst), a1},
		"type 4, through":  {header(4, 0, a1), header(4, 0, a1), dst},
	} {
		b, at := seal(t, s, ipv6(packet.ProtoRouting, v.sent, 30), anyESNSeq)
		copy(b[40:], v.arrived)
		b[40] = packet.ProtoAH
		copy(b[24:40], v.at)
		if _, _, why := o.Open(b, at, anyESNSeq); why != packet.WhyOK {
			t.Errorf("%s: %s", what, why)
		}
		b[at-1] ^= 1
		if _, _, why := o.Open(b, at, anyESNSeq); why != packet.WhyAuth {
			t.Errorf("%s: another address: %s", what, why)
		}
	}
	for what, v := range map[string]struct {
		h   []byte
		why packet.Why
	}{
		"type 4, under way":  {header(4, 1, a1), packet.WhyUnsupported},
		"more left than are": {header(0, 3, a1, a2), packet.WhyHeader},
		"half an address":    {append([]byte{packet.ProtoUDP, 3, 0, 1, 0, 0, 0, 0}, make([]byte, 24)...), packet.WhyHeader},
	} {
		if _, why := s.SealFrom(make([]byte, 500), ipv6(packet.ProtoRouting, v.h, 30), 1); why != v.why {
			t.Errorf("%s: %s, want %s", what, why, v.why)
		}
	}
}

// Malformed headers are refused, not guessed at.
func TestMalformedHeaders(t *testing.T) {
	for what, v := range map[string]struct {
		p  []byte
		at int
	}{
		"IPv4 option of length 0":      {ipv4([]byte{7, 0, 0, 0}, 0), 24},
		"IPv4 option past the end":     {ipv4([]byte{7, 5, 0, 0}, 0), 24},
		"IPv4 option without length":   {ipv4([]byte{1, 1, 1, 7}, 0), 24},
		"source route of odd length":   {ipv4([]byte{131, 6, 4, 1, 1, 1, 0, 0}, 0), 28},
		"IPv6 option past the end":     {ipv6(0, []byte{17, 0, 5, 5, 0, 0, 0, 0}, 0), 48},
		"IPv6 option without length":   {ipv6(0, []byte{17, 0, 1, 3, 0, 0, 0, 5}, 0), 48},
		"extension header past the AH": {ipv6(0, []byte{17, 9, 1, 4, 0, 0, 0, 0}, 0), 48},
		"no extension header at all":   {ipv6(17, []byte{17, 0, 1, 4, 0, 0, 0, 0}, 0), 48},
		"AH in the middle of one":      {ipv6(0, []byte{17, 0, 1, 4, 0, 0, 0, 0}, 0), 44},
		"AH in the IPv6 header":        {ipv6(17, nil, 0), 30},
		"version 5":                    {append([]byte{0x55}, make([]byte, 60)...), 20},
	} {
		if _, why := appendCanonical(nil, v.p, v.at); why != packet.WhyHeader && why != packet.WhyExtensions {
			t.Errorf("%s: %s", what, why)
		}
	}
}
