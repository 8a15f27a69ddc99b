package engine_test

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// scripted makes responders whose handler is a function of the test.
type scripted struct {
	handle func(m *script, ev ike.Event) []ike.Effect
}

type script struct {
	handler  func(m *script, ev ike.Event) []ike.Effect
	env      ike.Env
	info     ike.Info
	deadline time.Time
}

func (s scripted) make(env ike.Env, peer string, path ike.Path, initiator bool) (ike.Machine, error) {
	var b [8]byte
	if _, err := env.Rand.Read(b[:]); err != nil {
		return nil, err
	}
	return &script{handler: s.handle, env: env, info: ike.Info{Peer: peer, Path: path, Initiator: initiator, LocalSPI: binary.BigEndian.Uint64(b[:])}}, nil
}

func (s scripted) Initiator(env ike.Env, _ *ipsec.NodePolicy, peer string, path ike.Path) (ike.Machine, error) {
	return s.make(env, peer, path, true)
}

func (s scripted) Responder(env ike.Env, _ *ipsec.NodePolicy, candidates []string, path ike.Path) (ike.Machine, error) {
	return s.make(env, candidates[0], path, false)
}

func (s scripted) Wake(ike.Env, *ipsec.NodePolicy, []string, []byte) (ike.Machine, error) {
	return nil, errors.New("nothing rested")
}

func (s scripted) Restore(ike.Env, []byte) (ike.Machine, error) {
	return nil, errors.New("nothing was saved")
}

func (m *script) Handle(_ time.Time, ev ike.Event) []ike.Effect { return m.handler(m, ev) }
func (m *script) Deadline() time.Time                           { return m.deadline }
func (m *script) Info() ike.Info                                { return m.info }
func (m *script) Save(dst []byte) ([]byte, bool)                { return dst, false }
func (m *script) Rest(dst []byte) ([]byte, bool)                { return dst, false }

// initRequest is an IKE_SA_INIT request with nothing but a nonce.
func initRequest(spi uint64, first ...wire.Payload) []byte {
	h := wire.Header{SPIi: spi, Exchange: wire.IKESAInit, Flags: wire.FlagInitiator}
	return wire.AppendMessage(nil, h, append(first, &wire.Nonce{Data: make([]byte, 32)}))
}

func request(from string, data []byte) push.Datagram {
	return push.Datagram{Path: ike.Path{Local: netip.MustParseAddrPort("192.0.2.1:500"), Remote: netip.AddrPortFrom(netip.MustParseAddr(from), 500)}, Data: data}
}

// hostile is one node that anybody may talk to, with scripted machines.
func hostile(t *testing.T, change func(*engine.Config), handle func(m *script, ev ike.Event) []ike.Effect, fn func(t *testing.T, e *engine.Engine, h *host)) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		e := newEngine(t, func(c *engine.Config) {
			c.Machines, c.Shards = scripted{handle}, 1
			if change != nil {
				change(c)
			}
		})
		h := l.host("a", "192.0.2.1")
		defer func() { e.Close(); l.close() }()
		pol := policy(t, "a", "192.0.2.1", "b", "192.0.2.2", 1)
		pol.Peers[0].Remote = nil
		e.SetPolicy("a", pol)
		h.attach(e)
		fn(t, e, h)
	})
}

