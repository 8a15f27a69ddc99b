package suite

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"testing/iotest"

	"github.com/cloudflare/circl/dh/x25519"

	"github.com/testudo-ipsec/testudo/ipsec"
)

func method(t testing.TB, id uint16) KEMethod {
	t.Helper()
	m, ok := LookupKE(id)
	if !ok {
		t.Fatalf("no key exchange method %d", id)
	}
	return m
}

// restored makes the key pair of a vector's private key.
func restored(t testing.TB, id uint16, private string) KeyPair {
	t.Helper()
	p, err := method(t, id).Restore(secret(t, private))
	if err != nil {
		t.Fatal(err)
	}
	p.Public = p.key.public()
	return p
}

func TestECPVectorsOfRFC5903Section8(t *testing.T) {
	for _, v := range readVectors(t, "rfc5903.txt", 3) {
		id, _ := strconv.Atoi(v[0])
		checkPair(t, restored(t, uint16(id), v[1]), restored(t, uint16(id), v[3]), unhex(t, v[2]), unhex(t, v[4]), unhex(t, v[5]))
	}
}

func TestCurve25519VectorOfRFC8031AppendixA(t *testing.T) {
	i := restored(t, ipsec.KEX25519, "751fb430 8655b476 b6789b73 25f9ea8c ddd16a58 533ff6d9 e6000946 4a5f9d94")
	r := restored(t, ipsec.KEX25519, "0a546452 53290d60 ddadd0e0 30bacd9e 5501efdc 220755a1 e978f1b8 39a05688")
	checkPair(t, i, r,
		unhex(t, "48d5ddd4 061257ba 166fa3f9 bbdb74f1 a4e81c08 9384fa77 f790709f 0dfbc766"),
		unhex(t, "0be7c1f5 aad87d7e 44866267 3298a443 478b8597 45179eaf 564c79c0 ef6eee25"),
		unhex(t, "c7495060 7a12327f 3204d94b 6825bfb0 68b7f831 9a9e3708 ed3d43ce 8130c950"))
}

