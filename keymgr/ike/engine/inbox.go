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

// inbox is where others leave work for a shard. Datagrams come from strangers
// and are bounded; the rest is asked for and kept apart, so that a flood does
// not delay answers.
type inbox struct {
	wake chan struct{} // has one token when there may be work

	mu    sync.Mutex
	tasks []item
	data  []item // ring of cap(data)
	head  int
	n     int
}

func newInbox(bound int) *inbox {
	return &inbox{wake: make(chan struct{}, 1), data: make([]item, bound)}
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
	if b.n == len(b.data) {
		b.mu.Unlock()
		return false
	}
	b.data[(b.head+b.n)%len(b.data)] = it
	b.n++
	b.mu.Unlock()
	b.ring()
	return true
}

func (b *inbox) ring() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take returns all tasks and some datagrams, few enough that timers and new
// tasks get their turn, and whether more is left. It fills spare, whose
// content is dead.
func (b *inbox) take(tasks, data []item) ([]item, []item, bool) {
	const turn = 32
	clear(tasks)
	clear(data)
	b.mu.Lock()
	defer b.mu.Unlock()
	tasks, b.tasks = b.tasks, tasks[:0]
	data = data[:0]
	for b.n > 0 && len(data) < turn {
		data = append(data, b.data[b.head])
		b.data[b.head] = item{}
		b.head = (b.head + 1) % len(b.data)
		b.n--
	}
	return tasks, data, b.n > 0
}
