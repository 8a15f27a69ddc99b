package sad

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/esp"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

func outbound(t testing.TB, change func(*ipsec.SA)) (*SAD, *Outbound, *esp.Sealer) {
	t.Helper()
	sa := newSA(1, ipsec.Outbound, 0x1000)
	change(sa)
	d := install(t, sa)
	return d, d.Outbound(1), sealer(t, d.Outbound(1))
}

func wantExpiries(t *testing.T, d *SAD, want ...ipsec.Expiry) {
	t.Helper()
	if got := d.Expiries(); !slices.Equal(got, want) {
		t.Errorf("expiries %+v, want %+v", got, want)
	}
}

// Architecture rule 1: without a lease nothing is sent, numbers go from lease to
// lease in order, and none is used twice.
func TestLeases(t *testing.T) {
	d, out, s := outbound(t, func(sa *ipsec.SA) { sa.Lease = ipsec.Lease{} })
	jobs := sealJobs(s, 4, 64)
	if n := out.SealBurst(at(0), s, jobs); n != 0 || jobs[0].Why != packet.WhyNoLease || out.Usable(at(0)) != packet.WhyOK {
		t.Fatalf("%d sealed without a lease: %s", n, jobs[0].Why)
	}
	low := ipsec.Expiry{ID: 1, Cause: "lease"}
	wantExpiries(t, d, low)
	out.SealBurst(at(0), s, sealJobs(s, 4, 64))
	wantExpiries(t, d) // asked already

	for _, l := range []ipsec.Lease{{First: 10, Last: 13}, {First: 100, Last: 102}, {First: 102, Last: 110}} {
		if err := out.AddLease(l); err != nil {
			t.Fatal(err)
		}
	}
	if out.LeaseLeft() != 13 {
		t.Fatalf("%d numbers left, want 13", out.LeaseLeft())
	}
	jobs = sealJobs(s, 14, 64)
	jobs[1].Why = packet.WhyBlocked // not ours: skipped, and no number spent on it
	if n := out.SealBurst(at(0), s, jobs); n != 13 {
		t.Fatalf("sealed %d", n)
	}
	var got []uint64
	for i, j := range jobs {
		if i != 1 {
			got = append(got, j.Seq)
		}
	}
	if want := []uint64{10, 11, 12, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109}; !slices.Equal(got, want) {
		t.Fatalf("numbers %v, want %v", got, want)
	}
	if c := out.Counters(); c.Top != 109 || c.Packets != 13 {
		t.Fatalf("%+v", c)
	}
	wantExpiries(t, d, low)

	jobs = sealJobs(s, 2, 64)
	if out.SealBurst(at(0), s, jobs); jobs[1].Why != packet.WhyNoLease {
		t.Fatal(jobs[1].Why)
	}
	if err := out.AddLease(ipsec.Lease{First: 1000, Last: 1001}); err != nil {
		t.Fatal(err)
	}
	jobs = sealJobs(s, 3, 64)
	if n := out.SealBurst(at(0), s, jobs); n != 1 || jobs[0].Seq != 1000 || jobs[1].Why != packet.WhyNoLease {
		t.Fatalf("%d sealed, %+v", n, jobs[0])
	}
	wantExpiries(t, d, low)
}

func TestLeasesRefused(t *testing.T) {
	_, out, _ := outbound(t, func(sa *ipsec.SA) { sa.Suite.ESN = false; sa.Lease = ipsec.Lease{First: 100, Last: 200} })
	for _, v := range []struct {
		l    ipsec.Lease
		want string
	}{
		{ipsec.Lease{First: 0, Last: 10}, "starts at 1"},
		{ipsec.Lease{First: 300, Last: 300}, "not empty"},
		{ipsec.Lease{First: 1, Last: 50}, "overlaps or precedes"},
		{ipsec.Lease{First: 199, Last: 250}, "overlaps or precedes"},
		{ipsec.Lease{First: 200, Last: 1<<32 + 1}, "past the sequence number space"},
	} {
		if err := out.AddLease(v.l); err == nil || !strings.Contains(err.Error(), v.want) {
			t.Errorf("%+v: error %v, want one with %q", v.l, err, v.want)
		}
	}
	if err := out.AddLease(ipsec.Lease{First: 200, Last: 1 << 32}); err != nil {
		t.Errorf("up to the last 32-bit number: %v", err)
	}
	_, out, _ = outbound(t, func(*ipsec.SA) {})
	for i := uint64(2); ; i++ {
		if err := out.AddLease(ipsec.Lease{First: i << 20, Last: (i + 1) << 20}); err != nil {
			if i < MaxLeases || !strings.Contains(err.Error(), "waiting already") {
				t.Error(err)
			}
			break
		}
	}
}

