package engine

import (
	"sync"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// item is work for a shard: an event for a machine, or a function to run on
// the shard's goroutine.
type item struct {
	cell  *cell
	event ike.Event
	fn    func()
}

// inbox is where others leave work for a shard. Datagrams come from strangers:
// they are bounded and taken fairly. The rest is asked for and kept apart, so that a
// flood does not delay answers.
type inbox struct {
	wake chan struct{} // has one token when there may be work

	mu    sync.Mutex
	tasks []item
	data  fair[item]
}

func newInbox(bound int) *inbox {
	return &inbox{wake: make(chan struct{}, 1), data: newFair[item](bound)}
}

func (b *inbox) post(it item) {
	b.mu.Lock()
	b.tasks = append(b.tasks, it)
	b.mu.Unlock()
	b.ring()
}

// postDatagram reports whether there was room.
func (b *inbox) postDatagram(it item) bool {
	b.mu.Lock()
	ok := b.data.put(it.cell.source(), it)
	b.mu.Unlock()
	if ok {
		b.ring()
	}
	return ok
}

func (b *inbox) ring() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take returns all tasks and some datagrams, few enough that timers, new
// tasks and others' datagrams get their turn, and whether more is left. It fills spare, whose
// content is dead.
func (b *inbox) take(tasks, data []item) ([]item, []item, bool) {
	const turn = 4
	clear(tasks)
	clear(data)
	b.mu.Lock()
	defer b.mu.Unlock()
	tasks, b.tasks = b.tasks, tasks[:0]
	data = data[:0]
	for b.data.ready() && len(data) < turn {
		it, s := b.data.take()
		b.data.done(s)
		data = append(data, it)
	}
	return tasks, data, b.data.ready()
}
