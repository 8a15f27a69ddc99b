package suite

import (
	"errors"
	"fmt"
	"io"
	"math/big"
)

// modpGroup is a MODP group of RFC 3526: a safe prime and the generator 2.
type modpGroup struct {
	p        *big.Int
	pLess1   *big.Int
	size     int // octets of the modulus, of a public value and of the secret
	exponent int // octets of a private key
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

var generator = big.NewInt(2)

func newMODP(hex string, exponent int) *modpGroup {
	p, ok := new(big.Int).SetString(hex, 16)
	if !ok {
		panic("suite: MODP prime is not hexadecimal")
	}
	return &modpGroup{p: p, pLess1: new(big.Int).Sub(p, big.NewInt(1)), size: (p.BitLen() + 7) / 8, exponent: exponent}
}

type modpKey struct {
	group *modpGroup
	x     *big.Int
	y     []byte
}

// generate draws an exponent with its top bit set, so that all have one length
// and the time of an exponentiation does not tell it.
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
	return g.key(private), nil
}

func (g *modpGroup) key(exponent []byte) *modpKey {
	x := new(big.Int).SetBytes(exponent)
	y := new(big.Int).Exp(generator, x, g.p)
	return &modpKey{group: g, x: x, y: y.FillBytes(make([]byte, g.size))}
}

func (g *modpGroup) respond(random io.Reader, peer []byte) (public, shared []byte, err error) {
	return respondDH(g, random, peer)
}

func (k *modpKey) bytes() []byte  { return k.x.FillBytes(make([]byte, k.group.exponent)) }
func (k *modpKey) public() []byte { return k.y }

// finish checks 1 < r < p-1 (RFC 6989 §2.1), which in a safe-prime group leaves
// only values of large order. The secret is padded to the length of the modulus
// (RFC 7296 §2.14).
func (k *modpKey) finish(peer []byte) ([]byte, error) {
	g := k.group
	r := new(big.Int).SetBytes(peer)
	if r.Cmp(big.NewInt(1)) <= 0 || r.Cmp(g.pLess1) >= 0 {
		return nil, fmt.Errorf("%w: %w", ErrPeerPublic, errMODPRange)
	}
	s := r.Exp(r, k.x, g.p)
	return s.FillBytes(make([]byte, g.size)), nil
}

var errMODPRange = errors.New("outside 1 < r < p-1 (RFC 6989 §2.1)")