func TestEffectsHappenInOrderAndAnswersComeBack(t *testing.T) {
	var got []string
	handle := func(m *script, ev ike.Event) []ike.Effect {
		switch ev := ev.(type) {
		case ike.Datagram:
			sa := ipsec.SA{ID: ipsec.SAID(m.env.NextID()), Direction: ipsec.Inbound, SPI: m.env.AllocSPI(), Rule: "rule-0", Child: 1}
			return []ike.Effect{ike.Install{ID: 7, SAs: []ipsec.SA{sa}}, ike.NeedPSK{ID: 8, Refs: []string{"file:x"}},
				ike.NeedKE{ID: 9, Method: ipsec.KEMODP2048}, ike.NeedKE{ID: 10, Method: 9999}, ike.Send{Path: ev.Path, Data: []byte("answer")}}
		case ike.Installed:
			got = append(got, fmt.Sprint("installed ", ev.ID, ev.Err))
		case ike.PSKs:
			got = append(got, fmt.Sprint("psk ", ev.ID, len(ev.Secrets), ev.Err))
		case ike.KeyExchanged:
			got = append(got, fmt.Sprint("ke ", ev.ID, len(ev.Public), ev.Err == nil))
		}
		return nil
	}
	hostile(t, nil, handle, func(t *testing.T, e *engine.Engine, h *host) {
		h.report(request("198.51.100.1", initRequest(1)))
		h.lab.after(time.Second)
		slices.Sort(got)
		if want := []string{"installed 7 <nil>", "ke 10 0 false", "ke 9 256 true", "psk 8 1 <nil>"}; !slices.Equal(got, want) {
			t.Errorf("answers: got %q, want %q", got, want)
		}
		if s := e.Stats(); s.Sent != 1 || s.HalfOpen != 1 || s.SAInstalled != 1 {
			t.Errorf("stats: %+v", s)
		}
		h.lab.after(2 * time.Minute) // the engine's own bound on half-open machines
		if s := e.Stats(); s.HalfOpen != 0 || s.Machines != 0 || s.SADesired != 0 || len(h.sas) != 0 {
			t.Errorf("after the half-open time: %+v, %d SAs in the worker", s, len(h.sas))
		}
	})
}

func TestAPanicEndsOneMachineAndItsSAsGoOn(t *testing.T) {
	var log strings.Builder
	handle := func(m *script, ev ike.Event) []ike.Effect {
		d, ok := ev.(ike.Datagram)
		if !ok {
			return nil
		}
		if len(d.Data) > wire.HeaderLen+40 {
			panic("a bug")
		}
		sa := ipsec.SA{ID: ipsec.SAID(m.env.NextID()), Direction: ipsec.Inbound, SPI: m.env.AllocSPI(), Rule: "rule-0", Child: 1}
		return []ike.Effect{ike.Install{ID: 1, SAs: []ipsec.SA{sa}}, ike.Established{}}
	}
	hostile(t, func(c *engine.Config) { c.Log = slog.New(slog.NewTextHandler(&syncWriter{w: &log}, nil)) }, handle, func(t *testing.T, e *engine.Engine, h *host) {
		for spi := range uint64(3) {
			h.report(request("198.51.100.1", initRequest(spi+1)))
		}
		h.lab.after(time.Second)
		sas, err := e.List(t.Context(), engine.Filter{})
		if err != nil || len(sas) != 3 {
			t.Fatalf("%d machines, %v", len(sas), err)
		}
		for _, victim := range sas[:2] {
			bad := wire.Header{SPIi: 1, SPIr: victim.LocalSPI, Exchange: wire.Informational, Flags: wire.FlagInitiator}
			h.report(request("198.51.100.1", wire.AppendMessage(nil, bad, []wire.Payload{&wire.VendorID{Data: make([]byte, 100)}})))
		}
		h.lab.after(time.Second)
		if s := e.Stats(); s.Panics != 2 || s.Machines != 1 || s.Orphans != 2 || len(h.sas) != 3 {
			t.Errorf("after two panics: %+v, %d SAs in the worker; want one machine left and all SAs", s, len(h.sas))
		}
		if n := strings.Count(log.String(), "a bug"); n != 1 {
			t.Errorf("logged %d times, want once a minute for one peer:\n%s", n, log.String())
		}
	})
}

type syncWriter struct {
	mu sync.Mutex
	w  *strings.Builder
}

