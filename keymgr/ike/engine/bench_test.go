package engine_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// BenchmarkInstalls is one machine's effect that installs 10,000 SAs in pairs,
// through the engine, its records and a link, until all are acknowledged.
func BenchmarkInstalls(b *testing.B) {
	const sas = 10000
	for b.Loop() {
		b.StopTimer()
		l := newLab(b)
		var acked sync.WaitGroup
		acked.Add(sas / 2)
		m := scripted{func(m *script, ev ike.Event) []ike.Effect {
			switch ev := ev.(type) {
			case ike.Datagram:
				var out []ike.Effect
				for i := range uint64(sas / 2) {
					in := ipsec.SA{ID: ipsec.SAID(m.env.NextID()), Direction: ipsec.Inbound, SPI: m.env.AllocSPI(), Rule: "rule-0", Child: i + 1}
					o := ipsec.SA{ID: ipsec.SAID(m.env.NextID()), Direction: ipsec.Outbound, SPI: 300, Rule: "rule-0", Child: i + 1, Suite: ipsec.Suite{ESN: true}}
					out = append(out, ike.Install{ID: i, SAs: []ipsec.SA{in, o}})
				}
				return out
			case ike.Installed:
				if ev.Err != nil {
					b.Error(ev.Err)
				}
				acked.Done()
			}
			return nil
		}}
		e := newEngine(b, func(c *engine.Config) { c.Machines = m })
		h := l.host("a", "192.0.2.1")
		pol := policy(b, "a", "192.0.2.1", "b", "192.0.2.2", 1)
		pol.Peers[0].Remote = nil
		e.SetPolicy("a", pol)
		h.attach(e)
		b.StartTimer()
		h.report(request("198.51.100.1", initRequest(1)))
		acked.Wait()
		b.StopTimer()
		if len(h.sas) != sas {
			b.Fatalf("%d SAs in the worker", len(h.sas))
		}
		e.Close()
		l.close()
		b.StartTimer()
	}
	b.ReportMetric(sas*float64(b.N)/b.Elapsed().Seconds(), "installs/s")
}

// BenchmarkHandshakes brings up IKE SAs with one CHILD SA each between a
// gateway and 200 nodes, both ends in one engine: PSK, X25519, AES-128-GCM.
func BenchmarkHandshakes(b *testing.B) {
	const peers = 200
	var held float64
	for b.Loop() {
		b.StopTimer()
		l := newLab(b)
		l.delay = 0
		e := newEngine(b, func(c *engine.Config) { c.HalfOpenPrefixCookie, c.HalfOpenCookie = 1e6, 1e6 })
		gw := l.host("z", "192.0.2.1")
		pol := policy(b, "z", "192.0.2.1", "n0", "10.9.0.1", 0)
		template := pol.Peers[0]
		pol.Peers = nil
		var hosts []*host
		for i := range peers {
			name, addr := fmt.Sprint("n", i), netip.AddrFrom4([4]byte{10, 9, byte(i), 1})
			hosts = append(hosts, l.host(name, addr.String()))
			peer := template
			peer.Name, peer.Remote = name, []netip.Addr{addr}
			peer.RemoteID.Data = name + ".example"
			pol.Peers = append(pol.Peers, peer)
			r := policy(b, "z", "192.0.2.1", name, addr.String(), 1).Rules[0]
			r.Name = name
			pol.Rules = append(pol.Rules, r)
			e.SetPolicy(name, policy(b, name, addr.String(), "z", "192.0.2.1", 1))
		}
		e.SetPolicy("z", pol)
		gw.attach(e)
		for _, h := range hosts {
			h.attach(e)
		}
		b.StartTimer()
		for _, h := range hosts {
			h.report(push.Acquire{ID: 1, Rule: "rule-0", Flow: ipsec.Flow{}})
		}
		tick := time.NewTicker(time.Millisecond)
		for n := 0; ; n++ {
			s := e.Stats()
			if s.ChildrenUp == 2*peers {
				break
			}
			if n > 30000 || len(s.Failures) != 0 {
				b.Fatalf("not all came up: %+v", s)
			}
			<-tick.C
		}
		b.StopTimer()
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&after)
		if _, err := e.Terminate(b.Context(), engine.Filter{Node: "z"}, "benchmark"); err != nil {
			b.Fatal(err)
		}
		for range 5000 {
			if e.Stats().Machines == 0 {
				break
			}
			<-tick.C
		}
		tick.Stop()
		runtime.GC()
		runtime.ReadMemStats(&before)
		held = (float64(after.HeapAlloc) - float64(before.HeapAlloc)) / (2 * peers)
		e.Close()
		l.close()
		b.StartTimer()
	}
	b.ReportMetric(held, "B/IKE_SA")
	b.ReportMetric(peers*float64(b.N)/b.Elapsed().Seconds(), "handshakes/s")
}

