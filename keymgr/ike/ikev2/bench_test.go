package ikev2_test

import (
	"bytes"
	"crypto/rand"
	"net/netip"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
)

// BenchmarkHandshake is one IKE SA with one CHILD SA, PSK and X25519, the
// responder's share apart as responder-ns/op. It rests as in the engine.
func BenchmarkHandshake(b *testing.B) {
	_, web, db := iketest.Pair(b, 1, nil)
	handshakes(b, web, db)
}

// BenchmarkHandshakeMODP2048 is the same with a slow key exchange, which the engine
// computes on goroutines of its own. The responder's share holds that.
func BenchmarkHandshakeMODP2048(b *testing.B) {
	_, web, db := iketest.Pair(b, 1, func(w, d *iketest.Side) {
		w.IKE = []string{"aes128gcm16-prfsha256-modp2048"}
		d.IKE = w.IKE
	})
	handshakes(b, web, db)
}

// BenchmarkHandshakeCertificates is the same with certificates of one CA on both
// ends. The responder's share holds what the engine does for it: the chain and the
// signature of the peer, each verified anew, and its own signature.
func BenchmarkHandshakeCertificates(b *testing.B) {
	for _, key := range []string{"p256", "ed25519", "rsa"} {
		b.Run(key, func(b *testing.B) {
			_, web, db := certified(b, 1, key, key, nil)
			handshakes(b, web, db)
		})
	}
}

func handshakes(b *testing.B, web, db *iketest.Host) {
	psk := []ipsec.Secret{ipsec.NewSecret([]byte("correct horse battery staple"))}
	id, spi := uint64(0), ipsec.FirstSPI
	env := ike.Env{NextID: func() uint64 { id++; return id }, AllocSPI: func() ipsec.SPI { spi++; return spi }}
	path := ike.Path{Local: netip.MustParseAddrPort("10.0.0.1:500"), Remote: netip.MustParseAddrPort("10.0.0.2:500")}
	back := ike.Path{Local: path.Remote, Remote: path.Local}
	now := time.Now()
	var responding time.Duration
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		i := ikev2.NewInitiator(env, web.Policy, web.Policy.Peers[0], path)
		r := ikev2.NewResponder(env, db.Policy, db.Policy.Peers, back)
		type step struct {
			at ike.Machine
			e  ike.Effect
		}
		var todo []step
		measure := func(m ike.Machine, fn func()) {
			start := time.Now()
			fn()
			if m == ike.Machine(r) {
				responding += time.Since(start)
			}
		}
		handle := func(m ike.Machine, ev ike.Event) {
			var effects []ike.Effect
			measure(m, func() {
				effects = m.Handle(now, ev)
				rest, ok := m.Rest(buf[:0])
				if buf = rest; ok {
					again, err := ikev2.Wake(env, db.Policy, db.Policy.Peers, bytes.Clone(rest))
					if err != nil {
						b.Fatal(err)
					}
					*r = *again
				}
			})
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
			case ike.NeedKE:
				var answer ike.KeyExchanged
				measure(s.at, func() { answer = ikev2.PerformKE(rand.Reader, e) })
				handle(s.at, answer)
			case ike.Install:
				handle(s.at, ike.Installed{ID: e.ID})
			default:
				h := web
				if s.at == ike.Machine(r) {
					h = db
				}
				var answer ike.Event
				measure(s.at, func() { answer = h.Certificates(e) })
				if answer != nil {
					handle(s.at, answer)
				}
			}
		}
		if i.Info().State != "established" || len(i.Info().Children) != 1 {
			b.Fatalf("%+v", i.Info())
		}
	}
	b.ReportMetric(float64(responding.Nanoseconds())/float64(b.N), "responder-ns/op")
}
