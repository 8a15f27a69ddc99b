package sadb_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/push"
	"github.com/testudo-ipsec/testudo/keymgr/sadb"
)

const base = 1000

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func outbound(id ipsec.SAID, esn bool) ipsec.SA {
	return ipsec.SA{ID: id, Direction: ipsec.Outbound, SPI: ipsec.SPI(id) + 4096, Suite: ipsec.Suite{ESN: esn}, Rule: fmt.Sprint("rule-", id/2), Child: uint64(id / 2)}
}

func inbound(id ipsec.SAID) ipsec.SA {
	sa := outbound(id, true)
	sa.Direction = ipsec.Inbound
	return sa
}

// worker is a worker's SAD as the contract of push describes it.
type worker struct {
	incarnation uint64
	sas         map[ipsec.SAID]*held
}

type held struct {
	sa     ipsec.SA
	leases []ipsec.Lease
	used   uint64
}

func newWorker(incarnation uint64) *worker {
	return &worker{incarnation: incarnation, sas: make(map[ipsec.SAID]*held)}
}

func (w *worker) apply(ops ...push.Op) {
	for _, op := range ops {
		switch op := op.(type) {
		case push.Install:
			w.sas[op.SA.ID] = &held{sa: op.SA, leases: []ipsec.Lease{op.SA.Lease}}
		case push.Remove:
			delete(w.sas, op.ID)
		case push.Grant:
			w.sas[op.ID].leases = append(w.sas[op.ID].leases, op.Lease)
		}
	}
}

func (w *worker) inventory() []push.Held {
	var out []push.Held
	for id, h := range w.sas {
		out = append(out, push.Held{ID: id, SPI: h.sa.SPI, Direction: h.sa.Direction, Rule: h.sa.Rule, Child: h.sa.Child, Top: h.used})
	}
	return out
}

func put(t *testing.T, n *sadb.Node, w *worker, sa ipsec.SA) {
	t.Helper()
	op, err := n.Put(epoch, sa)
	if err != nil {
		t.Fatal(err)
	}
	w.apply(op)
	n.Settle(sa.ID, true)
}

func TestNumbersBeginAtOne(t *testing.T) {
	n := sadb.New(base)
	op, err := n.Put(epoch, outbound(base, true))
	if err != nil || op.SA.Lease != (ipsec.Lease{First: 1, Last: 1 + sadb.SizeESN}) {
		t.Fatalf("first lease: got %v, %v; RFC 4303 §2.2 wants the first packet to be number 1", op.SA.Lease, err)
	}
}

func TestARestartedWorkerGetsFreshNumbersAndTheOldReplayFloor(t *testing.T) {
	n, w := sadb.New(base), newWorker(1)
	n.Attach(epoch, 1, nil)
	put(t, n, w, inbound(base))
	out := outbound(base+1, true)
	out.Lifetime = ipsec.Lifetime{Bytes: ipsec.Limit{Soft: 50, Hard: 1000}, TimeHard: time.Hour}
	put(t, n, w, out)
	n.Report(epoch, ipsec.SACounters{ID: base, Top: 77})
	n.Report(epoch, ipsec.SACounters{ID: base + 1, Top: 5000, Bytes: 400, Packets: 4})

	w = newWorker(2)
	p := n.Attach(epoch.Add(10*time.Minute), 2, nil)
	w.apply(p.Ops...)
	if got := w.sas[base].sa.ReplayFloor; got != 77 {
		t.Errorf("replay floor: got %d, want the last reported window top, 77", got)
	}
	sa := w.sas[base+1].sa
	if want := (ipsec.Lease{First: 1 + sadb.SizeESN, Last: 1 + 2*sadb.SizeESN}); sa.Lease != want {
		t.Errorf("lease: got %v, want one past the last granted, %v", sa.Lease, want)
	}
	if sa.Lifetime.Bytes != (ipsec.Limit{Soft: 1, Hard: 600}) || sa.Lifetime.TimeHard != 50*time.Minute {
		t.Errorf("lifetime: got %+v, want what is left: soft passed, 600 octets, 50 minutes", sa.Lifetime)
	}
	slices.Sort(p.Rekey)
	if !slices.Equal(p.Rekey, []ipsec.SAID{base, base + 1}) {
		t.Errorf("to rekey: got %v, want both", p.Rekey)
	}
	if total, _ := n.Traffic(base + 1); total.Bytes != 400 || total.Top != 5000 {
		t.Errorf("totals after a restart: got %+v, want 400 octets and top 5000", total)
	}
	n.Report(epoch, ipsec.SACounters{ID: base + 1, Bytes: 10, Packets: 1})
	if total, _ := n.Traffic(base + 1); total.Bytes != 410 {
		t.Errorf("totals: got %d octets, want 410", total.Bytes)
	}
}

