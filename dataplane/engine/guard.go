package engine

import (
	"fmt"
	"runtime/debug"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
)

// A packet that makes the path panic costs the batch it came in, not the worker:
// else whoever knows such a packet could hold a host down. Every length is checked
// where it is used; this is for the mistake in that, and it is reported.

// panicked is deferred around a batch; forget drops what is left of it.
func (e *Engine) panicked(counts *counts, forget func()) {
	p := recover()
	if p == nil {
		return
	}
	counts.add(packet.WhyPanic, 1)
	forget()
	now := e.cfg.Now().Unix()
	if last := e.panicAt.Load(); now-last >= 60 && e.panicAt.CompareAndSwap(last, now) { // one a minute is told whole
		e.cfg.Emit(backend.Panic{Value: fmt.Sprint(p), Stack: string(debug.Stack())})
	}
}

func (w *inWorker) guarded(n int) {
	defer w.e.panicked(&w.counts, w.forget)
	w.batch(w.msgs[:n])
}

func (w *inWorker) forget() {
	w.in, w.n = nil, 0
	w.gro.forget()
	if w.relaying != nil {
		w.holdRelay()
		w.relaying.forget()
		w.releaseRelay()
		w.relaying = nil
	}
}

func (w *outWorker) guarded(n int) {
	defer w.e.panicked(&w.counts, w.forget)
	w.begin()
	for i := range w.packets[:n] {
		w.packet(w.packets[i].Data, w.packets[i].Offload)
	}
	w.flush()
}

// forget drops what was sealed and not sent; its sequence numbers are gone.
func (w *outWorker) forget() {
	for i := range w.queue {
		q := &w.queue[i]
		q.msgs, q.path, q.end, q.count = q.msgs[:0], nil, 0, 0
	}
	w.used, w.whole = 0, false
}
