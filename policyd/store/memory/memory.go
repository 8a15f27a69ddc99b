// Package memory is a store that lasts as long as its process.
package memory

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/store"
)

// kept is how many revisions are kept for Get, History and Watch.
const kept = 1024

// Store is a store in memory. Make one with New.
type Store struct {
	epoch uint64

	mu      sync.Mutex
	log     []entry       // the newest last; log[i+1] is one revision after log[i]
	changed chan struct{} // closed at the next commit
}

// entry is a commit and the state it made. Texts are shared and never changed.
type entry struct {
	event store.Event
	state map[store.Key][]byte
}

var _ store.Store = (*Store)(nil)

// New makes an empty store.
func New() *Store {
	s := &Store{epoch: uint64(time.Now().UnixNano()), changed: make(chan struct{})}
	s.log = []entry{{event: store.Event{Commit: store.Commit{Version: s.version(0)}}}}
	return s
}

func (s *Store) version(revision uint64) ipsec.Version {
	return ipsec.Version{Cluster: "memory", Epoch: s.epoch, Revision: revision}
}

func (s *Store) head() *entry { return &s.log[len(s.log)-1] }

func (e *entry) version() ipsec.Version { return e.event.Commit.Version }

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, c store.Change) (ipsec.Version, error) {
	if err := cmp.Or(c.Check(), ctx.Err()); err != nil {
		return ipsec.Version{}, fmt.Errorf("put policy: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	head := s.head()
	if c.Base != head.version() {
		return ipsec.Version{}, fmt.Errorf("put policy: %w", &store.ConflictError{Base: c.Base, Head: head.version()})
	}
	next := entry{state: maps.Clone(head.state)}
	if next.state == nil {
		next.state = map[store.Key][]byte{}
	}
	commit := store.Commit{Version: s.version(head.version().Revision + 1), Author: c.Author, Message: c.Message, Time: time.Now().UTC(), Deleted: slices.Clone(c.Delete)}
	for _, k := range c.Delete {
		delete(next.state, k)
	}
	for _, d := range c.Put {
		d.Text = bytes.Clone(d.Text)
		next.state[d.Key] = d.Text
		commit.Put = append(commit.Put, d.Key)
		next.event.Put = append(next.event.Put, d)
	}
	next.event.Commit = commit
	if s.log = append(s.log, next); len(s.log) > kept {
		s.compact(len(s.log) - kept)
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return commit.Version, nil
}

func (s *Store) compact(n int) { s.log = slices.Clone(s.log[n:]) }

// Compact forgets the revisions before this one.
func (s *Store) Compact(revision uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first := s.log[0].version().Revision; revision > first && revision <= s.head().version().Revision {
		s.compact(int(revision - first))
	}
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, revision uint64) (store.Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return store.Snapshot{}, fmt.Errorf("get policy: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.head()
	if first := s.log[0].version().Revision; revision != 0 {
		if revision > e.version().Revision {
			return store.Snapshot{}, fmt.Errorf("get policy: revision %d is after the head %s", revision, e.version())
		}
		if revision < first {
			return store.Snapshot{}, fmt.Errorf("get policy at revision %d: %w", revision, store.ErrCompacted)
		}
		e = &s.log[revision-first]
	}
	return store.Snapshot{Version: e.version(), Documents: store.Sorted(e.state)}, nil
}

// History implements store.Store.
func (s *Store) History(ctx context.Context, limit int) ([]store.Commit, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("policy history: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []store.Commit
	for i := len(s.log) - 1; i >= 0 && len(out) < limit && s.log[i].version().Revision > 0; i-- {
		out = append(out, s.log[i].event.Commit)
	}
	return out, nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, from ipsec.Version, f func(store.Event) error) error {
	for {
		events, changed := s.after(from)
		for _, e := range events {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f(e); err != nil {
				return err
			}
			from = e.Commit.Version
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// after is what a watcher at from has not seen, and what tells of more.
func (s *Store) after(from ipsec.Version) ([]store.Event, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	head, first := s.head(), s.log[0].version().Revision
	if from != s.version(from.Revision) || from.Revision > head.version().Revision || from.Revision < first {
		reset := store.Event{Commit: head.event.Commit, Reset: true, Put: store.Sorted(head.state)}
		reset.Commit.Put, reset.Commit.Deleted = nil, nil
		return []store.Event{reset}, s.changed
	}
	var out []store.Event
	for _, e := range s.log[from.Revision-first+1:] {
		out = append(out, e.event)
	}
	return out, s.changed
}
