package ah

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/netip"
	"os/exec"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// python has Debian's python3-scapy.
const python = "/usr/bin/python3"

type scapyRequest struct {
	Op     string `json:"op"`
	SPI    uint32 `json:"spi"`
	Low    uint32 `json:"low"`
	High   uint32 `json:"high"`
	ESN    bool   `json:"esn"`
	Auth   string `json:"auth"`
	Key    string `json:"key"`
	Src    string `json:"src,omitempty"` // outer addresses: tunnel mode
	Dst    string `json:"dst,omitempty"`
	Packet string `json:"packet"`
}

type scapy struct {
	in  io.Writer
	out *bufio.Scanner
}

func startScapy(t *testing.T) *scapy {
	t.Helper()
	if out, err := exec.Command(python, "-c", "import scapy.layers.ipsec").CombinedOutput(); err != nil {
		t.Skipf("no scapy with %s (Debian: python3-scapy): %v: %s", python, err, bytes.TrimSpace(out))
	}
	cmd := exec.Command(python, "testdata/scapy_ah.py")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("scapy: %v\n%s", err, stderr.String())
		}
	})
	return &scapy{in, bufio.NewScanner(out)}
}

func (s *scapy) ask(t *testing.T, q scapyRequest) []byte {
	t.Helper()
	if err := json.NewEncoder(s.in).Encode(q); err != nil {
		t.Fatal(err)
	}
	if !s.out.Scan() {
		t.Fatalf("scapy ended: %v", s.out.Err())
	}
	var reply struct{ Packet, Error string }
	if err := json.Unmarshal(s.out.Bytes(), &reply); err != nil {
		t.Fatalf("scapy said %q: %v", s.out.Text(), err)
	}
	if reply.Error != "" {
		t.Fatalf("scapy %s: %s", q.Op, reply.Error)
	}
	b, err := hex.DecodeString(reply.Packet)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// scapyNames are the algorithms that scapy has too.
var scapyNames = map[string]string{
	"sha256": "SHA2-256-128", "sha384": "SHA2-384-192", "sha512": "SHA2-512-256",
	"sha1": "HMAC-SHA1-96", "md5": "HMAC-MD5-96", "aescmac": "AES-CMAC-96",
}

// TestScapy seals here and opens with scapy, and the other way round.
func TestScapy(t *testing.T) {
	peer := startScapy(t)
	eachAlgorithm(t, func(t *testing.T, name string, esn bool, seq uint64) {
		if scapyNames[name] == "" {
			return
		}
		s, o := pair(t, name, esn)
		sa := testSA(t, name, ipsec.Inbound, esn)
		q := scapyRequest{SPI: uint32(testSPI), Low: uint32(seq), High: uint32(seq >> 32), ESN: esn,
			Auth: scapyNames[name], Key: hex.EncodeToString(sa.IntegKey.Reveal())}
		for what, p := range scapyPackets() {
			if what != "IPv6, route to go" { // scapy opens only what has arrived
				b, _ := seal(t, s, p, seq)
				q.Op, q.Packet = "open", hex.EncodeToString(b)
				if got := peer.ask(t, q); !bytes.Equal(got, p) {
					t.Errorf("%s: scapy opened\n%x, want\n%x", what, got, p)
				}
			}
			if what == "IPv6, route through" { // scapy seals only what is to go
				continue
			}
			q.Op, q.Packet = "seal", hex.EncodeToString(p)
			b := peer.ask(t, q)
			h, why := packet.Parse(b)
			at := int(h.Upper)
			if why != packet.WhyOK || h.Protocol != packet.ProtoAH {
				t.Fatalf("%s: %s, %x", what, why, b)
			}
			if _, _, why := o.Open(b, at, seq); why != packet.WhyOK {
				t.Errorf("%s: from scapy: %s\n%x", what, why, b)
			} else if got, _ := Strip(b, at); !bytes.Equal(got, p) {
				t.Errorf("%s: from scapy\n%x, want\n%x", what, got, p)
			}
		}
		for _, ends := range [][2]string{{"203.0.113.1", "203.0.113.2"}, {"2001:db8::1", "2001:db8::2"}} {
			for what, p := range packets {
				b, at := tunnel(t, s, p, ends, seq)
				q := q
				q.Src, q.Dst = ends[0], ends[1]
				q.Op, q.Packet = "open", hex.EncodeToString(b)
				if got := peer.ask(t, q); !bytes.Equal(got, p) {
					t.Errorf("%s in %s: scapy opened\n%x, want\n%x", what, ends[0], got, p)
				}
				q.Op, q.Packet = "seal", hex.EncodeToString(p)
				got, _, why := o.Open(peer.ask(t, q), at, seq)
				if why != packet.WhyOK || !bytes.Equal(got, p) {
					t.Errorf("%s in %s: from scapy: %s\n%x, want\n%x", what, ends[0], why, got, p)
				}
			}
		}
	})
}

// scapyPackets are more for transport mode. (scapy loses its way in some lists of
// several options, hence one for each.)
func scapyPackets() map[string][]byte {
	route := func(left byte) []byte {
		return append([]byte{packet.ProtoUDP, 4, 0, left, 0, 0, 0, 0}, count(32, 0x20)...)
	}
	all := map[string][]byte{
		"IPv4, security":      ipv4([]byte{130, 4, 1, 2}, 30),
		"IPv4, timestamp":     ipv4([]byte{68, 8, 5, 0, 1, 2, 3, 4}, 30),
		"IPv4, route through": ipv4([]byte{131, 7, 8, 10, 7, 7, 7, 1}, 30),
		"IPv6, route through": ipv6(packet.ProtoRouting, route(0), 30),
		"IPv6, route to go":   ipv6(packet.ProtoRouting, route(2), 30),
	}
	for what, p := range packets {
		all[what] = p
	}
	return all
}

// tunnel puts a packet into an outer one.
func tunnel(t *testing.T, s *Sealer, p []byte, ends [2]string, seq uint64) (b []byte, at int) {
	t.Helper()
	outer, err := packet.NewOuter(packet.OuterConfig{Local: netip.MustParseAddr(ends[0]), Remote: netip.MustParseAddr(ends[1]), Protocol: packet.ProtoAH})
	if err != nil {
		t.Fatal(err)
	}
	at = outer.Len()
	next, version := uint8(packet.ProtoIPv4), uint8(4)
	if p[0]>>4 == 6 {
		next = packet.ProtoIPv6
	}
	if at == 40 {
		version = 6
	}
	b = make([]byte, at+s.HeaderLen(version)+len(p))
	if why := outer.Put(b, 0xb8, true, 7); why != packet.WhyOK {
		t.Fatal(why)
	}
	copy(b[at+s.HeaderLen(version):], p)
	if n, why := s.Seal(b, at, len(p), next, seq); why != packet.WhyOK || n != len(b) {
		t.Fatalf("Seal: %s, %d octets, want %d", why, n, len(b))
	}
	return b, at
}
