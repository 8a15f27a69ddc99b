package esp

import (
	"bytes"
	"crypto/aes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
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

func vectorSA(t *testing.T, name string, dir ipsec.Direction, spi uint32, key []byte, esn bool) *ipsec.SA {
	t.Helper()
	a, ok := ipsec.AlgorithmByName(name)
	if !ok {
		t.Fatalf("no algorithm %s", name)
	}
	return &ipsec.SA{
		ID: 1, Direction: dir, Protocol: ipsec.ProtocolESP, SPI: ipsec.SPI(spi), Mode: ipsec.ModeTunnel,
		Suite:   ipsec.Suite{Protocol: ipsec.ProtocolESP, Encr: a.Transform, ESN: esn},
		EncrKey: ipsec.CopySecret(key),
	}
}

// RFC 7634 Appendix A: the ESP packet from its SPI on.
func TestRFC7634AppendixA(t *testing.T) {
	key := unhex(t, `80818283 84858687 88898a8b 8c8d8e8f 90919293 94959697 98999a9b 9c9d9e9f a0a1a2a3`)
	inner := unhex(t, `45000054 a6f20000 4001e778 c6336405 c0000205 08005b7a 3a080000 553bec10
		00073627 08090a0b 0c0d0e0f 10111213 14151617 18191a1b 1c1d1e1f 20212223 24252627 28292a2b
		2c2d2e2f 30313233 34353637`)
	packetESP := unhex(t, `01020304 00000005 10111213 14151617
		24039428 b97f417e 3c13753a 4f05087b 67c352e6 a7fab1b9 82d466ef 407ae5c6
		14ee8099 d52844eb 61aa95df ab4c02f7 2aa71e7c 4c4f64c9 befe2fac c638e8f3
		cbec163f ac469b50 2773f6fb 94e664da 9165b828 29f641e0
		76aaa826 6b7fb0f7 b11b3699 07e1ad43`)
	o, err := NewOpener(vectorSA(t, "chacha20poly1305", ipsec.Inbound, 0x01020304, key, false))
	if err != nil {
		t.Fatal(err)
	}
	got, next, why := o.Open(bytes.Clone(packetESP), 5)
	if why != packet.WhyOK || next != packet.ProtoIPv4 || !bytes.Equal(got, inner) {
		t.Fatalf("Open: %s, next %d\n%x, want\n%x", why, next, got, inner)
	}

	// The example's IV is not its sequence number, so sealing is compared after
	// the header that Seal would write has been replaced by the example's.
	s, err := NewSealer(vectorSA(t, "chacha20poly1305", ipsec.Outbound, 0x01020304, key, false))
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, len(packetESP)-16-16, len(packetESP)-16)
	copy(body, inner)
	trailer(body, len(inner), packet.ProtoIPv4)
	copy(s.nonce[4:], packetESP[8:16])
	if sealed := s.aead.Seal(body[:0], s.nonce[:], body, s.additional(5)); !bytes.Equal(sealed, packetESP[16:]) {
		t.Fatalf("sealed\n%x, want\n%x", sealed, packetESP[16:])
	}
}

