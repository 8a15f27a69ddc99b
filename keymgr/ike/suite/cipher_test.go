package suite

import (
	"bytes"
	"crypto/rand"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// RFC 7634 Appendix B: a whole INFORMATIONAL request.
func TestSealTheIKEMessageOfRFC7634AppendixB(t *testing.T) {
	var ske []byte
	for i := range 36 { // key 80..9f, salt a0..a3
		ske = append(ske, byte(0x80+i))
	}
	c, err := NewCipher(transform(t, "chacha20poly1305"), ipsec.Transform{}, ipsec.NewSecret(ske), ipsec.Secret{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetNextIV(0x1011121314151617); err != nil {
		t.Fatal(err)
	}
	header := unhex(t, `c0c1c2c3c4c5c6c7 d0d1d2d3d4d5d6d7 2e202500 00000009 00000045 29000029`)
	payloads := unhex(t, `0000000c 00004001 0000000a`)
	want := unhex(t, `
		c0 c1 c2 c3 c4 c5 c6 c7 d0 d1 d2 d3 d4 d5 d6 d7
		2e 20 25 00 00 00 00 09 00 00 00 45 29 00 00 29
		10 11 12 13 14 15 16 17 61 03 94 70 1f 8d 01 7f
		7c 12 92 48 89 6b 71 bf e2 52 36 ef d7 cd c6 70
		66 90 63 15 b2`)
	got, err := c.Seal(nil, header, header, payloads)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %x (error %v), want %x", got, err, want)
	}
	if c.NextIV() != 0x1011121314151618 {
		t.Errorf("next IV is %x", c.NextIV())
	}
	opened, err := c.Open(nil, want[:32], want[32:])
	if err != nil || !bytes.Equal(opened, payloads) {
		t.Errorf("opened %x (error %v), want %x", opened, err, payloads)
	}
}

// Every row against payloads made by other software (testdata/sk_payload.py).
func TestSealAndOpenAgainstOpenSSL(t *testing.T) {
	for _, v := range readVectors(t, "sk_payload.txt", 80) {
		if v[0] == "auth" {
			continue
		}
		name := v[0] + "-" + v[1]
		iv, aad, plain, body := unhex(t, v[4]), unhex(t, v[5]), unhex(t, v[6]), unhex(t, v[7])
		c, err := NewCipher(transform(t, v[0]), transform(t, v[1]), secret(t, v[2]), secret(t, v[3]))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(iv) == 8 && !strings.Contains(v[0], "des") { // a counter
			if err := c.SetNextIV(be64(iv)); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.SealedLen(len(plain)); got != len(body) {
			t.Errorf("%s: SealedLen(%d) is %d, want %d", name, len(plain), got, len(body))
		}
		got, err := c.Seal(bytes.NewReader(iv), slices.Clip(aad), aad, plain)
		if err != nil || !bytes.Equal(got, slices.Concat(aad, body)) {
			t.Errorf("%s: %d octets sealed differ (error %v)", name, len(plain), err)
		}
		opened, err := c.Open([]byte("x"), aad, body)
		if err != nil || !bytes.Equal(opened, slices.Concat([]byte("x"), plain)) {
			t.Errorf("%s: %d octets opened differ (error %v)", name, len(plain), err)
		}
	}
}

func be64(b []byte) (n uint64) {
	for _, o := range b {
		n = n<<8 | uint64(o)
	}
	return n
}

// The AEAD test vectors of Wycheproof, read as Encrypted payloads: salt and IV
// from the nonce, and the last octet of the message as the pad length.
func TestOpenWycheproof(t *testing.T) {
	opened := 0
	for _, v := range readVectors(t, "wycheproof_aead.txt", 150) {
		name := v[0] + " " + v[1]
		key, nonce, aad, msg := unhex(t, v[3]), unhex(t, v[4]), unhex(t, v[5]), unhex(t, v[6])
		body := slices.Concat(nonce[4:], unhex(t, v[7]), unhex(t, v[8]))
		c, err := NewCipher(transform(t, v[0]), ipsec.Transform{}, ipsec.NewSecret(append(key, nonce[:4]...)), ipsec.Secret{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := c.Open(nil, aad, body)
		pad := int(msg[len(msg)-1])
		switch {
		case v[2] == "invalid":
			if !errors.Is(err, ErrIntegrity) {
				t.Errorf("%s: got error %v, want %v", name, err, ErrIntegrity)
			}
		case pad > len(msg)-1:
			if !errors.Is(err, ErrPadding) {
				t.Errorf("%s: got error %v, want %v", name, err, ErrPadding)
			}
		default:
			opened++
			if err != nil || !bytes.Equal(got, msg[:len(msg)-1-pad]) {
				t.Errorf("%s: got %x (error %v)", name, got, err)
			}
		}
	}
	if opened < 10 {
		t.Errorf("only %d vectors were opened", opened)
	}
}

var cipherSuites = []string{
	"aes128gcm16", "aes256gcm16", "chacha20poly1305",
	"aes128-sha256", "aes128-sha384", "aes256-sha256", "aes256-sha512",
}

// testCipher makes a cipher of a suite with a key that depends on seed.
func testCipher(t testing.TB, suite string, seed byte) *Cipher {
	t.Helper()
	encr, integ, ok := strings.Cut(suite, "-")
	if !ok {
		integ = "-"
	}
	key := func(name string) ipsec.Secret {
		a, ok := ipsec.AlgorithmByName(name)
		if !ok {
			return ipsec.Secret{}
		}
		return ipsec.NewSecret(bytes.Repeat([]byte{seed}, a.KeyLen+a.SaltLen))
	}
	c, err := NewCipher(transform(t, encr), transform(t, integ), key(encr), key(integ))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEveryChangedOctetIsNoticed(t *testing.T) {
	for _, s := range cipherSuites {
		c := testCipher(t, s, 1)
		aad, plain := bytes.Repeat([]byte{7}, 32), []byte("payloads")
		body, err := c.Seal(rand.Reader, nil, aad, plain)
		if err != nil {
			t.Fatal(err)
		}
		refused := func(what string, aad, body []byte) {
			t.Helper()
			if out, err := c.Open(nil, aad, body); !errors.Is(err, ErrIntegrity) || out != nil {
				t.Errorf("%s: %s: got %x, error %v", s, what, out, err)
			}
		}
		for i := range body {
			bad := slices.Clone(body)
			bad[i] ^= 0x80
			refused("changed octet of the body", aad, bad)
		}
		for i := range aad {
			bad := slices.Clone(aad)
			bad[i] ^= 1
			refused("changed octet of the header", bad, body)
		}
		for i := range body {
			refused("truncated body", aad, body[:i])
		}
		refused("longer body", aad, append(slices.Clone(body), make([]byte, 16)...))
		refused("shorter header", aad[:31], body)
		if _, err := testCipher(t, s, 2).Open(nil, aad, body); !errors.Is(err, ErrIntegrity) {
			t.Errorf("%s: another key opens it: %v", s, err)
		}
	}
}

// "The recipient MUST accept any length that results in proper alignment"
// (RFC 7296 §3.14); a pad length past the start of the plaintext is no length.
func TestOpenAcceptsAnyPadLength(t *testing.T) {
	for _, s := range cipherSuites {
		c := testCipher(t, s, 1)
		aad := bytes.Repeat([]byte{7}, 32)
		for _, inner := range []int{256, 16, 32} {
			for pad := range 256 {
				plain := bytes.Repeat([]byte{0xee}, inner)
				plain[inner-1] = byte(pad)
				got, err := c.Open(nil, aad, sealRaw(t, c, aad, plain))
				switch {
				case pad > inner-1:
					if !errors.Is(err, ErrPadding) || got != nil {
						t.Fatalf("%s: pad length %d of %d: got %x, error %v", s, pad, inner, got, err)
					}
				case err != nil || len(got) != inner-1-pad:
					t.Fatalf("%s: pad length %d of %d: got %d octets, error %v", s, pad, inner, len(got), err)
				}
			}
		}
	}
}

// sealRaw seals a plaintext that brings its own padding.
func sealRaw(t *testing.T, c *Cipher, aad, inner []byte) []byte {
	t.Helper()
	if c.k.aead != nil {
		iv := make([]byte, 8)
		nonce := slices.Concat(c.k.nonce[:4], iv)
		return slices.Concat(iv, c.k.aead.Seal(nil, nonce, inner, aad))
	}
	// One block of zeros as IV makes CBC by hand a chain of XORs.
	body := make([]byte, 16, 16+len(inner))
	for i := 0; i < len(inner); i += 16 {
		block := make([]byte, 16)
		for j := range block {
			block[j] = inner[i+j] ^ body[len(body)-16+j]
		}
		c.k.block.Encrypt(block, block)
		body = append(body, block...)
	}
	return c.k.integ.Sum(body, aad, body)
}

func TestLengthsAgree(t *testing.T) {
	for _, s := range cipherSuites {
		c := testCipher(t, s, 1)
		for n := range 100 {
			body, err := c.Seal(rand.Reader, nil, nil, make([]byte, n))
			if err != nil {
				t.Fatal(err)
			}
			if len(body) != c.SealedLen(n) || len(body) > n+c.Overhead() {
				t.Errorf("%s: %d octets seal to %d; SealedLen says %d, Overhead %d", s, n, len(body), c.SealedLen(n), c.Overhead())
			}
		}
		for n := range 400 {
			m := c.MaxPlaintext(n)
			if m > 0 && c.SealedLen(m) > n {
				t.Errorf("%s: MaxPlaintext(%d) is %d, which seals to %d", s, n, m, c.SealedLen(m))
			}
			if n >= c.SealedLen(0) && c.SealedLen(m+1) <= n {
				t.Errorf("%s: MaxPlaintext(%d) is %d, but %d fit", s, n, m, m+1)
			}
		}
	}
}

// RFC 5282 §3.1: "the same IV value is used only once for a given key".
func TestAnIVIsUsedOnce(t *testing.T) {
	for _, s := range []string{"aes128gcm16", "aes256gcm16", "chacha20poly1305"} {
		c := testCipher(t, s, 1)
		seen := map[string]bool{}
		seal := func(c *Cipher) {
			t.Helper()
			body, err := c.Seal(nil, nil, nil, []byte("x"))
			if err != nil {
				t.Fatal(err)
			}
			if iv := string(body[:8]); seen[iv] {
				t.Errorf("%s: IV %x is used twice", s, iv)
			} else {
				seen[iv] = true
			}
		}
		for range 10 {
			seal(c)
			c.Rest()
		}
		// Written out and read back.
		again := testCipher(t, s, 1)
		if err := again.SetNextIV(c.NextIV()); err != nil {
			t.Fatal(err)
		}
		seal(again)
		if err := again.SetNextIV(3); err == nil {
			t.Errorf("%s: the IV counter went back", s)
		}
		if err := testCipher(t, s, 1).SetNextIV(0); err == nil {
			t.Errorf("%s: a counter that was never saved is accepted", s)
		}
		if err := again.SetNextIV(math.MaxUint64); err != nil {
			t.Fatal(err)
		}
		if _, err := again.Seal(nil, nil, nil, nil); err == nil {
			t.Errorf("%s: sealed after the last IV", s)
		}
	}
}

// A cipher that has rested opens and seals as one that has not.
func TestACipherIsTheSameAfterRest(t *testing.T) {
	for _, s := range cipherSuites {
		from, to := testCipher(t, s, 1), testCipher(t, s, 1)
		for range 3 {
			body, err := from.Seal(rand.Reader, nil, []byte("aad"), []byte("plain"))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := to.Open(nil, []byte("aad"), body); err != nil || string(got) != "plain" {
				t.Errorf("%s: got %q, error %v", s, got, err)
			}
			if from.Rest(); from.SealedLen(5) != len(body) || from.ICVLen() != to.ICVLen() {
				t.Errorf("%s: at rest it seals 5 octets as %d, want %d", s, from.SealedLen(5), len(body))
			}
			to.Rest()
		}
	}
}

// A peer that knows the key and seals half a block is refused like a stranger.
func TestMisalignedCiphertextIsRefused(t *testing.T) {
	c := testCipher(t, "aes128-sha256", 1)
	for n := range 64 {
		body := make([]byte, 16+n)
		body = c.k.integ.Sum(body, nil, body)
		_, err := c.Open(nil, nil, body)
		if aligned := n > 0 && n%16 == 0; aligned == errors.Is(err, ErrIntegrity) {
			t.Errorf("%d octets of ciphertext: error %v", n, err)
		}
	}
}

func TestCBCNeedsRandomness(t *testing.T) {
	c := testCipher(t, "aes128-sha256", 1)
	broken := errors.New("no entropy")
	if out, err := c.Seal(iotest.ErrReader(broken), []byte("head"), nil, nil); !errors.Is(err, broken) || out != nil {
		t.Errorf("got %x, error %v", out, err)
	}
	a, _ := c.Seal(rand.Reader, nil, nil, nil)
	b, _ := c.Seal(rand.Reader, nil, nil, nil)
	if bytes.Equal(a[:16], b[:16]) {
		t.Error("two messages have one IV")
	}
}

func FuzzOpen(f *testing.F) {
	for i, s := range cipherSuites {
		body, err := testCipher(f, s, 1).Seal(rand.Reader, nil, []byte("header"), []byte("payloads"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(byte(i), []byte("header"), body)
	}
	f.Fuzz(func(t *testing.T, which byte, aad, body []byte) {
		s := cipherSuites[int(which)%len(cipherSuites)]
		out, err := testCipher(t, s, 9).Open(nil, aad, body)
		if err == nil || out != nil {
			t.Fatalf("%s: a forgery opens: %x", s, out)
		}
	})
}

// A message is sealed in place, in a buffer without room for more than its own ICV.
func TestSealStaysWithinItsRoom(t *testing.T) {
	for _, name := range []string{"aes128gcm8", "aes256gcm12", "aes128gcm16", "aes128ccm8", "aes256ccm12", "aes256ccm16", "chacha20poly1305"} {
		tr := transform(t, name)
		row, a, err := find(ipsec.TransformENCR, tr, encrRows)
		if err != nil {
			t.Fatal(err)
		}
		c, err := row.aead(make([]byte, a.KeyLen), a.ICVLen)
		if err != nil {
			t.Fatal(err)
		}
		const n = 40
		room := bytes.Repeat([]byte{0xaa}, n+a.ICVLen+16)
		plain, nonce, aad := room[:n], make([]byte, c.NonceSize()), []byte("header")
		want := bytes.Clone(plain)
		sealed := c.Seal(plain[:0], nonce, plain, aad)
		if len(sealed) != n+a.ICVLen || &sealed[0] != &room[0] || !bytes.Equal(room[len(sealed):], bytes.Repeat([]byte{0xaa}, 16)) {
			t.Errorf("%s: %d octets, in place %v, after them %x", name, len(sealed), &sealed[0] == &room[0], room[len(sealed):])
		}
		if got, err := c.Open(nil, nonce, sealed, aad); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: opened %x, error %v", name, got, err)
		}
	}
}
