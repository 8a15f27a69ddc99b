package ah

import (
	"bytes"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// The AH packets of DPDK's IPsec tests: pkt_ah_tunnel_sha256, pkt_ah_transport_sha256
// and pkt_ah_ipv4_aes_gmac_128. Their SPI is a reserved one, which no SA of ours may
// have, so it is set behind the constructors' back.
func TestKnownPackets(t *testing.T) {
	inner := append(unhex(t, `45000080 00000000 4001ac27 c0a86f02 c0a8de02 0800fb37 12340000 babe0123 4567cafe`), count(0x5c, 0)...)
	for _, v := range []struct {
		name, alg string
		key       []byte
		head, ah  string
		tunnel    bool
	}{
		{"tunnel_sha256", "sha256", bytes.Repeat([]byte{0x5a}, 32),
			"450000b0 00010000 00335916 0a006f02 0a00de02", "04050000 0000007b 00000001 59fdb4db70574f2772fec9dcb2f0abea", true},
		{"transport_sha256", "sha256", bytes.Repeat([]byte{0x5a}, 32),
			"4500009c 00000000 4033abd9 c0a86f02 c0a8de02", "01050000 0000007b 00000001 6c2ef71f7c7039a34a7701479e457351", false},
		{"ipv4_aes_gmac_128", "authaes128gmac", append(bytes.Repeat([]byte{0xa5}, 16), 0xca, 0xfe, 0xba, 0xbe),
			"450000a4 00000000 4033abd1 c0a86f02 c0a8de02", "01070000 0000007b 00000001 0100000000000000 d60ecc223179597268c958fb8bb0bbd5", false},
	} {
		t.Run(v.name, func(t *testing.T) {
			key := func(dir ipsec.Direction) *ipsec.SA {
				sa := testSA(t, v.alg, dir, false)
				sa.IntegKey = ipsec.CopySecret(v.key)
				return sa
			}
			s, err := NewSealer(key(ipsec.Outbound))
			if err != nil {
				t.Fatal(err)
			}
			o, err := NewOpener(key(ipsec.Inbound))
			if err != nil {
				t.Fatal(err)
			}
			s.spi, o.spi = 0x7b, 0x7b
			payload := inner[20:]
			if v.tunnel {
				payload = inner
			}
			want := bytes.Join([][]byte{unhex(t, v.head), unhex(t, v.ah), payload}, nil)
			if got, _, why := o.Open(want, 20, 1); why != packet.WhyOK || !bytes.Equal(got, payload) {
				t.Fatalf("Open: %s, %x", why, got)
			}
			if s.gmac != nil {
				return // its IV is not the sequence number, so it cannot be sealed alike
			}
			got := make([]byte, len(want))
			copy(got, unhex(t, v.head))
			copy(got[48:], payload)
			if n, why := s.Seal(got, 20, len(payload), want[20], 1); why != packet.WhyOK || n != len(want) || !bytes.Equal(got, want) {
				t.Fatalf("Seal: %s\n%x, want\n%x", why, got, want)
			}
		})
	}
}
