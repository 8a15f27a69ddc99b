package esp

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/natt"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// python has Debian's python3-scapy.
const python = "/usr/bin/python3"

type scapyRequest struct {
	Op       string `json:"op"`
	Mode     string `json:"mode"`
	NATT     bool   `json:"natt"`
	SPI      uint32 `json:"spi"`
	Low      uint32 `json:"low"`
	High     uint32 `json:"high"`
	ESN      bool   `json:"esn"`
	Crypt    string `json:"crypt"`
	CryptKey string `json:"crypt_key"`
	CryptICV int    `json:"crypt_icv,omitempty"`
	Auth     string `json:"auth,omitempty"`
	AuthKey  string `json:"auth_key,omitempty"`
	Src      string `json:"src"`
	Dst      string `json:"dst"`
	Packet   string `json:"packet"`
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
	cmd := exec.Command(python, "testdata/scapy_esp.py")
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

// scapyNames are the algorithms that scapy has too. Its AES-GCM knows only ICVs
// of 16 octets.
var scapyNames = map[uint16]string{
	ipsec.EncrAESGCM16: "AES-GCM", ipsec.EncrChaCha20Poly1305: "CHACHA20-POLY1305",
	ipsec.EncrAESCCM8: "AES-CCM", ipsec.EncrAESCCM12: "AES-CCM", ipsec.EncrAESCCM16: "AES-CCM",
	ipsec.EncrAESCBC: "AES-CBC", ipsec.EncrAESCTR: "AES-CTR",
	ipsec.Encr3DES: "3DES", ipsec.EncrDES: "DES", ipsec.EncrNULL: "NULL",
}

var scapyAuthNames = map[uint16]string{
	ipsec.IntegHMACSHA256128: "SHA2-256-128", ipsec.IntegHMACSHA384192: "SHA2-384-192", ipsec.IntegHMACSHA512256: "SHA2-512-256",
	ipsec.IntegHMACSHA196: "HMAC-SHA1-96", ipsec.IntegHMACMD596: "HMAC-MD5-96", ipsec.IntegAESCMAC96: "AES-CMAC-96",
}

// udpPacket is a UDP packet from a to b with n octets of data.
func udpPacket(t *testing.T, a, b string, n int) []byte {
	t.Helper()
	src, dst := netip.MustParseAddr(a), netip.MustParseAddr(b)
	o, err := packet.NewOuter(packet.OuterConfig{Local: src, Remote: dst, Protocol: packet.ProtoUDP, TTL: 61})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, o.Len()+8+n)
	copy(p[o.Len()+8:], count(n, 1))
	natt.PutUDP(p[o.Len():], 1234, 5678)
	if why := o.Put(p, 0xb8, false, 0x1234); why != packet.WhyOK {
		t.Fatal(why)
	}
	h, why := packet.Parse(p)
	if why != packet.WhyOK {
		t.Fatal(why)
	}
	if why := packet.SetChecksum(p, &h); why != packet.WhyOK {
		t.Fatal(why)
	}
	return p
}

type exchange struct {
	mode     string
	src, dst string // outer
	inner    func(t *testing.T, n int) []byte
}

var exchanges = map[string]exchange{
	"tunnel 4 in 4": {"tunnel", "203.0.113.1", "203.0.113.2", inner4},
	"tunnel 6 in 4": {"tunnel", "203.0.113.1", "203.0.113.2", inner6},
	"tunnel 4 in 6": {"tunnel", "2001:db8::1", "2001:db8::2", inner4},
	"tunnel 6 in 6": {"tunnel", "2001:db8::1", "2001:db8::2", inner6},
	"transport 4":   {"transport", "10.1.0.1", "10.2.0.2", inner4},
	"transport 6":   {"transport", "2001:db8:1::1", "2001:db8:2::2", inner6},
	"transport 6 after hop-by-hop options": {"transport", "2001:db8:1::1", "2001:db8:2::2", func(t *testing.T, n int) []byte {
		p := inner6(t, n)
		p = append(p[:40:40], append([]byte{packet.ProtoUDP, 0, 1, 4, 0, 0, 0, 0}, p[40:]...)...)
		p[6] = packet.ProtoHopOpts
		packet.SetLength(p, len(p))
		return p
	}},
}

func inner4(t *testing.T, n int) []byte { return udpPacket(t, "10.1.0.1", "10.2.0.2", n) }
func inner6(t *testing.T, n int) []byte { return udpPacket(t, "2001:db8:1::1", "2001:db8:2::2", n) }

