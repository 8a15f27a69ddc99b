// Package storetest is what every store must pass.
package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/testudo-ipsec/testudo/keymgr/store"
)

// Store is what package engine asks of a store.
type Store interface {
	Load(fn func(key string, value []byte) error) error
	Commit(batch []store.Change) error
	Close() error
}

// Run runs the suite. open opens the same store each time, as a new process would
// after the last one was closed or, with killed, died.
func Run(t *testing.T, open func(t *testing.T, killed Store) Store) {
	t.Run("Records", func(t *testing.T) { records(t, open) })
	t.Run("Bounds", func(t *testing.T) { bounds(t, open) })
	t.Run("ModelOverRestarts", func(t *testing.T) { model(t, open) })
}

// All reads a store.
func All(t *testing.T, s Store) map[string]string {
	t.Helper()
	got := make(map[string]string)
	if err := s.Load(func(k string, v []byte) error {
		if _, twice := got[k]; twice {
			t.Errorf("record %q was loaded twice", k)
		}
		got[k] = string(v)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func want(t *testing.T, s Store, w map[string]string) {
	t.Helper()
	if got := All(t, s); fmt.Sprint(got) != fmt.Sprint(w) {
		t.Fatalf("got records %v, want %v", got, w)
	}
}

func put(k, v string) store.Change { return store.Change{Key: k, Value: []byte(v)} }

func commit(t *testing.T, s Store, batch ...store.Change) {
	t.Helper()
	if err := s.Commit(batch); err != nil {
		t.Fatal(err)
	}
}

func records(t *testing.T, open func(*testing.T, Store) Store) {
	s := open(t, nil)
	want(t, s, map[string]string{})
	value := []byte("1")
	commit(t, s, store.Change{Key: "a", Value: value}, put("b", "2"), put("empty", ""))
	value[0] = 'x' // the store keeps a copy
	commit(t, s, put("a", "3"), store.Change{Key: "b"}, store.Change{Key: "never there"})
	w := map[string]string{"a": "3", "empty": ""}
	want(t, s, w)
	s = open(t, s) // killed
	want(t, s, w)
	commit(t, s, put("c", "4"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	w["c"] = "4"
	s = open(t, nil)
	want(t, s, w)
	stop := errors.New("stop")
	if err := s.Load(func(string, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Load went on after an error: %v", err)
	}
	commit(t, s, store.Change{Key: "a"}, store.Change{Key: "c"}, store.Change{Key: "empty"})
	want(t, s, map[string]string{})
}

func bounds(t *testing.T, open func(*testing.T, Store) Store) {
	s := open(t, nil)
	large := bytes.Repeat([]byte{1}, store.MaxValue)
	commit(t, s, store.Change{Key: string(bytes.Repeat([]byte{'k'}, store.MaxKey)), Value: large})
	var many []store.Change
	for i := range 9 {
		many = append(many, store.Change{Key: fmt.Sprint(i), Value: large})
	}
	for name, batch := range map[string][]store.Change{
		"no key": {put("", "x")}, "a long key": {put(string(bytes.Repeat([]byte{'k'}, store.MaxKey+1)), "x")},
		"a large value": {{Key: "k", Value: append(large, 1)}}, "a large batch": many,
	} {
		if err := s.Commit(append(batch, put("beside", "x"))); !errors.Is(err, store.ErrTooLarge) {
			t.Errorf("%s: got %v, want ErrTooLarge", name, err)
		}
	}
	if got := All(t, s); len(got) != 1 {
		t.Errorf("%d records after refused batches, want 1: all or nothing", len(got))
	}
}

// model compares with a map over random changes and restarts.
func model(t *testing.T, open func(*testing.T, Store) Store) {
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test that can be repeated
	s, w := open(t, nil), make(map[string]string)
	for k := range All(t, s) {
		commit(t, s, store.Change{Key: k})
	}
	for range 300 {
		var batch []store.Change
		for range r.IntN(5) + 1 {
			k := fmt.Sprint("key-", r.IntN(40))
			if r.IntN(3) == 0 {
				batch = append(batch, store.Change{Key: k})
				delete(w, k)
				continue
			}
			v := string(bytes.Repeat([]byte{byte(r.IntN(256))}, r.IntN(2000)))
			batch = append(batch, put(k, v))
			w[k] = v
		}
		commit(t, s, batch...)
		switch r.IntN(30) {
		case 0:
			s = open(t, s)
		case 1:
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, nil)
		}
	}
	want(t, s, w)
}