func (s *syncWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

func TestAFullInboxDropsDatagramsAndNothingElse(t *testing.T) {
	for _, mobile := range []bool{false, true} {
		aFullInbox(t, mobile)
	}
}

// aFullInbox is with or without machines that want to know the node's addresses.
func aFullInbox(t *testing.T, mobile bool) {
	gate, entered := make(chan struct{}), make(chan struct{}, 1)
	answers := 0
	machines := make(map[*script]bool)
	handle := func(m *script, ev ike.Event) []ike.Effect {
		machines[m] = true
		switch ev.(type) {
		case ike.Datagram:
			select {
			case entered <- struct{}{}:
				<-gate
				return []ike.Effect{ike.NeedPSK{ID: 1, Refs: []string{"file:x"}}}
			default:
			}
			return []ike.Effect{ike.NeedPSK{ID: 2, Refs: []string{"file:x"}}}
		case ike.PSKs:
			answers++
		}
		return nil
	}
	hostile(t, func(c *engine.Config) { c.Inbox, c.HalfOpenPrefixCookie = 10, 1000 }, handle, func(t *testing.T, e *engine.Engine, h *host) {
		pol := policy(t, "a", "192.0.2.1", "b", "192.0.2.2", 1)
		pol.Peers[0].Remote, pol.Peers[0].Mobike = nil, mobile
		e.SetPolicy("a", pol)
		h.report(request("198.51.100.1", initRequest(1)))
		<-entered // the shard is busy now
		for spi := range uint64(100) {
			h.report(request("198.51.100.1", initRequest(spi+2))) // must not block
		}
		if s := e.Stats(); s.InboxFull != 94 || s.Drops["INBOX_FULL"] != 94 || s.HalfOpen != 7 || s.Machines != 7 {
			t.Errorf("got %+v, want 94 of 100 dropped and no trace of them: one network has half of the inbox, and one", s)
		}
		close(gate)
		h.lab.after(time.Second)
		if answers != 7 {
			t.Errorf("%d answers, want one for each of the 7 machines", answers)
		}
		if len(machines) != 7 {
			t.Errorf("MOBIKE %t: %d machines were made, want 7", mobile, len(machines))
		}
		h.lab.after(2 * time.Minute)
		if s := e.Stats(); s.Machines != 0 || s.HalfOpen != 0 {
			t.Errorf("MOBIKE %t: %d machines and %d half-open ones in the end, want none", mobile, s.Machines, s.HalfOpen)
		}
	})
}

func TestARetransmittedRequestFindsItsMachine(t *testing.T) {
	machines := make(map[*script]int)
	handle := func(m *script, ev ike.Event) []ike.Effect {
		if d, ok := ev.(ike.Datagram); ok {
			machines[m]++
			return []ike.Effect{ike.Send(d)}
		}
		return nil
	}
	hostile(t, nil, handle, func(t *testing.T, e *engine.Engine, h *host) {
		for range 3 {
			h.report(request("198.51.100.1", initRequest(5)))
		}
		h.report(request("198.51.100.2", initRequest(5))) // same SPI, somebody else
		h.lab.after(time.Second)
		if len(machines) != 2 || e.Stats().HalfOpen != 2 {
			t.Errorf("got %d machines, want 2: %v", len(machines), machines)
		}
	})
}

func TestHalfOpenBoundsAskForCookiesAndThenDrop(t *testing.T) {
	var sent [][]byte
	handle := func(m *script, ev ike.Event) []ike.Effect {
		if d, ok := ev.(ike.Datagram); ok {
			return []ike.Effect{ike.Send{Path: d.Path, Data: []byte("response")}}
		}
		return nil
	}
	change := func(c *engine.Config) {
		c.HalfOpenPrefixCookie, c.HalfOpenPrefixMax, c.HalfOpenCookie, c.HalfOpenMax = 4, 6, 8, 12
	}
	hostile(t, change, handle, func(t *testing.T, e *engine.Engine, h *host) {
		h.lab.lose = func(_ *host, data []byte) bool { sent = append(sent, data); return true }
		next := uint64(0)
		ask := func(from string, first ...wire.Payload) { next++; h.report(request(from, initRequest(next, first...))) }
		for range 10 {
			ask("198.51.100.1")
			h.lab.after(time.Millisecond)
		}
		if s := e.Stats(); s.HalfOpen != 4 || s.CookiesSent != 6 || s.Drops["COOKIE_REQUIRED"] != 6 {
			t.Fatalf("got %+v, want 4 machines and 6 cookies", s)
		}
		// The challenge names the request it answers and holds a cookie alone.
		hdr, ps, err := wire.Parse(sent[len(sent)-1])
		if err != nil || hdr.SPIi != next || hdr.SPIr != 0 || !hdr.Response() || hdr.FromInitiator() || len(ps) != 1 || ps[0].(*wire.Notify).Message != wire.Cookie {
			t.Fatalf("challenge: %s %v %v", hdr, ps, err)
		}
		cookie := ps[0].(*wire.Notify)
		with := func(spi uint64, from string, c *wire.Notify) { h.report(request(from, initRequest(spi, c))) }
		with(next, "198.51.100.9", cookie) // another address
		with(next+1, "198.51.100.1", cookie)
		h.lab.after(time.Millisecond)
		if n := e.Stats().HalfOpen; n != 4 {
			t.Fatalf("%d machines: a cookie was taken from another address or SPI", n)
		}
		h.lab.after(90 * time.Second) // the secret is rotated and the old machines are gone
		for range 4 {
			ask("198.51.100.1")
		}
		with(10, "198.51.100.1", cookie)
		h.lab.after(time.Millisecond)
		if n := e.Stats().HalfOpen; n != 5 {
			t.Fatalf("%d machines, want 5: the secret before is still accepted", n)
		}
		// Above the hard bounds a good cookie does not help.
		fresh := func(spi uint64) {
			h.report(request("198.51.100.1", initRequest(spi)))
			h.lab.after(time.Millisecond)
			_, ps, _ := wire.Parse(sent[len(sent)-1])
			with(spi, "198.51.100.1", ps[0].(*wire.Notify))
			h.lab.after(time.Millisecond)
		}
		fresh(1000)
		if s := e.Stats(); s.HalfOpen != 6 {
			t.Fatalf("%d machines, want 6", s.HalfOpen)
		}
		h.report(request("198.51.100.1", initRequest(1001)))
		if s := e.Stats(); s.Drops["TOO_MANY_HALF_OPEN_OF_PREFIX"] != 1 {
			t.Errorf("got %v, want the seventh of the prefix dropped", s.Drops)
		}
		ask("203.0.113.1") // another prefix is not affected
		h.lab.after(time.Millisecond)
		if n := e.Stats().HalfOpen; n != 7 {
			t.Errorf("%d machines, want 7", n)
		}
		h.lab.after(2 * time.Minute)
		if n := e.Stats().HalfOpen; n != 0 {
			t.Errorf("%d half-open machines are left", n)
		}
	})
}

func TestAnExpiredCookieIsRefused(t *testing.T) {
	var sent [][]byte
	hostile(t, func(c *engine.Config) { c.HalfOpenPrefixCookie = 1 }, func(m *script, ev ike.Event) []ike.Effect {
		return []ike.Effect{ike.Send{Data: []byte("x")}}
	}, func(t *testing.T, e *engine.Engine, h *host) {
		h.lab.lose = func(_ *host, data []byte) bool { sent = append(sent, data); return true }
		h.report(request("198.51.100.1", initRequest(1)))
		h.lab.after(time.Millisecond)
		h.report(request("198.51.100.1", initRequest(2)))
		h.lab.after(time.Millisecond)
		_, ps, err := wire.Parse(sent[len(sent)-1])
		if err != nil {
			t.Fatal(err)
		}
		h.lab.after(3 * time.Minute)
		h.report(request("198.51.100.1", initRequest(1)))
		h.report(request("198.51.100.1", initRequest(2, ps[0])))
		h.lab.after(time.Millisecond)
		if s := e.Stats(); s.HalfOpen != 1 || s.CookiesSent != 2 {
			t.Errorf("got %+v, want a new challenge for a cookie of 3 minutes ago", s)
		}
	})
}

// RFC 7296 §2.5, §2.6 and §2.21.4: what is not for us changes nothing.
func TestWhatIsDroppedAndWhy(t *testing.T) {
	ok := initRequest(1)
	with := func(at int, b ...byte) []byte { d := append([]byte(nil), ok...); copy(d[at:], b); return d }
	for _, tc := range []struct {
		why  string
		data []byte
		sent uint64
	}{
		{"SHORT_DATAGRAM", ok[:27], 0},
		{"WRONG_LENGTH", append(with(0), 0), 0},
		{"INVALID_VERSION", with(17, 0x00), 0},
		{"IKEV1_NOT_SERVED", with(17, 0x10), 0},
		{"INVALID_MAJOR_VERSION", with(17, 0x30), 1},
		{"INVALID_MAJOR_VERSION", with(17, 0x30, 34, 0x28), 0}, // a response is not answered
		{"ZERO_SPI", with(0, make([]byte, 8)...), 0},
		{"UNKNOWN_SPI", with(8, 1), 0},
		{"NOT_IKE_SA_INIT", with(18, 35), 0},
		{"NOT_IKE_SA_INIT", with(20, 0, 0, 0, 1), 0},
		{"UNKNOWN_SPI", with(19, 0x20), 0}, // a response from a responder: SPIi is ours
	} {
		t.Run(tc.why, func(t *testing.T) {
			hostile(t, nil, func(*script, ike.Event) []ike.Effect { t.Error("a machine was made"); return nil }, func(t *testing.T, e *engine.Engine, h *host) {
				h.report(request("198.51.100.1", tc.data))
				h.lab.after(time.Millisecond)
				if s := e.Stats(); s.Drops[tc.why] != 1 || s.Sent != tc.sent || s.Machines != 0 {
					t.Errorf("got drops %v, %d sent; want one %s, %d sent", s.Drops, s.Sent, tc.why, tc.sent)
				}
			})
		})
	}
}

func TestADatagramForAnotherNodesMachineIsDropped(t *testing.T) {
	hostile(t, nil, func(m *script, ev ike.Event) []ike.Effect {
		if d, ok := ev.(ike.Datagram); ok && len(d.Data) > wire.HeaderLen {
			return []ike.Effect{ike.Established{}}
		}
		t.Errorf("the machine got %T", ev)
		return nil
	}, func(t *testing.T, e *engine.Engine, h *host) {
		h.report(request("198.51.100.1", initRequest(1)))
		h.lab.after(time.Millisecond)
		sas, err := e.List(t.Context(), engine.Filter{})
		if err != nil || len(sas) != 1 {
			t.Fatal(sas, err)
		}
		other := h.lab.host("b", "192.0.2.2")
		other.attach(e)
		other.report(request("198.51.100.1", wire.AppendMessage(nil, wire.Header{SPIi: 1, SPIr: sas[0].LocalSPI, Exchange: wire.Informational, Flags: wire.FlagInitiator}, nil)))
		h.lab.after(time.Millisecond)
		if s := e.Stats(); s.Drops["WRONG_NODE"] != 1 {
			t.Errorf("drops: %v", s.Drops)
		}
	})
}

func TestASlowWatcherLosesEventsAndHoldsNobodyUp(t *testing.T) {
	hostile(t, func(c *engine.Config) {
		c.HalfOpenPrefixCookie, c.HalfOpenPrefixMax, c.HalfOpenCookie = 10000, 10000, 10000
	}, func(m *script, ev ike.Event) []ike.Effect {
		return []ike.Effect{ike.Established{}}
	}, func(t *testing.T, e *engine.Engine, h *host) {
		events := e.Watch(t.Context())
		for spi := range uint64(1100) {
			h.report(request("198.51.100.1", initRequest(spi+1)))
		}
		h.lab.after(time.Second)
		if s := e.Stats(); s.Established != 1100 || s.EventsDropped != 1100-1024 || len(events) != 1024 {
			t.Errorf("established %d, dropped %d, waiting %d", s.Established, s.EventsDropped, len(events))
		}
	})
}

func TestFailuresAreBoundedPerPeer(t *testing.T) {
	n := 0
	hostile(t, nil, func(m *script, ev ike.Event) []ike.Effect {
		n++
		return []ike.Effect{ike.Failed{Failure: ike.Failure{Time: time.Now(), Peer: "b", Remote: "198.51.100.1:500", Why: "X", Detail: fmt.Sprint(n / 2)}}, ike.Done{Why: "X"}}
	}, func(t *testing.T, e *engine.Engine, h *host) {
		for spi := range uint64(100) {
			h.report(request("198.51.100.1", initRequest(spi+1)))
			h.lab.after(time.Millisecond)
		}
		f := e.Failures("", "198.51.100.1")
		if len(f) != 16 || f[0].Detail != "50" || f[1].Repeated != 2 || f[0].Node != "a" {
			t.Errorf("got %d failures, the latest %+v", len(f), f[0])
		}
		if s := e.Stats(); s.Failures["X"] != 100 || s.Machines != 0 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func FuzzDatagrams(f *testing.F) {
	f.Add(initRequest(1))
	f.Add(initRequest(1, &wire.Notify{Message: wire.Cookie, Data: make([]byte, 32)}))
	f.Add(make([]byte, 28))
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t)
			e := newEngine(t, func(c *engine.Config) { c.HalfOpenPrefixCookie = 2 }) // the real machines
			h := l.host("a", "192.0.2.1")
			defer func() { e.Close(); l.close() }()
			pol := policy(t, "a", "192.0.2.1", "b", "192.0.2.2", 1)
			pol.Peers[0].Remote = nil
			e.SetPolicy("a", pol)
			h.attach(e)
			for _, from := range []string{"198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.1"} {
				h.report(request(from, data))
			}
			h.lab.after(5 * time.Minute)
			if s := e.Stats(); s.Panics != 0 || s.Machines != 0 || s.HalfOpen != 0 || s.SADesired != 0 || s.Received != 4 {
				t.Errorf("after a datagram of a stranger: %+v", s)
			}
		})
	})
}

