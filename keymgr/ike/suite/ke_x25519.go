package suite

import (
	"bytes"
	"fmt"
	"io"

	"github.com/cloudflare/circl/dh/x25519"
)

// x25519Group is Curve25519 (RFC 8031), by CIRCL. A responder does two
// multiplications for each IKE SA, which is most of what an IKE SA costs; with
// crypto/ecdh, which has no assembly for the ladder and no table for the base
// point, they took 150 µs where these take 50.
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

func (g x25519Group) respond(random io.Reader, peer []byte) (public, shared []byte, err error) {
	return respondDH(g, random, peer)
}

func (k *x25519Key) bytes() []byte { return bytes.Clone(k.private[:]) }

func (k *x25519Key) public() []byte {
	pub := new(x25519.Key)
	x25519.KeyGen(pub, k.private)
	return pub[:]
}

// finish rejects a point of low order, which gives an all-zero secret (RFC 7748
// §6.1). Non-canonical values are accepted (RFC 8031 §3.2).
func (k *x25519Key) finish(peer []byte) ([]byte, error) {
	var shared, p x25519.Key
	copy(p[:], peer) // its length was checked
	if !x25519.Shared(&shared, k.private, &p) {
		return nil, fmt.Errorf("%w: a point of low order", ErrPeerPublic)
	}
	return shared[:], nil
}
