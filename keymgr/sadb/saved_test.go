package sadb

import (
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/archive"
	"github.com/testudo-ipsec/testudo/keymgr/archive/archivetest"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

func TestEveryFieldIsSavedOrExplained(t *testing.T) {
	archivetest.EveryField(t, func() *entry { return new(entry) }, func(e *entry) (*entry, error) {
		w := archive.Writer(nil)
		e.archive(w)
		back := new(entry)
		r := archive.Reader(w.Octets())
		back.archive(r)
		return back, r.Done()
	}, map[string]string{
		"entry.pending":  "the machine asks for what is not settled again",
		"entry.mending":  "Attach puts right what is not installed",
		"entry.restored": "set by Restore",
		"entry.saved":    "when it was last saved",
		"entry.count":    "the totals of it: TestResume",
	})
}

func TestLayoutHasAVersion(t *testing.T) {
	fresh := func() *entry { return new(entry) }
	archivetest.Layout(t, savedVersion, map[int]string{2: "f636349cb3697f4f"}, fresh, func(e *entry) []byte {
		n := New(1)
		n.sas[7] = e
		return n.save(7)
	}, map[string]string{"entry.saved": "", "entry.pending": ""})
}

var now = time.Unix(1_700_000_000, 0)

func out(id ipsec.SAID) ipsec.SA {
	return ipsec.SA{ID: id, Direction: ipsec.Outbound, SPI: 4711, Suite: ipsec.Suite{ESN: true}, Rule: "r"}
}

func in(id ipsec.SAID) ipsec.SA {
	return ipsec.SA{ID: id, Direction: ipsec.Inbound, SPI: ipsec.SPI(1000 + id), Rule: "r"}
}

// disk is what Changes have written.
type disk map[ipsec.SAID][]byte

func (d disk) take(n *Node) {
	for _, c := range n.Changes() {
		if c.Octets == nil {
			delete(d, c.ID)
		} else {
			d[c.ID] = c.Octets
		}
	}
}

func (d disk) copy() disk {
	x := make(disk)
	for k, v := range d {
		x[k] = append([]byte(nil), v...)
	}
	return x
}

// resumed is the record of the next process.
func (d disk) resumed(t *testing.T, incarnation uint64, high ipsec.SAID) *Node {
	t.Helper()
	n := New(1)
	n.Resume(incarnation, high)
	for id, b := range d {
		if err := n.Restore(id, b); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// up is a record with an SA in each direction in a worker of incarnation 7.
func up(t *testing.T) (*Node, disk) {
	t.Helper()
	n, d := New(1), make(disk)
	n.Attach(now, 7, nil)
	for _, sa := range []ipsec.SA{in(10), out(11)} {
		if _, err := n.Put(now, sa); err != nil {
			t.Fatal(err)
		}
		n.Settle(sa.ID, true)
	}
	d.take(n)
	return n, d
}

func held(n *Node) []push.Held {
	var hs []push.Held
	for id, e := range n.sas {
		hs = append(hs, push.Held{ID: id, SPI: e.sa.SPI, Direction: e.sa.Direction, Rule: "r", Top: 5, LeaseLast: e.next})
	}
	return hs
}

func TestResume(t *testing.T) {
	n, d := up(t)
	if _, err := n.Grant(11, SizeESN/2); err != nil {
		t.Fatal(err)
	}
	n.Report(now, ipsec.SACounters{ID: 10, Bytes: 1000, Packets: 10, Top: 99, First: now.Add(-time.Hour)})
	d.take(n)
	r := d.resumed(t, 7, 20)
	if r.Desired() != 2 || r.Installed() != 2 {
		t.Fatalf("%d desired, %d installed; want 2 and 2", r.Desired(), r.Installed())
	}
	if total, _ := r.Traffic(10); total.Bytes != 1000 || total.Top != 99 {
		t.Errorf("traffic %+v, want 1000 octets and top 99", total)
	} else if !total.First.Equal(now.Add(-time.Hour)) {
		t.Errorf("first packet at %v, want what was reported", total.First)
	}
	inventory := held(n)
	if why := r.Stale(inventory); why != "" {
		t.Fatalf("a state that is up to date is called stale: %s", why)
	}
	if p := r.Attach(now, 7, inventory); len(p.Ops)+len(p.Rekey)+len(p.Stuck) != 0 {
		t.Fatalf("plan %+v, want none: the worker has it all", p)
	}
	g, err := r.Grant(11, SizeESN+SizeESN/2)
	if err != nil || g.Lease.First != n.sas[11].next {
		t.Errorf("lease %+v, %v; want one from %d on", g, err, n.sas[11].next)
	}
}

// Worker and key manager have died: how far the worker got in its lease nobody knows,
// nor whether the state is an old copy. No number is granted again.
func TestResumeWithAnotherWorker(t *testing.T) {
	_, d := up(t)
	r := d.resumed(t, 7, 20)
	for range 2 {
		p := r.Attach(now, 8, nil)
		if len(p.Ops) != 1 || p.Ops[0].(push.Install).SA.ID != 10 {
			t.Fatalf("operations %+v, want the inbound SA only", p.Ops)
		}
		if len(p.Stuck) != 1 || p.Stuck[0] != 11 {
			t.Fatalf("stuck %v, want the outbound SA", p.Stuck)
		}
	}
	if g, err := r.Grant(11, 0); err == nil {
		t.Fatalf("granted %v", g)
	}
}

func TestStaleState(t *testing.T) {
	n, d := up(t)
	old := d.copy()
	if _, err := n.Grant(11, SizeESN/2); err != nil {
		t.Fatal(err)
	}
	if why := old.resumed(t, 7, 20).Stale(held(n)); why == "" {
		t.Error("a lease that the state does not know of went unnoticed")
	}
	n, d = up(t)
	if _, err := n.Put(now, out(21)); err != nil {
		t.Fatal(err)
	}
	r := d.resumed(t, 7, 20)
	if why := r.Stale(held(n)); why == "" {
		t.Error("an SA that is younger than the state went unnoticed")
	}
	r.Distrust()
	r.Attach(now, 7, held(n))
	if r.Orphans() != 1 {
		t.Errorf("%d orphans, want the one SA that the state does not know", r.Orphans())
	}
	d.take(r)
	inventory := held(n)
	r = d.resumed(t, 7, 30) // and it is one after another restart
	if r.Attach(now, 7, inventory); r.Orphans() != 1 {
		t.Errorf("%d orphans after another restart, want 1", r.Orphans())
	}
	// One that was removed while the worker did not hear of it is older: no sign of age.
	n, d = up(t)
	inventory = held(n)
	n.Delete(11)
	d.take(n)
	r = d.resumed(t, 7, 20)
	if why := r.Stale(inventory); why != "" {
		t.Errorf("an SA that was removed is called a sign of age: %s", why)
	}
	if p := r.Attach(now, 7, inventory); len(p.Ops) != 1 || p.Ops[0].(push.Remove).ID != 11 {
		t.Errorf("operations %+v, want the removal again", p.Ops)
	}
}

// Orphans stay orphans over a restart.
func TestAbandonedIsSaved(t *testing.T) {
	n, d := up(t)
	inventory := held(n)
	n.Abandon(11)
	d.take(n)
	r := d.resumed(t, 7, 20)
	r.Attach(now, 7, inventory)
	if r.Orphans() != 1 || r.Desired() != 1 {
		t.Fatalf("%d orphans, %d desired; want 1 and 1", r.Orphans(), r.Desired())
	}
	r.Delete(11)
	d.take(r)
	if len(d) != 1 {
		t.Errorf("%d records, want that of the orphan gone", len(d))
	}
}

func FuzzRestore(f *testing.F) {
	n := New(1)
	_, _ = n.Put(now, out(11))
	f.Add(n.save(11))
	f.Fuzz(func(_ *testing.T, b []byte) {
		r := New(1)
		r.Resume(7, 20)
		_ = r.Restore(11, b)
		r.Attach(now, 8, nil)
		r.Grant(11, 5) //nolint:errcheck // it must not panic
		r.Changes()
	})
}

// An old copy from between the order to install an outbound SA and the worker's
// acknowledgement, and a worker that was restarted: nobody vouches for the leases
// that were granted since.
func TestOldCopyOfAnSAThatWasNotAcknowledged(t *testing.T) {
	for _, asked := range []bool{false, true} { // whether its machine asks for it again
		n, d := New(1), make(disk)
		n.Attach(now, 7, nil)
		if _, err := n.Put(now, out(11)); err != nil {
			t.Fatal(err)
		}
		d.take(n)
		old := d.copy()
		n.Settle(11, true)
		g, err := n.Grant(11, SizeESN/2)
		if err != nil {
			t.Fatal(err)
		}
		r := old.resumed(t, 7, 20)
		if asked {
			if _, err := r.Put(now, out(11)); err != nil {
				t.Fatal(err)
			}
		}
		p := r.Attach(now, 8, nil)
		for _, op := range p.Ops {
			if sa := op.(push.Install).SA; sa.Lease.First < g.Lease.Last {
				t.Errorf("lease %v after up to %d were granted", sa.Lease, g.Lease.Last)
			}
		}
		if op, err := r.Again(now, 11); err == nil {
			t.Errorf("asked again %t: lease %v after up to %d were granted", asked, op.SA.Lease, g.Lease.Last)
		}
	}
}
