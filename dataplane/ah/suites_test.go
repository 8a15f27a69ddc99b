package ah

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// names are all integrity algorithms for AH.
var names = func() (out []string) {
	for _, a := range ipsec.Algorithms() {
		if a.Type == ipsec.TransformINTEG && a.Use&ipsec.UseAH != 0 {
			out = append(out, a.Name)
		}
	}
	return out
}()

const testSPI ipsec.SPI = 0xc0ffee01

const (
	anySeq    = 42
	anyESNSeq = 3<<32 + 42
)

func count(n, from int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(from + i)
	}
	return b
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testSA(t testing.TB, name string, dir ipsec.Direction, esn bool) *ipsec.SA {
	t.Helper()
	a, ok := ipsec.AlgorithmByName(name)
	if !ok {
		t.Fatalf("no algorithm %s", name)
	}
	return &ipsec.SA{
		ID: 7, Direction: dir, Protocol: ipsec.ProtocolAH, SPI: testSPI, Mode: ipsec.ModeTransport,
		Suite:    ipsec.Suite{Protocol: ipsec.ProtocolAH, Integ: a.Transform, ESN: esn},
		IntegKey: ipsec.NewSecret(count(a.KeyLen+a.SaltLen, 1)),
	}
}

func pair(t testing.TB, name string, esn bool) (*Sealer, *Opener) {
	t.Helper()
	s, err := NewSealer(testSA(t, name, ipsec.Outbound, esn))
	if err != nil {
		t.Fatal(err)
	}
	o, err := NewOpener(testSA(t, name, ipsec.Inbound, esn))
	if err != nil {
		t.Fatal(err)
	}
	return s, o
}

func eachAlgorithm(t *testing.T, f func(t *testing.T, name string, esn bool, seq uint64)) {
	for _, n := range names {
		t.Run(n, func(t *testing.T) { f(t, n, false, anySeq) })
		t.Run(n+"-esn", func(t *testing.T) { f(t, n, true, anyESNSeq) })
	}
}

// ipv4 is a UDP packet with the options given and n octets of data.
func ipv4(options []byte, n int) []byte {
	head := 20 + len(options)
	b := make([]byte, head+8+n)
	b[0] = 0x40 | byte(head/4)
	b[1] = 0xb9
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	b[4], b[5], b[6], b[8], b[9] = 0x12, 0x34, 0x40, 61, packet.ProtoUDP
	copy(b[12:], netip.MustParseAddr("10.1.0.1").AsSlice())
	copy(b[16:], netip.MustParseAddr("10.2.0.2").AsSlice())
	copy(b[20:], options)
	binary.BigEndian.PutUint16(b[10:], ^packet.Sum(b[:head], 0))
	udp(b[head:], n)
	return b
}

// ipv6 is a UDP packet with the extension headers given, the first of which is of
// type first, and n octets of data. The last of them must say UDP.
func ipv6(first byte, extensions []byte, n int) []byte {
	head := 40 + len(extensions)
	b := make([]byte, head+8+n)
	b[0], b[1], b[2], b[3] = 0x6b, 0x9a, 0xbc, 0xde
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	b[6], b[7] = first, 61
	copy(b[8:], netip.MustParseAddr("2001:db8:1::1").AsSlice())
	copy(b[24:], netip.MustParseAddr("2001:db8:2::2").AsSlice())
	copy(b[40:], extensions)
	udp(b[head:], n)
	return b
}

func udp(b []byte, n int) {
	binary.BigEndian.PutUint16(b, 1234)
	binary.BigEndian.PutUint16(b[2:], 5678)
	binary.BigEndian.PutUint16(b[4:], uint16(8+n))
	copy(b[8:], count(n, 1))
}

// seal puts AH into a packet in transport mode, and says where it is.
func seal(t testing.TB, s *Sealer, p []byte, seq uint64) (b []byte, at int) {
	t.Helper()
	b = make([]byte, len(p)+s.HeaderLen(p[0]>>4))
	n, why := s.SealFrom(b, p, seq)
	if why != packet.WhyOK || n != len(b) {
		t.Fatalf("SealFrom: %s, %d octets, want %d", why, n, len(b))
	}
	h, why := packet.Parse(b)
	if why != packet.WhyOK || h.Protocol != packet.ProtoAH {
		t.Fatalf("sealed packet: %s, protocol %d", why, h.Protocol)
	}
	return b, int(h.Upper)
}
