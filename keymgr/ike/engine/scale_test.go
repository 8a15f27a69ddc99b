package engine_test

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// scaleVar is set to hold 100,000 IKE SAs, which takes minutes and a gigabyte.
const scaleVar = "TESTUDO_SCALE"

// crowd is a network of many workers that acknowledge everything. A few
// goroutines do what they would do; a worker is always served by the same one.
type crowd struct {
	members map[netip.Addr]*member
	lanes   []*lane
	group   sync.WaitGroup
}

type member struct {
	crowd   *crowd
	lane    *lane
	session *engine.Session
}

// lane is a queue without bound: what a hundred thousand negotiations have under
// way at a time is bounded by who starts them.
type lane struct {
	mu   sync.Mutex
	more *sync.Cond
	work []func()
	done bool
}

func newCrowd(lanes int) *crowd {
	c := &crowd{members: make(map[netip.Addr]*member)}
	for range lanes {
		l := &lane{}
		l.more = sync.NewCond(&l.mu)
		c.lanes = append(c.lanes, l)
		c.group.Go(l.run)
	}
	return c
}

func (l *lane) run() {
	var work []func()
	for {
		l.mu.Lock()
		for len(l.work) == 0 && !l.done {
			l.more.Wait()
		}
		if l.done {
			l.mu.Unlock()
			return
		}
		work, l.work = l.work, work[:0]
		l.mu.Unlock()
		for i, fn := range work {
			fn()
			work[i] = nil
		}
	}
}

func (l *lane) post(fn func()) {
	l.mu.Lock()
	l.work = append(l.work, fn)
	l.mu.Unlock()
	l.more.Signal()
}

func (c *crowd) close() {
	for _, l := range c.lanes {
		l.mu.Lock()
		l.done = true
		l.mu.Unlock()
		l.more.Signal()
	}
	c.group.Wait()
}

func (c *crowd) attach(t testing.TB, e *engine.Engine, node string, addr netip.Addr) {
	m := &member{crowd: c, lane: c.lanes[len(c.members)%len(c.lanes)]}
	c.members[addr] = m
	var err error
	if m.session, err = e.Attach(push.Hello{Node: node, Incarnation: 1, Addresses: []netip.Addr{addr}}, m); err != nil {
		t.Fatal(err)
	}
}

func (m *member) Apply(b push.Batch) error {
	m.lane.post(func() { m.session.Handle(push.Ack{Nonce: b.Nonce}) })
	return nil
}

func (m *member) SendIKE(p ike.Path, data []byte) error {
	if to := m.crowd.members[p.Remote.Addr()]; to != nil {
		data = slices.Clone(data)
		to.lane.post(func() {
			to.session.Handle(push.Datagram{Path: ike.Path{Local: p.Remote, Remote: p.Local}, Data: data})
		})
	}
	return nil
}

func (m *member) AcquireFailed(uint64, string) error { return nil }
func (m *member) Close(string)                       {}

