package engine_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/push"
	"github.com/testudo-ipsec/testudo/keymgr/store"
	"github.com/testudo-ipsec/testudo/keymgr/store/memory"
)

// Random schedules of commands and of faults: disks that are slow or full, key managers
// that are killed, workers that start anew, are cut off or refuse, a network that loses
// and delays, hosts that move, and an end that has lost all. Whatever happened: at rest
// the key manager of each end desires what its worker has, knows that it is installed,
// and has an owner for it; both ends have the same SAs; and traffic passes.
//
// TESTUDO_SCHEDULES sets how many schedules run, TESTUDO_SCHEDULE runs the one of a
// seed and tells what it did. A schedule is the same each time; what goroutines make of
// it is not quite, so a failure may take some runs (-count) to come again.
func TestRandomFaultsEndInAgreement(t *testing.T) {
	if s := os.Getenv("TESTUDO_SCHEDULE"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		runFaults(t, seed)
		return
	}
	schedules := uint64(250)
	if testing.Short() {
		schedules = 50
	}
	if s := os.Getenv("TESTUDO_SCHEDULES"); s != "" {
		var err error
		if schedules, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	for seed := range schedules {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runFaults(t, seed) })
	}
}

// side is one end: a worker and its key manager, on a disk if it has one.
type side struct {
	*host
	disk *disk
	p    *process
	e    *engine.Engine
	home netip.Addr
	addr netip.Addr // now
}

// disk is a store that can be slow and full.
type disk struct {
	memory.Store
	slow atomic.Int64
	full atomic.Bool
}

func (f *faults) newDisk() *disk {
	d := new(disk)
	d.Before = func([]store.Change) error {
		time.Sleep(time.Duration(f.upTo(d.slow.Load())))
		if d.full.Load() {
			return errors.New("no space left on device")
		}
		return nil
	}
	return d
}

// faults is one run.
type faults struct {
	*lab
	t       *testing.T
	r       *rand.Rand
	sides   [2]*side
	mobile  bool
	rules   int
	did     []string
	began   time.Time
	refuses atomic.Int32 // operations that workers refuse
	loss    atomic.Int32 // datagrams of a hundred that are lost

	// Nanoseconds at most: until a batch is applied, and a datagram arrives.
	lags, lateness atomic.Int64

	mu     sync.Mutex
	chance *rand.Rand // for what happens on other goroutines
}

func (f *faults) upTo(n int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.chance.Int64N(n + 1)
}

func opID(op push.Op) string {
	switch op := op.(type) {
	case push.Install:
		return op.SA.ID.String() + " " + op.SA.Direction.String()
	case push.Remove:
		return op.ID.String()
	case push.Grant:
		return op.ID.String()
	}
	return ""
}

func (f *faults) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.did = append(f.did, fmt.Sprintf("%12s  ", time.Since(f.began))+fmt.Sprintf(format, args...))
}

func runFaults(t *testing.T, seed uint64) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(seed, 11)) //nolint:gosec // a test that can be repeated
		f := &faults{lab: newLab(t), t: t, r: r, began: time.Now(), mobile: seed%4 == 3, rules: 1 + int(seed%3),
			chance: rand.New(rand.NewPCG(seed, 12))} //nolint:gosec // as above
		f.lose = func(*host, []byte) bool { return f.upTo(100) < int64(f.loss.Load()) }
		f.late = func() time.Duration { return time.Duration(f.upTo(f.lateness.Load())) }
		for i, name := range []string{"a", "b"} {
			addr := fmt.Sprint("192.0.2.", i+1)
			s := &side{host: f.host(name, addr), home: netip.MustParseAddr(addr), addr: netip.MustParseAddr(addr)}
			if i == 0 || seed%2 == 0 {
				s.disk = f.newDisk()
			}
			s.host.lag = func() time.Duration { return time.Duration(f.upTo(f.lags.Load())) }
			s.host.refuse = func(op push.Op) string {
				if os.Getenv("TESTUDO_SCHEDULE") != "" {
					f.note("%s: %T %s", s.name, op, opID(op))
				}
				if _, ok := op.(push.Remove); !ok && f.refuses.Load() > 0 {
					f.refuses.Add(-1)
					return "the test says so"
				}
				return ""
			}
			f.sides[i] = s
			f.start(s)
			f.attach(s)
		}
		defer func() {
			for _, s := range f.sides {
				s.e.Close()
				s.move(s.home)
			}
			f.close()
			if t.Failed() || os.Getenv("TESTUDO_SCHEDULE") != "" {
				t.Logf("TESTUDO_SCHEDULE=%d\n%s", seed, strings.Join(f.did, "\n"))
			}
		}()
		f.sides[0].acquire(1)
		f.after(time.Second)
		for range 5 + r.IntN(50) {
			f.step()
			f.pause()
		}
		f.rest()
	})
}

