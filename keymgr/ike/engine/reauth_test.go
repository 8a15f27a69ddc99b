package engine_test

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// moody secrets can be taken away, or changed for one of the ends.
type moody struct {
	away  atomic.Bool
	other atomic.Bool
	lost  atomic.Bool // "file:b" is
}

func (s *moody) PSK(_ context.Context, ref string) ([]ipsec.Secret, error) {
	if s.away.Load() || s.lost.Load() && ref == "file:b" {
		return nil, cred.Errorf(cred.Unavailable, ref, "Vault is away")
	}
	if s.other.Load() && ref == "file:b" {
		return []ipsec.Secret{ipsec.NewSecret([]byte("another secret than it was"))}, nil
	}
	return []ipsec.Secret{ipsec.NewSecret([]byte("one secret for both of them"))}, nil
}

// inReauth is a pair whose ends authenticate anew each hour.
func inReauth(t *testing.T, rules int, fn func(t *testing.T, p *pair, s *moody)) {
	s := &moody{}
	inPair(t, rules, func(c *engine.Config) { c.Secrets = s }, func(t *testing.T, p *pair) {
		for _, end := range [][4]string{{"a", "192.0.2.1", "b", "192.0.2.2"}, {"b", "192.0.2.2", "a", "192.0.2.1"}} {
			x := policy(t, end[0], end[1], end[2], end[3], rules)
			x.Peers[0].Reauth = time.Hour
			x.Peers[0].Auth = []ipsec.AuthMethod{{PSK: "file:" + end[0]}}
			p.e.SetPolicy(end[0], x)
		}
		p.a.acquire(1)
		p.after(time.Second)
		for i := 1; i < rules; i++ {
			if _, err := p.e.Initiate(t.Context(), "a", []string{"rule-0", "rule-1", "rule-2"}[i]); err != nil {
				t.Fatal(err)
			}
		}
		p.after(5 * time.Second)
		fn(t, p, s)
	})
}

// RFC 4478: a new IKE SA with the CHILD SAs of the old one, then the old one goes;
// at no moment is a direction without an SA. Rekeys of the IKE SA change nothing.
func TestReauthenticationLosesNothing(t *testing.T) {
	inReauth(t, 3, func(t *testing.T, p *pair, _ *moody) {
		p.lossless = true
		seen := map[uint64]bool{}
		for hour := range 5 {
			sas := p.list(t, engine.Filter{Node: "a"})
			if len(sas) != 1 || len(sas[0].Children) != 3 || len(p.a.sas) != 6 || len(p.b.sas) != 6 {
				t.Fatalf("hour %d: %d IKE SAs, %d and %d SAs; want 1, 6, 6: %+v", hour, len(sas), len(p.a.sas), len(p.b.sas), sas)
			}
			if seen[sas[0].LocalSPI] {
				t.Errorf("hour %d: still the same IKE SA", hour)
			}
			seen[sas[0].LocalSPI] = true
			if hour == 2 {
				if n, err := p.e.Rekey(t.Context(), engine.Filter{Node: "a", Peer: "b"}); n != 1 || err != nil {
					t.Fatalf("rekey: %d, %v", n, err)
				}
			}
			p.after(time.Hour)
			p.mustForward()
		}
	})
}

// What keeps the secrets away keeps the old IKE SA: it is tried again until it works.
func TestReauthenticationWaitsForTheStore(t *testing.T) {
	inReauth(t, 1, func(t *testing.T, p *pair, s *moody) {
		p.lossless = true
		before := p.list(t, engine.Filter{Node: "a"})[0].LocalSPI
		s.away.Store(true)
		p.after(90 * time.Minute)
		if sas := p.list(t, engine.Filter{Node: "a", Peer: "b"}); len(sas) != 1 || sas[0].LocalSPI != before {
			t.Fatalf("while the store is away: %+v", sas)
		}
		s.away.Store(false)
		p.after(10 * time.Minute)
		if sas := p.list(t, engine.Filter{Node: "a", Peer: "b"}); len(sas) != 1 || sas[0].LocalSPI == before {
			t.Errorf("after it is back: %+v", sas)
		}
		p.mustForward()
	})
}