// encapsulate makes the whole IP packet around a sealed inner one.
func (x exchange) encapsulate(t *testing.T, s *Sealer, inner []byte, seq uint64, encap bool) []byte {
	t.Helper()
	udp, proto := 0, uint8(packet.ProtoESP)
	if encap {
		udp, proto = natt.UDPLen, packet.ProtoUDP
	}
	var head []byte
	payload, next := inner, uint8(packet.ProtoIPv4)
	h, why := packet.Parse(inner)
	if why != packet.WhyOK {
		t.Fatal(why)
	}
	if x.mode == "transport" {
		head, payload, next = bytes.Clone(inner[:h.Insert]), inner[h.Insert:], inner[h.InsertNext]
	} else {
		if h.Version == 6 {
			next = packet.ProtoIPv6
		}
		o, err := packet.NewOuter(packet.OuterConfig{Local: netip.MustParseAddr(x.src), Remote: netip.MustParseAddr(x.dst), Protocol: proto})
		if err != nil {
			t.Fatal(err)
		}
		head = make([]byte, o.Len())
		whole := make([]byte, o.Len()+udp+s.SealedLen(len(payload)))
		if why := o.Put(whole, packet.TOS(inner), packet.DF(inner), 99); why != packet.WhyOK {
			t.Fatal(why)
		}
		copy(head, whole)
	}
	b := make([]byte, len(head)+udp+s.SealedLen(len(payload)))
	copy(b, head)
	n, why := s.SealFrom(b[len(head)+udp:], payload, next, seq)
	if why != packet.WhyOK || n != s.SealedLen(len(payload)) {
		t.Fatalf("SealFrom: %s, %d octets, want %d", why, n, s.SealedLen(len(payload)))
	}
	if encap {
		from, to := netip.AddrPortFrom(netip.MustParseAddr(x.src), natt.Port), netip.AddrPortFrom(netip.MustParseAddr(x.dst), natt.Port)
		if from.Addr().Is4() {
			why = natt.PutUDP(b[len(head):], natt.Port, natt.Port)
		} else {
			why = natt.PutUDP6(b[len(head):], from, to)
		}
		if why != packet.WhyOK {
			t.Fatal(why)
		}
	}
	if x.mode == "transport" {
		packet.SetNext(b, h.InsertNext, proto)
		packet.SetLength(b, len(b))
	}
	return b
}

// decapsulate takes the whole IP packet apart and gives the inner one.
func (x exchange) decapsulate(t *testing.T, o *Opener, b []byte, seq uint64, encap bool) []byte {
	t.Helper()
	h, why := packet.Parse(b)
	if why != packet.WhyOK {
		t.Fatal(why)
	}
	if h.Version == 4 {
		if why := packet.VerifyChecksum4(b); why != packet.WhyOK {
			t.Fatal(why)
		}
	}
	at := int(h.Insert)
	body := b[at:h.Length]
	if encap {
		kind, inside := natt.Demux(b[at+natt.UDPLen : h.Length])
		if kind != natt.ESP {
			t.Fatalf("datagram is %s", kind)
		}
		body = inside
	}
	payload, next, why := o.Open(body, seq)
	if why != packet.WhyOK {
		t.Fatalf("Open: %s", why)
	}
	if x.mode == "tunnel" {
		return payload
	}
	out := append(bytes.Clone(b[:at]), payload...)
	packet.SetNext(out, h.InsertNext, next)
	packet.SetLength(out, len(out))
	return out
}

// TestScapy seals here and opens with scapy, and the other way round: the suites
// of the first part of the list in every manner, the others in two.
func TestScapy(t *testing.T) {
	peer := startScapy(t)
	for i, s := range suites {
		sa := s.sa(t, ipsec.Outbound, false)
		if scapyNames[sa.Suite.Encr.ID] == "" || s.integ != "" && scapyAuthNames[sa.Suite.Integ.ID] == "" {
			continue
		}
		for _, esn := range []bool{false, true} {
			for name, x := range exchanges {
				for _, encap := range []bool{false, true} {
					if i >= 9 && (encap || name != "tunnel 4 in 4" && name != "transport 6") {
						continue
					}
					label := strings.ReplaceAll(s.String()+"/"+name, " ", "_")
					if esn {
						label += "/esn"
					}
					if encap {
						label += "/udp"
					}
					t.Run(label, func(t *testing.T) { crossCheck(t, peer, s, x, esn, encap) })
				}
			}
		}
	}
}

func crossCheck(t *testing.T, peer *scapy, s suite, x exchange, esn, encap bool) {
	sealer, opener := s.pair(t, esn)
	seq := uint64(77)
	if esn {
		seq = 5<<32 + 77
	}
	sa := s.sa(t, ipsec.Outbound, esn)
	q := scapyRequest{
		Mode: x.mode, NATT: encap, SPI: uint32(testSPI), Low: uint32(seq), High: uint32(seq >> 32), ESN: esn,
		Crypt: scapyNames[sa.Suite.Encr.ID], CryptKey: hex.EncodeToString(sa.EncrKey.Reveal()),
		Auth: scapyAuthNames[sa.Suite.Integ.ID], AuthKey: hex.EncodeToString(sa.IntegKey.Reveal()),
		Src: x.src, Dst: x.dst,
	}
	if s.integ == "" {
		q.CryptICV = sealer.ICVLen()
	}
	for _, n := range []int{0, 1, 13, 100, 1333} {
		inner := x.inner(t, n)

		q.Op, q.Packet = "decrypt", hex.EncodeToString(x.encapsulate(t, sealer, inner, seq, encap))
		if got := peer.ask(t, q); !bytes.Equal(got, inner) {
			t.Fatalf("scapy opened %d octets of data to\n%x, want\n%x", n, got, inner)
		}

		q.Op, q.Packet = "encrypt", hex.EncodeToString(inner)
		if got := x.decapsulate(t, opener, peer.ask(t, q), seq, encap); !bytes.Equal(got, inner) {
			t.Fatalf("opened scapy's packet with %d octets of data to\n%x, want\n%x", n, got, inner)
		}
	}
}
