package engine_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

func TestAnAcquireBringsUpSAsOnBothEnds(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		events := p.e.Watch(t.Context())
		p.a.acquire(1)
		p.after(time.Second)
		p.mustForward()
		if len(p.a.sas) != 2 || len(p.b.sas) != 2 || len(p.a.failed) != 0 {
			t.Fatalf("SAs: %d and %d, want 2 each; failed %v", len(p.a.sas), len(p.b.sas), p.a.failed)
		}
		sa, _ := p.a.newest()
		if sa.Lease.First != 1 || sa.Rule != "rule-0" || sa.Peer != "b" || !sa.Suite.ESN {
			t.Errorf("outbound SA: %+v", sa)
		}
		sas := p.list(t, engine.Filter{Node: "a"})
		if len(sas) != 1 || sas[0].Peer != "b" || sas[0].State != "established" || len(sas[0].Children) != 1 || len(sas[0].Traffic) != 1 {
			t.Fatalf("list: %+v", sas)
		}
		s := p.e.Stats()
		if s.Established != 2 || s.ChildrenUp != 2 || s.Installs != 4 || s.SAInstalled != 4 || s.HalfOpen != 0 || s.Machines != 2 || s.Workers != 2 {
			t.Errorf("stats: %+v", s)
		}
		var kinds []string
		for len(events) > 0 {
			kinds = append(kinds, (<-events).Kind)
		}
		slices.Sort(kinds)
		if got := strings.Join(kinds, " "); got != "child-up child-up ike-up ike-up" {
			t.Errorf("events: got %s", got)
		}
	})
}

func TestOneNegotiationPerRuleAndOneIKESAPerPeer(t *testing.T) {
	inPair(t, 3, nil, func(t *testing.T, p *pair) {
		for id := range uint64(20) {
			p.a.acquire(id)
		}
		for _, rule := range []string{"rule-1", "rule-2"} { // while the IKE SA is being made
			p.a.report(push.Acquire{ID: 100, Rule: rule})
		}
		p.after(time.Second)
		if s := p.e.Stats(); s.Machines != 2 || s.ChildrenUp != 6 || s.Acquires != 22 || s.AcquiresFailed != 0 {
			t.Errorf("got %+v, want one IKE SA (two ends) and three CHILD SAs", s)
		}
	})
}

// Both ends start at the same instant: two IKE SAs and two CHILD SAs come up.
// One of each goes, and never is a packet lost.
func TestCrossingNegotiationsLeaveOneAndLoseNothing(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		p.a.acquire(1)
		p.b.acquire(1)
		p.after(time.Second)
		p.mustForward()
		if len(p.a.sas) != 4 {
			t.Fatalf("got %d SAs, want the two pairs that crossing makes: the test does not test", len(p.a.sas))
		}
		p.lossless = true
		p.after(2 * time.Minute)
		p.mustForward()
		if len(p.a.sas) != 2 || len(p.b.sas) != 2 || p.e.Stats().Machines != 2 {
			t.Errorf("left are %d and %d SAs, %d machines; want 2, 2, 2", len(p.a.sas), len(p.b.sas), p.e.Stats().Machines)
		}
	})
}

func TestARekeyIsNotTakenForADuplicate(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		p.a.acquire(1)
		p.after(time.Second)
		p.lossless = true
		// Each rekey but the first is timed around the look for duplicates that
		// the one before has planned, a drain after it came up.
		for i := range 10 {
			if n, err := p.e.Rekey(t.Context(), engine.Filter{Node: "a", Rule: "rule-0"}); n != 1 || err != nil {
				t.Fatalf("rekey: %d, %v", n, err)
			}
			p.after(30*time.Second + time.Duration(i-6)*time.Millisecond)
		}
		p.after(time.Minute)
		p.mustForward()
		if s := p.e.Stats(); len(p.a.sas) != 2 || len(p.b.sas) != 2 || s.ChildrenUp != 22 || s.Machines != 2 {
			t.Errorf("after ten rekeys: %d and %d SAs, %+v", len(p.a.sas), len(p.b.sas), s)
		}
	})
}