func (f *faults) policy(s *side) *ipsec.NodePolicy {
	names, addrs := []string{"a", "b"}, []string{"192.0.2.1", "192.0.2.2"}
	i := slices.Index(names, s.name)
	pol := policy(f.t, names[i], addrs[i], names[1-i], addrs[1-i], f.rules)
	pol.Peers[0].DPD, pol.Peers[0].Mobike = 20*time.Second, f.mobile
	pol.Peers[0].Lifetime = 0
	for i := range pol.Rules {
		pol.Rules[i].Template.Lifetime = ipsec.Lifetime{} // at rest nothing is rekeyed
	}
	return pol
}

func (f *faults) start(s *side) {
	s.p = &process{}
	s.e = newEngine(f.t, func(c *engine.Config) {
		c.CrashSecrets = crashSecrets("the secret of the fleet")
		if s.disk != nil {
			c.Store = mortalDisk{s.disk, s.p}
		}
	})
	s.e.SetPolicy(s.name, f.policy(s))
}

type mortalDisk struct {
	*disk
	p *process
}

func (m mortalDisk) Commit(batch []store.Change) error {
	if m.p.dead.Load() {
		return errors.New("killed")
	}
	return m.disk.Commit(batch)
}

func (f *faults) attach(s *side) { s.host.addr = s.addr; s.host.attach(s.e) }

// cut ends a worker's link: what is on its way down is lost.
func (s *side) cut() {
	s.do(func() {
		if s.session != nil {
			s.link.cut.Store(true)
			s.session.Close()
			s.session = nil
		}
	})
}

// kill is kill -9 of the key manager.
func (f *faults) kill(s *side) {
	s.p.dead.Store(true)
	s.do(func() {
		if s.session != nil {
			s.link.cut.Store(true)
			s.session = nil
		}
	})
	s.e.Close()
}

func (s *side) forget() { s.do(func() { s.incarnation++; clear(s.sas) }) }

// move gives the host another address.
func (s *side) move(to netip.Addr) {
	s.lab.give(s.addr, nil)
	s.addr = to
	s.lab.give(to, s.host)
}

func (f *faults) pause() {
	most := []time.Duration{3 * time.Millisecond, 20 * time.Millisecond, 300 * time.Millisecond, 3 * time.Second, 20 * time.Second}[f.r.IntN(5)]
	if d := time.Duration(f.r.Int64N(int64(most))); f.r.IntN(2) == 0 {
		f.after(d)
	} else {
		time.Sleep(d) // whatever is under way is
	}
}

func (f *faults) step() {
	r := f.r
	s := f.sides[r.IntN(2)]
	if r.IntN(3) > 0 {
		s = f.sides[0] // whose disk is always there
	}
	rule := fmt.Sprint("rule-", r.IntN(f.rules))
	filter := engine.Filter{Rule: rule}
	if r.IntN(3) == 0 {
		filter = engine.Filter{Node: s.name}
	}
	switch k := r.IntN(26); k {
	case 0, 1, 2, 3:
		f.note("%s rekeys %+v", s.name, filter)
		_, _ = s.e.Rekey(f.t.Context(), filter)
	case 4, 5:
		f.note("%s terminates %+v", s.name, filter)
		_, _ = s.e.Terminate(f.t.Context(), filter, "the test says so")
	case 6, 7, 8:
		f.note("%s acquires %s", s.name, rule)
		s.do(func() {
			if s.session != nil {
				s.session.Handle(push.Acquire{ID: uint64(len(f.did)), Rule: rule, Flow: flowOf(s.name, rule)})
			}
		})
	case 9, 10, 11:
		worker, off := r.IntN(4) == 0, time.Duration(r.IntN(400))*time.Millisecond
		if r.IntN(8) == 0 {
			off *= 100
		}
		f.note("%s: the key manager is killed, its worker too: %t; again in %s", s.name, worker, off)
		f.kill(s)
		if worker {
			s.forget()
		}
		f.after(off)
		f.start(s)
		if r.IntN(2) == 0 {
			f.pause()
		}
		f.note("%s: attaches", s.name)
		f.attach(s)
	case 12, 13:
		off := time.Duration(r.IntN(1000)) * time.Millisecond
		if r.IntN(4) == 0 {
			off *= 30
		}
		again := r.IntN(2) == 0
		f.note("%s: the link is cut, the worker starts anew: %t; again in %s", s.name, again, off)
		s.cut()
		if again {
			s.forget()
		}
		f.after(off)
		f.attach(s)
		f.note("%s: attached", s.name)
	case 14:
		f.note("%s: the worker attaches again", s.name)
		s.do(func() { s.link.cut.Store(true) })
		f.attach(s)
	case 15, 16:
		if s.disk != nil {
			d := []time.Duration{0, time.Millisecond, 50 * time.Millisecond, 500 * time.Millisecond, 5 * time.Second}[r.IntN(5)]
			f.note("%s: a write takes %s", s.name, d)
			s.disk.slow.Store(int64(d))
		}
	case 17, 18:
		if s.disk != nil {
			s.disk.full.Store(!s.disk.full.Load())
			f.note("%s: the disk is full: %t", s.name, s.disk.full.Load())
		}
	case 19:
		worker := r.IntN(2) == 0
		f.note("%s: all state is lost, the worker's too: %t", s.name, worker)
		f.kill(s)
		if s.disk != nil {
			s.disk = f.newDisk()
		}
		if worker {
			s.forget()
		}
		f.start(s)
		f.attach(s)
	case 20:
		n := int32(r.IntN(3))
		f.note("%d operations are refused", n)
		f.refuses.Store(n)
	case 21:
		n := []int32{0, 5, 30, 100}[r.IntN(4)]
		f.note("%d%% of the datagrams are lost", n)
		f.loss.Store(n)
	case 22:
		f.note("%s: asks for leases", s.name)
		s.do(func() {
			for _, sa := range s.sas {
				if sa.Direction == ipsec.Outbound && s.session != nil {
					s.session.Handle(push.LeaseRequest{ID: sa.ID, Used: s.granted[sa.ID] - 1})
				}
			}
		})
	case 23:
		d := []time.Duration{0, time.Millisecond, 50 * time.Millisecond, 2 * time.Second}[r.IntN(4)]
		f.note("workers take up to %s", d)
		f.lags.Store(int64(d))
	case 24:
		d := []time.Duration{0, 10 * time.Millisecond, time.Second}[r.IntN(3)]
		f.note("datagrams take up to %s", d)
		f.lateness.Store(int64(d))
	case 25:
		if f.mobile {
			to := s.home
			if r.IntN(2) == 0 {
				to = netip.MustParseAddr(strings.Replace(to.String(), ".2.", ".2.10", 1))
			}
			f.note("%s: is at %s", s.name, to)
			s.move(to)
			s.do(func() {
				if s.session != nil {
					s.session.Handle(push.Addresses{Local: []netip.Addr{to}})
				}
			})
		}
	}
}