// draft-mcgrew-gcm-test-01 §4: AES-GCM ESP packets, the ones with key lengths
// and SPIs that RFC 4303 and RFC 4106 allow and we implement. The additional
// data tells ESN (12 octets) from 32-bit sequence numbers (8 octets).
func TestMcGrewGCM(t *testing.T) {
	for _, v := range []struct{ name, key, nonce, aad, plain, sealed string }{
		{"aes128gcm16", "4c80cdefbb5d10da906ac73c3613a634", "2e443b684956ed7e3b244cfe", "000043218765432100000000",
			"45000048699a000080114db7c0a80102c0a801010a9bf15638d301000001000000000000045f736970045f756470037369700963796265726369747902646b000021000101020201",
			"fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34cfa2436f14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce61bc17d768fd9732459018148f6cbe722fd04796562dfdb4"},
		{"aes128gcm16", "feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888", "0000a5f80000000a",
			"4500003e698f000080114dccc0a80102c0a801010a980035002a2343b2d001000001000000000000037369700963796265726369747902646b00000100010001",
			"deb22cd9b07c72c16e3a65beeb8df304a5a5897d33ae530f1ba76d5d114d2a5c3de81827c10e9a4f51330d0eec416642cfbb85a5b47e48a4ec3b9ba95d918bd183b70d3aa8bc6ee4c309e9d85a41ad4a"},
		{"aes256gcm16", "abbccddef00112233445566778899aababbccddef00112233445566778899aab", "112233440102030405060708", "4a2cbfe300000002",
			"4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee0000000007002400020bf0000020405b40101040201020201",
			"ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d763748a637985771d347f0545659f14e99def842d8eb335f4eecfdbf831824b4c4915956c96"},
		{"aes128gcm16", "3de09874b388e6491988d0c3607eae1f", "57690e434e280000a2fca1a3", "42f67e3f1010101010101010",
			"4500003c99c300008001cb7c40679318010101010800085c020043006162636465666768696a6b6c6d6e6f707172737475767761626364656667686901020201",
			"fba2caa4853cf9f0f22cb10d86dd83b0fec75691cf1a04b00d1138ec9c35791765acbd8701ad79845bf9fe3fba487bc91755e6662b4c8d0d1f5e22739530320ae0d731cc978ecafaeae88f00e80d6e48"},
		{"aes256gcm16", "abbccddef00112233445566778899aababbccddef00112233445566778899aab", "73616c74616e640169766563", "17405e67156f3126dd0db99b",
			"45080028732c00004006e9f90a0106120a01038f06b88023dd6bafbecb71260250101f646d540001",
			"f2d69ecdbd5a0d5b8d5ef38bad4da58d1f278fde98ef67549d524a3018d9a57ff4d3a31ce673119e451626c2415771e3b7eebca614c89b35"},
		{"aes128gcm16", "abbccddef00112233445566778899aab", "decaf888cafedebaceface74", "000001000000000000000001",
			"4500004933ba00007f119106c3fb1d10c2b1d326c02831ce0035dd7b800302d500004e20001e8c18d75b81dc91baa0476b91b924b280389d92c963bac046ec959b6266c04722b14923010101",
			"18a6fd42f72cbf4ab2a2ea901f73d814e3e7f243d95412e1c349c1d2fbec168f9190feebaf2cb01984e65863965d7472b79da345e0e780191f0d2f0e0f496c226f2127b27db35724e7845d68651f57e65f354f75ff17015769623436"},
		{"aes128gcm16", "7d773d00c144c525ac619d18c84a3f47", "d966426743457e9182443bc6", "335467aeffffffff",
			"01020201", "437f866bcb3f699fe9b0822bac961c4504bef270"},
	} {
		aad, nonce, plain := unhex(t, v.aad), unhex(t, v.nonce), unhex(t, v.plain)
		spi, esn := binary.BigEndian.Uint32(aad), len(aad) == 12
		seq := uint64(binary.BigEndian.Uint32(aad[4:]))
		if esn {
			seq = binary.BigEndian.Uint64(aad[4:])
		}
		o, err := NewOpener(vectorSA(t, v.name, ipsec.Inbound, spi, append(unhex(t, v.key), nonce[:4]...), esn))
		if err != nil {
			t.Fatal(err)
		}
		b := binary.BigEndian.AppendUint32(bytes.Clone(aad[:4]), uint32(seq))
		b = append(append(b, nonce[4:]...), unhex(t, v.sealed)...)
		got, next, why := o.Open(b, seq)
		want := plain[:len(plain)-2-int(plain[len(plain)-2])]
		if why != packet.WhyOK || next != plain[len(plain)-1] || !bytes.Equal(got, want) {
			t.Errorf("SPI %08x: %s, next %d\n%x, want\n%x", spi, why, next, got, want)
		}
	}
}