func TestChildSAsFollowARekeyedIKESA(t *testing.T) {
	inPair(t, 2, nil, func(t *testing.T, p *pair) {
		p.a.acquire(1)
		p.after(time.Second)
		p.lossless = true
		before := p.list(t, engine.Filter{Node: "a"})[0].LocalSPI
		if n, err := p.e.Rekey(t.Context(), engine.Filter{Node: "a", Peer: "b"}); n != 1 || err != nil {
			t.Fatalf("rekey: %d, %v", n, err)
		}
		p.after(2 * time.Minute)
		sas := p.list(t, engine.Filter{Node: "a"})
		if len(sas) != 1 || sas[0].LocalSPI == before || len(sas[0].Children) != 1 || len(p.a.sas) != 2 {
			t.Fatalf("after the rekey: %+v, %d SAs", sas, len(p.a.sas))
		}
		// The worker's reports find the new IKE SA, and so does the next rule.
		out, _ := p.a.newest()
		p.a.report(push.Expire{Expiry: ipsec.Expiry{ID: out.ID, Cause: "bytes"}})
		p.a.report(push.Acquire{ID: 2, Rule: "rule-1"})
		p.after(time.Minute)
		if got, _ := p.a.newest(); got.ID == out.ID {
			t.Error("the soft limit led to no rekey")
		}
		sas = p.list(t, engine.Filter{Node: "a"})
		if len(sas) != 1 || len(sas[0].Children) != 2 {
			t.Errorf("got %+v, want one IKE SA with both rules", sas)
		}
		p.lossless = false
		if n, err := p.e.Terminate(t.Context(), engine.Filter{Node: "a"}, "test"); n != 1 || err != nil {
			t.Fatalf("terminate: %d, %v", n, err)
		}
		p.after(time.Second)
		if s := p.e.Stats(); s.Machines != 0 || s.SADesired != 0 || len(p.a.sas)+len(p.b.sas) != 0 {
			t.Errorf("after terminate: %+v, %d and %d SAs", s, len(p.a.sas), len(p.b.sas))
		}
	})
}

func TestAWorkerThatRestartsGetsItsSAsBackAndThenFreshOnes(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		p.a.acquire(1)
		p.after(time.Second)
		out, _ := p.a.newest()
		for id, sa := range p.a.sas {
			if sa.Direction == ipsec.Inbound {
				p.a.report(push.Counters{SAs: []ipsec.SACounters{{ID: id, Top: 4711, Packets: 5000, Bytes: 1 << 20, Used: time.Now()}}})
			}
		}
		p.a.do(func() { p.a.session.Close(); clear(p.a.sas); p.a.incarnation++ })
		p.a.attach(p.e)
		p.after(time.Millisecond)
		p.mustForward()
		again, _ := p.a.newest()
		if again.ID != out.ID || again.Lease.First < out.Lease.Last {
			t.Errorf("outbound SA: got %s %v, want %s with a lease from %d on", again.ID, again.Lease, out.ID, out.Lease.Last)
		}
		for _, sa := range p.a.sas {
			if sa.Direction == ipsec.Inbound && sa.ReplayFloor != 4711 {
				t.Errorf("replay floor: got %d, want the last reported top", sa.ReplayFloor)
			}
		}
		p.lossless = true
		p.after(time.Minute)
		if fresh, _ := p.a.newest(); fresh.ID == out.ID || len(p.a.sas) != 2 {
			t.Errorf("the SA was not rekeyed: newest %s, %d SAs", fresh.ID, len(p.a.sas))
		}
	})
}

