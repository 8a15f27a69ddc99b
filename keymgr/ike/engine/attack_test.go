package engine_test

import (
	"context"
	"encoding/binary"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// hanging is a secret store in which some references take all the time there is.
type hanging struct{}

func (hanging) PSK(ctx context.Context, ref string) ([]ipsec.Secret, error) {
	if strings.Contains(ref, "hangs") {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return []ipsec.Secret{ipsec.NewSecret([]byte("here at once"))}, nil
}

// A peer whose secret is in a store that hangs has a hundred IKE SAs wait for
// it, and floods with requests besides. Another peer's look-up is answered at
// once, and its key exchange too.
func TestAttackOnePeerMakesOthersWait(t *testing.T) {
	answered := make(map[netip.Addr]time.Duration)
	var began time.Time
	hostileAddr, honest := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("203.0.113.1")
	handle := func(m *script, ev ike.Event) []ike.Effect {
		remote := m.info.Path.Remote.Addr()
		switch ev.(type) {
		case ike.Datagram:
			if remote == hostileAddr {
				return []ike.Effect{ike.NeedPSK{ID: 1, Refs: []string{"file:hangs"}}, ike.NeedKE{ID: 2, Method: ipsec.KEMODP4096}}
			}
			return []ike.Effect{ike.NeedPSK{ID: 1, Refs: []string{"file:works"}}}
		case ike.PSKs:
			if remote == honest {
				return []ike.Effect{ike.NeedKE{ID: 3, Method: ipsec.KEMODP2048}}
			}
		case ike.KeyExchanged:
			if remote == honest {
				answered[remote] = time.Since(began)
			}
		}
		return nil
	}
	hostile(t, func(c *engine.Config) { c.Secrets, c.HalfOpenPrefixCookie = hanging{}, 1e6 }, handle, func(t *testing.T, e *engine.Engine, h *host) {
		for i := range uint64(100) {
			h.report(request(hostileAddr.String(), initRequest(i+1)))
		}
		h.lab.after(0)
		began = time.Now()
		h.report(request(honest.String(), initRequest(1)))
		h.lab.after(20 * time.Second)
		// Time is that of the bubble: only waiting for the hostile peer takes any.
		if d, ok := answered[honest]; !ok || d > 0 {
			t.Errorf("the honest peer got its answers after %s, answered %t; want at once", d, ok)
		}
		if s := e.Stats(); s.SlowRefused == 0 {
			t.Error("nothing of the hostile peer was refused")
		}
	})
}

// hostileNetworks are 400 addresses in four networks.
func hostileNetworks() (out []netip.Addr) {
	for i := range 400 {
		out = append(out, netip.AddrFrom4([4]byte{198, 18, byte(i % 4), byte(i / 4)}))
	}
	return out
}

// A shard has thousands of datagrams of hostile peers to look at. One of another
// network comes after a few of them, and is not dropped.
func TestAttackFullInboxMakesOthersWait(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{})
	handled, before := 0, -1
	honest := netip.MustParseAddr("203.0.113.1")
	handle := func(m *script, ev ike.Event) []ike.Effect {
		if _, ok := ev.(ike.Datagram); ok {
			if handled == 0 {
				close(entered)
				<-gate
			}
			if m.info.Path.Remote.Addr() == honest {
				before = handled
			}
			handled++
		}
		return nil
	}
	hostile(t, func(c *engine.Config) {
		c.Shards, c.HalfOpenCookie, c.HalfOpenPrefixCookie, c.HalfOpenPrefixMax = 1, 1e6, 1e6, 1e6
	}, handle, func(t *testing.T, e *engine.Engine, h *host) {
		flood := hostileNetworks()
		h.report(request(flood[0].String(), initRequest(1)))
		<-entered // the shard is busy now
		for i := range uint64(5000) {
			h.report(request(flood[i%400].String(), initRequest(i+2)))
		}
		h.report(request(honest.String(), initRequest(1)))
		s := e.Stats()
		close(gate)
		h.lab.after(time.Second)
		if s.InboxFull < 1000 || handled < 3000 {
			t.Errorf("%d hostile datagrams were dropped and %d handled: the inbox was not full", s.InboxFull, handled)
		}
		// The one under way, and one of each hostile network.
		if before < 0 || before > 5 {
			t.Errorf("the honest peer's request was handled after %d hostile ones, want at most 5 (-1: never)", before)
		}
		h.lab.after(2 * time.Minute)
	})
}

// Hundreds of hostile peers have slow key exchanges waiting, each from an address of
// its own. Another peer's is done after a few of theirs.
func TestAttackSlowWorkOfManyAddresses(t *testing.T) {
	done, before, behind := 0, -1, 0
	var mu sync.Mutex
	honest := netip.MustParseAddr("203.0.113.1")
	asked := make(chan struct{}, 1024)
	handle := func(m *script, ev ike.Event) []ike.Effect {
		mu.Lock()
		defer mu.Unlock()
		switch ev.(type) {
		case ike.Datagram:
			if m.info.Path.Remote.Addr() == honest {
				behind = done // computed while the others asked
			}
			asked <- struct{}{}
			return []ike.Effect{ike.NeedKE{ID: 1, Method: ipsec.KEMODP2048}}
		case ike.KeyExchanged:
			if m.info.Path.Remote.Addr() == honest {
				before = done
			}
			done++
		}
		return nil
	}
	hostile(t, func(c *engine.Config) { c.HalfOpenPrefixCookie = 1e6 }, handle, func(t *testing.T, e *engine.Engine, h *host) {
		flood := hostileNetworks()
		for i, a := range flood {
			h.report(request(a.String(), initRequest(uint64(i+1))))
		}
		for range flood {
			<-asked
		}
		h.report(request(honest.String(), initRequest(1)))
		<-asked
		h.lab.after(time.Second)
		// For each worker one under way, one of each hostile network, and some whose
		// answers the shards had not seen yet.
		if most := behind + 10*runtime.GOMAXPROCS(0); done != len(flood)+1 || before < 0 || before > most {
			t.Errorf("of %d key exchanges the honest peer's was number %d, when %d were done as it asked; want at most %d", done, before, behind, most)
		}
		h.lab.after(2 * time.Minute)
	})
}

// Half-open IKE SAs cost a stranger an address that answers: before the cookie
// there is no state at all, and retransmissions are not provoked.
func TestAttackHalfOpenFlood(t *testing.T) {
	handle := func(m *script, ev ike.Event) []ike.Effect {
		if d, ok := ev.(ike.Datagram); ok {
			return []ike.Effect{ike.Send{Path: d.Path, Data: make([]byte, len(d.Data))}}
		}
		return nil
	}
	hostile(t, func(c *engine.Config) { c.HalfOpenCookie, c.HalfOpenPrefixCookie = 1, 1 }, handle, func(t *testing.T, e *engine.Engine, h *host) {
		h.report(request("198.51.100.1", initRequest(1)))
		h.lab.after(0)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		const flood = 20000
		for i := range uint64(flood) {
			from := netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)})
			h.session.Handle(request(from.String(), initRequest(i+2)))
			if i%512 == 0 {
				h.lab.after(0)
			}
		}
		h.lab.after(time.Second)
		runtime.GC()
		runtime.ReadMemStats(&after)
		s := e.Stats()
		if s.HalfOpen != 1 || s.Machines != 1 || s.Drops["COOKIE_REQUIRED"] != flood {
			t.Errorf("%d half-open, %d machines, %d told to bring a cookie; want 1, 1 and %d", s.HalfOpen, s.Machines, s.Drops["COOKIE_REQUIRED"], flood)
		}
		if s.Sent > flood+1 {
			t.Errorf("%d datagrams were sent for %d received: an amplifier", s.Sent, s.Received)
		}
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > flood*10 {
			t.Errorf("%d octets are held after %d requests without a cookie; want none", grown, flood)
		}
		h.lab.after(2 * time.Minute)
	})
}

