// Package storetest is what every store of policy documents must do.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/store"
)

// Opened is one empty store under test.
type Opened struct {
	Store   store.Store
	Compact func(revision uint64) // forgets the revisions before this one
	Noise   func()                // a write to the same backend that is not policy; nil if there is none
}

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// Run runs the suite; open makes a store that ends with the test.
func Run(t *testing.T, open func(t *testing.T) Opened) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, o Opened)
	}{
		{"AnEmptyStoreHasRevisionZero", empty},
		{"PutIsReadBackSorted", putAndGet},
		{"AChangeForAnotherHeadIsAConflict", conflict},
		{"OfManyWritersEachPutTakesEffectOnce", race},
		{"AFailedChangeChangesNothing", refused},
		{"OldRevisionsCanBeRead", oldRevisions},
		{"CompactedRevisionsAreSaidToBe", compacted},
		{"HistoryTellsWhoAndWhy", history},
		{"AWatchMissesNothing", watch},
		{"AWatchResumesWithoutReset", resume},
		{"AWatchFromElsewhereStartsWithEverything", foreign},
		{"AWatchFromACompactedRevisionStartsWithEverything", compactedWatch},
		{"AWatchEndsWithItsContextAndItsCallback", watchEnds},
		{"ALargeChangeIsOneCommit", large},
		{"ChangeToMakesExactlyTheSet", changeTo},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
}

func doc(name, text string) store.Document {
	return store.Document{Key: store.Key{Kind: "Node", Name: name}, Text: []byte(text)}
}

func key(name string) store.Key { return store.Key{Kind: "Node", Name: name} }

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func (o Opened) get(t *testing.T, revision uint64) store.Snapshot {
	t.Helper()
	s, err := o.Store.Get(within(t), revision)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (o Opened) put(t *testing.T, c store.Change) ipsec.Version {
	t.Helper()
	if c.Base == (ipsec.Version{}) {
		c.Base = o.get(t, 0).Version
	}
	v, err := o.Store.Put(within(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (o Opened) set(t *testing.T, name, text string) ipsec.Version {
	t.Helper()
	return o.put(t, store.Change{Author: "anna", Message: name + "=" + text, Put: []store.Document{doc(name, text)}})
}

func want[T any](t *testing.T, what string, got, expected T) {
	t.Helper()
	if !reflect.DeepEqual(got, expected) {
		t.Fatalf("%s: got %v, want %v", what, got, expected)
	}
}

func texts(s store.Snapshot) string {
	out := ""
	for _, d := range s.Documents {
		out += fmt.Sprintf("%s=%s ", d.Key, d.Text)
	}
	return out
}

func empty(t *testing.T, o Opened) {
	s := o.get(t, 0)
	if s.Version.Revision != 0 || s.Version.Cluster == "" || s.Version.Epoch == 0 || len(s.Documents) != 0 {
		t.Fatalf("got %+v, want revision 0 of a named cluster and epoch, without documents", s)
	}
	h, err := o.Store.History(within(t), 10)
	if err != nil || len(h) != 0 {
		t.Fatalf("history: got %v, %v", h, err)
	}
}

func putAndGet(t *testing.T, o Opened) {
	v1 := o.put(t, store.Change{Put: []store.Document{doc("b", "1"), doc("a", "1"), {Key: store.Key{Kind: "Assignment", Name: "z"}, Text: []byte("1")}}})
	want(t, "version", o.get(t, 0).Version, v1)
	v2 := o.put(t, store.Change{Put: []store.Document{doc("a", "2")}, Delete: []store.Key{key("b"), key("not-there")}})
	s := o.get(t, 0)
	want(t, "version", s.Version, v2)
	want(t, "documents", texts(s), "Assignment/z=1 Node/a=2 ")
	if v2.Revision <= v1.Revision || v2.Cluster != v1.Cluster || v2.Epoch != v1.Epoch {
		t.Fatalf("version %s does not follow %s", v2, v1)
	}
}

func conflict(t *testing.T, o Opened) {
	base := o.get(t, 0).Version
	v1 := o.set(t, "a", "1")
	other := v1
	other.Epoch++
	for _, b := range []ipsec.Version{base, {}, {Revision: v1.Revision}, other} {
		_, err := o.Store.Put(within(t), store.Change{Base: b, Put: []store.Document{doc("a", "lost")}})
		var c *store.ConflictError
		if !errors.As(err, &c) || c.Head != v1 || c.Base != b {
			t.Fatalf("base %s: got %v, want a conflict with head %s", b, err, v1)
		}
	}
	want(t, "documents", texts(o.get(t, 0)), "Node/a=1 ")
}

// Eight writers each add one to their own document 5 times, planning again on
// every conflict.
func race(t *testing.T, o Opened) {
	ctx := within(t)
	const writers, rounds = 8, 5
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := 0; n < rounds; {
				s, err := o.Store.Get(ctx, 0)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = o.Store.Put(ctx, store.Change{Base: s.Version, Put: []store.Document{doc(fmt.Sprint("w", w), fmt.Sprint(n))}})
				var c *store.ConflictError
				if err != nil && !errors.As(err, &c) {
					t.Error(err)
					return
				}
				if err == nil {
					n++
				}
			}
		})
	}
	wg.Wait()
	h, err := o.Store.History(ctx, 1000)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "commits", len(h), writers*rounds)
	want(t, "documents", len(o.get(t, 0).Documents), writers)
}