// BenchmarkHalfOpen is what an initiator leaves behind that has shown a cookie
// and does not go on after IKE_SA_INIT: one that offers the first suite, or all that
// a policy has which names none.
func BenchmarkHalfOpen(b *testing.B) {
	suites := []string{"aes256gcm16-prfsha256-x25519", "aes256gcm16-prfsha256-x25519-ke1_mlkem768", "aes256-sha256-prfsha256-ecp256-modp2048"}
	b.Run("x25519", func(b *testing.B) { benchHalfOpen(b, suites[:1]) })
	b.Run("default", func(b *testing.B) { benchHalfOpen(b, []string{suites[1], suites[0], suites[2]}) })
}

func benchHalfOpen(b *testing.B, suites []string) {
	const known, count = 10000, 20000 // the first fill what is remembered of the latest: Traces
	for b.Loop() {
		b.StopTimer()
		l := newLab(b)
		e := newEngine(b, func(c *engine.Config) { c.HalfOpenPrefixCookie, c.HalfOpenCookie, c.HalfOpenPrefixMax = 1e6, 1e6, 1e6 })
		h := l.host("a", "192.0.2.1")
		pol := policy(b, "a", "192.0.2.1", "b", "192.0.2.2", 1)
		pol.Peers[0].Remote, pol.Peers[0].Proposals, pol.Peers[0].Mobike = nil, nil, true
		for _, s := range suites {
			pol.Peers[0].Proposals = append(pol.Peers[0].Proposals, proposal(b, ipsec.ProtocolIKE, s)...)
		}
		e.SetPolicy("a", pol)
		h.attach(e)
		first := firstMessage(b, pol)
		send := func(from, to uint64) {
			for i := from; i < to; i++ {
				binary.BigEndian.PutUint64(first, i+1) // the SPI
				h.report(request(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String(), bytes.Clone(first)))
				for e.Stats().Sent+1000 < i {
					runtime.Gosched()
				}
			}
			for e.Stats().Sent < to {
				runtime.Gosched()
			}
		}
		var before, after runtime.MemStats
		send(0, known)
		runtime.GC()
		runtime.ReadMemStats(&before)
		b.StartTimer()
		send(known, known+count)
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&after)
		if n := e.Stats().HalfOpen; n != known+count {
			b.Fatalf("%d half-open, want %d", n, known+count)
		}
		b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/count, "B/half-open")
		e.Close()
		l.close()
		b.StartTimer()
	}
}

// firstMessage is what the node's peer sends first, with the node's own suites.
func firstMessage(b *testing.B, pol *ipsec.NodePolicy) []byte {
	p := pol.Peers[0]
	m := ikev2.NewInitiator(ike.Env{NextID: func() uint64 { return 1 }}, pol, p, ike.Path{Local: netip.MustParseAddrPort("192.0.2.2:500"), Remote: netip.MustParseAddrPort("192.0.2.1:500")})
	for _, f := range m.Handle(time.Now(), ike.CreateChild{Rule: "rule-0"}) {
		if send, ok := f.(ike.Send); ok {
			return send.Data
		}
	}
	b.Fatal("the initiator has sent nothing")
	return nil
}
