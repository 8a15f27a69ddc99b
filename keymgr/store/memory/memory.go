// Package memory is a store for tests: it outlives whoever uses it, not the process.
package memory

import (
	"bytes"
	"maps"
	"slices"
	"sync"

	"github.com/testudo-ipsec/testudo/keymgr/store"
)

// Store is a store in memory. The zero value is empty.
type Store struct {
	mu      sync.Mutex
	records map[string][]byte
	commits int

	// Before, when set, is called before each Commit; its error is Commit's.
	Before func([]store.Change) error
}

// Load calls fn with each record, in the order of keys.
func (s *Store) Load(fn func(key string, value []byte) error) error {
	s.mu.Lock()
	records := maps.Clone(s.records)
	s.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(records)) {
		if err := fn(k, bytes.Clone(records[k])); err != nil {
			return err
		}
	}
	return nil
}

// Commit applies a batch.
func (s *Store) Commit(batch []store.Change) error {
	if err := store.Check(batch); err != nil {
		return err
	}
	if s.Before != nil {
		if err := s.Before(batch); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records == nil {
		s.records = make(map[string][]byte)
	}
	s.commits++
	for _, c := range batch {
		if c.Value == nil {
			delete(s.records, c.Key)
		} else {
			s.records[c.Key] = append([]byte{}, c.Value...)
		}
	}
	return nil
}

// Close does nothing: the next user finds what was committed.
func (s *Store) Close() error { return nil }

// Copy is what a backup would hold.
func (s *Store) Copy() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Store{records: maps.Clone(s.records)}
}

// Len counts records.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.records)
}

// Commits counts batches.
func (s *Store) Commits() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commits
}