// However many goroutines reserve, and leases come late, each number is given
// once, and all of them.
func TestReserveConcurrently(t *testing.T) {
	d, out, _ := outbound(t, func(sa *ipsec.SA) { sa.Lease = ipsec.Lease{First: 1, Last: 1000} })
	const last = 20_000
	go func() {
		for first := uint64(1000); first < last; {
			<-d.Wake()
			for range d.Expiries() {
				if err := out.AddLease(ipsec.Lease{First: first, Last: min(first+1000, last)}); err != nil {
					t.Error(err)
				}
				first += 1000
			}
		}
	}()
	var mu sync.Mutex
	seen := map[uint64]bool{}
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for {
				jobs := make([]esp.SealJob, 1+worker*5)
				out.Reserve(at(0), jobs)
				mu.Lock()
				for _, j := range jobs {
					if j.Why == packet.WhyOK {
						if seen[j.Seq] || j.Seq == 0 || j.Seq >= last {
							t.Errorf("number %d given twice, or outside the leases", j.Seq)
						}
						seen[j.Seq] = true
					}
				}
				n := len(seen)
				mu.Unlock()
				if n == last-1 {
					return
				}
			}
		})
	}
	wg.Wait()
	if c := out.Counters(); c.Packets != last-1 || c.Top != last-1 {
		t.Errorf("%+v", c)
	}
}

// Hard limits are never overrun, not by one packet of a burst; soft ones are
// reported once.
func TestOutboundLimits(t *testing.T) {
	for _, v := range []struct {
		name   string
		life   ipsec.Lifetime
		sealed int
		why    packet.Why
		want   []ipsec.Expiry
	}{
		{"packets", ipsec.Lifetime{Packets: ipsec.Limit{Soft: 5, Hard: 25}}, 25, packet.WhyHardPackets,
			[]ipsec.Expiry{{ID: 1, Cause: "packets"}, {ID: 1, Hard: true, Cause: "packets"}}},
		{"bytes", ipsec.Lifetime{Bytes: ipsec.Limit{Soft: 1000, Hard: 2550}}, 25, packet.WhyHardBytes,
			[]ipsec.Expiry{{ID: 1, Cause: "bytes"}, {ID: 1, Hard: true, Cause: "bytes"}}},
		{"bytes to the last", ipsec.Lifetime{Bytes: ipsec.Limit{Hard: 2000}}, 20, packet.WhyHardBytes,
			[]ipsec.Expiry{{ID: 1, Hard: true, Cause: "bytes"}}},
		{"soft alone", ipsec.Lifetime{Bytes: ipsec.Limit{Soft: 1}, Packets: ipsec.Limit{Soft: 1}}, 40, packet.WhyOK,
			[]ipsec.Expiry{{ID: 1, Cause: "bytes"}, {ID: 1, Cause: "packets"}}},
	} {
		d, out, s := outbound(t, func(sa *ipsec.SA) { sa.Lifetime = v.life })
		sealed, why := 0, packet.WhyOK
		for range 4 {
			jobs := sealJobs(s, 10, 100)
			sealed += out.SealBurst(at(0), s, jobs)
			why = jobs[9].Why
			for _, j := range jobs {
				if j.Why != packet.WhyOK && j.Len != 0 {
					t.Errorf("%s: a refused packet was sealed", v.name)
				}
			}
		}
		if c := out.Counters(); sealed != v.sealed || c.Packets != uint64(v.sealed) || c.Bytes != uint64(v.sealed*100) || why != v.why || out.Usable(at(0)) != v.why {
			t.Errorf("%s: sealed %d, %+v, %s", v.name, sealed, c, why)
		}
		wantExpiries(t, d, v.want...)
	}
}

