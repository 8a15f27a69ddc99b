package esp

import (
	"bytes"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// RFC 3686 §6, all nine.
func TestRFC3686(t *testing.T) {
	for _, v := range []struct{ name, key, nonce, iv, plain, sealed string }{
		{"1", "ae6852f8121067cc4bf7a5765577f39e", "00000030", "0000000000000000", "53696e676c6520626c6f636b206d7367", "e4095d4fb7a7b3792d6175a3261311b8"},
		{"2", "7e24067817fae0d743d6ce1f32539163", "006cb6db", "c0543b59da48d90b", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "5104a106168a72d9790d41ee8edad388eb2e1efc46da57c8fce630df9141be28"},
		{"3", "7691be035e5020a8ac6e618529f9a0dc", "00e0017b", "27777f3f4a1786f0", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223", "c1cf48a89f2ffdd9cf4652e9efdb72d74540a42bde6d7836d59a5ceaaef3105325b2072f"},
		{"4", "16af5b145fc9f579c175f93e3bfb0eed863d06ccfdb78515", "00000048", "36733c147d6d93cb", "53696e676c6520626c6f636b206d7367", "4b55384fe259c9c84e7935a003cbe928"},
		{"5", "7c5cb2401b3dc33c19e7340819e0f69c678c3db8e6f6a91a", "0096b03b", "020c6eadc2cb500d", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "453243fc609b23327edfaafa7131cd9f8490701c5ad4a79cfc1fe0ff42f4fb00"},
		{"6", "02bf391ee8ecb159b959617b0965279bf59b60a786d3e0fe", "0007bdfd", "5cbd60278dcc0912", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223", "96893fc55e5c722f540b7dd1ddf7e758d288bc95c69165884536c811662f2188abee0935"},
		{"7", "776beff2851db06f4c8a0542c8696f6c6a81af1eec96b4d37fc1d689e6c1c104", "00000060", "db5672c97aa8f0b2", "53696e676c6520626c6f636b206d7367", "145ad01dbf824ec7560863dc71e3e0c0"},
		{"8", "f6d66d6bd52d59bb0796365879eff886c66dd51a5b6a99744b50590c87a23884", "00faac24", "c1585ef15a43d875", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "f05e231b3894612c49ee000b804eb2a9b8306b508f839d6a5530831d9344af1c"},
		{"9", "ff7a617ce69148e4f1726e2f43581de2aa62d9f805532edff1eed687fb54153d", "001cc5b7", "51a51d70a1c11148", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223", "eb6c52821d0bbbf7ce7594462aca4faab407df866569fd07f48cc0b583d6071f1ec0e6b8"},
	} {
		c, err := newCounter(unhex(t, v.key))
		if err != nil {
			t.Fatal(err)
		}
		b := unhex(t, v.plain)
		c.xor(unhex(t, v.nonce+v.iv), b)
		if want := unhex(t, v.sealed); !bytes.Equal(b, want) {
			t.Errorf("vector %s: %x, want %x", v.name, b, want)
		}
	}
}

// draft-mcgrew-gcm-test-01 §4, the ENCR_NULL_AUTH_AES_GMAC packet: its tag is over
// the IV too, as RFC 4543 erratum 1821 says.
func TestMcGrewGMAC(t *testing.T) {
	const key = "4c80cdefbb5d10da906ac73c3613a634 22433c64"
	b := unhex(t, `0000432100000007 0000000000000000
		45000030da3a00008001df3bc0a80005c0a800010800c6cd02000700 6162636465666768696a6b6c6d6e6f7071727374
		01020201 f2a9a836e155106aa8dcd618e4099aaa`)
	o, err := NewOpener(vectorSA(t, "aes128gmac", ipsec.Inbound, 0x4321, unhex(t, key), false))
	if err != nil {
		t.Fatal(err)
	}
	got, next, why := o.Open(bytes.Clone(b), 7)
	if why != packet.WhyOK || next != 1 || !bytes.Equal(got, b[16:64]) {
		t.Fatalf("Open: %s, next %d, %x", why, next, got)
	}
	b[12] ^= 1
	if _, _, why := o.Open(b, 7); why != packet.WhyAuth {
		t.Errorf("another IV: %s", why)
	}
}

// The packet pkt_null_aes_xcbc of DPDK's IPsec tests, from its SPI on.
func TestNullXCBCPacket(t *testing.T) {
	want := unhex(t, `00000100 00000001
		4500002f 49370000 40112284 0d000002 02000002 08000800 001b6d99 58585858 58585858 58585858 58585858 585858
		0102030304 f15264d19b6224ddcc14f5c1`)
	sa := vectorSA(t, "null", ipsec.Outbound, 0x100, nil, false)
	sa.Suite.Integ = ipsec.Transform{Type: ipsec.TransformINTEG, ID: ipsec.IntegAESXCBC96}
	sa.IntegKey = ipsec.NewSecret([]byte("a1b2c3d4e5f6g7h8"))
	s, err := NewSealer(sa)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, why := s.SealFrom(got, want[8:8+47], packet.ProtoIPv4, 1); why != packet.WhyOK || !bytes.Equal(got, want) {
		t.Fatalf("sealed: %s\n%x, want\n%x", why, got, want)
	}
}

// RFC 4106 §6: ICVs of 8 and 12 octets are the first octets of that of 16.
func TestShortGCM(t *testing.T) {
	for _, bits := range []string{"aes128gcm", "aes192gcm", "aes256gcm"} {
		long, _ := suite{bits + "16", ""}.pair(t, true)
		for _, icv := range []string{"8", "12"} {
			s, _ := suite{bits + icv, ""}.pair(t, true)
			for n := range 100 {
				want, got := make([]byte, long.SealedLen(n)), make([]byte, s.SealedLen(n))
				long.SealFrom(want, count(n, 1), 4, anyESNSeq)
				s.SealFrom(got, count(n, 1), 4, anyESNSeq)
				if !bytes.Equal(got, want[:len(got)]) {
					t.Fatalf("%s%s, %d octets:\n%x, want\n%x", bits, icv, n, got, want[:len(got)])
				}
			}
		}
	}
}

// RFC 2405 §4.1: with and without the parity bits.
func TestWeakDES(t *testing.T) {
	for _, key := range []string{"0101010101010101", "0000000000000000", "e0fee0fef1fef1fe", "1fe01fe00ef10ef1"} {
		if _, err := newDES(unhex(t, key)); err == nil || !strings.Contains(err.Error(), "weak") {
			t.Errorf("%s: %v", key, err)
		}
	}
	if _, err := newDES(unhex(t, "0123456789abcdef")); err != nil {
		t.Error(err)
	}
}

// A clone works on its own: two goroutines' packets in turns, of every suite,
// come out as one sealer's would.
func TestCloneSharesNoScratch(t *testing.T) {
	eachSuite(t, func(t *testing.T, s suite, esn bool, seq uint64) {
		a, opener := s.pair(t, esn)
		b, err := a.Clone()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan []byte)
		for i, x := range []*Sealer{a, b} {
			go func() {
				dst := make([]byte, x.SealedLen(300))
				for k := range 50 {
					x.SealFrom(dst, count(300, i), 4, seq+uint64(k)*2+uint64(i))
				}
				done <- dst
			}()
		}
		for range 2 {
			d := <-done
			_, low, _ := Peek(d)
			if _, _, why := opener.Open(d, seq>>32<<32|uint64(low)); why != packet.WhyOK {
				t.Errorf("sequence number %d: %s", low, why)
			}
		}
	})
}
