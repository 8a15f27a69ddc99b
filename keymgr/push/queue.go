package push

import (
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// MaxBatch bounds the operations of one batch, so that a worker's reader and a
// message stay small. A group larger than this travels alone.
const MaxBatch = 2048

// Group is a list of operations that succeed or fail together: the SAs of one
// Install effect, or housekeeping. Owner is the caller's, to know the answer by.
type Group[T any] struct {
	Ops   []Op
	Owner T
}

// Queue turns groups into batches, one outstanding at a time. It is pure: the
// caller sends what Next returns. The zero value is ready to use.
type Queue[T any] struct {
	nonce   uint64
	waiting []Group[T]
	sent    []Group[T] // of the outstanding batch, nonce
}

// Add queues a group behind all others.
func (q *Queue[T]) Add(g Group[T]) { q.waiting = append(q.waiting, g) }

// Len is the number of groups that are not answered yet.
func (q *Queue[T]) Len() int { return len(q.waiting) + len(q.sent) }

// Next makes the next batch under the nonce given, if there is something to
// send and nothing outstanding. What removes an SA travels after the batch that
// installs it: within one, a worker refuses it.
func (q *Queue[T]) Next(nonce uint64) (Batch, bool) {
	if len(q.sent) != 0 || len(q.waiting) == 0 {
		return Batch{}, false
	}
	n, ops := 0, 0
	var installs map[ipsec.SAID]bool
	for n < len(q.waiting) && (n == 0 || ops+len(q.waiting[n].Ops) <= MaxBatch) && !removes(q.waiting[n], installs) {
		for _, op := range q.waiting[n].Ops {
			if op, ok := op.(Install); ok {
				if installs == nil {
					installs = make(map[ipsec.SAID]bool)
				}
				installs[op.SA.ID] = true
			}
		}
		ops += len(q.waiting[n].Ops)
		n++
	}
	b := Batch{Nonce: nonce, Ops: make([]Op, 0, ops)}
	for _, g := range q.waiting[:n] {
		b.Ops = append(b.Ops, g.Ops...)
	}
	q.sent = slices.Clone(q.waiting[:n])
	clear(q.waiting[:n]) // operations hold keys: do not keep them alive
	if q.waiting = q.waiting[n:]; len(q.waiting) == 0 {
		q.waiting = nil
	}
	q.nonce = nonce
	return b, true
}

// removes reports whether a group removes one of some SAs.
func removes[T any](g Group[T], some map[ipsec.SAID]bool) bool {
	return len(some) > 0 && slices.ContainsFunc(g.Ops, func(op Op) bool {
		r, ok := op.(Remove)
		return ok && some[r.ID]
	})
}

// Ack returns the groups of the batch that is now in place; none when the
// nonce is not the outstanding one.
func (q *Queue[T]) Ack(nonce uint64) []Group[T] {
	if len(q.sent) == 0 || nonce != q.nonce {
		return nil
	}
	done := q.sent
	q.sent = nil
	return done
}

// Nack returns the group that holds the refused operation. The other groups of
// the batch, which were not applied either, go back to the head of the queue
// in their order. An operation number outside the batch blames all groups.
func (q *Queue[T]) Nack(nonce uint64, op int) []Group[T] {
	if len(q.sent) == 0 || nonce != q.nonce {
		return nil
	}
	sent := q.sent
	q.sent = nil
	for i, at := 0, 0; i < len(sent); i++ {
		if op >= at && op < at+len(sent[i].Ops) {
			bad := sent[i]
			q.waiting = slices.Concat(sent[:i], sent[i+1:], q.waiting)
			return []Group[T]{bad}
		}
		at += len(sent[i].Ops)
	}
	return sent
}

// Reset empties the queue and returns all groups in order: the link is gone,
// and whether the outstanding batch was applied is unknown.
func (q *Queue[T]) Reset() []Group[T] {
	all := slices.Concat(q.sent, q.waiting)
	q.sent, q.waiting = nil, nil
	return all
}
