package cred

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// PSKs finds pre-shared keys by reference.
type PSKs interface {
	// PSK returns the secrets behind ref, newest first: one, or two while a
	// rotation overlaps. They are the caller's own: wiping them harms nobody.
	// The error is an *Error.
	PSK(ctx context.Context, ref string) ([]ipsec.Secret, error)
}

const (
	// MinPSK is the least number of octets of a pre-shared key. Whoever can make
	// a peer answer one IKE_AUTH can guess at its key off line (RFC 7296 §2.15
	// asks for as much unpredictability as the strongest negotiated key has), so
	// anything below 128 bits is refused. Length is all that can be checked: the
	// advice in the error is to generate it.
	MinPSK = 16
	// MaxPSK bounds what is read into memory.
	MaxPSK = 1024
	// MaxEncoded is the longest text that can hold MaxPSK octets: "hex:", two
	// digits an octet, and a newline of two characters.
	MaxEncoded = 4 + 2*MaxPSK + 2
	// MaxCandidates is how many secrets one reference may stand for at a time:
	// the newest, and the one before it while a rotation overlaps.
	MaxCandidates = 2
)

// DecodePSK turns what a store holds into a secret: one trailing newline is
// dropped, "hex:" and "base64:" are decoded, anything else is the key itself.
// It does not keep text.
func DecodePSK(ref string, text []byte) (ipsec.Secret, error) {
	if len(text) > MaxEncoded {
		return ipsec.Secret{}, Errorf(Invalid, ref, "the secret is longer than %d octets of text", MaxEncoded)
	}
	text = bytes.TrimSuffix(text, []byte("\n"))
	text = bytes.TrimSuffix(text, []byte("\r"))

	var key []byte
	var err error
	if digits, ok := bytes.CutPrefix(text, []byte("hex:")); ok {
		key = make([]byte, hex.DecodedLen(len(digits)))
		// The errors of both decoders quote the text they stumble over: they are
		// dropped on purpose.
		if _, err = hex.Decode(key, digits); err != nil {
			return ipsec.Secret{}, Errorf(Invalid, ref, "what follows hex: is not an even number of hexadecimal digits")
		}
	} else if digits, ok := bytes.CutPrefix(text, []byte("base64:")); ok {
		key = make([]byte, base64.StdEncoding.DecodedLen(len(digits)))
		n, err := base64.StdEncoding.Decode(key, digits)
		if err != nil {
			return ipsec.Secret{}, Errorf(Invalid, ref, "what follows base64: is not padded standard base64")
		}
		key = key[:n]
	} else {
		key = bytes.Clone(text)
	}

	const advice = `generate one, for example with "openssl rand -base64 32"`
	switch {
	case len(key) < MinPSK:
		err = Errorf(TooWeak, ref, "the pre-shared key has %d octets, want at least %d: %s", len(key), MinPSK, advice)
	case len(key) > MaxPSK:
		err = Errorf(Invalid, ref, "the pre-shared key has %d octets, want at most %d", len(key), MaxPSK)
	case bytes.Count(key, key[:1]) == len(key):
		err = Errorf(TooWeak, ref, "the pre-shared key is one octet repeated: %s", advice)
	}
	if err != nil {
		clear(key)
		return ipsec.Secret{}, err
	}
	return ipsec.NewSecret(key), nil
}