func TestAKeyManagerThatRestartsInterruptsNothing(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		p.a.acquire(1)
		p.after(time.Second)
		old, _ := p.a.newest()
		p.e.Close()
		p.mustForward()
		p.lossless = true
		p.after(time.Minute) // long gone
		p.e = newEngine(t, nil)
		p.a.attach(p.e) // before the policy has come
		p.b.attach(p.e)
		p.after(time.Second)
		if w := p.e.Workers(); len(w) != 2 || w[0].Orphans != 2 || w[0].Node != "a" {
			t.Fatalf("workers: %+v, want two orphans each", w)
		}
		p.setPolicy(1)
		p.after(5 * time.Minute)
		p.mustForward()
		now, _ := p.a.newest()
		if now.ID <= old.ID || p.a.sas[old.ID].ID != 0 {
			t.Errorf("newest is %s, was %s; still there: %v", now.ID, old.ID, p.a.sas[old.ID].ID)
		}
		if s := p.e.Stats(); s.Orphans != 0 || len(p.a.sas) != 2 || len(p.b.sas) != 2 {
			t.Errorf("%d orphans, %d and %d SAs left; want 0, 2, 2", s.Orphans, len(p.a.sas), len(p.b.sas))
		}
	})
}

func TestFailuresAreToldAndBackedOff(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		bad := policy(t, "b", "192.0.2.2", "a", "192.0.2.1", 1)
		bad.Peers[0].Proposals = proposal(t, ipsec.ProtocolIKE, "aes256gcm16-prfsha384-p384")
		p.e.SetPolicy("b", bad)
		p.a.acquire(1)
		for range 3000 { // RFC 7296 §2.21.1: an unprotected refusal is not believed at once
			if p.after(100 * time.Millisecond); len(p.a.failed) != 0 {
				break
			}
		}
		if p.a.failed[1] != "NO_PROPOSAL_CHOSEN" {
			t.Fatalf("acquire: got %q, want NO_PROPOSAL_CHOSEN", p.a.failed[1])
		}
		p.a.acquire(2)
		p.after(100 * time.Millisecond)
		if p.a.failed[2] != "BACKING_OFF after NO_PROPOSAL_CHOSEN" {
			t.Errorf("second acquire: got %q, want it held back", p.a.failed[2])
		}
		_, err := p.e.Initiate(t.Context(), "a", "rule-0") // an operator need not wait
		var failed *engine.FailedError
		if !errors.As(err, &failed) || failed.Why != "NO_PROPOSAL_CHOSEN" {
			t.Errorf("initiate: got %v", err)
		}
		p.after(time.Second)
		if f := p.e.Failures("a", "b"); len(f) != 1 || f[0].Repeated != 2 || f[0].Why != "NO_PROPOSAL_CHOSEN" {
			t.Errorf("failures: %+v, want one, seen twice", f)
		}
		// The responder tells both sides of the difference.
		if f := p.e.Failures("b", "192.0.2.1"); len(f) == 0 || len(f[0].Theirs) == 0 || len(f[0].Ours) == 0 {
			t.Errorf("the responder's failures: %+v", f)
		}
		// Mended policy ends the back-off.
		p.setPolicy(1)
		good := policy(t, "a", "192.0.2.1", "b", "192.0.2.2", 1)
		good.Peers[0].DPD = time.Minute
		p.e.SetPolicy("a", good)
		p.a.acquire(3)
		p.after(time.Second)
		p.mustForward()
	})
}

