package engine

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"syscall"
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
	cells := make([]*cell, 1000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range cells {
		cells[i] = &cell{slot: -1}
	}
	for range 20000 {
		c := cells[r.IntN(len(cells))]
		switch r.IntN(4) {
		case 0:
			h.remove(c)
		default:
			h.set(c, time.Duration(r.IntN(500)))
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
	var got []time.Duration
	for c := h.first(); c != nil; c = h.first() {
		got = append(got, c.at)
		h.remove(c)
	}
	if len(got) != want || !slices.IsSorted(got) {
		t.Fatalf("got %d of %d deadlines, in order: %t", len(got), want, slices.IsSorted(got))
	}
}

func from(node, remote string) source { return source{node, netip.MustParseAddr(remote)} }

// drain takes all that waits and tells whose it was.
func drain[T any](f *fair[T]) (order []source) {
	for f.ready() {
		_, s := f.take()
		order = append(order, s.key)
		f.done(s)
	}
	return order
}

// However much others have put in before, from however many addresses, a source
// is served as soon as each other network has been served once.
func TestNetworksAndTheirAddressesAreServedInTurn(t *testing.T) {
	f := newFair[int](10000)
	for i := range 2000 { // four networks of 250 addresses, twice
		a := netip.AddrFrom4([4]byte{10, 0, byte(i % 4), byte(i / 4 % 250)})
		if !f.put(source{"n", a}, i) {
			t.Fatalf("no room for the hostile %d", i)
		}
	}
	quiet, neighbour, v6, other := from("n", "192.0.2.1"), from("n", "10.0.0.255"), from("n", "2001:db8::1"), from("m", "10.0.0.1")
	all := []source{quiet, neighbour, v6, other}
	for _, s := range all {
		if !f.put(s, 0) {
			t.Fatalf("no room for %v", s)
		}
	}
	order := drain(&f)
	if len(order) != 2004 {
		t.Fatalf("%d were served, want 2004", len(order))
	}
	for _, s := range all {
		most := 7 // four hostile networks, and the other three
		if s == neighbour {
			most = 251 * 7 // behind each address of its own network, which has one turn in seven
		}
		if i := slices.Index(order, s); i > most {
			t.Errorf("%v was served after %d others, want at most %d", s, i, most)
		}
	}
	if len(f.sources)+len(f.networks)+f.n != 0 || f.turn != nil {
		t.Errorf("%d sources, %d networks and %d waiting are left of nothing", len(f.sources), len(f.networks), f.n)
	}
}

// Whatever one network puts in, there is room for another, and for a third.
func TestThereIsRoomForOtherNetworks(t *testing.T) {
	f := newFair[int](1000)
	for i := range 3 {
		taken := 0
		for j := range 10000 {
			if f.put(source{"n", netip.AddrFrom4([4]byte{10, byte(i), 0, byte(j)})}, 0) {
				taken++
			}
		}
		if want := []int{501, 250, 125}[i]; taken != want {
			t.Errorf("network %d has %d waiting, want %d", i, taken, want)
		}
	}
	f.ofSource = 10
	taken := 0
	for range 20 {
		if f.put(from("n", "192.0.2.1"), 0) {
			taken++
		}
	}
	if taken != 10 {
		t.Errorf("one source has %d waiting, want 10", taken)
	}
}

// A source and a network have no more under way than they may; others go on.
func TestWhatIsUnderWayIsBounded(t *testing.T) {
	f := newFair[int](1000)
	f.atOnce, f.ofNetwork = 2, 3
	for range 5 {
		f.put(from("n", "10.0.0.1"), 0)
		f.put(from("n", "10.0.0.2"), 0)
		f.put(from("n", "192.0.2.1"), 0)
	}
	count := map[source]int{}
	var taken []*fairSource[int]
	for f.ready() {
		_, s := f.take()
		count[s.key]++
		taken = append(taken, s)
	}
	if a, b, c := count[from("n", "10.0.0.1")], count[from("n", "10.0.0.2")], count[from("n", "192.0.2.1")]; a > 2 || b > 2 || a+b != 3 || c != 2 {
		t.Errorf("under way: %d and %d of one network and %d of another; want 3, at most 2 of one source, and 2", a, b, c)
	}
	for _, s := range taken {
		f.done(s)
	}
	for served := len(taken); ; served++ {
		if !f.ready() {
			if served != 15 || len(f.sources)+len(f.networks) != 0 {
				t.Errorf("%d were served of 15, %d sources are left", served, len(f.sources))
			}
			return
		}
		_, s := f.take()
		f.done(s)
	}
}

func TestAClosedPoolTakesNothing(t *testing.T) {
	p := newPool(10, 10, 1)
	var g sync.WaitGroup
	g.Go(p.work)
	done := make(chan struct{})
	if !p.submit(from("n", "192.0.2.1"), func() { close(done) }) {
		t.Error("an open pool took no job")
	}
	<-done
	p.close()
	g.Wait()
	if p.submit(from("n", "192.0.2.1"), func() {}) {
		t.Error("a closed pool took a job")
	}
}

// What computes runs on threads that give way to the others, and they end with it.
func TestComputingThreadsGiveWay(t *testing.T) {
	p := newPool(10, 10, 1)
	var g sync.WaitGroup
	g.Go(p.compute)
	nice := make(chan int)
	read := func() {
		now, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
		if err != nil {
			t.Error(err)
		}
		nice <- 20 - now
	}
	before := make(chan int)
	go func() {
		runtime.LockOSThread()
		now, _ := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
		before <- 20 - now
	}()
	was := <-before
	p.submit(from("n", "192.0.2.1"), read)
	if got, want := <-nice, max(was, computing); got != want {
		t.Errorf("a computing thread has nice %d, want %d", got, want)
	}
	p.close()
	g.Wait()
	for range 100 { // no goroutine gets the thread afterwards
		p := newPool(10, 10, 1)
		g.Go(p.work)
		p.submit(from("n", "192.0.2.1"), read)
		if got := <-nice; got != was {
			t.Fatalf("a thread of others has nice %d, want %d", got, was)
		}
		p.close()
		g.Wait()
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
	cells := make([]*cell, 100000)
	for i := range cells {
		cells[i] = &cell{slot: -1}
		h.set(cells[i], rand.N(time.Hour))
	}
	i := 0
	for b.Loop() {
		i = (i + 7919) % len(cells)
		h.set(cells[i], rand.N(time.Hour))
	}
}

// A stranger can make us keep one for each half-open IKE SA, 32,768 of them. Within 240
// octets the allocator wastes none.
func TestCellIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(cell{}); n > 240 {
		t.Errorf("a cell has %d octets, want at most 240: put what only established IKE SAs need elsewhere", n)
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

// The records of very many SAs go, and come, at once: no batch is more than the store
// takes, which would be refused for ever. Those of one IKE SA, which may have 1,024 CHILD
// SAs, are written together.
func TestNoGroupOfChangesIsTooMuchForTheStore(t *testing.T) {
	for _, tc := range []struct {
		changes, octets int
		whole           bool
	}{{2049, 0, true}, {300_000, 0, false}, {30, store.MaxValue, false}} {
		disk := new(memory.Store)
		e := &Engine{cfg: Config{}.withDefaults(), closed: make(chan struct{})}
		d := newDurable(e, disk)
		changes := make([]store.Change, tc.changes)
		for i := range changes {
			changes[i].Key = keySA(ipsec.SAID(i), "the node of a customer")
			if tc.octets > 0 {
				changes[i].Value = make([]byte, tc.octets)
			}
		}
		done := make(chan struct{})
		d.submitMany(changes, func() { close(done) })
		total := 0
		for _, s := range d.waiting {
			total += len(s.changes)
		}
		if whole := len(d.waiting) == 1; whole != tc.whole || total != tc.changes {
			t.Errorf("%d of %d changes, in %d submissions; in one: want %t", total, tc.changes, len(d.waiting), tc.whole)
		}
		e.group.Go(d.run)
		select {
		case <-done:
			if n := disk.Len(); tc.octets > 0 && n != tc.changes+1 {
				t.Errorf("the store has %d records, want %d and the numbers", n, tc.changes)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%d changes of %d octets are not written: %d errors", tc.changes, tc.octets, d.errors.Load())
		}
		close(e.closed)
		d.close()
		e.group.Wait()
	}
}
