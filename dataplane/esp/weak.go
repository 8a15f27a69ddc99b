package esp

import (
	"crypto/cipher"
	"crypto/des"
	"encoding/binary"
	"errors"
)

// newDES refuses the weak and semi-weak keys, which RFC 2405 §4.1 asks for. (3DES
// needs no such check: RFC 2451 §2.3.)
func newDES(key []byte) (cipher.Block, error) {
	if len(key) != 8 {
		return nil, des.KeySizeError(len(key))
	}
	const parity = 0x0101010101010101
	k := binary.BigEndian.Uint64(key) &^ parity
	for _, w := range weakDES {
		if k == w&^parity {
			return nil, errors.New("a weak DES key: a new one is needed (RFC 2405 §4.1)")
		}
	}
	return des.NewCipher(key)
}

// weakDES are the 4 weak and the 12 semi-weak keys, with odd parity.
var weakDES = [16]uint64{
	0x0101010101010101, 0xfefefefefefefefe, 0xe0e0e0e0f1f1f1f1, 0x1f1f1f1f0e0e0e0e,
	0x011f011f010e010e, 0x1f011f010e010e01, 0x01e001e001f101f1, 0xe001e001f101f101,
	0x01fe01fe01fe01fe, 0xfe01fe01fe01fe01, 0x1fe01fe00ef10ef1, 0xe01fe01ff10ef10e,
	0x1ffe1ffe0efe0efe, 0xfe1ffe1ffe0efe0e, 0xe0fee0fef1fef1fe, 0xfee0fee0fef1fef1,
}
