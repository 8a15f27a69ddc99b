package ipsec

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
)

// Secret holds key material. It prints as "[secret N bytes]" in every format
// and log, does not marshal, cannot be compared with ==, and can be wiped.
// The zero value is an empty secret.
type Secret struct {
	_ [0]func() // makes Secret incomparable, so that == does not compile
	b []byte
}

// NewSecret takes ownership of b; the caller must not keep or change it.
func NewSecret(b []byte) Secret { return Secret{b: b} }

// CopySecret returns a Secret holding a copy of b.
func CopySecret(b []byte) Secret { return Secret{b: append([]byte(nil), b...)} }

// Reveal returns the octets themselves, not a copy. Each call site is a place
// where a secret may leak: keep them few, and never log the result.
func (s Secret) Reveal() []byte { return s.b }

// Len is the number of octets.
func (s Secret) Len() int { return len(s.b) }

// IsZero reports whether the secret is empty.
func (s Secret) IsZero() bool { return len(s.b) == 0 }

// Equal compares in constant time (the length is not hidden).
func (s Secret) Equal(o Secret) bool { return subtle.ConstantTimeCompare(s.b, o.b) == 1 }

// Clone returns an independent copy.
func (s Secret) Clone() Secret { return CopySecret(s.b) }

// Wipe overwrites the octets. Copies made by the runtime are out of reach.
func (s Secret) Wipe() { clear(s.b) }

func (s Secret) String() string { return fmt.Sprintf("[secret %d bytes]", len(s.b)) }

// GoString keeps %#v from printing the octets.
func (s Secret) GoString() string { return s.String() }

// Format redacts every verb, %x and %s included.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// LogValue redacts in slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText redacts in every text encoding (JSON and YAML included).
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