// setUps does handshakes of one honest node with a gateway, one after the other,
// while flood runs, and returns how long each took, sorted.
func setUps(t testing.TB, count int, flood func(gw *host, stop <-chan struct{})) []time.Duration {
	l := newLab(t)
	l.delay = 0
	e := newEngine(t, func(c *engine.Config) { c.HalfOpenPrefixCookie, c.HalfOpenCookie = 1e6, 1e6 })
	defer func() { e.Close(); l.close() }()
	gw, node := l.host("z", "192.0.2.1"), l.host("n", "192.0.2.2")
	pol := policy(t, "z", "192.0.2.1", "n", "192.0.2.2", 1)
	open := pol.Peers[0]
	open.Name, open.Remote, open.RemoteID = "open", nil, ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: "stranger"}
	open.Proposals = append(proposal(t, ipsec.ProtocolIKE, "aes128gcm16-prfsha256-modp2048"), proposal(t, ipsec.ProtocolIKE, "aes128gcm16-prfsha256-modp4096")...)
	pol.Peers = append(pol.Peers, open)
	e.SetPolicy("z", pol)
	e.SetPolicy("n", policy(t, "n", "192.0.2.2", "z", "192.0.2.1", 1))
	gw.attach(e)
	node.attach(e)
	stop := make(chan struct{})
	var g sync.WaitGroup
	g.Go(func() { flood(gw, stop) })
	var took []time.Duration
	for range count {
		start := time.Now()
		if _, err := e.Initiate(t.Context(), "n", "rule-0"); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(start))
		if _, err := e.Terminate(t.Context(), engine.Filter{Node: "n"}, "again"); err != nil {
			t.Fatal(err)
		}
		tick := time.NewTicker(100 * time.Microsecond)
		for len(mustList(t, e, "n"))+len(mustList(t, e, "z")) > 0 {
			<-tick.C
		}
		tick.Stop()
	}
	close(stop)
	g.Wait()
	slices.Sort(took)
	return took
}