// TestHundredThousandIKESAs has fleets of 101 nodes talk to one another, each
// with each, until one engine holds 101,000 IKE SAs (both ends of 50,500), with a
// CHILD SA each. Then all of them are rekeyed at once: every node has as many as
// before, all new, within ten minutes, in less than 1.5 GB. `make scale` runs it.
func TestHundredThousandIKESAs(t *testing.T) {
	if os.Getenv(scaleVar) == "" {
		t.Skipf("%s is not set: `make scale` sets it", scaleVar)
	}
	const fleets, size = 10, 101
	const sas = fleets * size * (size - 1)
	c := newCrowd(2)
	e := newEngine(t, func(c *engine.Config) {
		c.Shards = runtime.GOMAXPROCS(0)
		c.HalfOpenCookie, c.HalfOpenPrefixCookie, c.HalfOpenMax, c.HalfOpenPrefixMax = 1e6, 1e6, 1e6, 1e6
	})
	defer func() { e.Close(); c.close() }()
	addr := func(fleet, i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(fleet), byte(i), 1}) }
	name := func(fleet, i int) string { return fmt.Sprintf("f%d-n%d", fleet, i) }
	var policies int
	for f := range fleets {
		for i := range size {
			pol := policy(t, name(f, i), addr(f, i).String(), "x", "192.0.2.9", 1)
			peer, rule := pol.Peers[0], pol.Rules[0]
			pol.Peers, pol.Rules = nil, nil
			for j := range size {
				if i == j {
					continue
				}
				peer.Name, peer.Remote = name(f, j), []netip.Addr{addr(f, j)}
				peer.RemoteID.Data = name(f, j) + ".example"
				rule.Name, rule.Peer = name(f, j), name(f, j)
				rule.Selector = ipsec.Selector{Local: ipsec.AddrSelector(addr(f, i)), Remote: ipsec.AddrSelector(addr(f, j))}
				pol.Peers, pol.Rules = append(pol.Peers, peer), append(pol.Rules, rule)
			}
			e.SetPolicy(name(f, i), pol)
			c.attach(t, e, name(f, i), addr(f, i))
			policies++
		}
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	wait := func(what string, limit time.Duration, cond func(s engine.Stats) bool) {
		t.Helper()
		for end := time.Now().Add(limit); !cond(e.Stats()); <-tick.C {
			if time.Now().After(end) {
				s := e.Stats()
				s.Handshakes = engine.Histogram{}
				t.Fatalf("%s takes longer than %s: %+v", what, limit, s)
			}
		}
	}

	before, began := heap(), time.Now()
	asked := uint64(0)
	for f := range fleets {
		for i := range size {
			m := c.members[addr(f, i)]
			for j := i + 1; j < size; j++ {
				rule := name(f, j)
				m.lane.post(func() { m.session.Handle(push.Acquire{ID: 1, Rule: rule}) })
				asked++
			}
			wait("setting up", time.Minute, func(s engine.Stats) bool { return s.ChildrenUp+1000 > 2*asked })
		}
	}
	wait("setting up", time.Minute, func(s engine.Stats) bool { return s.ChildrenUp == sas })
	setUp, held := time.Since(began), heap()-before
	t.Logf("%d IKE SAs with a CHILD SA each on %d nodes: set up in %s, %d octets each, %.0f MB in all", sas, policies, setUp.Round(time.Second), held/sas, float64(held)/1e6)
	if s := e.Stats(); s.Machines != sas || s.SAInstalled != 2*sas || len(s.Failures) != 0 {
		t.Fatalf("%d machines, %d simplex SAs, failures %v; want %d, %d and none", s.Machines, s.SAInstalled, s.Failures, sas, 2*sas)
	}
	if total := before + held; total > 1.5e9 {
		t.Errorf("the heap is %d octets; want less than 1.5 GB", total)
	}

	old := make(map[uint64]bool, sas)
	initiators := make([]engine.Filter, 0, sas/2)
	all, err := e.List(t.Context(), engine.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, sa := range all {
		old[sa.LocalSPI] = true
		if sa.Initiator {
			initiators = append(initiators, engine.Filter{Node: sa.Node, SPI: sa.LocalSPI})
		}
	}
	began = time.Now()
	var storm sync.WaitGroup
	for part := range slices.Chunk(initiators, len(initiators)/8+1) {
		storm.Go(func() {
			for _, f := range part {
				if n, err := e.Rekey(t.Context(), f); n != 1 || err != nil {
					t.Errorf("rekey of %016x on %s: %d asked, %v", f.SPI, f.Node, n, err)
				}
			}
		})
	}
	storm.Wait()
	ordered := time.Since(began)
	// Both ends of the old ones are gone once the deletes are through.
	wait("rekeying", 10*time.Minute, func(s engine.Stats) bool { return s.Established >= sas && s.Machines == sas && fresh(t, e, old) })
	took := time.Since(began)
	t.Logf("all of them rekeyed in %s, asked for within %s; the heap is %.0f MB", took.Round(time.Millisecond), ordered.Round(time.Millisecond), float64(heap())/1e6)
	if took > 10*time.Minute {
		t.Errorf("the storm took %s; want at most 10 minutes", took)
	}
	perNode := make(map[string]int)
	all, err = e.List(t.Context(), engine.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, sa := range all {
		if sa.State == "established" && len(sa.Children) == 1 {
			perNode[sa.Node]++
		}
	}
	for n, count := range perNode {
		if count != size-1 {
			t.Errorf("%s has %d IKE SAs with their CHILD SA after the storm; want %d", n, count, size-1)
		}
	}
	if s := e.Stats(); len(perNode) != policies || s.SAInstalled != 2*sas || len(s.Failures) != 0 {
		t.Errorf("after the storm: %d nodes, %d simplex SAs, failures %v", len(perNode), s.SAInstalled, s.Failures)
	}
}

// fresh reports that none of the old IKE SAs is left.
func fresh(t *testing.T, e *engine.Engine, old map[uint64]bool) bool {
	all, err := e.List(t.Context(), engine.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	return !slices.ContainsFunc(all, func(sa engine.IKESA) bool { return old[sa.LocalSPI] })
}