// A peer that cannot prove itself any more loses what it had.
func TestReauthenticationThatFailsEndsTheOldIKESA(t *testing.T) {
	inReauth(t, 1, func(t *testing.T, p *pair, s *moody) {
		s.other.Store(true)
		p.after(70 * time.Minute)
		if sas := p.list(t, engine.Filter{}); len(p.a.sas)+len(p.b.sas) != 0 {
			t.Errorf("left are %d and %d SAs: %+v", len(p.a.sas), len(p.b.sas), sas)
		}
	})
}

// A policy with another authentication replaces the IKE SAs made under the old one, make
// before break; where the other end does not have it too, they end.
func TestAnotherAuthenticationReplacesTheIKESA(t *testing.T) {
	for _, both := range []bool{true, false} {
		inPair(t, 2, nil, func(t *testing.T, p *pair) {
			p.a.acquire(1)
			p.after(time.Second)
			if _, err := p.e.Initiate(t.Context(), "b", "rule-1"); err != nil {
				t.Fatal(err)
			}
			p.after(time.Minute)
			before := p.list(t, engine.Filter{Node: "a"})
			p.lossless = both
			for _, end := range [][4]string{{"a", "192.0.2.1", "b", "192.0.2.2"}, {"b", "192.0.2.2", "a", "192.0.2.1"}} {
				x := policy(t, end[0], end[1], end[2], end[3], 2)
				x.Peers[0].Auth = []ipsec.AuthMethod{{PSK: "file:another"}}
				if both || end[0] == "b" {
					p.e.SetPolicy(end[0], x)
				}
			}
			p.after(5 * time.Minute)
			after := p.list(t, engine.Filter{Node: "a"})
			if len(before) != 1 || len(before[0].Children) != 2 {
				t.Fatalf("before: %+v", before)
			}
			if !both {
				if len(after) != 0 || len(p.a.sas)+len(p.b.sas) != 0 {
					t.Errorf("left are %d and %d SAs: %+v", len(p.a.sas), len(p.b.sas), after)
				}
				return
			}
			if len(after) != 1 || len(after[0].Children) != 2 || after[0].LocalSPI == before[0].LocalSPI || len(p.a.sas) != 4 || len(p.b.sas) != 4 {
				t.Errorf("%d and %d SAs: %+v", len(p.a.sas), len(p.b.sas), after)
			}
			p.mustForward()
		})
	}
}

// After authenticating anew a node can move as before (RFC 4555): the machine that took over knows the node's addresses.
func TestANodeMovesAfterReauthentication(t *testing.T) {
	s := &moody{}
	inPair(t, 1, func(c *engine.Config) { c.Secrets = s }, func(t *testing.T, p *pair) {
		first, second, spare := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("192.0.2.78")
		for _, end := range [][4]string{{"a", "192.0.2.1", "b", "192.0.2.2"}, {"b", "192.0.2.2", "a", "192.0.2.1"}} {
			x := policy(t, end[0], end[1], end[2], end[3], 1)
			x.Peers[0].Reauth, x.Peers[0].Mobike, x.Peers[0].DPD = time.Hour, true, 10*time.Second
			if end[0] == "b" {
				x.Peers[0].Remote = nil // a node that roams
			}
			x.Peers[0].Auth = []ipsec.AuthMethod{{PSK: "file:" + end[0]}}
			p.e.SetPolicy(end[0], x)
		}
		// reach makes a's only these addresses, of which b may reach fewer than a tells.
		reach := func(as ...netip.Addr) {
			for _, a := range []netip.Addr{first, second, spare} {
				p.give(a, nil)
			}
			for _, a := range as {
				p.give(a, p.a)
			}
		}
		at := func(want netip.Addr) engine.IKESA {
			t.Helper()
			sas := p.list(t, engine.Filter{Node: "a"})
			if len(sas) != 1 || sas[0].Path.Local.Addr() != want {
				t.Fatalf("IKE SAs %+v, want one from %s", sas, want)
			}
			return sas[0]
		}
		p.a.acquire(1)
		p.after(5 * time.Second)
		at(first)
		p.a.report(push.Addresses{Local: []netip.Addr{second, spare}})
		reach(second, spare)
		p.after(10 * time.Second)
		before := at(second)
		p.after(time.Hour)
		if after := at(second); after.LocalSPI == before.LocalSPI {
			t.Errorf("after an hour there is %+v, want another IKE SA", after)
		}
		reach(spare) // nobody tells the node
		p.after(5 * time.Minute)
		at(spare)
		reach(first) // each host is closed once
	})
}