func refused(t *testing.T, o Opened) {
	v := o.set(t, "a", "1")
	big := make([]byte, store.MaxOctets+1)
	many := make([]store.Document, store.MaxDocuments+1)
	for i := range many {
		many[i] = doc(fmt.Sprint("n", i), "")
	}
	for name, c := range map[string]store.Change{
		"nothing":       {},
		"twice":         {Put: []store.Document{doc("a", "2"), doc("a", "3")}},
		"put and erase": {Put: []store.Document{doc("a", "2")}, Delete: []store.Key{key("a")}},
		"no name":       {Put: []store.Document{doc("", "2")}},
		"slash":         {Put: []store.Document{doc("a/b", "2")}},
		"too large":     {Put: []store.Document{doc("a", string(big))}},
		"too many":      {Put: many},
	} {
		c.Base = v
		if _, err := o.Store.Put(within(t), c); err == nil {
			t.Errorf("%s: was taken, want an error", name)
		}
	}
	want(t, "version", o.get(t, 0).Version, v)
	want(t, "documents", texts(o.get(t, 0)), "Node/a=1 ")
}

func oldRevisions(t *testing.T, o Opened) {
	v1 := o.set(t, "a", "1")
	v2 := o.set(t, "a", "2")
	o.put(t, store.Change{Delete: []store.Key{key("a")}})
	for v, expected := range map[ipsec.Version]string{v1: "Node/a=1 ", v2: "Node/a=2 "} {
		s := o.get(t, v.Revision)
		want(t, "version", s.Version, v)
		want(t, "documents", texts(s), expected)
	}
	if _, err := o.Store.Get(within(t), o.get(t, 0).Version.Revision+1000); err == nil || errors.Is(err, store.ErrCompacted) {
		t.Fatalf("a future revision: got %v, want an error of its own", err)
	}
}

func compacted(t *testing.T, o Opened) {
	v1 := o.set(t, "a", "1")
	v2 := o.set(t, "a", "2")
	o.Compact(v2.Revision)
	if _, err := o.Store.Get(within(t), v1.Revision); !errors.Is(err, store.ErrCompacted) {
		t.Fatalf("got %v, want ErrCompacted", err)
	}
	want(t, "documents", texts(o.get(t, v2.Revision)), "Node/a=2 ")
}

func history(t *testing.T, o Opened) {
	before := time.Now().Add(-time.Second)
	v1 := o.put(t, store.Change{Author: "anna", Message: "add a and b", Put: []store.Document{doc("a", "1"), doc("b", "1")}})
	v2 := o.put(t, store.Change{Author: "ben", Message: "drop b", Delete: []store.Key{key("b")}})
	h, err := o.Store.History(within(t), 10)
	if err != nil || len(h) != 2 {
		t.Fatalf("got %v, %v, want two commits", h, err)
	}
	for _, c := range h {
		if c.Time.Before(before) || c.Time.After(time.Now().Add(time.Second)) {
			t.Errorf("commit time %s is not now", c.Time)
		}
	}
	h[0].Time, h[1].Time = time.Time{}, time.Time{}
	want(t, "newest", h[0], store.Commit{Version: v2, Author: "ben", Message: "drop b", Deleted: []store.Key{key("b")}})
	want(t, "oldest", h[1], store.Commit{Version: v1, Author: "anna", Message: "add a and b", Put: []store.Key{key("a"), key("b")}})
	for limit, n := range map[int]int{1: 1, 0: 0} {
		h, err = o.Store.History(within(t), limit)
		if err != nil || len(h) != n {
			t.Fatalf("limit %d: got %d commits, %v", limit, len(h), err)
		}
	}
}

// watching collects the events of a watch until stop.
type watching struct {
	events chan store.Event
	done   chan error
	stop   context.CancelFunc
}

func (o Opened) watch(t *testing.T, from ipsec.Version) *watching {
	ctx, cancel := context.WithCancel(t.Context())
	w := &watching{make(chan store.Event, 1000), make(chan error, 1), cancel}
	go func() {
		w.done <- o.Store.Watch(ctx, from, func(e store.Event) error { w.events <- e; return nil })
	}()
	t.Cleanup(func() {
		cancel()
		if w.done != nil {
			<-w.done //nolint:errcheck // the test ended: why no longer matters
		}
	})
	return w
}

func (w *watching) next(t *testing.T) store.Event {
	t.Helper()
	select {
	case e := <-w.events:
		return e
	case err := <-w.done:
		w.done = nil
		t.Fatalf("the watch ended: %v", err)
	case <-time.After(patience):
		t.Fatal("no event came")
	}
	return store.Event{}
}