// The same with goroutines that share the SA.
func TestHardLimitConcurrently(t *testing.T) {
	_, out, _ := outbound(t, func(sa *ipsec.SA) {
		sa.Lifetime = ipsec.Lifetime{Packets: ipsec.Limit{Hard: 5000}, Bytes: ipsec.Limit{Hard: 1 << 40}}
	})
	var wg sync.WaitGroup
	got := make([]int, 4)
	for i := range got {
		wg.Go(func() {
			for out.Usable(at(0)) == packet.WhyOK {
				jobs := make([]esp.SealJob, 7)
				for k := range jobs {
					jobs[k].Size = 10
				}
				got[i] += out.Reserve(at(0), jobs)
			}
		})
	}
	wg.Wait()
	total := 0
	for _, n := range got {
		total += n
	}
	if c := out.Counters(); total > 5000 || c.Packets != uint64(total) || c.Bytes != uint64(10*total) || total < 5000-4*7 {
		t.Errorf("reserved %d of 5000, %+v", total, c)
	}
}

func TestInboundLimits(t *testing.T) {
	for _, v := range []struct {
		name   string
		life   ipsec.Lifetime
		opened int
		why    packet.Why
		want   []ipsec.Expiry
	}{
		{"packets", ipsec.Lifetime{Packets: ipsec.Limit{Soft: 5, Hard: 25}}, 25, packet.WhyHardPackets,
			[]ipsec.Expiry{{ID: 2, Cause: "packets"}, {ID: 2, Hard: true, Cause: "packets"}}},
		{"bytes", ipsec.Lifetime{Bytes: ipsec.Limit{Hard: 2550}}, 25, packet.WhyHardBytes,
			[]ipsec.Expiry{{ID: 2, Hard: true, Cause: "bytes"}}},
	} {
		in := newSA(2, ipsec.Inbound, 0x1000)
		in.Lifetime = v.life
		d := install(t, newSA(1, ipsec.Outbound, 0x1000), in)
		s := sealer(t, d.Outbound(1))
		opened, why := 0, packet.WhyOK
		for range 4 {
			jobs := sealJobs(s, 10, 100)
			d.Outbound(1).SealBurst(at(0), s, jobs)
			received := openJobs(jobs)
			opened += d.Inbound(2).OpenBurst(at(0), received)
			why = received[9].Why
		}
		if c := d.Inbound(2).Counters(); opened != v.opened || c.Packets != uint64(v.opened) || c.Bytes != uint64(v.opened*100) || why != v.why || c.Errors != uint64(40-v.opened) {
			t.Errorf("%s: opened %d, %+v, %s", v.name, opened, c, why)
		}
		wantExpiries(t, d, v.want...)
	}
}

func TestTimeLimits(t *testing.T) {
	a, b, c := newSA(1, ipsec.Outbound, 0x1000), newSA(2, ipsec.Inbound, 0x1000), newSA(3, ipsec.Inbound, 0x3000)
	a.Lifetime = ipsec.Lifetime{TimeSoft: 10 * time.Second, TimeHard: 20 * time.Second}
	b.Lifetime = ipsec.Lifetime{TimeHard: 15 * time.Second}
	c.Lifetime = ipsec.Lifetime{TimeSoft: 5 * time.Second, TimeHard: 50 * time.Second}
	d := install(t, a, b, c, newSA(4, ipsec.Inbound, 0x4000))
	if err := d.Apply(start, Batch{Remove: []ipsec.SAID{3}}); err != nil {
		t.Fatal(err)
	}
	due := func(want time.Duration) {
		t.Helper()
		if next, ok := d.Deadline(); !ok || !next.Equal(start.Add(want)) {
			t.Fatalf("deadline %v %v, want %v", next.Sub(start), ok, want)
		}
	}
	due(10 * time.Second)
	d.Advance(start.Add(9 * time.Second))
	wantExpiries(t, d)
	d.Advance(start.Add(10 * time.Second))
	wantExpiries(t, d, ipsec.Expiry{ID: 1, Cause: "time"})
	due(15 * time.Second)
	// The packet path sees the hard limit by itself.
	if why := d.Inbound(2).Usable(at(15 * time.Second)); why != packet.WhyHardTime {
		t.Fatal(why)
	}
	wantExpiries(t, d, ipsec.Expiry{ID: 2, Hard: true, Cause: "time"})
	if why := d.Outbound(1).Usable(at(15 * time.Second)); why != packet.WhyOK {
		t.Fatal(why)
	}
	d.Advance(start.Add(time.Minute))
	wantExpiries(t, d, ipsec.Expiry{ID: 1, Hard: true, Cause: "time"})
	if _, ok := d.Deadline(); ok {
		t.Fatal("a deadline is left")
	}
	s := sealer(t, d.Outbound(1))
	jobs := sealJobs(s, 1, 64)
	if d.Outbound(1).SealBurst(at(0), s, jobs); jobs[0].Why != packet.WhyHardTime {
		t.Fatal(jobs[0].Why)
	}
}

