package suite

import (
	"crypto/mlkem"
	"fmt"
	"io"
)

// mlkemGroup is a parameter set of ML-KEM (FIPS 203), as
// draft-ietf-ipsecme-ikev2-mlkem uses it: the initiator's Key Exchange Data is
// the encapsulation key, the responder's is the ciphertext.
type mlkemGroup struct {
	// decapsulationKey expands the 64-octet seed d | z of FIPS 203 §7.1.
	decapsulationKey func(seed []byte) (decapsulator, error)
	// encapsulate checks the key (FIPS 203 §7.2) and encapsulates to it.
	encapsulate func(ek []byte) (shared, ciphertext []byte, err error)
}

type decapsulator interface {
	Bytes() []byte // the seed
	Decapsulate(ciphertext []byte) ([]byte, error)
	EncapsulationKeyBytes() []byte
}

var mlkem768 = &mlkemGroup{
	decapsulationKey: func(seed []byte) (decapsulator, error) {
		k, err := mlkem.NewDecapsulationKey768(seed)
		if err != nil {
			return nil, err
		}
		return key768{k}, nil
	},
	encapsulate: func(ek []byte) (shared, ciphertext []byte, err error) {
		k, err := mlkem.NewEncapsulationKey768(ek)
		if err != nil {
			return nil, nil, err
		}
		shared, ciphertext = k.Encapsulate()
		return shared, ciphertext, nil
	},
}

var mlkem1024 = &mlkemGroup{
	decapsulationKey: func(seed []byte) (decapsulator, error) {
		k, err := mlkem.NewDecapsulationKey1024(seed)
		if err != nil {
			return nil, err
		}
		return key1024{k}, nil
	},
	encapsulate: func(ek []byte) (shared, ciphertext []byte, err error) {
		k, err := mlkem.NewEncapsulationKey1024(ek)
		if err != nil {
			return nil, nil, err
		}
		shared, ciphertext = k.Encapsulate()
		return shared, ciphertext, nil
	},
}

type key768 struct{ *mlkem.DecapsulationKey768 }
type key1024 struct{ *mlkem.DecapsulationKey1024 }

func (k key768) EncapsulationKeyBytes() []byte  { return k.EncapsulationKey().Bytes() }
func (k key1024) EncapsulationKeyBytes() []byte { return k.EncapsulationKey().Bytes() }

type mlkemKey struct{ key decapsulator }

func (g *mlkemGroup) generate(random io.Reader) (privateKey, error) {
	seed := make([]byte, mlkem.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		return nil, err
	}
	return g.parse(seed)
}

func (g *mlkemGroup) parse(seed []byte) (privateKey, error) {
	k, err := g.decapsulationKey(seed)
	if err != nil {
		return nil, err
	}
	return &mlkemKey{k}, nil
}

func (g *mlkemGroup) respond(_ io.Reader, peer []byte) (public, shared []byte, err error) {
	shared, ciphertext, err := g.encapsulate(peer)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrPeerPublic, err)
	}
	return ciphertext, shared, nil
}

func (k *mlkemKey) bytes() []byte  { return k.key.Bytes() }
func (k *mlkemKey) public() []byte { return k.key.EncapsulationKeyBytes() }

// finish never learns that a ciphertext was forged: ML-KEM then returns a
// pseudorandom secret (FIPS 203 §6.3), and AUTH fails.
func (k *mlkemKey) finish(ciphertext []byte) ([]byte, error) {
	shared, err := k.key.Decapsulate(ciphertext)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPeerPublic, err)
	}
	return shared, nil
}
