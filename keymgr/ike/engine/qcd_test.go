package engine_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
	"github.com/testudo-ipsec/testudo/keymgr/push"
	"github.com/testudo-ipsec/testudo/keymgr/store/memory"
)

// State and worker are lost: the other end learns it from the answer to its next
// request, by a token that any key manager with the secret can make, and starts anew.
func TestQuickCrashDetection(t *testing.T) {
	for _, right := range []bool{true, false} {
		inEnds(t, func(t *testing.T, p *ends) {
			p.a.acquire(1)
			p.after(time.Second)
			before := p.agree()
			p.kill()
			p.disk, p.a.sas = new(memory.Store), make(map[ipsec.SAID]ipsec.SA)
			p.a.incarnation++
			if !right {
				p.secret = "another secret"
			}
			p.start()
			p.a.attach(p.ea)
			p.must(p.eb.Rekey(t.Context(), engine.Filter{Rule: "rule-0"}))
			p.after(3 * time.Second)
			if !right {
				if s := p.eb.Stats(); s.Failures["PEER_LOST_STATE"] != 0 {
					t.Error("a wrong token was believed")
				}
				return
			}
			if got := p.agree(); len(got) != 2 || slices.Equal(got, before) {
				t.Errorf("SAs %v, want fresh ones instead of %v", got, before)
			}
			if s := p.eb.Stats(); s.Failures["PEER_LOST_STATE"] != 1 {
				t.Errorf("failures %v, want one of PEER_LOST_STATE", s.Failures)
			}
			p.mustForward()
		})
	}
}

// The tokens of a rekeyed IKE SA are its own, whoever rekeyed it, and a restart does
// not lose those of the peer.
func TestQuickCrashDetectionAfterRekey(t *testing.T) {
	for _, byA := range []bool{false, true} {
		inEnds(t, func(t *testing.T, p *ends) {
			p.a.acquire(1)
			p.after(time.Second)
			if byA {
				p.must(p.ea.Rekey(t.Context(), engine.Filter{Peer: "b"}))
			} else {
				p.must(p.eb.Rekey(t.Context(), engine.Filter{Peer: "a"}))
			}
			p.after(20 * time.Second)
			p.kill()
			p.disk, p.a.sas = new(memory.Store), make(map[ipsec.SAID]ipsec.SA)
			p.start()
			p.a.attach(p.ea)
			p.must(p.eb.Rekey(t.Context(), engine.Filter{Rule: "rule-0"}))
			p.after(3 * time.Second)
			if s := p.eb.Stats(); s.Failures["PEER_LOST_STATE"] != 1 {
				t.Errorf("rekeyed by a %t: failures %v, want one of PEER_LOST_STATE", byA, s.Failures)
			}
			p.mustForward()
		})
	}
}

// RFC 6290 §9.2: nobody gets the token of an IKE SA that lives, also not who turns
// the I flag around, so that the SPI that is looked for is the peer's.
func TestTokensOfLivingIKESAsAreNotGivenAway(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.kill()
		p.disk = new(memory.Store)
		p.after(time.Second) // the two key managers have not begun at the same time
		p.start()
		p.a.attach(p.ea)
		p.a.acquire(1)
		p.after(time.Second)
		before := p.agree()
		sas, err := p.ea.List(t.Context(), engine.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		sa := sas[0]
		var got [][]byte
		p.a.do(func() {
			p.lose = func(from *host, data []byte) bool {
				got = append(got, data)
				return true
			}
		})
		h := wire.Header{SPIi: sa.LocalSPI, SPIr: sa.RemoteSPI, Next: wire.TypeSK, Exchange: wire.Informational, MessageID: 7}
		for _, flags := range []wire.Flags{0, wire.FlagInitiator} {
			h.Flags = flags
			b := wire.AppendMessage(nil, h, []wire.Payload{&wire.Encrypted{PayloadType: wire.TypeSK, Body: make([]byte, 32)}})
			from := netip.MustParseAddrPort("203.0.113.66:500")
			p.a.report(push.Datagram{Path: ike.Path{Local: netip.AddrPortFrom(p.a.addr, 500), Remote: from}, Data: b})
			p.b.report(push.Datagram{Path: ike.Path{Local: netip.AddrPortFrom(p.b.addr, 500), Remote: from}, Data: b})
		}
		p.after(time.Second)
		p.a.do(func() { p.lose = nil })
		for _, b := range got {
			b[19] = byte(wire.FlagResponse) // as b's peer would send it, and a's
			p.b.report(push.Datagram{Path: ike.Path{Local: netip.AddrPortFrom(p.b.addr, 500), Remote: netip.AddrPortFrom(p.a.addr, 500)}, Data: append([]byte(nil), b...)})
			b[19] |= byte(wire.FlagInitiator)
			p.b.report(push.Datagram{Path: ike.Path{Local: netip.AddrPortFrom(p.b.addr, 500), Remote: netip.AddrPortFrom(p.a.addr, 500)}, Data: b})
		}
		p.after(time.Second)
		if now := p.agree(); len(got) != 0 || !slices.Equal(now, before) {
			t.Errorf("%d answers to strangers, and the SAs are %v, want none, and %v", len(got), now, before)
		}
	})
}