// A policy change reaches the machines it concerns, and no others.
func TestAPolicyChangeIsToldToThoseConcerned(t *testing.T) {
	told := make(map[string]int)
	hostile(t, nil, func(m *script, ev ike.Event) []ike.Effect {
		switch ev.(type) {
		case ike.CreateChild:
			return []ike.Effect{ike.Established{}}
		case ike.PolicyChanged:
			told[m.info.Peer]++
		}
		return nil
	}, func(t *testing.T, e *engine.Engine, h *host) {
		make := func(change string) *ipsec.NodePolicy {
			pol := policy(t, "a", "192.0.2.1", "p0", "192.0.2.10", 1)
			for i := 1; i < 5; i++ {
				name := fmt.Sprint("p", i)
				more := policy(t, "a", "192.0.2.1", name, fmt.Sprint("192.0.2.1", i), 1)
				more.Rules[0].Name = fmt.Sprint("rule-", i)
				pol.Peers, pol.Rules = append(pol.Peers, more.Peers...), append(pol.Rules, more.Rules...)
			}
			switch change {
			case "peer":
				pol.Peers[2].DPD = time.Minute
			case "rule":
				pol.Peers[2].DPD = time.Minute
				pol.Rules[3].Template.ReplayWindow = 64
			}
			return pol
		}
		e.SetPolicy("a", make(""))
		for i := range 5 {
			h.report(push.Acquire{ID: uint64(i), Rule: fmt.Sprint("rule-", i)})
		}
		h.lab.after(time.Second)
		if n := e.Stats().Machines; n != 5 {
			t.Fatalf("%d machines, want 5", n)
		}
		for _, change := range []string{"", "peer", "rule"} {
			e.SetPolicy("a", make(change))
			h.lab.after(time.Second)
		}
		if len(told) != 2 || told["p2"] != 1 || told["p3"] != 1 {
			t.Errorf("told: %v, want p2 and p3 once each", told)
		}
	})
}

type panicking struct{ at atomic.Bool }

func (p *panicking) Read(b []byte) (int, error) {
	if p.at.Load() {
		panic("a bug")
	}
	return rand.Read(b)
}

// What computes for machines may fail inside too: the machine is told.
func TestAPanicOfAKeyExchangeIsAnswered(t *testing.T) {
	random := new(panicking)
	var got error
	handle := func(_ *script, ev ike.Event) []ike.Effect {
		switch ev := ev.(type) {
		case ike.Datagram:
			random.at.Store(true)
			return []ike.Effect{ike.NeedKE{ID: 1, Method: ipsec.KEX25519}}
		case ike.KeyExchanged:
			got = ev.Err
		}
		return nil
	}
	hostile(t, func(c *engine.Config) { c.Rand = random }, handle, func(t *testing.T, e *engine.Engine, h *host) {
		h.report(request("198.51.100.1", initRequest(1)))
		h.lab.after(time.Second)
		if s := e.Stats(); got == nil || s.Panics != 1 {
			t.Errorf("the machine was told %v, %d panics; want an error and 1", got, s.Panics)
		}
	})
}
