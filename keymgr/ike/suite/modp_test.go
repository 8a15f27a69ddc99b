package suite

import (
	"bytes"
	"crypto/rand"
	"errors"
	"math/big"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

func (g *modpGroup) prime() *big.Int { return new(big.Int).SetBytes(g.p.Nat().Bytes(g.p)) }

// modpGroups are all of them.
func modpGroups() []*modpGroup {
	var all []*modpGroup
	for _, m := range keMethods {
		if g, ok := m.ops.(*modpGroup); ok {
			all = append(all, g)
		}
	}
	return all
}

// RFC 3526 gives each prime as 2^n - 2^(n-64) - 1 + 2^64 * { [2^(n-130) pi] + k }.
func TestMODPPrimesFollowTheFormulaOfRFC3526(t *testing.T) {
	for _, g := range []struct {
		group *modpGroup
		n     uint
		k     int64
	}{{modp1024, 1024, 129093}, {modp1536, 1536, 741804}, {modp2048, 2048, 124476}, {modp3072, 3072, 1690314}, {modp4096, 4096, 240904}, {modp6144, 6144, 929484}, {modp8192, 8192, 4743158}} {
		one := big.NewInt(1)
		want := new(big.Int).Lsh(one, g.n)
		want.Sub(want, new(big.Int).Lsh(one, g.n-64))
		want.Sub(want, one)
		mid := new(big.Int).Add(piTimesPowerOf2(g.n-130), big.NewInt(g.k))
		want.Add(want, mid.Lsh(mid, 64))
		if p := g.group.prime(); p.Cmp(want) != 0 {
			t.Errorf("MODP-%d: the prime is %x, the formula gives %x", g.n, p, want)
		}
	}
}

// piTimesPowerOf2 is floor(2^bits pi), by Machin's formula
// pi = 16 arctan(1/5) - 4 arctan(1/239), with guard bits.
func piTimesPowerOf2(bits uint) *big.Int {
	const guard = 64
	unit := new(big.Int).Lsh(big.NewInt(1), bits+guard)
	arctan := func(x int64) *big.Int {
		sum, term, square := new(big.Int), new(big.Int).Quo(unit, big.NewInt(x)), big.NewInt(x*x)
		for n := int64(1); term.Sign() != 0; n += 2 {
			part := new(big.Int).Quo(term, big.NewInt(n))
			if n%4 == 1 {
				sum.Add(sum, part)
			} else {
				sum.Sub(sum, part)
			}
			term.Quo(term, square)
		}
		return sum
	}
	pi := arctan(5)
	pi.Mul(pi, big.NewInt(16))
	pi.Sub(pi, new(big.Int).Mul(arctan(239), big.NewInt(4)))
	return pi.Rsh(pi, guard)
}

// A safe prime: (p-1)/2 is prime too, which is what RFC 6989 §2.1 rests on.
func TestMODPPrimeIsSafe(t *testing.T) {
	p := modp2048.prime()
	if !p.ProbablyPrime(4) || !new(big.Int).Rsh(p, 1).ProbablyPrime(4) {
		t.Error("MODP-2048 is not a safe prime")
	}
}

// RFC 6989 §2.1: 1 < r < p-1.
func TestMODPRangeOfRFC6989Section2_1(t *testing.T) {
	for _, id := range []uint16{ipsec.KEMODP1024, ipsec.KEMODP1536, ipsec.KEMODP2048, ipsec.KEMODP3072, ipsec.KEMODP4096} {
		m := method(t, id)
		g := m.ops.(*modpGroup)
		p, size := g.prime(), g.p.Size()
		pair, err := m.Generate(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		value := func(base *big.Int, plus int64) []byte {
			return new(big.Int).Add(base, big.NewInt(plus)).FillBytes(make([]byte, size))
		}
		zero := new(big.Int)
		for name, r := range map[string][]byte{
			"0": value(zero, 0), "1": value(zero, 1), "p-1": value(p, -1), "p": value(p, 0), "p+1": value(p, 1), "p+2": value(p, 2),
			"2^n-1": bytes.Repeat([]byte{0xff}, size),
		} {
			if _, err := pair.Shared(r); !errors.Is(err, ErrPeerPublic) {
				t.Errorf("method %d: finishing with %s: %v", id, name, err)
			}
			if _, _, err := m.Respond(rand.Reader, r); !errors.Is(err, ErrPeerPublic) {
				t.Errorf("method %d: responding to %s: %v", id, name, err)
			}
		}
		for name, r := range map[string][]byte{"2": value(zero, 2), "p-2": value(p, -2)} {
			if s, err := pair.Shared(r); err != nil || s.Len() != size {
				t.Errorf("method %d: finishing with %s: %d octets, error %v", id, name, s.Len(), err)
			}
		}
	}
}

// RFC 7296 §2.14: the secret is padded to the length of the modulus. With the
// peer's value 2 it is our own public value, whose first octet is zero for one
// exponent in 256.
func TestMODPSecretIsPadded(t *testing.T) {
	m := method(t, ipsec.KEMODP2048)
	two := make([]byte, 256)
	two[255] = 2
	private := make([]byte, 40)
	private[0] = 0x80
	for i := range 4096 {
		private[38], private[39] = byte(i>>8), byte(i)
		pair, err := m.Restore(ipsec.CopySecret(private))
		if err != nil {
			t.Fatal(err)
		}
		public := pair.key.public()
		if public[0] != 0 {
			continue
		}
		s, err := pair.Shared(two)
		if err != nil || !bytes.Equal(s.Reveal(), public) || len(public) != 256 {
			t.Errorf("a secret with a leading zero has %d octets (error %v)", s.Len(), err)
		}
		return
	}
	t.Fatal("no exponent gave a public value with a leading zero")
}

// math/big is the other opinion on both powers that an exchange takes, at the
// smallest and the largest exponent and at a random one.
func TestMODPPowersAreThoseOfMathBig(t *testing.T) {
	for _, g := range modpGroups() {
		p, size := g.prime(), g.p.Size()
		low, high := make([]byte, g.exponent), bytes.Repeat([]byte{0xff}, g.exponent)
		low[0] = 0x80
		for _, x := range [][]byte{low, high, draw(t, g.exponent)} {
			x[0] |= 0x80
			key, err := g.parse(x)
			if err != nil {
				t.Fatal(err)
			}
			exponent := new(big.Int).SetBytes(x)
			if want := new(big.Int).Exp(big.NewInt(2), exponent, p).FillBytes(make([]byte, size)); !bytes.Equal(key.public(), want) {
				t.Errorf("MODP-%d: public value %x of exponent %x, math/big has %x", g.p.BitLen(), key.public(), x, want)
			}
			peer := new(big.Int).Mod(new(big.Int).SetBytes(draw(t, size)), p)
			shared, err := key.finish(peer.FillBytes(make([]byte, size)))
			if want := new(big.Int).Exp(peer, exponent, p).FillBytes(make([]byte, size)); err != nil || !bytes.Equal(shared, want) {
				t.Errorf("MODP-%d: secret %x of exponent %x with %x (error %v), math/big has %x", g.p.BitLen(), shared, x, peer, err, want)
			}
		}
	}
}

func draw(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// Wiping Private leaves no exponent behind, and what is left is no key: with an
// exponent of zero the secret would be 1, which everybody knows.
func TestMODPKeyPairIsWipedWithItsPrivate(t *testing.T) {
	m := method(t, ipsec.KEMODP2048)
	pair, err := m.Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	saved := pair.Private.Clone()
	back, err := m.Restore(saved)
	if err != nil {
		t.Fatal(err)
	}
	pair.Private.Wipe()
	if x := pair.key.(*modpKey).bytes(); !bytes.Equal(x, make([]byte, len(x))) {
		t.Error("the exponent outlives Private")
	}
	if s, err := pair.Shared(pair.Public); !errors.Is(err, errMODPWiped) || !s.IsZero() {
		t.Errorf("a wiped key pair made a secret of %d octets, error %v", s.Len(), err)
	}
	saved.Wipe() // the saved copy's owner does that, and the key pair lives on
	if _, err := back.Shared(pair.Public); err != nil {
		t.Error(err)
	}
}
