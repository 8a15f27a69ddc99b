package mac

import (
	"bytes"
	"encoding/hex"
	"hash"
	"strings"
	"testing"

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

func keyed(t testing.TB, name string, key []byte) hash.Hash {
	t.Helper()
	a, ok := ipsec.AlgorithmByName(name)
	if !ok {
		t.Fatalf("no algorithm %s", name)
	}
	h, err := New(a, key)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func count(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// Each vector is computed in one Write, again after a Reset, octet by octet, and
// on a clone made half way.
func TestVectors(t *testing.T) {
	nist := `6bc1bee22e409f96e93d7e117393172a ae2d8a571e03ac9c9eb76fac45af8e51
		30c81c46a35ce411e5fbc1191a0a52ef f69f2445df4f9b17ad2b417be66c3710`
	for _, v := range []struct {
		name, alg string
		key       []byte
		data      []byte
		want      string
	}{
		{"RFC 3566 §4.6 case 1", "aesxcbc", count(16), nil, "75f0251d528ac01c4573dfd584d79f29"},
		{"RFC 3566 §4.6 case 2", "aesxcbc", count(16), count(3), "5b376580ae2f19afe7219ceef172756f"},
		{"RFC 3566 §4.6 case 3", "aesxcbc", count(16), count(16), "d2a246fa349b68a79998a4394ff7a263"},
		{"RFC 3566 §4.6 case 4", "aesxcbc", count(16), count(20), "47f51b4564966215b8985c63055ed308"},
		{"RFC 3566 §4.6 case 5", "aesxcbc", count(16), count(32), "f54f0ec8d2b9f3d36807734bd5283fd4"},
		{"RFC 3566 §4.6 case 6", "aesxcbc", count(16), count(34), "becbb3bccdb518a30677d5481fb6b4d8"},
		{"RFC 3566 §4.6 case 7", "aesxcbc", count(16), make([]byte, 1000), "f0dafee895db30253761103b5d84528f"},
		{"RFC 4494 §5 case 1", "aescmac", unhex(t, "2b7e151628aed2a6abf7158809cf4f3c"), nil, "bb1d6929e95937287fa37d12"},
		{"RFC 4494 §5 case 2", "aescmac", unhex(t, "2b7e151628aed2a6abf7158809cf4f3c"), unhex(t, nist)[:16], "070a16b46b4d4144f79bdd9d"},
		{"RFC 4494 §5 case 3", "aescmac", unhex(t, "2b7e151628aed2a6abf7158809cf4f3c"), unhex(t, nist)[:40], "dfa66747de9ae63030ca3261"},
		{"RFC 4494 §5 case 4", "aescmac", unhex(t, "2b7e151628aed2a6abf7158809cf4f3c"), unhex(t, nist), "51f0bebf7e3b9d92fc497417"},
		// RFC 2202, to which RFC 2403 §5 and RFC 2404 §5 refer: the cases with keys of the length that IPsec fixes.
		{"RFC 2202 §2 case 1", "md5", bytes.Repeat([]byte{0x0b}, 16), []byte("Hi There"), "9294727a3638bb1c13f48ef8158bfc9d"},
		{"RFC 2202 §2 case 3", "md5", bytes.Repeat([]byte{0xaa}, 16), bytes.Repeat([]byte{0xdd}, 50), "56be34521d144c88dbb8c733f0e8b3f6"},
		{"RFC 2202 §2 case 5", "md5", bytes.Repeat([]byte{0x0c}, 16), []byte("Test With Truncation"), "56461ef2342edc00f9bab995690efd4c"},
		{"RFC 2202 §3 case 1", "sha1", bytes.Repeat([]byte{0x0b}, 20), []byte("Hi There"), "b617318655057264e28bc0b6fb378c8ef146be00"},
		{"RFC 2202 §3 case 3", "sha1", bytes.Repeat([]byte{0xaa}, 20), bytes.Repeat([]byte{0xdd}, 50), "125d7342b9ac11cd91a39af48aa17b4f63f175d3"},
		{"RFC 2202 §3 case 5", "sha1", bytes.Repeat([]byte{0x0c}, 20), []byte("Test With Truncation"), "4c1a03424b55e07fe7f27be1d58bb9324a9a5a04"},
		{"RFC 4868 §2.7.2 AUTH256-1", "sha256", bytes.Repeat([]byte{0x0b}, 32), []byte("Hi There"), "198a607eb44bfbc69903a0f1cf2bbdc5"},
		{"RFC 4868 §2.7.2 AUTH384-1", "sha384", bytes.Repeat([]byte{0x0b}, 48), []byte("Hi There"), "b6a8d5636f5c6a7224f9977dcf7ee6c7fb6d0c48cbdee973"},
		{"RFC 4868 §2.7.2 AUTH512-1", "sha512", bytes.Repeat([]byte{0x0b}, 64), []byte("Hi There"), "637edc6e01dce7e6742a99451aae82df23da3e92439e590e43e761b33e910fb8"},
		{"RFC 4868 §2.7.2 AUTH256-2", "sha256", bytes.Repeat([]byte("Jefe"), 8), []byte("what do ya want for nothing?"), "167f928588c5cc2eef8e3093caa0e87c"},
		{"RFC 4868 §2.7.2 AUTH384-2", "sha384", bytes.Repeat([]byte("Jefe"), 12), []byte("what do ya want for nothing?"), "2c7353974f1842fd66d53c452ca42122b28c0b594cfb184d"},
		{"RFC 4868 §2.7.2 AUTH512-2", "sha512", bytes.Repeat([]byte("Jefe"), 16), []byte("what do ya want for nothing?"), "cb370917ae8a7ce28cfd1d8f4705d6141c173b2a9362c15df235dfb251b15454"},
	} {
		t.Run(v.name, func(t *testing.T) {
			want := unhex(t, v.want)
			h := keyed(t, v.alg, v.key)
			same := func(how string, h hash.Hash) {
				t.Helper()
				for range 2 { // Sum changes nothing
					if got := h.Sum(nil)[:len(want)]; !bytes.Equal(got, want) {
						t.Errorf("%s: %x, want %x", how, got, want)
					}
				}
			}
			h.Write(v.data)
			same("in one piece", h)
			h.Reset()
			h.Write(v.data)
			same("after Reset", h)
			h.Reset()
			for i := range v.data {
				h.Write(v.data[i : i+1])
			}
			same("octet by octet", h)
			h.Reset()
			h.Write(v.data[:len(v.data)/2])
			c, err := Clone(h)
			if err != nil {
				t.Fatal(err)
			}
			h.Write([]byte("not the clone's"))
			c.Write(v.data[len(v.data)/2:])
			same("on a clone", c)
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for name, want := range map[string]string{"authaes128gmac": "not an integrity algorithm", "aes128": "not an integrity algorithm", "sha256": "32 octets"} {
		a, _ := ipsec.AlgorithmByName(name)
		if _, err := New(a, make([]byte, 5)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error with %q", name, err, want)
		}
	}
}

// Every way of cutting a message into two Writes gives the same result.
func FuzzSplit(f *testing.F) {
	f.Add([]byte("0123456789abcdef0123456789abcdef"), 16)
	x, c := keyed(f, "aesxcbc", count(16)), keyed(f, "aescmac", count(16))
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		if at < 0 || at > len(b) {
			return
		}
		for _, h := range []hash.Hash{x, c} {
			h.Reset()
			h.Write(b)
			want := h.Sum(nil)
			h.Reset()
			h.Write(b[:at])
			h.Write(b[at:])
			if got := h.Sum(nil); !bytes.Equal(got, want) {
				t.Fatalf("cut at %d of %d: %x, want %x", at, len(b), got, want)
			}
		}
	})
}

func BenchmarkSum(b *testing.B) {
	for _, a := range ipsec.Algorithms() {
		if !Known(&a) {
			continue
		}
		b.Run(a.Name, func(b *testing.B) {
			h := keyed(b, a.Name, count(a.KeyLen))
			data, sum := make([]byte, 1400), make([]byte, 0, 64)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				h.Reset()
				h.Write(data)
				h.Sum(sum)
			}
		})
	}
}
