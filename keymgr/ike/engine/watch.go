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
	context.AfterFunc(ctx, func() { w.end(ch) })
	return ch
}

func (w *watchers) end(ch chan Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.subs[ch] {
		delete(w.subs, ch)
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