// What an SA may be in use runs on over a worker's restart, from the first packet
// that any worker reported; that of an SA that carried nothing does not begin.
func TestUseRunsOnOverARestart(t *testing.T) {
	life := ipsec.Lifetime{TimeSoft: 30 * time.Minute, TimeHard: time.Hour, UseSoft: 15 * time.Minute, UseHard: 25 * time.Minute}
	for _, v := range []struct {
		name  string
		first time.Time
		want  ipsec.Lifetime
	}{
		{"unused", time.Time{}, ipsec.Lifetime{TimeSoft: 10 * time.Minute, TimeHard: 40 * time.Minute, UseSoft: life.UseSoft, UseHard: life.UseHard}},
		{"for 10 minutes", epoch.Add(10 * time.Minute), ipsec.Lifetime{TimeSoft: 5 * time.Minute, TimeHard: 15 * time.Minute}},
		{"for 3 minutes", epoch.Add(17 * time.Minute), ipsec.Lifetime{TimeSoft: 10 * time.Minute, TimeHard: 22 * time.Minute}},
		{"before it was made, by a clock that is behind", epoch.Add(-time.Hour), ipsec.Lifetime{TimeSoft: 1, TimeHard: 5 * time.Minute}},
	} {
		n, w := sadb.New(base), newWorker(1)
		n.Attach(epoch, 1, nil)
		sa := inbound(base)
		sa.Lifetime = life
		put(t, n, w, sa)
		n.Report(epoch, ipsec.SACounters{ID: base, First: v.first})
		if !v.first.IsZero() {
			n.Report(epoch, ipsec.SACounters{ID: base, First: v.first.Add(time.Minute)}) // of a later installation
		}
		w = newWorker(2)
		w.apply(n.Attach(epoch.Add(20*time.Minute), 2, nil).Ops...)
		if got := w.sas[base].sa.Lifetime; got != v.want {
			t.Errorf("%s: got %+v, want %+v", v.name, got, v.want)
		}
	}
}

func TestASAKeptByTheKernelOverARestartGetsAFreshLeaseToo(t *testing.T) {
	n, w := sadb.New(base), newWorker(1)
	n.Attach(epoch, 1, nil)
	put(t, n, w, inbound(base))
	put(t, n, w, outbound(base+1, true))
	p := n.Attach(epoch, 2, w.inventory())
	if len(p.Ops) != 1 || p.Ops[0].(push.Install).SA.Lease.First != 1+sadb.SizeESN {
		t.Fatalf("got %v, want a new lease for the outbound SA alone", p.Ops)
	}
}

func TestAReconnectSendsOnlyWhatDiffers(t *testing.T) {
	n, w := sadb.New(base), newWorker(1)
	n.Attach(epoch, 1, nil)
	for id := ipsec.SAID(base); id < base+10; id += 2 {
		put(t, n, w, inbound(id))
		put(t, n, w, outbound(id+1, true))
	}
	n.Delete(base + 2) // and the removal is lost with the link
	p := n.Attach(epoch, 1, w.inventory())
	if len(p.Ops) != 1 || p.Ops[0] != (push.Remove{ID: base + 2}) || len(p.Rekey) != 0 {
		t.Fatalf("got %v, rekey %v; want the one removal", p.Ops, p.Rekey)
	}
}

func TestAnUnknownSAIsAnOrphanUntilItIsDeleted(t *testing.T) {
	n := sadb.New(base)
	old := push.Held{ID: 7, SPI: 5000, Direction: ipsec.Inbound, Rule: "web"}
	p := n.Attach(epoch, 1, []push.Held{old})
	if len(p.Ops) != 0 || n.Orphans() != 1 || !slices.Equal(n.OrphansOf("web"), []ipsec.SAID{7}) {
		t.Fatalf("got operations %v, %d orphans; want it left alone", p.Ops, n.Orphans())
	}
	if n.SPIFree(5000) {
		t.Error("an orphan's SPI may not be allocated again")
	}
	if _, err := n.Grant(7, 100); !errors.Is(err, sadb.ErrUnknown) {
		t.Errorf("lease for an orphan: got %v, want ErrUnknown: what was granted is not known", err)
	}
	if op, ok := n.Delete(7); !ok || op.ID != 7 || !n.SPIFree(5000) {
		t.Errorf("delete: got %v %t", op, ok)
	}
}