func flowOf(name, rule string) ipsec.Flow {
	x := (&host{name: name}).flow()
	n, _ := strconv.Atoi(strings.TrimPrefix(rule, "rule-"))
	for _, a := range []*netip.Addr{&x.Local, &x.Remote} {
		b := a.As4()
		b[2] = byte(n)
		*a = netip.AddrFrom4(b)
	}
	return x
}

// rest ends all faults, and looks at what is left when nothing happens any more.
func (f *faults) rest() {
	f.note("rest")
	f.refuses.Store(0)
	f.loss.Store(0)
	f.lags.Store(0)
	f.lateness.Store(0)
	for _, s := range f.sides {
		if s.disk != nil {
			s.disk.slow.Store(0)
			s.disk.full.Store(false)
		}
		if s.addr != s.home {
			s.move(s.home)
			s.report(push.Addresses{Local: []netip.Addr{s.home}})
		}
	}
	f.after(20 * time.Minute)
	f.check()
	for i := range f.rules {
		f.sides[0].report(push.Acquire{ID: 1000 + uint64(i), Rule: fmt.Sprint("rule-", i), Flow: flowOf("a", fmt.Sprint("rule-", i))})
	}
	f.after(2 * time.Minute)
	f.check()
	f.mustForward()
}

// check: see TestRandomFaultsEndInAgreement.
func (f *faults) check() {
	f.t.Helper()
	var both [2][]string
	for i, s := range f.sides {
		sas, err := s.e.List(f.t.Context(), engine.Filter{})
		if err != nil {
			f.t.Fatal(err)
		}
		owned := map[ipsec.SAID]bool{}
		for _, sa := range sas {
			if sa.State != "established" {
				f.t.Errorf("%s: the IKE SA %016x is %s, want established", s.name, sa.LocalSPI, sa.State)
			}
			l, r := sa.LocalSPI, sa.RemoteSPI
			if i == 1 {
				l, r = r, l
			}
			both[i] = append(both[i], fmt.Sprintf("ike %016x %016x", l, r))
			for _, c := range sa.Children {
				in, out := c.SPIIn, c.SPIOut
				if i == 1 {
					in, out = out, in
				}
				both[i] = append(both[i], fmt.Sprintf("child %s %s of %s, under %016x", in, out, c.Rule, l))
				owned[c.In], owned[c.Out] = true, true
			}
		}
		slices.Sort(both[i])
		w := s.e.Workers()[0]
		if w.Desired != len(s.sas) || w.Installed != w.Desired || w.Orphans != 0 {
			f.t.Errorf("%s: %d SAs are desired, %d installed, %d orphans, and the worker has %d; want them all, and no orphans", s.name, w.Desired, w.Installed, w.Orphans, len(s.sas))
		}
		for id, sa := range s.sas {
			if !owned[id] {
				f.t.Errorf("%s: the worker has %s %s of %s, of which no CHILD SA is", s.name, id, sa.Direction, sa.Rule)
			}
		}
		if len(owned) != len(s.sas) {
			f.t.Errorf("%s: the CHILD SAs have %d SAs, and the worker %d", s.name, len(owned), len(s.sas))
		}
		if st := s.e.Stats(); st.Panics != 0 || st.StateFailing {
			f.t.Errorf("%s: %d panics, the store fails: %t", s.name, st.Panics, st.StateFailing)
		}
	}
	if !slices.Equal(both[0], both[1]) {
		f.t.Errorf("the ends do not agree:\n%s\n\n%s", strings.Join(both[0], "\n"), strings.Join(both[1], "\n"))
	}
}