func watch(t *testing.T, o Opened) {
	w := o.watch(t, o.get(t, 0).Version)
	mirror := store.Snapshot{}
	for i := range 20 {
		if o.Noise != nil {
			o.Noise()
		}
		c := store.Change{Author: "anna", Message: fmt.Sprint(i), Put: []store.Document{doc(fmt.Sprint("n", i%5), fmt.Sprint(i)), doc("every", fmt.Sprint(i))}}
		if i%5 == 4 {
			c.Delete = []store.Key{key("n0"), key("never-there")}
		}
		v := o.put(t, c)
		e := w.next(t)
		if e.Reset || e.Commit.Version != v || e.Commit.Message != fmt.Sprint(i) || len(e.Put) != 2 {
			t.Fatalf("event %d: got %+v, want the commit %s", i, e, v)
		}
		mirror = mirror.Apply(e)
		want(t, "mirror", texts(mirror), texts(o.get(t, v.Revision)))
	}
}

func resume(t *testing.T, o Opened) {
	v1 := o.set(t, "a", "1")
	v2 := o.set(t, "a", "2")
	if o.Noise != nil {
		o.Noise()
	}
	v3 := o.set(t, "a", "3")
	w := o.watch(t, v1)
	for _, v := range []ipsec.Version{v2, v3} {
		if e := w.next(t); e.Reset || e.Commit.Version != v {
			t.Fatalf("got %+v, want the commit %s", e, v)
		}
	}
}

func foreign(t *testing.T, o Opened) {
	v := o.set(t, "a", "1")
	cluster, epoch, future := v, v, v
	cluster.Cluster += "x"
	epoch.Epoch--
	future.Revision += 1000
	for _, from := range []ipsec.Version{{}, cluster, epoch, future} {
		w := o.watch(t, from)
		e := w.next(t)
		if !e.Reset || e.Commit.Version != v || e.Commit.Message != "a=1" || len(e.Put) != 1 {
			t.Fatalf("from %s: got %+v, want a reset to %s", from, e, v)
		}
		w.stop()
	}
	w := o.watch(t, ipsec.Version{})
	w.next(t)
	if e, v := w.next, o.set(t, "a", "2"); true {
		if got := e(t); got.Reset || got.Commit.Version != v {
			t.Fatalf("after the reset: got %+v, want the commit %s", got, v)
		}
	}
}

func compactedWatch(t *testing.T, o Opened) {
	v1 := o.put(t, store.Change{Put: []store.Document{doc("a", "1"), doc("gone", "1")}})
	o.put(t, store.Change{Delete: []store.Key{key("gone")}})
	v3 := o.set(t, "a", "3")
	o.Compact(v3.Revision)
	w := o.watch(t, v1)
	e := w.next(t)
	if !e.Reset || e.Commit.Version != v3 {
		t.Fatalf("got %+v, want a reset to %s", e, v3)
	}
	want(t, "state", texts(store.Snapshot{Documents: []store.Document{doc("gone", "1")}}.Apply(e)), "Node/a=3 ")
	v4 := o.set(t, "a", "4")
	if e := w.next(t); e.Reset || e.Commit.Version != v4 {
		t.Fatalf("after the reset: got %+v, want the commit %s", e, v4)
	}
}

func watchEnds(t *testing.T, o Opened) {
	v := o.set(t, "a", "1")
	w := o.watch(t, v)
	w.stop()
	select {
	case err := <-w.done:
		w.done = nil
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want the context's error", err)
		}
	case <-time.After(patience):
		t.Fatal("the watch went on after its context")
	}
	stop := errors.New("enough")
	if err := o.Store.Watch(within(t), ipsec.Version{}, func(store.Event) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("got %v, want the callback's error", err)
	}
}

func large(t *testing.T, o Opened) {
	w := o.watch(t, o.get(t, 0).Version)
	var c store.Change
	for i := range store.MaxDocuments {
		c.Put = append(c.Put, doc(fmt.Sprintf("n%04d", i), fmt.Sprint("text ", i)))
	}
	v := o.put(t, c)
	if e := w.next(t); e.Commit.Version != v || len(e.Put) != store.MaxDocuments || len(e.Commit.Put) != store.MaxDocuments {
		t.Fatalf("got an event of %d documents, want all %d at once", len(e.Put), store.MaxDocuments)
	}
	want(t, "documents", len(o.get(t, 0).Documents), store.MaxDocuments)
}

func changeTo(t *testing.T, o Opened) {
	o.put(t, store.Change{Put: []store.Document{doc("a", "1"), doc("b", "1"), doc("c", "1")}})
	target := []store.Document{doc("c", "2"), doc("a", "1"), doc("d", "1")}
	c := o.get(t, 0).ChangeTo(target)
	want(t, "puts", len(c.Put), 2)
	want(t, "deletes", c.Delete, []store.Key{key("b")})
	o.put(t, c)
	slices.SortFunc(target, func(x, y store.Document) int { return x.Key.Compare(y.Key) })
	want(t, "documents", o.get(t, 0).Documents, target)
	if _, err := o.Store.Put(within(t), o.get(t, 0).ChangeTo(target)); !errors.Is(err, store.ErrNoChange) {
		t.Fatalf("the same set again: got %v, want ErrNoChange", err)
	}
}