// RFC 3602 §4, cases 5 to 8: ESP packets with AES-CBC and no integrity. The
// cipher text must come out of the sealer octet for octet; for the opener the
// ICV that the RFC leaves out is added.
func TestRFC3602(t *testing.T) {
	for _, v := range []struct {
		name, key, iv string
		spi           uint32
		seq           uint64
		next          uint8
		payload       string
		sealed        string
	}{
		{"case 5", "90d382b410eeba7ad938c46cec1a82bf", "e96e8c08ab465763fd098d45dd3ff893", 0x4321, 1, 1,
			`08000ebd a70a0000 8e9c083d b95b0700 08090a0b 0c0d0e0f 10111213 14151617
			18191a1b 1c1d1e1f 20212223 24252627 28292a2b 2c2d2e2f 30313233 34353637`,
			`f663c25d 325c18c6 a9453e19 4e120849 a4870b66 cc6b9965 330013b4 898dc856
			a4699e52 3a55db08 0b59ec3a 8e4b7e52 775b07d1 db34ed9c 538ab50c 551b874a
			a269add0 47ad2d59 13ac19b7 cfbad4a6`},
		{"case 6", "90d382b410eeba7ad938c46cec1a82bf", "69d08df7d203329db093fc4924e5bd80", 0x4321, 8, 1,
			`0800b5e8 a80a0500 a69c083d 0b660e00 77777777 77777777 77777777`,
			`f5199588 1ec4e0c4 488987ce 742e8109 689bb379 d2d750c0 d915dca3 46a89f75`},
		{"case 7", "0123456789abcdef0123456789abcdef", "f4e765244f6407adf13dc1380f673f37", 0x8765, 2, 4,
			`45000054 09040000 4001f988 c0a87b03 c0a87bc8 08009f76 a90a0100 b49c083d
			02a20400 08090a0b 0c0d0e0f 10111213 14151617 18191a1b 1c1d1e1f 20212223
			24252627 28292a2b 2c2d2e2f 30313233 34353637`,
			`773b5241 a4c44922 5e4f3ce5 ed611b0c 237ca96c f74a9301 3c1b0ea1 a0cf70f8
			e4ecaec7 8ac53aad 7a0f022b 859243c6 47752e94 a859352b 8a4d4d2d ecd136e5
			c177f132 ad3fbfb2 201ac990 4c74ee0a 109e0ca1 e4dfe9d5 a100b842 f1c22f0d`},
		{"case 8", "0123456789abcdef0123456789abcdef", "85d47224b5f3dd5d2101d4ea8dffab22", 0x8765, 5, 4,
			`45000044 090c0000 4001f990 c0a87b03 c0a87bc8 0800d63c aa0a0200 c69c083d
			a3de0300 ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff`,
			`15b92683 819596a8 047232cc 00f7048f e45318e1 1f8a0f62 ede3c3fc 61203bb5
			0f980a08 c9843fd3 a1b06d5c 07ff9639 b7eb7dfb 3512e5de 435e7207 ed971ef3
			d2726d9b 5ef6affc 6d17a0de cbb13892`},
	} {
		t.Run(v.name, func(t *testing.T) {
			iv, payload, sealed := unhex(t, v.iv), unhex(t, v.payload), unhex(t, v.sealed)
			withAuth := func(dir ipsec.Direction) *ipsec.SA {
				sa := vectorSA(t, "aes128", dir, v.spi, unhex(t, v.key), false)
				sa.Suite.Integ = ipsec.Transform{Type: ipsec.TransformINTEG, ID: ipsec.IntegHMACSHA256128}
				sa.IntegKey = ipsec.NewSecret(count(32, 1))
				return sa
			}
			s, err := NewSealer(withAuth(ipsec.Outbound))
			if err != nil {
				t.Fatal(err)
			}
			body := make([]byte, len(sealed))
			s.encryptFrom(body, payload, v.next, iv)
			if !bytes.Equal(body, sealed) {
				t.Fatalf("encrypted\n%x, want\n%x", body, sealed)
			}

			b := binary.BigEndian.AppendUint32(nil, v.spi)
			b = binary.BigEndian.AppendUint32(b, uint32(v.seq))
			b = append(append(b, iv...), sealed...)
			m := hmac.New(sha256.New, count(32, 1))
			m.Write(b)
			b = m.Sum(b)[:len(b)+16]
			o, err := NewOpener(withAuth(ipsec.Inbound))
			if err != nil {
				t.Fatal(err)
			}
			got, next, why := o.Open(b, v.seq)
			if why != packet.WhyOK || next != v.next || !bytes.Equal(got, payload) {
				t.Fatalf("Open: %s, next %d\n%x, want\n%x", why, next, got, payload)
			}
		})
	}
}

// The IV of CBC suites is AES of the sequence number under a key of the
// sealer's own: never seen twice, and not the same in two sealers.
func TestCBCIV(t *testing.T) {
	a, _ := suites[3].pair(t, true)
	b, _ := suites[3].pair(t, true)
	clone, err := a.Clone()
	if err != nil {
		t.Fatal(err)
	}
	if a.ivKey == nil || a.ivKey == a.block {
		t.Fatal("the IV key is the SA's own key")
	}
	seen := map[[aes.BlockSize]byte]bool{}
	buf := make([]byte, 128)
	for seq := uint64(1); seq <= 1000; seq++ {
		for _, s := range []*Sealer{a, b} {
			if _, why := s.Seal(buf, 3, 4, seq); why != packet.WhyOK {
				t.Fatal(why)
			}
			iv := [aes.BlockSize]byte(buf[8:24])
			if seen[iv] {
				t.Fatalf("IV %x twice", iv)
			}
			seen[iv] = true
		}
		b.Seal(buf, 3, 4, seq)
		first := bytes.Clone(buf[8:24])
		a.Seal(buf, 3, 4, seq)
		mine := bytes.Clone(buf[8:24])
		clone.Seal(buf, 3, 4, seq)
		if !bytes.Equal(mine, buf[8:24]) || bytes.Equal(mine, first) {
			t.Fatal("a clone shares the IV key of its SA, another sealer does not")
		}
	}
}
