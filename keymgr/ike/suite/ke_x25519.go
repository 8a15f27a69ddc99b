package suite

import (
	"bytes"
	"fmt"
	"io"

	"filippo.io/edwards25519"
	"github.com/cloudflare/circl/dh/x25519"
)

// x25519Group is Curve25519 (RFC 8031): the ladder by CIRCL, and our public value, a
// multiple of the base point, by way of the Edwards curve, whose base point has a table
// (RFC 7748 §4.1 maps one to the other). Both take constant time. A responder does both
// for each IKE SA, which is most of what an IKE SA costs: 40 µs, where crypto/ecdh, with
// neither assembly for the ladder nor a table, takes 67.
type x25519Group struct{}

// x25519Key keeps the private key behind a pointer; see doc.go.
type x25519Key struct {
	private *x25519.Key
}

func (g x25519Group) generate(random io.Reader) (privateKey, error) {
	var b x25519.Key
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return nil, err
	}
	return g.parse(b[:])
}

// parse takes any 32 octets: the ladder clamps them (RFC 7748 §5).
func (x25519Group) parse(private []byte) (privateKey, error) {
	k := &x25519Key{private: new(x25519.Key)}
	if len(private) != x25519.Size {
		return nil, fmt.Errorf("want %d octets", x25519.Size)
	}
	copy(k.private[:], private)
	return k, nil
}

func (x25519Group) respond(random io.Reader, peer []byte) (public, shared []byte, err error) {
	private := new(x25519.Key)
	defer clear(private[:])
	if _, err := io.ReadFull(random, private[:]); err != nil {
		return nil, nil, err
	}
	if shared, err = agreeX25519(private, peer); err != nil {
		return nil, nil, err
	}
	return publicX25519(private), shared, nil
}

func (k *x25519Key) bytes() []byte { return bytes.Clone(k.private[:]) }

func (k *x25519Key) public() []byte { return publicX25519(k.private) }

func (k *x25519Key) finish(peer []byte) ([]byte, error) { return agreeX25519(k.private, peer) }

// publicX25519 multiplies the base point.
func publicX25519(private *x25519.Key) []byte {
	n, err := new(edwards25519.Scalar).SetBytesWithClamping(private[:])
	if err != nil {
		panic("suite: " + err.Error()) // its length is wrong, and cannot be
	}
	return new(edwards25519.Point).ScalarBaseMult(n).BytesMontgomery()
}

// agreeX25519 multiplies the peer's point, whose length was checked. It rejects one of
// low order, which gives an all-zero secret (RFC 7748 §6.1). Non-canonical values are
// accepted (RFC 8031 §3.2).
func agreeX25519(private *x25519.Key, peer []byte) ([]byte, error) {
	var shared, p x25519.Key
	copy(p[:], peer)
	if !x25519.Shared(&shared, private, &p) {
		return nil, fmt.Errorf("%w: a point of low order", ErrPeerPublic)
	}
	return shared[:], nil
}