// RFC 7748 §6.1, and §5.2 with a thousand iterations.
func TestCurve25519VectorsOfRFC7748(t *testing.T) {
	i := restored(t, ipsec.KEX25519, "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
	r := restored(t, ipsec.KEX25519, "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
	checkPair(t, i, r,
		unhex(t, "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"),
		unhex(t, "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"),
		unhex(t, "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"))
	k := append([]byte{9}, make([]byte, 31)...)
	u := k
	for n := 1; n <= 1000; n++ {
		next, err := agreeX25519((*x25519.Key)(k), u)
		if err != nil {
			t.Fatal(err)
		}
		if public := publicX25519((*x25519.Key)(k)); n == 1 && !bytes.Equal(public, next) {
			t.Fatalf("as a multiple of the base point got %x, want %x", public, next)
		}
		k, u = next, k
		want := map[int]string{1: "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079", 1000: "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"}[n]
		if want != "" && !bytes.Equal(k, unhex(t, want)) {
			t.Fatalf("after %d iterations got %x, want %s", n, k, want)
		}
	}
}

// Two other implementations, with random keys, those that clamping changes most, and
// their peers' values.
func TestCurve25519IsThatOfTheStandardLibrary(t *testing.T) {
	keys := [][]byte{make([]byte, 32), bytes.Repeat([]byte{0xff}, 32), append([]byte{7}, make([]byte, 31)...)}
	for range 1000 {
		keys = append(keys, draw(t, 32))
	}
	peer, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		want, err := ecdh.X25519().NewPrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		secret, err := want.ECDH(peer.PublicKey())
		if err != nil {
			t.Fatal(err)
		}
		// The responder reads its private key and nothing else from the random source.
		public, shared, err := method(t, ipsec.KEX25519).Respond(bytes.NewReader(k), peer.PublicKey().Bytes())
		if err != nil || !bytes.Equal(public, want.PublicKey().Bytes()) || !bytes.Equal(shared.Reveal(), secret) {
			t.Fatalf("key %x: public value %x, want %x; the secret is equal: %t; error %v", k, public, want.PublicKey().Bytes(), bytes.Equal(shared.Reveal(), secret), err)
		}
		var laddered x25519.Key
		if x25519.KeyGen(&laddered, (*x25519.Key)(k)); !bytes.Equal(public, laddered[:]) {
			t.Fatalf("key %x: public value %x, by the ladder %x", k, public, laddered)
		}
		peer = want
	}
}

func checkPair(t *testing.T, i, r KeyPair, publicI, publicR, shared []byte) {
	t.Helper()
	if !bytes.Equal(i.Public, publicI) || !bytes.Equal(r.Public, publicR) {
		t.Errorf("method %d: public values %x and %x, want %x and %x", i.Method, i.Public, r.Public, publicI, publicR)
	}
	for _, got := range []struct {
		pair KeyPair
		peer []byte
	}{{i, publicR}, {r, publicI}} {
		s, err := got.pair.Shared(got.peer)
		if err != nil || !bytes.Equal(s.Reveal(), shared) {
			t.Errorf("method %d: shared secret differs (error %v)", i.Method, err)
		}
	}
}

// An all-zero secret is refused (RFC 7748 §6.1); values above the prime are not
// (RFC 8031 §3.2).
func TestCurve25519Wycheproof(t *testing.T) {
	for _, v := range readVectors(t, "wycheproof_x25519.txt", 80) {
		checkWycheproof(t, ipsec.KEX25519, v[0], v[1], v[2], v[3], v[4])
	}
}

func TestECPWycheproof(t *testing.T) {
	for _, v := range readVectors(t, "wycheproof_ecp.txt", 80) {
		id, _ := strconv.Atoi(v[0])
		checkWycheproof(t, uint16(id), v[1], v[2], v[3], v[4], v[5])
	}
}

func checkWycheproof(t *testing.T, id uint16, tc, result, private, public, shared string) {
	t.Helper()
	p, err := method(t, id).Restore(secret(t, private))
	if err != nil {
		t.Fatalf("tcId %s: %v", tc, err)
	}
	s, err := p.Shared(unhex(t, public))
	switch result {
	case "valid":
		if err != nil || !bytes.Equal(s.Reveal(), unhex(t, shared)) {
			t.Errorf("method %d, tcId %s: shared secret differs (error %v)", id, tc, err)
		}
	case "invalid":
		if !errors.Is(err, ErrPeerPublic) || !s.IsZero() {
			t.Errorf("method %d, tcId %s: got error %v, want %v", id, tc, err, ErrPeerPublic)
		}
	default:
		t.Fatalf("tcId %s: result %q", tc, result)
	}
}

// Both roles of every method, with the initiator's state written out and read
// back between its two steps.
func TestEveryMethodAgrees(t *testing.T) {
	for _, m := range keMethods {
		t.Run(fmt.Sprint(m.ID), func(t *testing.T) {
			pair, err := m.Generate(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			public, shared, err := m.Respond(rand.Reader, pair.Public)
			if err != nil {
				t.Fatal(err)
			}
			if len(pair.Public) != m.InitiatorLen || len(public) != m.ResponderLen {
				t.Errorf("public values of %d and %d octets, want %d and %d", len(pair.Public), len(public), m.InitiatorLen, m.ResponderLen)
			}
			saved := bytes.Clone(pair.Private.Reveal())
			back, err := method(t, pair.Method).Restore(ipsec.NewSecret(saved))
			if err != nil {
				t.Fatal(err)
			}
			if back.Public != nil || !bytes.Equal(back.key.public(), pair.Public) {
				t.Error("the restored key pair has another public value, or has paid for one that nobody asked for")
			}
			for _, p := range []KeyPair{pair, back} {
				if s, err := p.Shared(public); err != nil || !s.Equal(shared) || s.IsZero() {
					t.Errorf("the two sides do not agree (error %v)", err)
				}
			}
			other, err := m.Generate(rand.Reader)
			if err != nil || bytes.Equal(other.Public, pair.Public) || other.Private.Equal(pair.Private) {
				t.Errorf("two key pairs are one (error %v)", err)
			}
		})
	}
}

func TestWrongLengthsAreRefused(t *testing.T) {
	for _, m := range keMethods {
		pair, err := m.Generate(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{0, 1, m.InitiatorLen - 1, m.InitiatorLen + 1} {
			if _, _, err := m.Respond(rand.Reader, make([]byte, n)); !errors.Is(err, ErrPeerPublic) {
				t.Errorf("method %d: responding to %d octets: %v", m.ID, n, err)
			}
		}
		for _, n := range []int{0, 1, m.ResponderLen - 1, m.ResponderLen + 1} {
			if _, err := pair.Shared(make([]byte, n)); !errors.Is(err, ErrPeerPublic) {
				t.Errorf("method %d: finishing with %d octets: %v", m.ID, n, err)
			}
		}
		for _, n := range []int{0, pair.Private.Len() - 1, pair.Private.Len() + 1} {
			if _, err := m.Restore(ipsec.NewSecret(make([]byte, n))); err == nil {
				t.Errorf("method %d: a private key of %d octets is restored", m.ID, n)
			}
		}
		if _, err := (KeyPair{Method: m.ID, Private: pair.Private}).Shared(make([]byte, m.ResponderLen)); err == nil {
			t.Errorf("method %d: a key pair that was not restored is used", m.ID)
		}
	}
	if _, ok := LookupKE(ipsec.KEMODP768); ok {
		t.Error("MODP-768 is offered")
	}
}

func TestABrokenRandomSourceIsAnError(t *testing.T) {
	broken := errors.New("no entropy")
	for _, m := range keMethods {
		if _, err := m.Generate(iotest.ErrReader(broken)); !errors.Is(err, broken) {
			t.Errorf("method %d: got error %v", m.ID, err)
		}
	}
	// All ones are above the order of every ECP group but P-521's mask.
	for _, id := range []uint16{ipsec.KEP256, ipsec.KEP384, ipsec.KEP521} {
		if _, err := method(t, id).Generate(ones{}); err == nil {
			t.Errorf("method %d: a stuck random source gave a key", id)
		}
	}
}

type ones struct{}

func (ones) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 0xff
	}
	return len(p), nil
}

// FIPS 203 §7.2: an encapsulation key whose coefficients are not below q.
func TestMLKEMRefusesAMalformedKey(t *testing.T) {
	for _, id := range []uint16{ipsec.KEMLKEM512, ipsec.KEMLKEM768, ipsec.KEMLKEM1024} {
		m := method(t, id)
		if _, _, err := m.Respond(rand.Reader, bytes.Repeat([]byte{0xff}, m.InitiatorLen)); !errors.Is(err, ErrPeerPublic) {
			t.Errorf("method %d: got error %v", id, err)
		}
	}
}

// Implicit rejection: a forged ciphertext gives another secret, and no error.
func TestMLKEMImplicitRejection(t *testing.T) {
	for _, id := range []uint16{ipsec.KEMLKEM512, ipsec.KEMLKEM768, ipsec.KEMLKEM1024} {
		m := method(t, id)
		pair, err := m.Generate(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		ciphertext, shared, err := m.Respond(nil, pair.Public)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := pair.Shared(ciphertext); err != nil || !s.Equal(shared) {
			t.Errorf("method %d: the ends have different secrets, error %v", id, err)
		}
		ciphertext[0] ^= 1
		if s, err := pair.Shared(ciphertext); err != nil || s.Equal(shared) || s.Len() != 32 {
			t.Errorf("method %d: got a secret of %d octets, error %v", id, s.Len(), err)
		}
		if _, err := pair.Shared(ciphertext[1:]); !errors.Is(err, ErrPeerPublic) {
			t.Errorf("method %d: a short ciphertext: got error %v", id, err)
		}
	}
}