// mustList are the established IKE SAs of a node.
func mustList(t testing.TB, e *engine.Engine, node string) []engine.IKESA {
	sas, err := e.List(t.Context(), engine.Filter{Node: node, Peer: map[string]string{"n": "z", "z": "n"}[node]})
	if err != nil {
		t.Fatal(err)
	}
	return sas
}

// modpRequest is an IKE_SA_INIT request that makes the responder compute.
func modpRequest(spi uint64) []byte {
	suite := func(typ ipsec.TransformType, id, bits uint16) wire.Transform {
		return wire.Transform{Transform: ipsec.Transform{Type: typ, ID: id, KeyBits: bits}}
	}
	public := make([]byte, 256)
	binary.BigEndian.PutUint64(public[248:], 2+spi)
	h := wire.Header{SPIi: spi, Exchange: wire.IKESAInit, Flags: wire.FlagInitiator}
	return wire.AppendMessage(nil, h, []wire.Payload{
		&wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: wire.ProtocolID(ipsec.ProtocolIKE), Transforms: []wire.Transform{
			suite(ipsec.TransformENCR, ipsec.EncrAESGCM16, 128), suite(ipsec.TransformPRF, ipsec.PRFHMACSHA2256, 0), suite(ipsec.TransformKE, ipsec.KEMODP2048, 0)}}}},
		&wire.KE{Method: ipsec.KEMODP2048, Data: public}, &wire.Nonce{Data: make([]byte, 32)},
	})
}

// BenchmarkPeersBesideAFlood is what a peer with X25519 notices of another one
// that asks for MODP-2048 without pause: its 99th percentile alone, and beside
// the flood. The bar is a ratio of 3.
func BenchmarkPeersBesideAFlood(b *testing.B) {
	const count = 200
	flooded := uint64(0)
	flood := func(gw *host, stop <-chan struct{}) {
		tick := time.NewTicker(time.Millisecond) // twice what a processor can do
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			flooded++
			d := push.Datagram{Path: ike.Path{Local: netip.MustParseAddrPort("192.0.2.1:500"), Remote: netip.MustParseAddrPort("198.51.100.1:500")}, Data: modpRequest(flooded)}
			gw.work <- func() { gw.session.Handle(d) }
		}
	}
	for b.Loop() {
		alone := setUps(b, count, func(*host, <-chan struct{}) {})
		beside := setUps(b, count, flood)
		p99 := func(d []time.Duration) float64 { return float64(d[len(d)*99/100]) / float64(time.Millisecond) }
		b.ReportMetric(p99(alone), "p99-alone-ms")
		b.ReportMetric(p99(beside), "p99-beside-ms")
		b.ReportMetric(p99(beside)/p99(alone), "ratio")
	}
	if flooded == 0 {
		b.Fatal("there was no flood")
	}
}
