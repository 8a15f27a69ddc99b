package suite

import (
	"crypto/ecdh"
	"errors"
	"fmt"
	"io"
)

// ecdhGroup is an ECP group (RFC 5903).
type ecdhGroup struct {
	curve   ecdh.Curve
	private int  // octets of a private key
	top     byte // mask of its first octet
	prefix  []byte
}

// RFC 5903 §7 sends x | y, which SEC 1 calls an uncompressed point once 4 is
// before it. The shared secret is x alone, which is what crypto/ecdh returns.
var uncompressed = []byte{4}

var (
	ecp256 = &ecdhGroup{curve: ecdh.P256(), private: 32, top: 0xff, prefix: uncompressed}
	ecp384 = &ecdhGroup{curve: ecdh.P384(), private: 48, top: 0xff, prefix: uncompressed}
	ecp521 = &ecdhGroup{curve: ecdh.P521(), private: 66, top: 0x01, prefix: uncompressed}
)

type ecdhKey struct {
	group *ecdhGroup
	key   *ecdh.PrivateKey
}

// generate draws octets until they are a scalar from 1 to the group order less
// one. A miss has a chance below 2^-32, so a few misses in a row mean that the
// random source is broken. crypto/ecdh could draw for itself, but it ignores the
// reader it is given.
func (g *ecdhGroup) generate(random io.Reader) (privateKey, error) {
	b := make([]byte, g.private)
	for range 8 {
		if _, err := io.ReadFull(random, b); err != nil {
			return nil, err
		}
		b[0] &= g.top
		if k, err := g.curve.NewPrivateKey(b); err == nil {
			return &ecdhKey{g, k}, nil
		}
	}
	return nil, errors.New("random source gave no valid private key in 8 draws; check it")
}

func (g *ecdhGroup) parse(private []byte) (privateKey, error) {
	k, err := g.curve.NewPrivateKey(private)
	if err != nil {
		return nil, err
	}
	return &ecdhKey{g, k}, nil
}

func (g *ecdhGroup) respond(random io.Reader, peer []byte) (public, shared []byte, err error) {
	return respondDH(g, random, peer)
}

// respondDH responds where both sides do the same.
func respondDH(o keOps, random io.Reader, peer []byte) (public, shared []byte, err error) {
	k, err := o.generate(random)
	if err != nil {
		return nil, nil, err
	}
	shared, err = k.finish(peer)
	return k.public(), shared, err
}

func (k *ecdhKey) bytes() []byte  { return k.key.Bytes() }
func (k *ecdhKey) public() []byte { return k.key.PublicKey().Bytes()[len(k.group.prefix):] }

// finish rejects a point that is not on the curve (RFC 6989 §2.3).
func (k *ecdhKey) finish(peer []byte) ([]byte, error) {
	point := append(append(make([]byte, 0, len(k.group.prefix)+len(peer)), k.group.prefix...), peer...)
	pub, err := k.group.curve.NewPublicKey(point)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPeerPublic, err)
	}
	shared, err := k.key.ECDH(pub)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPeerPublic, err)
	}
	return shared, nil
}
