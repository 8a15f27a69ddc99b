package engine

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// watchBuffer is how many events wait for one subscriber.
const watchBuffer = 1024

// watchers are the subscribers of Watch.
type watchers struct {
	dropped *atomic.Uint64

	count atomic.Int32 // len(subs)

	mu     sync.Mutex
	subs   map[chan Event]bool
	closed bool
}

// Watch returns events as they happen until ctx ends or the engine is closed;
// then the channel is closed. A subscriber that does not keep up loses events
// (Stats.EventsDropped counts them).
func (e *Engine) Watch(ctx context.Context) <-chan Event {
	w := &e.watchers
	ch := make(chan Event, watchBuffer)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		close(ch)
		return ch
	}
	if w.subs == nil {
		w.subs = make(map[chan Event]bool)
	}
	w.subs[ch] = true
	w.count.Add(1)
	context.AfterFunc(ctx, func() { w.end(ch) })
	return ch
}

func (w *watchers) end(ch chan Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.subs[ch] {
		delete(w.subs, ch)
		w.count.Add(-1)
		close(ch)
	}
}

func (w *watchers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for ch := range w.subs {
		close(ch)
	}
	w.subs = nil
}

// idle reports that nobody watches: then the sentence of an event, of which each
// set-up has several, need not be written.
func (w *watchers) idle() bool { return w.count.Load() == 0 }

func (w *watchers) publish(ev Event) {
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch := range w.subs {
		select {
		case ch <- ev:
		default:
			w.dropped.Add(1)
		}
	}
}

func sortWorkers(w []Worker) []Worker {
	slices.SortFunc(w, func(a, b Worker) int { return cmp.Compare(a.Node, b.Node) })
	return w
}
