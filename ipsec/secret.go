package ipsec

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
)

// Secret holds key material. It prints as "[secret N bytes]" in every format
// and log, does not marshal, cannot be compared with ==, and can be wiped.
// The zero value is an empty secret.
//
// The octets sit behind a function because package fmt does not call the Format
// method of a value in an unexported field, but walks into it by reflection; a
// function is where that walk ends. It also makes Secret incomparable.
type Secret struct{ octets func() []byte }

// NewSecret takes ownership of b; the caller must not keep or change it.
func NewSecret(b []byte) Secret {
	if len(b) == 0 {
		return Secret{}
	}
	return Secret{octets: func() []byte { return b }}
}

// CopySecret returns a Secret holding a copy of b.
func CopySecret(b []byte) Secret { return NewSecret(append([]byte(nil), b...)) }

// Reveal returns the octets themselves, not a copy. Each call site is a place
// where a secret may leak: keep them few, and never log the result.
func (s Secret) Reveal() []byte {
	if s.octets == nil {
		return nil
	}
	return s.octets()
}

// Len is the number of octets.
func (s Secret) Len() int { return len(s.Reveal()) }

// IsZero reports whether the secret is empty.
func (s Secret) IsZero() bool { return s.octets == nil }

// Equal compares in constant time (the length is not hidden).
func (s Secret) Equal(o Secret) bool { return subtle.ConstantTimeCompare(s.Reveal(), o.Reveal()) == 1 }

// Clone returns an independent copy.
func (s Secret) Clone() Secret { return CopySecret(s.Reveal()) }

// Wipe overwrites the octets. Copies made by the runtime are out of reach.
func (s Secret) Wipe() { clear(s.Reveal()) }

func (s Secret) String() string { return fmt.Sprintf("[secret %d bytes]", s.Len()) }

// GoString keeps %#v from printing the octets.
func (s Secret) GoString() string { return s.String() }

// Format redacts every verb, %x and %s included.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// LogValue redacts in slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText redacts in every text encoding (JSON and YAML included).
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
