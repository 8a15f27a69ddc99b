package ikev2_test

import (
	"bytes"
	"crypto/rand"
	mrand "math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
)

// BenchmarkResponder is the responder's half of one IKE SA with one CHILD SA, PSK and
// X25519, and nothing else: its randomness is the same in each round, so the requests
// are made once. ke-ns/op is how much of it is the key exchange.
//
//	handle  the events of IKE_SA_INIT and IKE_AUTH, until the CHILD SA is up
//	engine  the same with all that the engine asks of a machine meanwhile: rest, wake,
//	        deadlines, snapshots, and its record after each change that is let out
func BenchmarkResponder(b *testing.B) {
	for _, name := range []string{"handle", "engine"} {
		b.Run(name, func(b *testing.B) {
			r := newReplay(b, "psk")
			ke := keTime(b)
			b.ReportAllocs()
			for b.Loop() {
				r.round(b, name == "engine", nil)
			}
			b.ReportMetric(ke, "ke-ns/op")
		})
	}
}

// BenchmarkHeld is what a responder's machine takes that is established and idle, with
// one CHILD SA, PSK or ECDSA certificates: live heap, without the engine's part.
func BenchmarkHeld(b *testing.B) {
	for _, name := range []string{"psk", "p256"} {
		b.Run(name, func(b *testing.B) {
			const count = 1000
			r := newReplay(b, name)
			var before, after runtime.MemStats
			for b.Loop() {
				held := make([]*ikev2.Machine, count)
				runtime.GC()
				runtime.ReadMemStats(&before)
				for i := range held {
					held[i] = r.round(b, true, nil)
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				runtime.KeepAlive(held)
			}
			b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/count, "B/machine")
		})
	}
}

// keTime is the time of one responder's X25519.
func keTime(b *testing.B) float64 {
	const times = 500
	need := ike.NeedKE{Method: ipsec.KEX25519, Peer: bytes.Repeat([]byte{9}, 32)}
	start := time.Now()
	for range times {
		if a := ikev2.PerformKE(rand.Reader, need); a.Err != nil {
			b.Fatal(a.Err)
		}
	}
	return float64(time.Since(start).Nanoseconds()) / times
}

// replay is a responder that hears the same requests again and again.
type replay struct {
	env    ike.Env
	random *mrand.ChaCha8
	policy *ipsec.NodePolicy
	path   ike.Path
	psk    []ipsec.Secret
	node   *iketest.Host
	init   []byte
	auth   []byte
	buf    []byte
}

// newReplay has the peer authenticate by "psk", or by a certificate of this key.
func newReplay(b *testing.B, by string) *replay {
	suites := func(w, d *iketest.Side) {
		w.IKE = []string{"aes256gcm16-prfsha256-x25519"}
		d.IKE = []string{"aes256gcm16-prfsha256-x25519", "aes256gcm16-prfsha256-ecp256", "aes256gcm16-prfsha256-modp2048"}
	}
	var web, db *iketest.Host
	if by == "psk" {
		_, web, db = iketest.Pair(b, 1, suites)
	} else {
		_, web, db = certified(b, 1, by, by, suites)
	}
	id, spi := uint64(0), ipsec.FirstSPI
	r := &replay{random: mrand.NewChaCha8([32]byte{1}), policy: db.Policy, node: db, psk: []ipsec.Secret{ipsec.NewSecret([]byte("correct horse battery staple"))}}
	r.env = ike.Env{Rand: r.random, NextID: func() uint64 { id++; return id }, AllocSPI: func() ipsec.SPI { spi++; return spi }}
	r.path = ike.Path{Node: "db", Local: netip.MustParseAddrPort("10.0.0.2:500"), Remote: netip.MustParseAddrPort("10.0.0.1:500")}
	r.policy.Index()
	i := ikev2.NewInitiator(ike.Env{NextID: r.env.NextID, AllocSPI: r.env.AllocSPI}, web.Policy, web.Policy.Peers[0],
		ike.Path{Node: "web", Local: r.path.Remote, Remote: r.path.Local})
	now := time.Now()
	var answer func(effects []ike.Effect)
	handle := func(ev ike.Event) { answer(i.Handle(now, ev)) }
	answer = func(effects []ike.Effect) {
		for _, e := range effects {
			switch e := e.(type) {
			case ike.Send:
				if r.init == nil {
					r.init = e.Data
					continue
				}
				r.auth = e.Data
			case ike.NeedPSK:
				handle(ike.PSKs{ID: e.ID, Secrets: r.psk})
			default:
				if answer := web.Certificates(e); answer != nil {
					handle(answer)
				}
			}
		}
	}
	handle(ike.CreateChild{Rule: "rule"})
	r.random.Seed([32]byte{1})
	m := ikev2.NewResponder(r.env, r.policy, r.policy.Peers, r.path)
	back := ike.Path{Node: "web", Local: r.path.Remote, Remote: r.path.Local}
	var respond func(ev ike.Event)
	respond = func(ev ike.Event) {
		for _, e := range m.Handle(now, ev) {
			if send, ok := e.(ike.Send); ok {
				handle(ike.Datagram{Path: back, Data: send.Data})
			} else if answer := db.Certificates(e); answer != nil {
				respond(answer)
			}
		}
	}
	respond(ike.Datagram{Path: r.path, Data: r.init})
	return r
}

// round takes a new responder through both exchanges. With engine it is asked as the
// engine asks. asked takes each effect, when it is not nil.
func (r *replay) round(b *testing.B, engine bool, asked func(ike.Effect)) *ikev2.Machine {
	now := time.Now()
	r.random.Seed([32]byte{1})
	m := ikev2.NewResponder(r.env, r.policy, slices.Clone(r.policy.Peers), r.path) // each its own, as by Machines
	up := false
	var handle func(ike.Event)
	handle = func(ev ike.Event) {
		effects := m.Handle(now, ev)
		if engine {
			m = r.engine(b, m, effects)
		}
		for _, e := range effects {
			if asked != nil {
				asked(e)
			}
			switch e := e.(type) {
			case ike.NeedPSK:
				handle(ike.PSKs{ID: e.ID, Secrets: r.psk})
			case ike.Install:
				handle(ike.Installed{ID: e.ID})
			case ike.ChildUp:
				up = true
			default:
				if answer := r.node.Certificates(e); answer != nil {
					handle(answer)
				}
			}
		}
	}
	handle(ike.Datagram{Path: r.path, Data: r.init})
	handle(ike.Datagram{Path: r.path, Data: r.auth})
	if !up {
		b.Fatalf("%+v", m.Info())
	}
	return m
}

// engine is what the engine does after each event (shard.handle, letOut).
func (r *replay) engine(b *testing.B, m *ikev2.Machine, effects []ike.Effect) *ikev2.Machine {
	m.Deadline()
	rest, ok := m.Rest(r.buf[:0])
	if r.buf = rest; ok {
		again, err := ikev2.Wake(r.env, r.policy, slices.Clone(r.policy.Peers), bytes.Clone(rest))
		if err != nil {
			b.Fatal(err)
		}
		return again
	}
	visible := false
	for _, e := range effects {
		switch e := e.(type) {
		case ike.Send:
			visible = true
		case ike.Established:
			m.Info()
		case ike.Install:
			visible = visible || e.SAs[0].Direction == ipsec.Outbound
		}
	}
	if visible {
		r.buf, _ = m.Save(r.buf[:0])
	}
	return m
}