// The old IKE SA is rekeyed just when the new one has taken over: its heir goes.
func TestReauthenticationAndARekeyOfTheOldIKESA(t *testing.T) {
	inReauth(t, 1, func(t *testing.T, p *pair, _ *moody) {
		p.lossless = true
		before := p.list(t, engine.Filter{Node: "a"})[0].LocalSPI
		rekeyed := false
		for range 4 * 60 * 60 {
			p.after(250 * time.Millisecond)
			sas := p.list(t, engine.Filter{Node: "a"})
			if len(sas) == 2 && len(sas[0].Children) == 1 && len(sas[1].Children) == 1 {
				p.after(750 * time.Millisecond) // the new CHILD SA is up now, and the old one is not closed yet
				if n, err := p.e.Rekey(t.Context(), engine.Filter{Node: "a", SPI: before}); n != 1 || err != nil {
					t.Fatalf("rekey: %d, %v", n, err)
				}
				rekeyed = true
				break
			}
		}
		p.after(3 * time.Second)
		if sas := p.list(t, engine.Filter{Node: "a"}); len(sas) != 1 || !rekeyed {
			t.Errorf("rekeyed %t: %d IKE SAs are left: %+v", rekeyed, len(sas), sas)
		}
		p.mustForward()
	})
}

// Who rekeyed the IKE SA last is its initiator, and authenticates anew a peer that has
// left the address in the policy where that peer is.
func TestAPeerThatMovedIsAuthenticatedAnewWhereItIs(t *testing.T) {
	inPair(t, 1, func(c *engine.Config) { c.Secrets = &moody{} }, func(t *testing.T, p *pair) {
		now := netip.MustParseAddr("192.0.2.77")
		for _, end := range [][4]string{{"a", "192.0.2.1", "b", "192.0.2.2"}, {"b", "192.0.2.2", "a", "192.0.2.1"}} {
			x := policy(t, end[0], end[1], end[2], end[3], 1)
			x.Peers[0].Reauth, x.Peers[0].Mobike = time.Hour, true
			x.Peers[0].Auth = []ipsec.AuthMethod{{PSK: "file:" + end[0]}}
			p.e.SetPolicy(end[0], x)
		}
		p.a.acquire(1)
		p.after(5 * time.Second)
		p.give(p.a.addr, nil)
		p.give(now, p.a)
		p.a.report(push.Addresses{Local: []netip.Addr{now}})
		p.after(10 * time.Second)
		if n, err := p.e.Rekey(t.Context(), engine.Filter{Node: "b", Peer: "a"}); n != 1 || err != nil {
			t.Fatalf("rekey: %d, %v", n, err)
		}
		p.after(10 * time.Second)
		before := p.list(t, engine.Filter{Node: "b"})
		p.lossless = true
		p.after(70 * time.Minute)
		after := p.list(t, engine.Filter{Node: "b"})
		if len(before) != 1 || len(after) != 1 || after[0].Path.Remote.Addr() != now || after[0].LocalSPI == before[0].LocalSPI {
			t.Errorf("before %+v, after %+v; want another IKE SA with %s", before, after, now)
		}
	})
}