func TestInitiateReturnsTheChildSA(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		first, err := p.e.Initiate(t.Context(), "a", "rule-0")
		if err != nil || first.Rule != "rule-0" || first.SPIOut == 0 {
			t.Fatalf("got %+v, %v", first, err)
		}
		again, err := p.e.Initiate(t.Context(), "a", "rule-0")
		if err != nil || again.ID != first.ID {
			t.Errorf("got CHILD SA %d, %v; want the one that is up, %d", again.ID, err, first.ID)
		}
		for _, tc := range []struct{ node, rule, why string }{
			{"a", "rule-9", "NO_SUCH_RULE"}, {"nowhere", "rule-0", "NO_POLICY"},
		} {
			var failed *engine.FailedError
			if _, err := p.e.Initiate(t.Context(), tc.node, tc.rule); !errors.As(err, &failed) || failed.Why != tc.why || failed.Advice == "" {
				t.Errorf("%s on %s: got %v, want %s with advice", tc.rule, tc.node, err, tc.why)
			}
		}
		if _, err := p.e.Rekey(t.Context(), engine.Filter{}); err == nil {
			t.Error("an empty filter rekeyed everything")
		}
	})
}

func TestAPolicyWithoutTheRuleEndsItsSAs(t *testing.T) {
	inPair(t, 2, nil, func(t *testing.T, p *pair) {
		p.a.acquire(1)
		p.a.report(push.Acquire{ID: 2, Rule: "rule-1"})
		p.after(time.Second)
		if len(p.a.sas) != 4 {
			t.Fatalf("%d SAs, want 4", len(p.a.sas))
		}
		p.e.SetPolicy("a", policy(t, "a", "192.0.2.1", "b", "192.0.2.2", 1))
		p.after(10 * time.Second)
		for _, h := range []*host{p.a, p.b} {
			for _, sa := range h.sas {
				if sa.Rule != "rule-0" {
					t.Errorf("%s still has %s of %s", h.name, sa.ID, sa.Rule)
				}
			}
		}
		p.mustForward()
	})
}

func TestLeasesAreGrantedUntilARekeyIsDue(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		for _, n := range []string{"a", "b"} {
			other, addr, remote := "b", "192.0.2.1", "192.0.2.2"
			if n == "b" {
				other, addr, remote = "a", remote, addr
			}
			pol := policy(t, n, addr, other, remote, 1)
			pol.Rules[0].Template.Proposals = proposal(t, ipsec.ProtocolESP, "aes128gcm16-noesn")
			p.e.SetPolicy(n, pol)
		}
		p.a.acquire(1)
		p.after(time.Second)
		p.lossless = true
		out, _ := p.a.newest()
		for p.a.granted[out.ID] < 1<<32 {
			p.a.report(push.LeaseRequest{ID: out.ID, Used: p.a.granted[out.ID] - 1})
			p.after(time.Millisecond)
		}
		if p.e.Stats().Grants != 255 {
			t.Errorf("%d leases granted, want 255 more after the first", p.e.Stats().Grants)
		}
		p.a.report(push.LeaseRequest{ID: out.ID, Used: 1<<32 - 1})
		p.after(time.Minute)
		if now, _ := p.a.newest(); now.ID == out.ID {
			t.Error("the exhausted SA was not rekeyed")
		}
	})
}

func TestARefusedInstallFailsTheNegotiationOnly(t *testing.T) {
	inPair(t, 2, nil, func(t *testing.T, p *pair) {
		p.a.do(func() {
			p.a.refuse = func(op push.Op) string {
				if in, ok := op.(push.Install); ok && in.SA.Rule == "rule-1" {
					return "no room"
				}
				return ""
			}
		})
		p.a.acquire(1)
		p.a.report(push.Acquire{ID: 2, Rule: "rule-1"})
		p.after(5 * time.Second)
		p.mustForward()
		if p.a.failed[2] == "" || p.a.failed[1] != "" {
			t.Errorf("acquires failed: %v, want the second", p.a.failed)
		}
		if w := p.e.Workers()[0]; !strings.Contains(w.LastNack, "no room") || w.Desired != 2 || w.Installed != 2 {
			t.Errorf("worker: %+v", w)
		}
	})
}