// A link is lost while the later of two moves is on its way: the worker has the first
// address only, and gets the SA again.
func TestAMoveThatIsNotAnsweredIsMadeGood(t *testing.T) {
	n := sadb.New(base)
	if _, err := n.Put(epoch, outbound(base, true)); err != nil {
		t.Fatal(err)
	}
	moved := func(to string) {
		t.Helper()
		if _, err := n.Move(epoch, base, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr(to), nil); err != nil {
			t.Fatal(err)
		}
	}
	plan := func() []push.Op {
		return n.Attach(epoch, 1, []push.Held{{ID: base, Direction: ipsec.Outbound}}).Ops
	}
	n.Attach(epoch, 1, nil)
	moved("192.0.2.2")
	n.Settle(base, true)
	if n.Installed() != 0 {
		t.Error("installed, with a move on its way")
	}
	moved("192.0.2.3")
	n.Reinstalled(base, true)
	if ops := plan(); len(ops) != 1 || ops[0].(push.Install).SA.Remote != netip.MustParseAddr("192.0.2.3") {
		t.Fatalf("the plan is %v, want the SA at its last address", ops)
	}
	n.Reinstalled(base, true)
	if ops := plan(); n.Installed() != 1 || len(ops) != 0 {
		t.Errorf("%d installed, the plan is %v; want 1, and nothing to do", n.Installed(), ops)
	}
	moved("192.0.2.4")
	n.Reinstalled(base, false)
	if ops := plan(); len(ops) != 1 {
		t.Errorf("the plan after a refused move is %v, want the SA again", ops)
	}
}

func TestLeasesEndInARekey(t *testing.T) {
	t.Run("without ESN the numbers run out (RFC 4303 §3.3.3)", func(t *testing.T) {
		n := sadb.New(base)
		op, _ := n.Put(epoch, outbound(base, false))
		last := op.SA.Lease.Last
		for range 1000 {
			g, err := n.Grant(base, last-1)
			if errors.Is(err, sadb.ErrExhausted) {
				break
			}
			if err != nil || g.Lease.First != last || g.Lease.Last > 1<<32 {
				t.Fatalf("after %d: got %v, %v", last, g.Lease, err)
			}
			last = g.Lease.Last
		}
		if last != 1<<32 {
			t.Fatalf("exhausted at %d, want all 2^32-1 numbers granted", last)
		}
	})
	t.Run("with ESN a jump may not confuse the receiver (RFC 4303 appendix A)", func(t *testing.T) {
		n := sadb.New(base)
		if op, err := n.Put(epoch, outbound(base, true)); err != nil {
			t.Fatal(op, err)
		}
		n.Settle(base, true)
		incarnation, last := uint64(1), uint64(0)
		for incarnation < 1000 {
			p := n.Attach(epoch, incarnation, nil) // restarts that never send a packet
			incarnation++
			if len(p.Stuck) == 1 {
				break
			}
			if first := p.Ops[0].(push.Install).SA.Lease.First; first > sadb.MaxJump {
				t.Fatalf("lease from %d with nothing used", first)
			} else {
				last = first
			}
			n.Reinstalled(base, true)
		}
		if last < sadb.MaxJump/2 {
			t.Errorf("gave up at %d already", last)
		}
	})
	t.Run("grants that do not arrive are not held", func(t *testing.T) {
		n := sadb.New(base)
		in, err := n.Put(epoch, outbound(base, true))
		if err != nil {
			t.Fatal(err)
		}
		n.Settle(base, true)
		has := in.SA.Lease.Last
		for i := range 5 {
			if _, err := n.Grant(base, has-1); err != nil {
				t.Fatalf("grant %d to a worker that has used all it has: %v", i, err)
			}
			n.Attach(epoch, 1, []push.Held{{ID: base, Direction: ipsec.Outbound, Top: has - 1, LeaseLast: has}})
		}
	})
	t.Run("a worker cannot hoard", func(t *testing.T) {
		n := sadb.New(base)
		if _, err := n.Put(epoch, outbound(base, true)); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Grant(base, 0); err != nil {
			t.Fatalf("second lease: %v", err)
		}
		if _, err := n.Grant(base, 0); !errors.Is(err, sadb.ErrAhead) {
			t.Fatalf("third lease with none used: got %v, want ErrAhead", err)
		}
		if _, err := n.Grant(base, 1<<60); !errors.Is(err, sadb.ErrAhead) {
			t.Fatalf("a number that was never granted cannot have been used: got %v", err)
		}
	})
}

func TestTwoInboundSAsNeverShareAnSPI(t *testing.T) {
	n := sadb.New(base)
	if _, err := n.Put(epoch, inbound(base)); err != nil {
		t.Fatal(err)
	}
	again := inbound(base + 2)
	again.SPI = inbound(base).SPI
	if _, err := n.Put(epoch, again); err == nil {
		t.Fatal("the second one was taken")
	}
}

