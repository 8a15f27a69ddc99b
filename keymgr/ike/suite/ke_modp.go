package suite

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"filippo.io/bigmod"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// modpGroup is a MODP group of RFC 3526: a safe prime and the generator 2. Its
// arithmetic is bigmod's, in constant time, which that of math/big is not.
type modpGroup struct {
	p         *bigmod.Modulus
	generator *bigmod.Nat
	exponent  int // octets of a private key
}

// Exponents have the longer of the two sizes that RFC 3526 §8 estimates for each
// group; 1024 bits, which it does not list, have that of 1536.
var (
	modp1024 = newMODP(prime1024, 30)
	modp1536 = newMODP(prime1536, 30)
	modp2048 = newMODP(prime2048, 40)
	modp3072 = newMODP(prime3072, 53)
	modp4096 = newMODP(prime4096, 60)
	modp6144 = newMODP(prime6144, 68)
	modp8192 = newMODP(prime8192, 78)
)

func newMODP(prime string, exponent int) *modpGroup {
	octets, err := hex.DecodeString(prime)
	if err != nil {
		panic("suite: MODP prime is not hexadecimal")
	}
	p, err := bigmod.NewModulus(octets)
	if err != nil {
		panic("suite: MODP prime: " + err.Error())
	}
	return &modpGroup{p: p, generator: bigmod.NewNat().SetUint(2).ExpandFor(p), exponent: exponent}
}

type modpKey struct {
	group *modpGroup
	x     ipsec.Secret // the octets of KeyPair.Private, which wiping it wipes
}

// generate draws an exponent with its top bit set, which tells a live key from a
// wiped one.
func (g *modpGroup) generate(random io.Reader) (privateKey, error) {
	x := make([]byte, g.exponent)
	if _, err := io.ReadFull(random, x); err != nil {
		return nil, err
	}
	x[0] |= 0x80
	return g.key(x), nil
}

func (g *modpGroup) parse(private []byte) (privateKey, error) {
	if len(private) != g.exponent || private[0]&0x80 == 0 {
		return nil, fmt.Errorf("want %d octets with the top bit set", g.exponent)
	}
	return g.key(bytes.Clone(private)), nil
}

func (g *modpGroup) key(x []byte) *modpKey {
	return &modpKey{group: g, x: ipsec.NewSecret(x)}
}

// power takes the time that the group and the length of x ask for, whatever the
// base and x are. The result has the length of the modulus (RFC 7296 §2.14).
func (g *modpGroup) power(base *bigmod.Nat, x []byte) []byte {
	n := bigmod.NewNat().Exp(base, x, g.p)
	defer clear(n.Bits())
	return n.Bytes(g.p)
}

// peerValue checks 1 < r < p-1 (RFC 6989 §2.1), which in a safe-prime group
// leaves only values of large order. Its time tells no more than its answer.
func (g *modpGroup) peerValue(peer []byte) (*bigmod.Nat, error) {
	r, err := bigmod.NewNat().SetBytes(peer, g.p)
	if err != nil || r.IsZero()|r.IsOne()|r.IsMinusOne(g.p) != 0 {
		return nil, fmt.Errorf("%w: %w", ErrPeerPublic, errMODPRange)
	}
	return r, nil
}

// respond looks at the peer's value before it pays for a key, which it wipes.
func (g *modpGroup) respond(random io.Reader, peer []byte) (public, shared []byte, err error) {
	r, err := g.peerValue(peer)
	if err != nil {
		return nil, nil, err
	}
	key, err := g.generate(random)
	if err != nil {
		return nil, nil, err
	}
	x := key.bytes()
	defer clear(x)
	return key.public(), g.power(r, x), nil
}

// bytes are the key's own octets.
func (k *modpKey) bytes() []byte  { return k.x.Reveal() }
func (k *modpKey) public() []byte { return k.group.power(k.group.generator, k.x.Reveal()) }

func (k *modpKey) finish(peer []byte) ([]byte, error) {
	x := k.x.Reveal()
	if x[0]&0x80 == 0 {
		return nil, errMODPWiped
	}
	r, err := k.group.peerValue(peer)
	if err != nil {
		return nil, err
	}
	return k.group.power(r, x), nil
}

var (
	errMODPRange = errors.New("outside 1 < r < p-1 (RFC 6989 §2.1)")
	errMODPWiped = errors.New("the private key was wiped: a key pair serves one exchange")
)