// An install that was under way when the stream broke is seen through on the
// next one.
func TestAnInstallSurvivesAReconnect(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		p.a.do(func() { p.a.refuse = nil; p.a.session.Close() })
		p.a.attach(p.e)
		p.a.acquire(1)
		broken := false
		p.a.do(func() {
			p.a.refuse = func(push.Op) string {
				if !broken {
					broken = true
					p.a.session.Close() // the nack that follows is of a dead session
					return "lost"
				}
				return ""
			}
		})
		p.after(time.Second)
		if !broken {
			t.Fatal("nothing was installed")
		}
		p.a.do(func() { p.a.refuse = nil })
		p.a.attach(p.e)
		p.after(10 * time.Second)
		p.mustForward()
		if len(p.a.sas) != 2 || len(p.a.failed) != 0 {
			t.Errorf("%d SAs, failed %v", len(p.a.sas), p.a.failed)
		}
	})
}

func TestCloseLeavesTheSAsInPlace(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		p.a.acquire(1)
		p.after(time.Second)
		p.lossless = true
		batches := p.a.batches + p.b.batches
		p.e.Close()
		p.after(time.Minute)
		p.mustForward()
		if p.a.batches+p.b.batches != batches {
			t.Error("batches were sent after Close")
		}
		if _, err := p.e.List(t.Context(), engine.Filter{}); !errors.Is(err, engine.ErrClosed) && err != nil {
			t.Errorf("list after Close: %v", err)
		}
	})
}

func TestALossyNetworkOnlyDelays(t *testing.T) {
	inPair(t, 3, nil, func(t *testing.T, p *pair) {
		r := rand.New(rand.NewPCG(1, 1))
		p.lose = func(*host, []byte) bool { return r.IntN(100) < 15 }
		p.a.acquire(1)
		p.b.report(push.Acquire{ID: 1, Rule: "rule-1"})
		p.a.report(push.Acquire{ID: 2, Rule: "rule-2"})
		p.after(5 * time.Minute)
		p.mustForward()
		if s := p.e.Stats(); s.Panics != 0 || s.HalfOpen != 0 || len(p.a.failed)+len(p.b.failed) != 0 {
			t.Errorf("stats %+v, failed %v %v", s, p.a.failed, p.b.failed)
		}
	})
}

func TestAnInstallDoesNotWaitForEverForAWorker(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		gone := false
		p.b.do(func() {
			p.b.refuse = func(push.Op) string {
				gone = true
				p.b.session.Close()
				return "lost"
			}
		})
		p.a.acquire(1)
		p.after(5 * time.Second)
		if w := p.e.Workers()[1]; !gone || w.Attached || w.Desired == 0 {
			t.Fatalf("worker b: %+v, gone %t; want its SA still wanted", w, gone)
		}
		p.after(time.Minute)
		if w := p.e.Workers()[1]; w.Desired != 0 {
			t.Errorf("worker b: %+v; want the install given up", w)
		}
	})
}

func TestOrphansOfARuleThatIsGoneAreRemoved(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		p.a.acquire(1)
		p.after(time.Second)
		p.e.Close()
		p.e = newEngine(t, nil)
		p.setPolicy(0)
		p.a.attach(p.e)
		p.after(time.Second)
		if len(p.a.sas) != 2 {
			t.Fatalf("%d SAs at once after the restart, want both still there", len(p.a.sas))
		}
		p.after(time.Minute)
		if len(p.a.sas) != 0 {
			t.Errorf("%d SAs of a rule that is gone are left", len(p.a.sas))
		}
	})
}

func TestAReplacedSessionIsNotHeardAnyMore(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		old := p.a.session
		p.a.attach(p.e)
		p.a.do(func() {
			old.Handle(push.Acquire{ID: 1, Rule: "rule-0"})
			old.Close()
		})
		p.after(time.Second)
		if s := p.e.Stats(); s.Acquires != 0 || s.Workers != 2 || len(p.a.sas) != 0 {
			t.Errorf("the old session started a negotiation or ended the new one: %+v", s)
		}
	})
}
