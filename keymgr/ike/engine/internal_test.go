package engine

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
	"github.com/testudo-ipsec/testudo/keymgr/store"
	"github.com/testudo-ipsec/testudo/keymgr/store/memory"
)

func TestTimersComeInOrder(t *testing.T) {
	var h timers
	epoch := time.Unix(0, 0)
	cells := make([]*cell, 1000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range cells {
		cells[i] = &cell{slot: -1}
	}
	for range 20000 {
		c := cells[r.IntN(len(cells))]
		switch r.IntN(4) {
		case 0:
			h.set(c, time.Time{})
		default:
			h.set(c, epoch.Add(time.Duration(r.IntN(500))))
		}
	}
	want := 0
	for _, c := range cells {
		if c.slot >= 0 {
			want++
			if h[c.slot] != c {
				t.Fatal("a cell does not know its place")
			}
		}
	}
	var got []time.Time
	for c := h.first(); c != nil; c = h.first() {
		got = append(got, c.at)
		h.remove(c)
	}
	if len(got) != want || !slices.IsSortedFunc(got, time.Time.Compare) {
		t.Fatalf("got %d of %d deadlines, in order: %t", len(got), want, slices.IsSortedFunc(got, time.Time.Compare))
	}
}

func TestThePoolServesPeersInTurn(t *testing.T) {
	p := newPool(100, 150)
	busy, quiet := poolKey{"a", netip.MustParseAddr("192.0.2.1")}, poolKey{"b", netip.MustParseAddr("192.0.2.1")}
	var order []poolKey
	job := func(a poolKey) func() { return func() { order = append(order, a) } } // one worker: no lock
	for i := range 101 {
		if ok := p.submit(busy, job(busy)); ok != (i < 100) {
			t.Fatalf("job %d of one peer: taken %t", i, ok)
		}
	}
	for range 3 {
		p.submit(quiet, job(quiet))
	}
	for i := range 48 {
		a := poolKey{"a", netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}
		if ok := p.submit(a, job(a)); ok != (i < 47) {
			t.Fatalf("job %d of all: taken %t", 103+i, ok)
		}
	}
	var g sync.WaitGroup
	done := make(chan struct{})
	p.start(&g, 1)
	for !p.submit(quiet, func() { close(done) }) {
		runtime.Gosched() // until there is room
	}
	<-done
	p.close()
	g.Wait()
	if i := slices.Index(order, quiet); i < 0 || i > 3 {
		t.Errorf("the quiet peer was served after %d others, want at most 3", i)
	}
	if p.submit(quiet, func() {}) {
		t.Error("a closed pool took a job")
	}
}

func TestBackOffGrowsAndIsBounded(t *testing.T) {
	c := Config{}.withDefaults()
	for n := range 100 {
		d := c.backOff(n)
		top := c.RetryMax
		if n < 10 { // 2^8 s is below 5 min, 2^9 s above
			top = min(top, c.RetryMin<<max(n-1, 0))
		}
		if d < top/2 || d > top {
			t.Errorf("after %d failures: %s, want %s to %s", n, d, top/2, top)
		}
	}
}

// BenchmarkTimers moves the deadline of one of 100,000 machines, as each
// datagram does.
func BenchmarkTimers(b *testing.B) {
	var h timers
	now := time.Now()
	cells := make([]*cell, 100000)
	for i := range cells {
		cells[i] = &cell{slot: -1}
		h.set(cells[i], now.Add(rand.N(time.Hour)))
	}
	i := 0
	for b.Loop() {
		i = (i + 7919) % len(cells)
		h.set(cells[i], now.Add(rand.N(time.Hour)))
	}
}

// What many SAs of one node change is written in batches that a store takes.
func TestManyChangesAreSplit(t *testing.T) {
	d := &durable{}
	d.more.L = &d.mu
	done := false
	d.submitMany(make([]store.Change, 12345), func() { done = true })
	total := 0
	for i, s := range d.waiting {
		if total += len(s.changes); len(s.changes) > 1000 || (s.then != nil) != (i == len(d.waiting)-1) {
			t.Fatalf("submission %d has %d changes, and something to do after it: %t", i, len(s.changes), s.then != nil)
		}
	}
	if d.waiting[len(d.waiting)-1].then(); total != 12345 || !done {
		t.Fatalf("%d of 12345 changes", total)
	}
}

// A stranger can make us keep one for each half-open IKE SA, 32,768 of them. Within 256
// octets the allocator wastes none.
func TestCellIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(cell{}); n > 256 {
		t.Errorf("a cell has %d octets, want at most 256: put what only established IKE SAs need elsewhere", n)
	}
}

// A clock that was set back does not make SA numbers come twice: those that the last
// process had reserved are left out, written or not.
func TestSANumbersGoOnAfterThoseThatWereReserved(t *testing.T) {
	disk := new(memory.Store)
	later := uint64(time.Now().Add(time.Hour).UnixNano()) //nolint:gosec // after 1970
	last := epoch{1, ipsec.SAID(later), ipsec.SAID(later + 500)}
	if err := disk.Commit([]store.Change{{Key: keyEpoch, Value: last.octets()}}); err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{Machines: ikev2.Machines{}, Secrets: noSecrets{}, Store: disk, Shards: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if id := e.node("a").env.NextID(); id != later+501 {
		t.Errorf("the next number is %d past the last one used, want 501", int64(id-later)) //nolint:gosec // small
	}
	if e.durable.reserved.Load() != 0 {
		t.Error("numbers are reserved before anything is written")
	}
}

// sleeper is a machine that may rest at any time.
type sleeper struct{ ike.Machine }

func (sleeper) Rest(dst []byte) ([]byte, bool) { return append(dst, "resting"...), true }

func TestAFewHalfOpenDoNotRest(t *testing.T) {
	for bound, want := range map[int]int{2: 3, -1: 5} {
		e, err := New(Config{Machines: ikev2.Machines{}, Secrets: noSecrets{}, Shards: 1, HalfOpenRest: bound})
		if err != nil {
			t.Fatal(err)
		}
		resting := 0
		for i := range 5 {
			c := &cell{initKey: initKey(i + 1), machine: sleeper{}}
			e.half.add(c)
			if e.shards[0].rest(c); c.machine == nil && string(c.rest) == "resting" {
				resting++
			}
		}
		if resting != want {
			t.Errorf("%d of 5 rest with a bound of %d, want %d", resting, bound, want)
		}
		e.Close()
	}
}

type noSecrets struct{}

func (noSecrets) PSK(context.Context, string) ([]ipsec.Secret, error) { return nil, nil }
