package engine

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/store"
)

// Store keeps what must outlive the process (keymgr/store has two). One goroutine
// calls it.
type Store interface {
	// Load calls fn with each record. fn may keep value, which holds keys.
	Load(fn func(key string, value []byte) error) error
	// Commit makes all of a batch durable, or none of it with an error: it outlives the
	// process, and if the machine's crash may have taken it, the next Load says so.
	Commit(batch []store.Change) error
	Close() error
}

// Keys of records:
//
//	e                     the numbers of SAs: epoch
//	m/<IKE SPI>/<node>    a machine, as it saves itself
//	s/<SA number>/<node>  an SA, as sadb saves it
//	n/<node>              the worker: the incarnation last seen
const keyEpoch = "e"

func keyMachine(spi uint64, node string) string { return numbered('m', spi, node) }
func keySA(id ipsec.SAID, node string) string   { return numbered('s', uint64(id), node) }
func keyNode(node string) string                { return "n/" + node }

func numbered(kind byte, n uint64, node string) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	key := append(make([]byte, 0, 64), kind, '/')
	key = append(hex.AppendEncode(key, b[:]), '/')
	return string(append(key, node...))
}

// Bounds of what waits for the disk.
const (
	commitRetry = 250 * time.Millisecond
	commitLazy  = 100 * time.Millisecond // what nobody waits for is written by then
	commitMost  = 4 << 20                // octets of one batch, soft
	maxBehind   = 64 << 20               // octets that wait; above, datagrams are dropped
	perWaiting  = 1 << 10                // octets that whatever waits counts for, beside its changes
)

// durable writes changes down in the order in which they are submitted, many in one
// batch: whatever comes while one is written travels in the next. What follows
// from a change is let out when the change is durable.
type durable struct {
	e     *Engine
	store Store

	mu      sync.Mutex
	more    sync.Cond
	waiting []submission
	octets  int
	urgent  bool        // somebody waits, or has waited long enough
	lazy    *time.Timer // makes it urgent; nil when nothing is to be written
	closed  bool
	behind  atomic.Bool

	// reserved is a number that no SA number of the next process is below: an SA up to
	// it may be in a worker before the disk knows of it.
	reserved atomic.Uint64

	failing                           atomic.Bool
	commits, records, written, errors atomic.Uint64
	waited                            atomic.Int64 // nanoseconds from submission to durable, summed
}

type submission struct {
	changes []store.Change
	then    func()
	at      time.Time
}

func newDurable(e *Engine, s Store) *durable {
	d := &durable{e: e, store: s}
	d.more.L = &d.mu
	return d
}

// submit queues changes, all or none of which will be durable, and what is to be
// done then: on the writer's goroutine, in the order of submission. It takes the
// values over, and does not wait. Without then nobody waits, and the changes travel
// with the next that somebody waits for, or after commitLazy.
func (d *durable) submit(changes []store.Change, then func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting = append(d.waiting, submission{changes, then, time.Now()})
	d.octets += size(changes)
	d.behind.Store(d.octets > maxBehind)
	switch {
	case then != nil || d.octets > commitMost:
		d.urge()
	case !d.urgent && d.lazy == nil:
		d.lazy = time.AfterFunc(commitLazy, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.urge()
		})
	}
}

// urge has the writer begin. The caller holds mu.
func (d *durable) urge() {
	if !d.urgent {
		d.urgent = true
		d.more.Signal()
	}
}

// submitMany is submit for changes that need not be durable together when they are very
// many, as those of a node with all its SAs: they would be more than one batch holds.
func (d *durable) submitMany(changes []store.Change, then func()) {
	const most = 1 << 20
	first, octets := 0, 0
	for i, c := range changes {
		n := len(c.Key) + len(c.Value)
		if octets > 0 && octets+n > most {
			d.submit(changes[first:i:i], nil)
			first, octets = i, 0
		}
		octets += n
	}
	d.submit(changes[first:], then)
}

func size(changes []store.Change) int {
	n := perWaiting
	for _, c := range changes {
		n += len(c.Key) + len(c.Value)
	}
	return n
}

// run is the writer. After close it writes what is left, once.
func (d *durable) run() {
	for {
		group, last := d.take()
		if len(group) > 0 && !d.commit(group, last) || last {
			return
		}
	}
}

