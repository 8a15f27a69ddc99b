package engine_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
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
// and does not go on: X25519, a request as an ordinary peer sends it.
func BenchmarkHalfOpen(b *testing.B) {
	const count = 10000
	for b.Loop() {
		b.StopTimer()
		l := newLab(b)
		e := newEngine(b, func(c *engine.Config) { c.HalfOpenPrefixCookie, c.HalfOpenCookie, c.HalfOpenPrefixMax = 1e6, 1e6, 1e6 })
		h := l.host("a", "192.0.2.1")
		pol := policy(b, "a", "192.0.2.1", "b", "192.0.2.2", 1)
		pol.Peers[0].Remote = nil
		e.SetPolicy("a", pol)
		h.attach(e)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		b.StartTimer()
		for i := range uint64(count) {
			h.report(request(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String(), halfOpenRequest(i+1)))
			for e.Stats().Sent+1000 < i {
				runtime.Gosched()
			}
		}
		for e.Stats().Sent < count {
			runtime.Gosched()
		}
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/count, "B/half-open")
		e.Close()
		l.close()
		b.StartTimer()
	}
}

// halfOpenRequest is the first message of an ordinary peer.
func halfOpenRequest(spi uint64) []byte {
	suite := func(typ ipsec.TransformType, id, bits uint16) wire.Transform {
		return wire.Transform{Transform: ipsec.Transform{Type: typ, ID: id, KeyBits: bits}}
	}
	h := wire.Header{SPIi: spi, Exchange: wire.IKESAInit, Flags: wire.FlagInitiator}
	return wire.AppendMessage(nil, h, []wire.Payload{
		&wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: wire.ProtocolID(ipsec.ProtocolIKE), Transforms: []wire.Transform{
			suite(ipsec.TransformENCR, ipsec.EncrAESGCM16, 128), suite(ipsec.TransformPRF, ipsec.PRFHMACSHA2256, 0), suite(ipsec.TransformKE, ipsec.KEX25519, 0)}}}},
		&wire.KE{Method: ipsec.KEX25519, Data: append([]byte{9}, make([]byte, 31)...)}, &wire.Nonce{Data: make([]byte, 32)},
		&wire.Notify{Message: wire.NATDetectionSourceIP, Data: make([]byte, 20)}, &wire.Notify{Message: wire.NATDetectionDestinationIP, Data: make([]byte, 20)},
	})
}
