package engine_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
	"github.com/testudo-ipsec/testudo/keymgr/store/memory"
)

// RFC 7296 §2.4: with INITIAL_CONTACT the recipient may "delete any other IKE SAs it
// has to the same authenticated identity".
func TestInitialContactEndsOlderIKESAsOfTheSameIdentity(t *testing.T) {
	handle := func(m *script, ev ike.Event) []ike.Effect {
		d, ok := ev.(ike.Datagram)
		if !ok {
			return nil
		}
		m.info.RemoteID = "b.example"
		if d.Path.Remote.Addr() == netip.MustParseAddr("198.51.100.9") {
			m.info.RemoteID = "c.example" // another host with the same profile
		}
		sa := ipsec.SA{ID: ipsec.SAID(m.env.NextID()), Direction: ipsec.Inbound, SPI: m.env.AllocSPI(), Rule: "rule-0", Child: 1}
		id := ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: m.info.RemoteID}
		return []ike.Effect{ike.Install{ID: 1, SAs: []ipsec.SA{sa}}, ike.Established{}, ike.InitialContact{Peer: m.info.Peer, RemoteID: id}}
	}
	hostile(t, nil, handle, func(t *testing.T, e *engine.Engine, h *host) {
		for i, from := range []string{"198.51.100.1", "198.51.100.9", "198.51.100.1", "198.51.100.2"} {
			h.report(request(from, initRequest(uint64(i)+1)))
			h.lab.after(time.Second)
		}
		sas, err := e.List(t.Context(), engine.Filter{})
		if err != nil || len(sas) != 2 || len(h.sas) != 2 {
			t.Fatalf("%d IKE SAs, %v, %d SAs in the worker; want the last of each of two identities", len(sas), err, len(h.sas))
		}
		for _, sa := range sas {
			if from := sa.Path.Remote.Addr().String(); from != "198.51.100.2" && from != "198.51.100.9" {
				t.Errorf("the IKE SA with %s at %s is still there", sa.RemoteID, from)
			}
		}
	})
}

// RFC 7296 §2.4: a host that has lost everything says INITIAL_CONTACT, and its peer
// drops what it had; one whose worker still has SAs does not, and loses no packet.
func TestInitialContactOfAHostThatHasLostEverything(t *testing.T) {
	for _, everything := range []bool{true, false} {
		inEnds(t, func(t *testing.T, p *ends) {
			p.a.acquire(1)
			p.after(10 * time.Second)
			p.kill()
			p.disk = new(memory.Store)
			if everything {
				p.a.do(func() { clear(p.a.sas); clear(p.a.granted); p.a.incarnation++ })
			}
			p.lossless = !everything
			p.start()
			p.a.attach(p.ea)
			p.a.acquire(2)
			p.after(10 * time.Second)
			ours, err := p.ea.List(t.Context(), engine.Filter{})
			theirs, err2 := p.eb.List(t.Context(), engine.Filter{})
			if err != nil || err2 != nil || len(ours) != 1 {
				t.Fatalf("%+v, %v, %v", ours, err, err2)
			}
			if everything && len(theirs) != 1 || !everything && len(theirs) != 2 {
				t.Errorf("everything lost %t: b has %d IKE SAs", everything, len(theirs))
			}
			p.mustForward()
		})
	}
}

// Both ends begin at the same time, each alone, and the second IKE_AUTH arrives late:
// when the first IKE SA is up, which the sender did not know of.
func TestInitialContactSparesIKESAsThatCameMeanwhile(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		lost := false
		p.lose = func(h *host, data []byte) bool {
			const exchange, ikeAuth, flags, initiator = 18, 35, 19, 0x08
			data = bytes.TrimPrefix(data, make([]byte, 4)) // on port 4500
			if lost || h != p.b || data[exchange] != ikeAuth || data[flags]&initiator == 0 {
				return false
			}
			lost = true
			return true
		}
		p.a.acquire(1)
		p.b.acquire(1)
		p.after(20 * time.Second)
		if !lost {
			t.Fatal("b sent no IKE_AUTH")
		}
		spis := func(node string) (out [][2]uint64) {
			for _, sa := range p.list(t, engine.Filter{Node: node}) {
				out = append(out, [2]uint64{min(sa.LocalSPI, sa.RemoteSPI), max(sa.LocalSPI, sa.RemoteSPI)})
			}
			slices.SortFunc(out, func(a, b [2]uint64) int { return slices.Compare(a[:], b[:]) })
			return out
		}
		if a, b := spis("a"), spis("b"); len(a) == 0 || !slices.Equal(a, b) {
			t.Errorf("a has the IKE SAs %x, b has %x; want the same", a, b)
		}
		p.mustForward()
	})
}

// Both ends start at once, each says INITIAL_CONTACT, and what one says comes late: it
// asserts nothing of the IKE SA that was made meanwhile.
func TestInitialContactOfBothEndsAtOnce(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		lost := false
		p.lose = func(from *host, data []byte) bool {
			h, err := wire.ParseHeader(data)
			if err == nil && !lost && from == p.b && h.Exchange == wire.IKEAuth && !h.Response() {
				lost = true
				return true
			}
			return false
		}
		p.b.acquire(1)
		p.a.acquire(1)
		p.after(3 * time.Second) // before duplicates are closed
		for _, end := range [][2]string{{"a", "b"}, {"b", "a"}} {
			there := map[uint64]bool{}
			for _, sa := range p.list(t, engine.Filter{Node: end[1]}) {
				there[sa.RemoteSPI] = true
			}
			sas := p.list(t, engine.Filter{Node: end[0]})
			for _, sa := range sas {
				if !there[sa.LocalSPI] {
					t.Errorf("%s has dropped IKE SA %016x, which %s has", end[1], sa.LocalSPI, end[0])
				}
			}
			if !lost || len(sas) != 2 {
				t.Errorf("%s has %d IKE SAs, want 2", end[0], len(sas))
			}
		}
		p.after(time.Minute)
		p.mustForward()
	})
}