// Use counts from the first packet that was carried, not from installation. A forged
// one does not count as carried, and the hard limit needs no Advance.
func TestUseLimits(t *testing.T) {
	a, b, c := newSA(1, ipsec.Outbound, 0x1000), newSA(2, ipsec.Inbound, 0x1000), newSA(3, ipsec.Inbound, 0x3000)
	a.Lifetime = ipsec.Lifetime{TimeSoft: time.Hour, UseSoft: 10 * time.Second, UseHard: 20 * time.Second}
	b.Lifetime = ipsec.Lifetime{UseHard: 15 * time.Second}
	c.Lifetime = ipsec.Lifetime{UseSoft: time.Second, UseHard: 2 * time.Second} // never used
	d := install(t, a, b, c)
	out, in := d.Outbound(1), d.Inbound(2)
	s := sealer(t, out)
	due := func(want time.Duration) {
		t.Helper()
		if next, ok := d.Deadline(); !ok || !next.Equal(start.Add(want)) {
			t.Fatalf("deadline %v %v, want %v", next.Sub(start), ok, want)
		}
	}
	send := func(after time.Duration) packet.Why {
		t.Helper()
		jobs := sealJobs(s, 4, 100)
		if n := out.SealBurst(at(after), s, jobs); jobs[0].Why != packet.WhyOK {
			return jobs[0].Why
		} else if n != 4 {
			t.Fatalf("sealed %d of a burst", n)
		}
		received := openJobs(jobs)
		in.OpenBurst(at(after), received)
		return received[0].Why
	}

	d.Advance(start.Add(50 * time.Second)) // installed long ago, and not used
	wantExpiries(t, d)
	due(time.Hour)
	forged := []esp.OpenJob{{Packet: openJobs(func() []esp.SealJob {
		other, _, peer := outbound(t, func(*ipsec.SA) {})
		jobs := sealJobs(peer, 1, 100)
		other.Outbound(1).SealBurst(at(0), peer, jobs)
		jobs[0].Dst[jobs[0].Len-1] ^= 1
		return jobs
	}())[0].Packet}}
	if in.OpenBurst(at(51*time.Second), forged); forged[0].Why != packet.WhyAuth || !in.Counters().First.IsZero() {
		t.Fatalf("%s, first packet %v", forged[0].Why, in.Counters().First)
	}

	if why := send(60 * time.Second); why != packet.WhyOK {
		t.Fatal(why)
	}
	due(70 * time.Second)
	d.Advance(start.Add(70*time.Second - 1))
	wantExpiries(t, d)
	d.Advance(start.Add(70 * time.Second))
	wantExpiries(t, d, ipsec.Expiry{ID: 1, Cause: "use"})
	due(75 * time.Second)
	if why := send(75*time.Second - 1); why != packet.WhyOK { // a later packet does not start it anew
		t.Fatal(why)
	}
	if why := send(75 * time.Second); why != packet.WhyHardUse {
		t.Fatal(why)
	}
	wantExpiries(t, d, ipsec.Expiry{ID: 2, Hard: true, Cause: "use"})
	if why := out.Usable(at(80*time.Second - 1)); why != packet.WhyOK {
		t.Fatal(why)
	}
	if why := send(80 * time.Second); why != packet.WhyHardUse {
		t.Fatal(why)
	}
	wantExpiries(t, d, ipsec.Expiry{ID: 1, Hard: true, Cause: "use"})
	d.Advance(start.Add(2 * time.Hour))
	wantExpiries(t, d) // once each; and sa-3 was never used
	if next, ok := d.Deadline(); ok {
		t.Fatalf("a deadline is left: %v", next.Sub(start))
	}
}

