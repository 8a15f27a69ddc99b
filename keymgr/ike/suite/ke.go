package suite

import (
	"errors"
	"fmt"
	"io"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// ErrPeerPublic: the peer's Key Exchange Data fails a check that its method
// prescribes. RFC 6989 §2.5 says what follows: in IKE_SA_INIT the message is
// dropped, later the IKE SA is.
var ErrPeerPublic = errors.New("peer's public value is not acceptable")

// KEMethod is a key exchange method (RFC 9370; Diffie-Hellman group in
// RFC 7296). The initiator calls Generate, and Shared on the key pair with what
// came back; the responder calls Respond once. That covers Diffie-Hellman, where
// both public values are alike, and key encapsulation, where the responder
// answers a public key with a ciphertext.
type KEMethod struct {
	ID           uint16
	Slow         bool // a step costs half a millisecond or more: keep it off an event loop
	InitiatorLen int  // octets of the initiator's Key Exchange Data
	ResponderLen int  // octets of the responder's
	ops          keOps
}

// keOps is one family of methods.
type keOps interface {
	// generate draws a new private key.
	generate(random io.Reader) (privateKey, error)
	// parse reads what privateKey.bytes wrote.
	parse(private []byte) (privateKey, error)
	// respond answers an initiator's public value of the right length.
	respond(random io.Reader, peer []byte) (public, shared []byte, err error)
}

// privateKey is an initiator's half. Implementations are pointers to structs that
// keep what is secret behind a pointer; see doc.go.
type privateKey interface {
	bytes() []byte
	public() []byte // each call may compute it
	// finish takes a responder's public value of the right length.
	finish(peer []byte) (shared []byte, err error)
}

var keMethods = []KEMethod{
	{ID: ipsec.KEX25519, InitiatorLen: 32, ResponderLen: 32, ops: x25519Group{}},
	{ID: ipsec.KEP256, InitiatorLen: 64, ResponderLen: 64, ops: ecp256},
	{ID: ipsec.KEP384, Slow: true, InitiatorLen: 96, ResponderLen: 96, ops: ecp384},
	{ID: ipsec.KEP521, Slow: true, InitiatorLen: 132, ResponderLen: 132, ops: ecp521},
	{ID: ipsec.KEMODP1024, Slow: true, InitiatorLen: 128, ResponderLen: 128, ops: modp1024},
	{ID: ipsec.KEMODP1536, Slow: true, InitiatorLen: 192, ResponderLen: 192, ops: modp1536},
	{ID: ipsec.KEMODP2048, Slow: true, InitiatorLen: 256, ResponderLen: 256, ops: modp2048},
	{ID: ipsec.KEMODP3072, Slow: true, InitiatorLen: 384, ResponderLen: 384, ops: modp3072},
	{ID: ipsec.KEMODP4096, Slow: true, InitiatorLen: 512, ResponderLen: 512, ops: modp4096},
	{ID: ipsec.KEMODP6144, Slow: true, InitiatorLen: 768, ResponderLen: 768, ops: modp6144},
	{ID: ipsec.KEMODP8192, Slow: true, InitiatorLen: 1024, ResponderLen: 1024, ops: modp8192},
	{ID: ipsec.KEMLKEM512, InitiatorLen: 800, ResponderLen: 768, ops: mlkem512Group},
	{ID: ipsec.KEMLKEM768, InitiatorLen: 1184, ResponderLen: 1088, ops: mlkem768},
	{ID: ipsec.KEMLKEM1024, InitiatorLen: 1568, ResponderLen: 1568, ops: mlkem1024},
}

// LookupKE finds a key exchange method by its transform ID.
func LookupKE(id uint16) (KEMethod, bool) {
	for _, m := range keMethods {
		if m.ID == id {
			return m, true
		}
	}
	return KEMethod{}, false
}

// KeyPair is an initiator's half of an exchange that waits for its answer. It is
// a value: Method, Public and Private are what has to be saved. It serves one exchange; its owner wipes Private after it.
type KeyPair struct {
	Method  uint16
	Public  []byte // Key Exchange Data to send
	Private ipsec.Secret

	key privateKey // the parsed form of Private
}

// Generate draws a key pair for an initiator.
func (m KEMethod) Generate(random io.Reader) (KeyPair, error) {
	key, err := m.ops.generate(random)
	if err != nil {
		return KeyPair{}, fmt.Errorf("key pair for key exchange method %d: %w", m.ID, err)
	}
	p := m.pair(key)
	p.Public = key.public()
	return p, nil
}

// Restore makes the key pair of a saved private key, without Public: who has the one
// has the other, and computing it costs as much as the shared secret does.
func (m KEMethod) Restore(private ipsec.Secret) (KeyPair, error) {
	key, err := m.ops.parse(private.Reveal())
	if err != nil {
		return KeyPair{}, fmt.Errorf("private key of %d octets for key exchange method %d: %w", private.Len(), m.ID, err)
	}
	return m.pair(key), nil
}

func (m KEMethod) pair(key privateKey) KeyPair {
	return KeyPair{Method: m.ID, Private: ipsec.NewSecret(key.bytes()), key: key}
}

// Respond answers an initiator's public value: our Key Exchange Data, and the
// shared secret.
func (m KEMethod) Respond(random io.Reader, peer []byte) (public []byte, shared ipsec.Secret, err error) {
	if err := peerLength(m.ID, peer, m.InitiatorLen); err != nil {
		return nil, ipsec.Secret{}, err
	}
	public, s, err := m.ops.respond(random, peer)
	if err != nil {
		return nil, ipsec.Secret{}, fmt.Errorf("key exchange method %d: %w", m.ID, err)
	}
	return public, ipsec.NewSecret(s), nil
}

// Shared takes the responder's public value and returns the shared secret, of
// the fixed length that RFC 7296 §2.14 wants.
func (p KeyPair) Shared(peer []byte) (ipsec.Secret, error) {
	m, ok := LookupKE(p.Method)
	if !ok || p.key == nil {
		return ipsec.Secret{}, fmt.Errorf("key pair for key exchange method %d comes neither from Generate nor from Restore", p.Method)
	}
	if err := peerLength(m.ID, peer, m.ResponderLen); err != nil {
		return ipsec.Secret{}, err
	}
	s, err := p.key.finish(peer)
	if err != nil {
		return ipsec.Secret{}, fmt.Errorf("key exchange method %d: %w", m.ID, err)
	}
	return ipsec.NewSecret(s), nil
}

func peerLength(id uint16, peer []byte, want int) error {
	if len(peer) != want {
		return fmt.Errorf("%w: key exchange method %d got %d octets, want %d", ErrPeerPublic, id, len(peer), want)
	}
	return nil
}
