// Package store says what the key manager's local store keeps: records by key,
// changed in batches that are whole, and that outlive the process, before anything that
// follows from them leaves it. Who uses a store declares what it needs of one (see
// package engine); file and memory are the two that there are, and storetest is
// what both must pass.
//
// A batch need not outlive the machine's crash, but a store must know whether all did:
// records that are older than what was promised are worse than none.
//
// A store is for one process. It is not replicated, and it cannot tell by itself
// that an older copy of it was put back: see the package engine for who can.
package store

import "errors"

// Bounds of a record and of a batch.
const (
	MaxKey   = 512
	MaxValue = 1 << 20
	MaxBatch = 8 << 20 // octets of keys and values
)

// Change sets a record, or removes it when Value is nil. The store does not keep
// Value.
type Change struct {
	Key   string
	Value []byte
}

var (
	// ErrDamaged: records that were there cannot be read. What is left is older
	// than what was promised to others, so none of it may be used.
	ErrDamaged = errors.New("the stored state is damaged")
	// ErrLost: the machine went down before the store was closed, and the last batches
	// may be gone. None of it may be used.
	ErrLost = errors.New("the machine went down before the stored state was closed, and what was written last may be lost")
	// ErrWrongKey: it was sealed with another key.
	ErrWrongKey = errors.New("the stored state was sealed with another key")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("the store is closed")
	// ErrTooLarge: a record or batch is over its bound.
	ErrTooLarge = errors.New("record or batch too large")
)

// Check applies the bounds.
func Check(batch []Change) error {
	total := 0
	for _, c := range batch {
		if c.Key == "" || len(c.Key) > MaxKey || len(c.Value) > MaxValue {
			return ErrTooLarge
		}
		total += len(c.Key) + len(c.Value)
	}
	if total > MaxBatch {
		return ErrTooLarge
	}
	return nil
}
