package suite

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"slices"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

func TestPRFVectorsOfRFC4231(t *testing.T) {
	for i, v := range readVectors(t, "rfc4231.txt", 7) {
		for j, name := range []string{"prfsha256", "prfsha384", "prfsha512"} {
			got := hex.EncodeToString(newPRF(t, name).Sum(secret(t, v[0]), unhex(t, v[1])))
			want := v[2+j]
			if !strings.HasPrefix(got, want) || len(want) < 32 {
				t.Errorf("test case %d, %s: got %s, want %s", i+1, name, got, want)
			}
		}
	}
}

// One HMAC serves many keys, one after the other, and nothing of a key is left in it.
func TestHMACOfKeysOfAnyLength(t *testing.T) {
	for name, h := range map[string]func() hash.Hash{"prfmd5": md5.New, "prfsha1": sha1.New, "prfsha256": sha256.New, "prfsha384": sha512.New384, "prfsha512": sha512.New} {
		p := newPRF(t, name)
		for _, n := range []int{1, h().Size(), 200, h().BlockSize(), h().BlockSize() + 1, 3, 0} {
			key := bytes.Repeat([]byte{0xd7}, n)
			m := hmac.New(h, key)
			m.Write([]byte("one, two"))
			if got := p.Sum(ipsec.CopySecret(key), []byte("one"), nil, []byte(", two")); !hmac.Equal(got, m.Sum(nil)) {
				t.Errorf("%s with a key of %d octets: got %x, want %x", name, n, got, m.Sum(nil))
			}
			k := p.row.keyed(key).(*keyedHash)
			_, _ = k.Write([]byte("secret"))
			k.Sum(nil)
			k.free()
			for what, b := range map[string][]byte{"inner": k.inner, "outer": k.outer, "sum": k.sum, "sum's array": k.sum[:cap(k.sum)]} {
				if !bytes.Equal(b, make([]byte, len(b))) {
					t.Errorf("%s with a key of %d octets leaves %s %x", name, n, what, b)
				}
			}
			if got, empty := k.hash.Sum(nil), h().Sum(nil); !bytes.Equal(got, empty) {
				t.Errorf("%s with a key of %d octets leaves a hash that has begun", name, n)
			}
		}
	}
}

// RFC 4434 §2.1 and RFC 4615 §4: keys of 16, 10 and 18 octets.
func TestPRFVectorsOfRFC4434AndRFC4615(t *testing.T) {
	const message = "000102030405060708090a0b0c0d0e0f10111213"
	for _, v := range [][3]string{
		{"prfaesxcbc", "000102030405060708090a0b0c0d0e0f", "47f51b4564966215b8985c63055ed308"},
		{"prfaesxcbc", "00010203040506070809", "0fa087af7d866e7653434e602fdde835"},
		{"prfaesxcbc", "000102030405060708090a0b0c0d0e0fedcb", "8cd3c93ae598a9803006ffb67c40e9e4"},
		{"prfaescmac", "000102030405060708090a0b0c0d0e0fedcb", "84a348a4a45d235babfffc0d2b4da09a"},
		{"prfaescmac", "000102030405060708090a0b0c0d0e0f", "980ae87b5f4c9c5214f5b6a8455e4c2d"},
		{"prfaescmac", "00010203040506070809", "290d9e112edb09ee141fcf64c0b72f3d"},
	} {
		p := newPRF(t, v[0])
		if got := hex.EncodeToString(p.Sum(secret(t, v[1]), unhex(t, message))); got != v[2] || p.Size() != 16 {
			t.Errorf("%s with key %s: got %s, want %s", v[0], v[1], got, v[2])
		}
	}
}