// pause waits, unless the engine is closed.
func (d *durable) pause(t time.Duration) {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-d.e.closed:
	}
}

// take waits for work; last says that there will be no more.
func (d *durable) take() (group []submission, last bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for !d.urgent && !d.closed {
		d.more.Wait()
	}
	if d.lazy != nil {
		d.lazy.Stop()
		d.lazy = nil
	}
	n, octets := 0, 0
	for n < len(d.waiting) && octets < commitMost {
		octets += size(d.waiting[n].changes)
		n++
	}
	group = d.waiting[:n:n]
	if d.waiting = d.waiting[n:]; len(d.waiting) == 0 {
		d.waiting, d.urgent = nil, false
	}
	d.octets -= octets
	d.behind.Store(d.octets > maxBehind)
	return group, d.closed && len(d.waiting) == 0
}

// commit writes a group, again and again while that fails: what waits for it must
// not happen before. It gives up when the engine is closed.
func (d *durable) commit(group []submission, last bool) bool {
	batch, reserved := d.batch(group)
	defer func() {
		for _, c := range batch {
			clear(c.Value)
		}
	}()
	for len(batch) != 0 { // else only others' turn was waited for
		err := d.store.Commit(batch)
		if err == nil {
			break
		}
		d.errors.Add(1)
		if !d.failing.Swap(true) {
			d.e.cfg.Log.Error("state cannot be written: IKE waits until it can, workers go on with what they have", "error", err)
		}
		if last || d.e.isClosed() {
			return false
		}
		d.pause(commitRetry)
	}
	if d.failing.Swap(false) {
		d.e.cfg.Log.Info("state can be written again")
	}
	now := time.Now()
	if len(batch) != 0 {
		d.commits.Add(1)
	}
	d.records.Add(uint64(len(batch)))
	for _, c := range batch {
		d.written.Add(uint64(len(c.Value)))
	}
	for _, s := range group {
		d.waited.Add(int64(now.Sub(s.at)))
		if s.then != nil {
			s.then()
		}
	}
	if len(batch) != 0 {
		d.reserved.Store(reserved)
	}
	return true
}

// batch merges a group: of several changes of one record the last counts. Each batch
// says how far SA numbers have got, and up to where they may get before the next.
func (d *durable) batch(group []submission) (out []store.Change, reserved uint64) {
	n := 0
	for _, s := range group {
		n += len(s.changes)
	}
	at := make(map[string]int, n)
	out = make([]store.Change, 0, n+1)
	for _, s := range group {
		for _, c := range s.changes {
			if i, ok := at[c.Key]; ok {
				clear(out[i].Value)
				out[i] = c
				continue
			}
			at[c.Key] = len(out)
			out = append(out, c)
		}
	}
	if len(out) > 0 {
		used := d.e.ids.Load()
		reserved = used + reserveIDs
		out = append(out, store.Change{Key: keyEpoch, Value: epoch{d.e.firstID, ipsec.SAID(used), ipsec.SAID(reserved)}.octets()})
	}
	return out, reserved
}

// reserveIDs is how many numbers are reserved with each batch: a set-up takes half a dozen.
const reserveIDs = 1 << 16

func (d *durable) close() {
	d.mu.Lock()
	d.closed = true
	d.more.Signal()
	d.mu.Unlock()
}

// epoch is what is known of SA numbers: the first one since the store is there, one
// that no outbound SA is above, and one that no SA at all is above.
type epoch struct{ first, last, reserved ipsec.SAID }

func (x epoch) octets() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(x.first))
	b = binary.BigEndian.AppendUint64(b, uint64(x.last))
	return binary.BigEndian.AppendUint64(b, uint64(x.reserved))
}

func parseEpoch(b []byte) (epoch, error) {
	at := func(i int) ipsec.SAID { return ipsec.SAID(binary.BigEndian.Uint64(b[i:])) }
	switch len(b) {
	case 24:
		return epoch{at(0), at(8), at(16)}, nil
	case 16: // of a program that reserved none
		return epoch{at(0), at(8), at(8)}, nil
	}
	return epoch{}, fmt.Errorf("the record of SA numbers has %d octets, want 24", len(b))
}
