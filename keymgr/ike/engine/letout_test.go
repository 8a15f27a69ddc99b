package engine_test

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
	"github.com/testudo-ipsec/testudo/keymgr/push"
	"github.com/testudo-ipsec/testudo/keymgr/store"
)

// A disk that is slow or full delays exchanges of established IKE SAs, and that is all:
// nothing is sent that is not written, handshakes go on, and all of it catches up.
func TestSlowAndFullDisk(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.a.acquire(1)
		p.after(time.Second)
		var full atomic.Bool
		p.disk.Before = func([]store.Change) error {
			<-time.After(50 * time.Millisecond)
			if full.Load() {
				return errors.New("no space left on device")
			}
			return nil
		}
		full.Store(true)
		sent := p.ea.Stats().Sent
		p.must(p.ea.Rekey(t.Context(), engine.Filter{Rule: "rule-0"}))
		p.after(10 * time.Second)
		if s := p.ea.Stats(); s.Sent != sent || !s.StateFailing {
			t.Errorf("%d datagrams were sent with a full disk, failing %t; want 0 and true", s.Sent-sent, s.StateFailing)
		}
		p.mustForward()
		full.Store(false)
		p.after(30 * time.Second)
		if s := p.ea.Stats(); s.StateFailing || s.Sent == sent {
			t.Errorf("failing %t, %d sent after there was space again", s.StateFailing, s.Sent-sent)
		}
		p.agree()
		p.mustForward()
	})
}

// An SA moves, and its worker asks for numbers, while the disk is slow: the worker gets
// the leases in the order in which they were granted, which host.grant looks after.
func TestLeasesKeepTheirOrderWhileTheDiskIsSlow(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		mobile := func(node, addr, peer, remote string) *ipsec.NodePolicy {
			pol := policy(t, node, addr, peer, remote, 1)
			pol.Peers[0].Mobike = true
			return pol
		}
		p.ea.SetPolicy("a", mobile("a", "192.0.2.1", "b", "192.0.2.2"))
		p.eb.SetPolicy("b", mobile("b", "192.0.2.2", "a", "192.0.2.1"))
		p.a.acquire(1)
		p.after(time.Second)
		out, ok := p.a.newest()
		if !ok {
			t.Fatal("there is no outbound SA")
		}
		p.disk.Before = func([]store.Change) error { <-time.After(100 * time.Millisecond); return nil }
		to := netip.MustParseAddr("192.0.2.101")
		p.give(to, p.a)
		defer p.give(to, nil)
		p.a.report(push.Addresses{Local: []netip.Addr{to}})
		for range 200 {
			p.a.do(func() { p.a.session.Handle(push.LeaseRequest{ID: out.ID, Used: p.a.granted[out.ID] - 1}) })
			p.after(10 * time.Millisecond)
		}
		p.after(time.Minute)
		if got := p.a.sas[out.ID]; got.Local != to {
			t.Errorf("the worker sends from %s, want %s", got.Local, to)
		}
	})
}

// The peer is answered before the worker sends on the new CHILD SA: what came there first
// would be lost.
func TestTheAnswerLeavesBeforeTheOutboundSA(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.disk.Before = func([]store.Change) error { <-time.After(10 * time.Millisecond); return nil }
		answers, early := 0, 0
		p.lose = func(from *host, data []byte) bool {
			if h, err := wire.ParseHeader(data); err == nil && from == p.a && h.Exchange == wire.IKEAuth && h.Response() {
				answers++
				early += len(p.a.sas) - 1 // beside the inbound one
			}
			return false
		}
		p.b.acquire(1)
		p.after(time.Second)
		if answers != 1 || early != 0 || len(p.a.sas) != 2 {
			t.Errorf("%d answers, before them %d outbound SAs, and now %d SAs; want 1, 0 and 2", answers, early, len(p.a.sas))
		}
	})
}

// What the peer sends back at once makes a packet that wants an SA before the worker has
// the outbound one. No second CHILD SA comes of it.
func TestAnAcquireWaitsForWhatIsOnItsWay(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.a.lag = func() time.Duration { return 10 * time.Millisecond }
		p.lose = func(from *host, data []byte) bool {
			if h, err := wire.ParseHeader(data); err == nil && from == p.a && h.Exchange == wire.IKEAuth && h.Response() {
				time.AfterFunc(time.Millisecond, func() { p.a.acquire(2) })
			}
			return false
		}
		p.b.acquire(1)
		p.after(time.Second)
		if s := p.ea.Stats(); s.Acquires != 1 || s.ChildrenUp != 1 || len(p.a.sas) != 2 {
			t.Errorf("%d acquires, %d CHILD SAs came up, and the worker has %d SAs; want 1, 1 and 2", s.Acquires, s.ChildrenUp, len(p.a.sas))
		}
	})
}

// A responder waits for the disk once for all of a set-up: for its answer, with which
// both SAs are written.
func TestASetUpWaitsForTheDiskOnce(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.after(time.Second) // SA numbers are reserved
		p.disk.Before = func([]store.Change) error { <-time.After(time.Second); return nil }
		p.b.acquire(1)
		p.after(1500 * time.Millisecond)
		if got := p.agree(); len(got) != 2 || len(p.a.sas) != 2 {
			t.Errorf("after the time of one and a half writes: SAs %v, and the worker has %d; want an IKE SA and a CHILD SA, and 2", got, len(p.a.sas))
		}
		p.mustForward()
	})
}

// A responder that runs out of time while the disk is slow leaves nothing at the worker:
// what it was about to install does not come behind its own removal.
func TestGivenUpWhileTheDiskIsSlow(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.after(time.Second)
		var once atomic.Bool
		p.disk.Before = func([]store.Change) error {
			if !once.Swap(true) {
				<-time.After(90 * time.Second)
			}
			return nil
		}
		p.a.attach(p.ea) // which is written, and keeps the disk busy
		p.after(200 * time.Millisecond)
		p.b.acquire(1)
		p.after(10 * time.Minute)
		if w := p.ea.Workers()[0]; w.Desired != len(p.a.sas) || w.Installed != w.Desired {
			t.Errorf("the worker has %d SAs, of which %d are wanted", len(p.a.sas), w.Desired)
		}
	})
}

// A worker goes away while what it is to install waits for the disk, and stays away: the
// CHILD SA is given up as one that had waited for the worker.
func TestWorkerGoneWhileTheDiskIsSlow(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.after(time.Second) // SA numbers are reserved
		p.disk.Before = func([]store.Change) error { <-time.After(20 * time.Second); return nil }
		p.b.acquire(1)
		p.after(time.Second)
		p.a.cut()
		p.a.do(func() { p.a.session.Close(); p.a.session = nil })
		p.after(10 * time.Minute)
		if s := p.ea.Stats(); s.SADesired != 0 || s.Machines != 0 {
			t.Errorf("%d SAs are desired and %d IKE SAs are left, want none", s.SADesired, s.Machines)
		}
	})
}