// Whatever happens to workers, links and batches: no sequence number of an SA
// is granted twice, and after a hello whose plan is acknowledged the worker has
// exactly the desired SAs.
func TestNoNumberIsGrantedTwiceAndPlansConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := sadb.New(base)
		granted := make(map[ipsec.SAID]uint64) // end of the last lease seen
		see := func(ops ...push.Op) {
			for _, op := range ops {
				var id ipsec.SAID
				var l ipsec.Lease
				switch op := op.(type) {
				case push.Install:
					if op.SA.Direction != ipsec.Outbound {
						continue
					}
					id, l = op.SA.ID, op.SA.Lease
				case push.Grant:
					id, l = op.ID, op.Lease
				default:
					continue
				}
				if l.First < max(granted[id], 1) || l.Last <= l.First {
					t.Fatalf("%s: lease %v after numbers up to %d were granted", id, l, granted[id])
				}
				granted[id] = l.Last
			}
		}
		w := newWorker(1)
		up := false
		next := ipsec.SAID(base)
		desired := make(map[ipsec.SAID]bool)
		pending := make(map[ipsec.SAID]bool)
		attach := func() {
			p := n.Attach(epoch, w.incarnation, w.inventory())
			see(p.Ops...)
			w.apply(p.Ops...)
			for _, op := range p.Ops {
				if in, ok := op.(push.Install); ok {
					n.Reinstalled(in.SA.ID, true)
				}
			}
			stuck := p.Stuck // no lease left: a rekey is due
			for _, id := range sortedKeys(pending) {
				op, err := n.Again(epoch, id)
				if err != nil {
					stuck = append(stuck, id)
				} else {
					see(op)
					w.apply(op)
				}
				n.Settle(id, err == nil)
			}
			clear(pending)
			up = true
			for id := range w.sas {
				if !desired[id] {
					t.Fatalf("%s is in the worker and not desired", id)
				}
			}
			for id := range desired {
				if w.sas[id] == nil && !slices.Contains(stuck, id) {
					t.Fatalf("%s is desired, has leases left, and is not in the worker", id)
				}
			}
		}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			switch rapid.IntRange(0, 7).Draw(t, "what") {
			case 0, 1: // install, perhaps while detached or lost on the way
				sa := outbound(next, rapid.Bool().Draw(t, "esn"))
				if rapid.IntRange(0, 3).Draw(t, "in") == 0 {
					sa.Direction = ipsec.Inbound
				}
				next++
				op, err := n.Put(epoch, sa)
				if err != nil {
					t.Fatal(err)
				}
				see(op)
				desired[sa.ID] = true
				if up {
					w.apply(op)
					n.Settle(sa.ID, true)
				} else {
					pending[sa.ID] = true
				}
			case 2: // remove
				for _, id := range sortedKeys(desired)[:min(1, len(desired))] {
					op, ok := n.Delete(id)
					if !ok {
						t.Fatalf("%s was not known", id)
					}
					delete(desired, id)
					delete(pending, id)
					if up {
						w.apply(op)
					}
				}
			case 3: // the worker uses numbers and asks for more
				if !up {
					continue
				}
				for _, id := range sortedKeys(desired) {
					h := w.sas[id]
					if h == nil || h.sa.Direction != ipsec.Outbound {
						continue
					}
					l := h.leases[len(h.leases)-1]
					h.used = l.First + rapid.Uint64Range(0, l.Last-l.First-1).Draw(t, "used")
					if g, err := n.Grant(id, h.used); err == nil {
						see(g)
						if rapid.Bool().Draw(t, "delivered") {
							w.apply(g)
						} else {
							up = false
						}
					}
				}
			case 4: // the link breaks
				up = false
			case 5: // the worker restarts
				w, up = newWorker(w.incarnation+1), false
			case 6, 7:
				attach()
			}
		}
		attach()
	})
}

func sortedKeys(m map[ipsec.SAID]bool) []ipsec.SAID {
	var out []ipsec.SAID
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func TestComing(t *testing.T) {
	n := sadb.New(base)
	put := func(sa ipsec.SA) {
		t.Helper()
		if _, err := n.Put(epoch, sa); err != nil {
			t.Fatal(err)
		}
	}
	want := func(coming bool, when string) {
		t.Helper()
		if n.Coming(outbound(2001, true).Rule) != coming {
			t.Errorf("%s: coming %t, want %t", when, !coming, coming)
		}
	}
	put(inbound(2000))
	want(false, "an inbound SA")
	put(outbound(2001, true))
	put(outbound(2001, true))
	want(true, "put twice")
	n.Settle(2001, true)
	want(true, "one is settled")
	n.Settle(2001, true)
	n.Settle(2001, true)
	want(false, "both are settled, one of them twice")
	put(outbound(2001, true))
	n.Delete(2001)
	want(false, "deleted")
	put(outbound(2001, true))
	n.Abandon(2001)
	want(false, "abandoned")
}
