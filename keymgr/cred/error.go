package cred

import (
	"errors"
	"fmt"
)

// Kind is what went wrong, as far as the caller has to care. It is an error
// itself: errors.Is(err, cred.NotFound).
type Kind string

const (
	NotFound    Kind = "secret not found"     // the store answered: there is none
	Unavailable Kind = "unavailable"          // nobody could say; try again later
	Denied      Kind = "secret access denied" // the store refuses this key manager
	Invalid     Kind = "secret is not usable" // a reference or a value that cannot be read
	TooWeak     Kind = "secret is too weak"   // below MinPSK; a key below what policy allows
	Refused     Kind = "certificate refused"  // a peer's certificates do not prove its identity
)

func (k Kind) Error() string { return string(k) }

// Error is the error of every function in this package and its stores. It
// holds references and reasons, never a secret or a token.
type Error struct {
	Kind Kind
	Ref  string // empty when no reference is concerned (a login)
	Why  string // what was got, what was wanted, what to do
	Err  error  // the cause, when it is worth unwrapping
}

// Errorf makes an Error. A %w in format becomes its cause.
func Errorf(kind Kind, ref, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Ref: ref, Why: err.Error(), Err: errors.Unwrap(err)}
}

func (e *Error) Error() string {
	if e.Ref == "" {
		return fmt.Sprintf("%s: %s", e.Kind, e.Why)
	}
	return fmt.Sprintf("%s: %s: %s", e.Ref, e.Kind, e.Why)
}

// Unwrap makes errors.Is true for the kind and for the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// KindOf is the kind of err; Unavailable for an error that has none, since
// nothing definite is known then.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Unavailable
}

// Retryable reports whether the same question may get a better answer soon.
func Retryable(err error) bool { return err != nil && KindOf(err) == Unavailable }
