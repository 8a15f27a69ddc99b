package ikev2_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
)

// BenchmarkHandshake is one IKE SA with one CHILD SA, PSK and X25519, the
// responder's share apart as responder-ns/op.
func BenchmarkHandshake(b *testing.B) {
	_, web, db := iketest.Pair(b, 1, nil)
	psk := []ipsec.Secret{ipsec.NewSecret([]byte("correct horse battery staple"))}
	id, spi := uint64(0), ipsec.FirstSPI
	env := ike.Env{NextID: func() uint64 { id++; return id }, AllocSPI: func() ipsec.SPI { spi++; return spi }}
	path := ike.Path{Local: netip.MustParseAddrPort("10.0.0.1:500"), Remote: netip.MustParseAddrPort("10.0.0.2:500")}
	back := ike.Path{Local: path.Remote, Remote: path.Local}
	now := time.Now()
	var responding time.Duration
	b.ReportAllocs()
	for b.Loop() {
		i := ikev2.NewInitiator(env, web.Policy, web.Policy.Peers[0], path)
		r := ikev2.NewResponder(env, db.Policy, db.Policy.Peers, back)
		type step struct {
			at ike.Machine
			e  ike.Effect
		}
		var todo []step
		handle := func(m ike.Machine, ev ike.Event) {
			start := time.Now()
			effects := m.Handle(now, ev)
			if m == ike.Machine(r) {
				responding += time.Since(start)
			}
			for _, e := range effects {
				todo = append(todo, step{m, e})
			}
		}
		handle(i, ike.CreateChild{Rule: "rule"})
		for len(todo) > 0 {
			s := todo[0]
			todo = todo[1:]
			switch e := s.e.(type) {
			case ike.Send:
				if s.at == ike.Machine(i) {
					handle(r, ike.Datagram{Path: back, Data: e.Data})
				} else {
					handle(i, ike.Datagram{Path: path, Data: e.Data})
				}
			case ike.NeedPSK:
				handle(s.at, ike.PSKs{ID: e.ID, Secrets: psk})
			case ike.Install:
				handle(s.at, ike.Installed{ID: e.ID})
			}
		}
		if i.Info().State != "established" || len(i.Info().Children) != 1 {
			b.Fatalf("%+v", i.Info())
		}
	}
	b.ReportMetric(float64(responding.Nanoseconds())/float64(b.N), "responder-ns/op")
}