// An SA that is removed, or met another hard limit, between its first packet and the
// next look at the deadlines has none any more.
func TestUseOfAnSAThatEnded(t *testing.T) {
	d, out, s := outbound(t, func(sa *ipsec.SA) { sa.Lifetime = ipsec.Lifetime{UseHard: time.Second, Packets: ipsec.Limit{Hard: 4}} })
	out.SealBurst(at(0), s, sealJobs(s, 4, 64))
	if _, ok := d.Deadline(); ok {
		t.Error("an SA that ended has a deadline")
	}
	d, out, s = outbound(t, func(sa *ipsec.SA) { sa.Lifetime = ipsec.Lifetime{UseHard: time.Second} })
	out.SealBurst(at(0), s, sealJobs(s, 4, 64))
	if err := d.Apply(start, Batch{Remove: []ipsec.SAID{1}}); err != nil {
		t.Fatal(err)
	}
	if _, ok := d.Deadline(); ok {
		t.Error("an SA that was removed has a deadline")
	}
}

// An expiry wakes whoever waits, and is there when it comes.
func TestWake(t *testing.T) {
	d, out, s := outbound(t, func(sa *ipsec.SA) { sa.Lifetime.Packets.Soft = 1 })
	select {
	case <-d.Wake():
		t.Fatal("awake with nothing to report")
	default:
	}
	out.SealBurst(at(0), s, sealJobs(s, 1, 64))
	<-d.Wake()
	wantExpiries(t, d, ipsec.Expiry{ID: 1, Cause: "packets"})
}

func TestNoAllocations(t *testing.T) {
	d := install(t, newSA(1, ipsec.Outbound, 0x1000), newSA(2, ipsec.Inbound, 0x1000))
	out, in := d.Outbound(1), d.Inbound(2)
	s := sealer(t, out)
	jobs, open := sealJobs(s, 32, 1000), make([]esp.OpenJob, 32)
	if n := testing.AllocsPerRun(50, func() {
		for i := range jobs {
			jobs[i].Why = packet.WhyOK
		}
		out.SealBurst(at(0), s, jobs)
		for i := range jobs {
			open[i] = esp.OpenJob{Packet: jobs[i].Dst[:jobs[i].Len]}
		}
		if in.OpenBurst(at(0), open) != 32 {
			t.Fatal(open[0].Why)
		}
	}); n != 0 {
		t.Errorf("%.1f allocations per burst", n)
	}
}

// BenchmarkBurst is one burst of 32 packets sealed and opened, per packet.
func BenchmarkBurst(b *testing.B) {
	for _, size := range []int{64, 1400} {
		d := install(b, newSA(1, ipsec.Outbound, 0x1000), newSA(2, ipsec.Inbound, 0x1000))
		if err := d.Outbound(1).AddLease(ipsec.Lease{First: 1 << 20, Last: 1 << 40}); err != nil {
			b.Fatal(err)
		}
		out, in := d.Outbound(1), d.Inbound(2)
		s := sealer(b, out)
		jobs, open := sealJobs(s, 32, size), make([]esp.OpenJob, 32)
		b.Run([]string{"64", "1400"}[size/1400], func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for n := 0; b.Loop(); n++ {
				if n%32 != 0 {
					continue
				}
				out.SealBurst(at(0), s, jobs)
				for i := range jobs {
					open[i] = esp.OpenJob{Packet: jobs[i].Dst[:jobs[i].Len]}
				}
				if in.OpenBurst(at(0), open) != 32 {
					b.Fatal(open[0].Why)
				}
			}
		})
	}
}
