package suite

import (
	"bytes"
	"errors"

	"github.com/cloudflare/circl/kem/mlkem/mlkem512"
)

// ML-KEM-512 is CIRCL's: the standard library has the two larger sets only.
var mlkem512Group = &mlkemGroup{
	decapsulationKey: func(seed []byte) (decapsulator, error) {
		if len(seed) != mlkem512.KeySeedSize {
			return nil, errors.New("a seed of ML-KEM has 64 octets")
		}
		public, private := mlkem512.NewKeyFromSeed(seed)
		k := &key512{seed: bytes.Clone(seed), public: make([]byte, mlkem512.PublicKeySize), private: private}
		public.Pack(k.public)
		return k, nil
	},
	encapsulate: func(ek []byte) (shared, ciphertext []byte, err error) {
		var k mlkem512.PublicKey
		if err := k.Unpack(ek); err != nil {
			return nil, nil, err
		}
		shared, ciphertext = make([]byte, mlkem512.SharedKeySize), make([]byte, mlkem512.CiphertextSize)
		k.EncapsulateTo(ciphertext, shared, nil)
		return shared, ciphertext, nil
	},
}

// key512 is used by pointer, which formats as a number.
type key512 struct {
	seed, public []byte
	private      *mlkem512.PrivateKey
}

func (k *key512) Bytes() []byte                 { return k.seed }
func (k *key512) EncapsulationKeyBytes() []byte { return k.public }

func (k *key512) Decapsulate(ciphertext []byte) ([]byte, error) {
	if len(ciphertext) != mlkem512.CiphertextSize { // DecapsulateTo panics
		return nil, errors.New("a ciphertext of ML-KEM-512 has 768 octets")
	}
	shared := make([]byte, mlkem512.SharedKeySize)
	k.private.DecapsulateTo(shared, ciphertext)
	return shared, nil
}
