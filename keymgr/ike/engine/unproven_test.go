package engine_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
)

// inMixed is node a, which takes preshared keys and NULL authentication from anywhere, b
// with the key, and m without, who says it is b.
func inMixed(t *testing.T, fn func(t *testing.T, p *pair, m *host)) {
	inPair(t, 1, func(c *engine.Config) { c.Secrets = &moody{} }, func(t *testing.T, p *pair) {
		mixed := policy(t, "a", "192.0.2.1", "b", "192.0.2.2", 1)
		mixed.Peers[0].Remote, mixed.Peers[0].DPD = nil, 0
		mixed.Peers[0].Auth = []ipsec.AuthMethod{{PSK: "file:a"}, {Null: true, Side: ipsec.AuthRemote}}
		p.e.SetPolicy("a", mixed)
		m := p.host("m", "192.0.2.3")
		stranger := policy(t, "m", "192.0.2.3", "a", "192.0.2.1", 1)
		stranger.Peers[0].LocalID = mixed.Peers[0].RemoteID
		stranger.Peers[0].Auth = []ipsec.AuthMethod{{Null: true, Side: ipsec.AuthLocal}, {PSK: "file:a", Side: ipsec.AuthRemote}}
		p.e.SetPolicy("m", stranger)
		m.attach(p.e)
		fn(t, p, m)
	})
}

func (h *host) sendsTo(t *testing.T, want string) {
	t.Helper()
	sa, ok := h.newest()
	if got := sa.Remote.String(); !ok || got != want {
		t.Errorf("%s sends to %s (%t), want %s", h.name, got, ok, want)
	}
}

// RFC 7619 §3.3: an unauthenticated peer "MUST NOT be able to replace the Child SAs of an
// authenticated IKE peer".
func TestAPeerWithoutAProofDoesNotDisplaceOneWithAProof(t *testing.T) {
	inMixed(t, func(t *testing.T, p *pair, m *host) {
		p.b.acquire(1)
		p.after(5 * time.Second)
		p.a.sendsTo(t, "192.0.2.2")
		m.report(m.acquireOf("b"))
		p.after(2 * time.Minute)
		p.a.sendsTo(t, "192.0.2.2")
		if len(p.a.sas) != 2 || p.b.forwards(p.a) != nil || p.a.forwards(p.b) != nil {
			t.Errorf("a has %d SAs, want the two with b", len(p.a.sas))
		}
		// What a itself asks for goes to the peer that has proven itself, too.
		if n, err := p.e.Terminate(t.Context(), engine.Filter{Node: "a", Rule: "rule-0"}, "test"); n != 1 || err != nil {
			t.Fatalf("terminated %d, %v", n, err)
		}
		p.after(time.Second)
		p.a.acquire(2)
		p.after(5 * time.Second)
		p.a.sendsTo(t, "192.0.2.2")

		// The peer is gone, and a finds out when somebody else comes.
		gone := p.b.addr
		p.give(gone, nil)
		m.report(m.acquireOf("b"))
		p.after(10 * time.Minute)
		m.report(m.acquireOf("b"))
		p.after(time.Minute)
		p.give(gone, p.b)
		p.a.sendsTo(t, "192.0.2.3")

		// And back: one with a proof takes over from one without.
		if _, err := p.e.Terminate(t.Context(), engine.Filter{Node: "b"}, "test"); err != nil {
			t.Fatal(err)
		}
		p.after(2 * time.Minute)
		p.b.acquire(3)
		p.after(time.Minute)
		p.a.sendsTo(t, "192.0.2.2")
		for _, sa := range p.a.sas {
			if sa.Remote != netip.MustParseAddr("192.0.2.2") {
				t.Errorf("a still has an SA with %s", sa.Remote)
			}
		}
	})
}

// The one without a proof gives way also when its IKE SA is rekeyed just then.
func TestAPeerWithoutAProofGivesWayAlsoRekeyed(t *testing.T) {
	inMixed(t, func(t *testing.T, p *pair, m *host) {
		own := policy(t, "m", "192.0.2.3", "a", "192.0.2.1", 1) // so that INITIAL_CONTACT does not concern it
		own.Peers[0].Auth = []ipsec.AuthMethod{{Null: true, Side: ipsec.AuthLocal}, {PSK: "file:a", Side: ipsec.AuthRemote}}
		p.e.SetPolicy("m", own)
		m.report(m.acquireOf("b"))
		p.after(5 * time.Second)
		p.a.sendsTo(t, "192.0.2.3")
		p.b.acquire(1)
		p.after(time.Second)
		if n, err := p.e.Rekey(t.Context(), engine.Filter{Node: "m"}); n != 1 || err != nil {
			t.Fatalf("rekey: %d, %v", n, err)
		}
		p.after(2 * time.Second) // before duplicates are looked for
		for _, sa := range p.a.sas {
			if sa.Remote != netip.MustParseAddr("192.0.2.2") {
				t.Errorf("a still has an SA with %s", sa.Remote)
			}
		}
	})
}

// A reauthentication in which the peer proves nothing leaves what it had proven before.
func TestReauthenticationWithoutAProofChangesNothing(t *testing.T) {
	s := &moody{}
	inPair(t, 1, func(c *engine.Config) { c.Secrets = s }, func(t *testing.T, p *pair) {
		a := policy(t, "a", "192.0.2.1", "b", "192.0.2.2", 1)
		a.Peers[0].Auth, a.Peers[0].Reauth = []ipsec.AuthMethod{{PSK: "file:a", Side: ipsec.AuthRemote}, {Null: true}}, time.Hour
		b := policy(t, "b", "192.0.2.2", "a", "192.0.2.1", 1)
		b.Peers[0].Auth = []ipsec.AuthMethod{{PSK: "file:b", Side: ipsec.AuthLocal}, {Null: true, Side: ipsec.AuthLocal}, {Null: true, Side: ipsec.AuthRemote}}
		p.e.SetPolicy("a", a)
		p.e.SetPolicy("b", b)
		p.a.acquire(1)
		p.after(5 * time.Second)
		before := p.list(t, engine.Filter{Node: "a"})
		s.lost.Store(true)
		p.after(2 * time.Hour)
		after := p.list(t, engine.Filter{Node: "a", Peer: "b"})
		if len(before) != 1 || len(after) != 1 || after[0].LocalSPI != before[0].LocalSPI || after[0].RemoteAuth == ike.AuthNull {
			t.Errorf("before %+v\nafter %+v", before, after)
		}
		p.mustForward()
		s.lost.Store(false)
		p.after(10 * time.Minute)
		if after = p.list(t, engine.Filter{Node: "a", Peer: "b"}); len(after) != 1 || after[0].LocalSPI == before[0].LocalSPI {
			t.Errorf("with a proof again: %+v", after)
		}
	})
}
