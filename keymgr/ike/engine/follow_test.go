package engine_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// RFC 7296 §2.23: a peer behind a NAT is followed to its new address and port.
func TestAMovedPeerGetsItsTrafficAtTheNewAddress(t *testing.T) {
	var out ipsec.SAID
	to := netip.MustParseAddrPort("198.51.100.77:61000")
	handle := func(m *script, ev ike.Event) []ike.Effect {
		d, ok := ev.(ike.Datagram)
		switch {
		case !ok:
			return nil
		case out != 0:
			return []ike.Effect{ike.Move{SAs: []ipsec.SAID{out, out + 1000}, Local: d.Path.Local.Addr(), Remote: to.Addr(),
				Encap: &ipsec.Encap{LocalPort: 4500, RemotePort: to.Port()}}} // the second is gone already
		}
		out = ipsec.SAID(m.env.NextID())
		sa := ipsec.SA{ID: out, Direction: ipsec.Outbound, SPI: 4096, Rule: "rule-0", Child: 1,
			Remote: d.Path.Remote.Addr(), Encap: &ipsec.Encap{LocalPort: 4500, RemotePort: 4500}}
		return []ike.Effect{ike.Install{ID: 1, SAs: []ipsec.SA{sa}}, ike.Established{}}
	}
	hostile(t, nil, handle, func(t *testing.T, e *engine.Engine, h *host) {
		h.report(request("198.51.100.1", initRequest(1)))
		h.lab.after(time.Second)
		before := h.sas[out]
		sas, err := e.List(t.Context(), engine.Filter{})
		if err != nil || len(sas) != 1 {
			t.Fatalf("%d IKE SAs, %v", len(sas), err)
		}
		again := wire.Header{SPIi: 1, SPIr: sas[0].LocalSPI, Exchange: wire.Informational, Flags: wire.FlagInitiator}
		h.report(request("198.51.100.1", wire.AppendMessage(nil, again, nil)))
		h.lab.after(time.Second)
		sa := h.sas[out]
		if sa.Remote != to.Addr() || sa.Encap == nil || *sa.Encap != (ipsec.Encap{LocalPort: 4500, RemotePort: 61000}) {
			t.Errorf("the worker sends to %s, %+v; want %s", sa.Remote, sa.Encap, to)
		}
		if sa.Lease.First < before.Lease.Last {
			t.Errorf("lease %+v after %+v; want numbers that were not granted before", sa.Lease, before.Lease)
		}
		if s := e.Stats(); s.SADesired != 1 || s.SAInstalled != 1 {
			t.Errorf("stats %+v; want the SA to count as installed", s)
		}
	})
}

// The policy and the addresses change just when an IKE SA is replaced: what is posted to
// the old machine is not for the new one any more, which hears of both nevertheless.
func TestAHeirHearsOfWhatChangesMeanwhile(t *testing.T) {
	var change func()
	var heard []string
	heir := func(_ *script, ev ike.Event) []ike.Effect {
		switch ev := ev.(type) {
		case ike.PolicyChanged:
			heard = append(heard, "policy "+ev.Policy.Version.String())
		case ike.Addresses:
			heard = append(heard, fmt.Sprint("addresses ", ev.Local))
		}
		return nil
	}
	handle := func(m *script, ev ike.Event) []ike.Effect {
		if _, ok := ev.(ike.Datagram); !ok {
			return nil
		}
		change()
		next := &script{handler: heir, env: m.env, info: m.info}
		next.info.LocalSPI++
		return []ike.Effect{ike.Established{}, ike.Spawn{Machine: next}}
	}
	hostile(t, nil, handle, func(t *testing.T, e *engine.Engine, h *host) {
		changed := policy(t, "a", "192.0.2.1", "b", "192.0.2.2", 1)
		changed.Version.Revision, changed.Peers[0].Remote, changed.Peers[0].Mobike = 2, nil, true
		change = func() { e.SetPolicy("a", changed) }
		h.report(request("198.51.100.1", initRequest(1)))
		h.lab.after(time.Second)
		if want := []string{"policy " + changed.Version.String(), "addresses [192.0.2.1]"}; !slices.Equal(heard, want) {
			t.Errorf("the new machine heard of %q, want %q", heard, want)
		}
	})
}
