//go:build testudo_null_cipher

package esp

import (
	"crypto/cipher"
	"errors"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// A build with this tag does everything but the cipher: what it measures is the
// cost of the rest. It protects nothing and talks to nobody but itself; no
// target of the Makefile installs it.
func init() {
	aeads[ipsec.EncrAESGCM16] = func([]byte, int) (cipher.AEAD, error) { return nullAEAD{}, nil }
}

type nullAEAD struct{}

var errNullTag = errors.New("no tag of the null cipher")

func (nullAEAD) NonceSize() int { return 12 }
func (nullAEAD) Overhead() int  { return 16 }

func (nullAEAD) Seal(dst, _, plaintext, _ []byte) []byte {
	var tag [16]byte
	return append(append(dst, plaintext...), tag[:]...)
}

func (nullAEAD) Open(dst, _, ciphertext, _ []byte) ([]byte, error) {
	if len(ciphertext) < 16 || ciphertext[len(ciphertext)-1] != 0 {
		return nil, errNullTag
	}
	return append(dst, ciphertext[:len(ciphertext)-16]...), nil
}
