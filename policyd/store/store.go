// Package store keeps policy documents. A change puts and deletes any number of
// them at once, on top of the state its author saw, and makes a new revision
// that can be read, listed and watched.
//
// There are two implementations, memory and etcd. storetest is what both pass.
package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Store is a store of documents. Its methods may be called at the same time.
type Store interface {
	// Put applies a change and returns the version it made. It fails with a
	// *ConflictError when the head is not c.Base, and then nothing is changed.
	Put(ctx context.Context, c Change) (ipsec.Version, error)

	// Get reads the state at a revision, 0 for the newest. It fails with
	// ErrCompacted when that revision is no longer kept.
	Get(ctx context.Context, revision uint64) (Snapshot, error)

	// History lists the newest commits, the newest first, at most limit.
	History(ctx context.Context, limit int) ([]Commit, error)

	// Watch calls f for each commit after from, in order and without gaps, until
	// ctx ends or f fails, and returns why. When it cannot continue from there
	// (the zero version, another cluster or epoch, a compacted revision) it calls
	// f with a Reset event, which holds the complete state. Whoever wants to go
	// on after an error calls Watch again with the last version it was given.
	Watch(ctx context.Context, from ipsec.Version, f func(Event) error) error
}

// Key names a document.
type Key struct {
	Kind string
	Name string
}

func (k Key) String() string { return k.Kind + "/" + k.Name }

// Compare orders keys by kind and name.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Kind, o.Kind), cmp.Compare(k.Name, o.Name))
}

// Document is the text of one document.
type Document struct {
	Key
	Text []byte
}

// Change is what Put applies.
type Change struct {
	Base    ipsec.Version // the head that the change was made for
	Author  string
	Message string
	Put     []Document
	Delete  []Key // a key that is not there is ignored
}

// Commit is a change that was made.
type Commit struct {
	Version ipsec.Version
	Author  string
	Message string
	Time    time.Time
	Put     []Key
	Deleted []Key
}

// Snapshot is the state at one version. Documents are sorted by key.
type Snapshot struct {
	Version   ipsec.Version
	Documents []Document
}

// Event is one commit with the new texts; or, when Reset is set, the complete
// state at Commit.Version, which replaces whatever was known before.
type Event struct {
	Commit Commit
	Reset  bool
	Put    []Document
}

var (
	// ErrCompacted is a revision that is no longer kept.
	ErrCompacted = errors.New("revision is no longer kept")
	// ErrNoChange is a change that puts and deletes nothing.
	ErrNoChange = errors.New("the change puts and deletes nothing")
)

// ConflictError is a change that was made for a state that is not the head.
type ConflictError struct{ Base, Head ipsec.Version }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("the change was made for version %s and the head is %s; plan it again on the head", e.Base, e.Head)
}

// Limits of one change: what one etcd transaction holds with its default
// settings (--max-txn-ops 128, --max-request-bytes 1.5 MiB).
const (
	MaxDocuments = 3000
	MaxOctets    = 1 << 20
)

// Check reports a change that no store takes.
func (c Change) Check() error {
	if len(c.Put)+len(c.Delete) == 0 {
		return ErrNoChange
	}
	if n := len(c.Put) + len(c.Delete); n > MaxDocuments {
		return fmt.Errorf("the change touches %d documents, want at most %d; apply it in parts", n, MaxDocuments)
	}
	seen, octets := map[Key]bool{}, len(c.Author)+len(c.Message)
	check := func(k Key) error {
		if k.Kind == "" || k.Name == "" || strings.ContainsAny(k.Kind+k.Name, "/\x00") {
			return fmt.Errorf("document key %q: want a kind and a name, without '/'", k)
		}
		if seen[k] {
			return fmt.Errorf("document %s is in the change twice", k)
		}
		seen[k] = true
		octets += 2 * len(k.String()) // once more in the history
		return nil
	}
	for _, d := range c.Put {
		if err := check(d.Key); err != nil {
			return err
		}
		octets += len(d.Text)
	}
	for _, k := range c.Delete {
		if err := check(k); err != nil {
			return err
		}
	}
	if octets > MaxOctets {
		return fmt.Errorf("the change has %d octets, want at most %d; apply it in parts", octets, MaxOctets)
	}
	return nil
}

// ChangeTo is what has to be put and deleted to turn the snapshot into exactly
// these documents. Documents that are the same already are left out.
func (s Snapshot) ChangeTo(docs []Document) Change {
	c := Change{Base: s.Version}
	want := map[Key]bool{}
	for _, d := range docs {
		want[d.Key] = true
		i, ok := slices.BinarySearchFunc(s.Documents, d.Key, func(x Document, k Key) int { return x.Key.Compare(k) })
		if !ok || !bytes.Equal(s.Documents[i].Text, d.Text) {
			c.Put = append(c.Put, d)
		}
	}
	for _, d := range s.Documents {
		if !want[d.Key] {
			c.Delete = append(c.Delete, d.Key)
		}
	}
	return c
}

// Apply is the snapshot after an event.
func (s Snapshot) Apply(e Event) Snapshot {
	next := map[Key][]byte{}
	if !e.Reset {
		for _, d := range s.Documents {
			next[d.Key] = d.Text
		}
	}
	for _, k := range e.Commit.Deleted {
		delete(next, k)
	}
	for _, d := range e.Put {
		next[d.Key] = d.Text
	}
	return Snapshot{e.Commit.Version, Sorted(next)}
}

// Sorted lists documents by key.
func Sorted(m map[Key][]byte) []Document {
	out := make([]Document, 0, len(m))
	for k, text := range m {
		out = append(out, Document{k, text})
	}
	slices.SortFunc(out, func(a, b Document) int { return a.Key.Compare(b.Key) })
	return out
}