// RFC 2202 §2 and §3, case 2: a key shorter than the block.
func TestPRFVectorsOfRFC2202(t *testing.T) {
	for name, want := range map[string]string{"prfmd5": "750c783e6ab0b503eaa86e310a5db738", "prfsha1": "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"} {
		if got := hex.EncodeToString(newPRF(t, name).Sum(ipsec.NewSecret([]byte("Jefe")), []byte("what do ya want for nothing?"))); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

// RFC 7296 §2.14: with the PRFs of AES "only the first 64 bits of Ni and the first
// 64 bits of Nr are used in calculating SKEYSEED".
func TestSKEYSEEDOfTheAESPRFs(t *testing.T) {
	ni, nr, shared := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32), ipsec.NewSecret([]byte("shared"))
	for _, name := range []string{"prfaesxcbc", "prfaescmac"} {
		p := newPRF(t, name)
		want := p.Sum(ipsec.NewSecret(slices.Concat(ni[:8], nr[:8])), []byte("shared"))
		if got := SKEYSEED(p, ni, nr, shared); !bytes.Equal(got.Reveal(), want) {
			t.Errorf("%s: got %x, want %x", name, got.Reveal(), want)
		}
	}
}

func TestPRFSumConcatenatesItsParts(t *testing.T) {
	p := newPRF(t, "prfsha256")
	key := ipsec.NewSecret([]byte("k"))
	if whole, parts := p.Sum(key, []byte("abcdef")), p.Sum(key, []byte("ab"), nil, []byte("cdef")); !bytes.Equal(whole, parts) {
		t.Errorf("got %x in parts, want %x", parts, whole)
	}
}

// T1 = prf (K, S | 0x01), Tn = prf (K, Tn-1 | S | n) (RFC 7296 §2.13), here with
// Sum alone.
func TestPlusIsTheIterationOfRFC7296Section2_13(t *testing.T) {
	for _, name := range []string{"prfsha256", "prfsha384", "prfsha512", "prfaesxcbc", "prfaescmac", "prfsha1", "prfmd5"} {
		p := newPRF(t, name)
		key, seed := ipsec.NewSecret([]byte("key")), []byte("seed")
		var want, previous []byte
		for i := range 255 {
			previous = p.Sum(key, previous, seed, []byte{byte(i + 1)})
			want = append(want, previous...)
		}
		for _, n := range []int{0, 1, p.Size() - 1, p.Size(), p.Size() + 1, 3 * p.Size(), 255 * p.Size()} {
			got, err := p.Plus(key, seed, n)
			if err != nil || !bytes.Equal(got.Reveal(), want[:n]) {
				t.Errorf("%s: %d octets of prf+ differ (error %v)", name, n, err)
			}
		}
		for _, n := range []int{-1, 255*p.Size() + 1} {
			if _, err := p.Plus(key, seed, n); err == nil {
				t.Errorf("%s: prf+ for %d octets was given", name, n)
			}
		}
	}
}

func TestIntegVectorsOfRFC4868(t *testing.T) {
	names := map[string]string{"AUTH256": "sha256", "AUTH384": "sha384", "AUTH512": "sha512"}
	for _, v := range readVectors(t, "rfc4868.txt", 12) {
		name := names[v[0][:7]]
		data, icv := unhex(t, v[2]), unhex(t, v[4])
		g, err := NewInteg(transform(t, name), secret(t, v[1]))
		if err != nil {
			t.Fatalf("%s: %v", v[0], err)
		}
		if got := g.Sum([]byte("x"), data[:3], data[3:]); !bytes.Equal(got, slices.Concat([]byte("x"), icv)) {
			t.Errorf("%s: got %x, want x and %x", v[0], got, icv)
		}
		if !g.Verify(icv, data) {
			t.Errorf("%s: ICV does not verify", v[0])
		}
		for i := range icv {
			bad := slices.Clone(icv)
			bad[i] ^= 1
			if g.Verify(bad, data) {
				t.Fatalf("%s: ICV with octet %d changed verifies", v[0], i)
			}
		}
		if g.Verify(icv[:len(icv)-1], data) || g.Verify(nil, data) || g.Verify(unhex(t, v[3])[:len(icv)+1], data) {
			t.Errorf("%s: an ICV of another length verifies", v[0])
		}
		if len(icv) != g.ICVLen() {
			t.Errorf("%s: ICVLen %d, want %d", v[0], g.ICVLen(), len(icv))
		}
	}
}

func TestConstructorsRefuseByName(t *testing.T) {
	key := func(n int) ipsec.Secret { return ipsec.NewSecret(make([]byte, n)) }
	aes, gcm, sha := transform(t, "aes128"), transform(t, "aes128gcm16"), transform(t, "sha256")
	prf := func(x ipsec.Transform) error { _, err := NewPRF(x); return err }
	integ := func(x ipsec.Transform, k ipsec.Secret) error { _, err := NewInteg(x, k); return err }
	encr := func(e, i ipsec.Transform, ske, ska ipsec.Secret) error {
		_, err := NewCipher(e, i, ske, ska)
		return err
	}
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"unknown PRF":           {prf(ipsec.Transform{Type: ipsec.TransformPRF, ID: 9}), "PRF-9 is not implemented for IKE; want one of prfaescmac"},
		"integrity as PRF":      {prf(sha), "sha256 is not implemented"},
		"PRF with a key length": {prf(ipsec.Transform{Type: ipsec.TransformPRF, ID: ipsec.PRFHMACSHA2256, KeyBits: 256}), "is not implemented"},
		"short integrity key":   {integ(sha, key(31)), "has 31 octets, want 32"},
		"short SK_a":            {encr(aes, sha, key(16), key(31)), "integrity key for sha256 has 31 octets"},
		"short SK_e":            {encr(aes, sha, key(15), key(32)), "SK_e for aes128 has 15 octets, want 16"},
		"SK_e without salt":     {encr(gcm, ipsec.Transform{}, key(16), key(0)), "has 16 octets, want 20 (key 16, salt 4)"},
		"AEAD with integrity":   {encr(gcm, sha, key(20), key(0)), "protects integrity itself"},
		"AEAD with SK_a":        {encr(gcm, ipsec.Transform{}, key(20), key(32)), "protects integrity itself"},
		"CBC alone":             {encr(aes, ipsec.Transform{}, key(16), key(0)), "needs integrity protection"},
		"GMAC":                  {encr(transform(t, "aes128gmac"), ipsec.Transform{}, key(20), key(0)), "aes128gmac is not implemented"},
		"AES without length":    {encr(ipsec.Transform{Type: ipsec.TransformENCR, ID: ipsec.EncrAESCBC}, sha, key(16), key(32)), "is not implemented"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: got error %v, want one with %q", name, c.err, c.want)
		}
	}
}
