package iketest

import (
	"fmt"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// window is the largest that our machines grant.
const window = 4

// watchWindow checks the requests that a host sends: "when the initiator needs to
// make a request X, it MUST wait until it has received responses to all requests up
// through request X-N" (RFC 7296 §2.3). N is 1 until IKE_AUTH is done.
func (h *Host) watchWindow(b []byte) {
	hd, err := wire.ParseHeader(b)
	if err != nil || hd.Response() || hd.Exchange == wire.IKESAInit {
		return
	}
	sa := ikeSA{hd.SPIi, hd.SPIr}
	if hd.MessageID < h.numbered[sa] {
		return // retransmitted, or another fragment
	}
	h.numbered[sa] = hd.MessageID + 1
	most := uint32(window)
	if hd.Exchange == wire.IKEAuth || hd.Exchange == wire.IKEIntermediate {
		most = 1
	}
	for _, id := range h.unanswered[sa] {
		if hd.MessageID-id >= most {
			h.net.TB.Errorf("%s sends request %d while %d is not answered: the window is %d\n%s", h.Name, hd.MessageID, id, most, h.net.LadderText(10))
		}
	}
	h.unanswered[sa] = append(h.unanswered[sa], hd.MessageID)
	h.InFlight = max(h.InFlight, len(h.unanswered[sa]))
}

// Deliverable reports why a packet that a sends now would not be accepted by b,
// nil when it would: the newest outbound SA of a, as a worker picks it, must
// have its inbound half at b, with the same keys, suite, mode and selectors.
func Deliverable(a, b *Host) error {
	var out *ipsec.SA
	for i := range a.SAs {
		if a.SAs[i].Direction == ipsec.Outbound {
			out = &a.SAs[i]
		}
	}
	if out == nil {
		return fmt.Errorf("%s has no outbound SA", a.Name)
	}
	return received(a, b, out)
}

// Complete is Deliverable for all of a's outbound SAs.
func Complete(a, b *Host) error {
	for i := range a.SAs {
		if a.SAs[i].Direction == ipsec.Outbound {
			if err := received(a, b, &a.SAs[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// Reachable is Deliverable for any of a's outbound SAs.
func Reachable(a, b *Host) error {
	err := fmt.Errorf("%s has no outbound SA", a.Name)
	for i := range a.SAs {
		if a.SAs[i].Direction != ipsec.Outbound {
			continue
		}
		if err = received(a, b, &a.SAs[i]); err == nil {
			return nil
		}
	}
	return err
}

func (h *Host) inbound(spi ipsec.SPI) *ipsec.SA {
	for i := range h.SAs {
		if h.SAs[i].Direction == ipsec.Inbound && h.SAs[i].SPI == spi {
			return &h.SAs[i]
		}
	}
	return nil
}

// received says nothing of UDP encapsulation: while addresses change the ends may differ,
// and each takes ESP with and without it "at any time" (RFC 7296 §2.23).
func received(a, b *Host, out *ipsec.SA) error {
	if in := b.inbound(out.SPI); in != nil {
		switch {
		case !in.EncrKey.Equal(out.EncrKey) || !in.IntegKey.Equal(out.IntegKey):
			return fmt.Errorf("SPI %s: %s and %s have different keys", out.SPI, a.Name, b.Name)
		case in.Suite != out.Suite || in.Mode != out.Mode:
			return fmt.Errorf("SPI %s: %s has %s %s, %s has %s %s", out.SPI, a.Name, out.Suite, out.Mode, b.Name, in.Suite, in.Mode)
		case len(in.Selectors) != len(out.Selectors):
			return fmt.Errorf("SPI %s: selectors %v and %v", out.SPI, out.Selectors, in.Selectors)
		}
		if a.NAT == nil && b.NAT == nil {
			for i := range in.Selectors {
				if !containsSelector(in.Selectors, out.Selectors[i].Swap()) {
					return fmt.Errorf("SPI %s: %s has no selector %s", out.SPI, b.Name, out.Selectors[i].Swap())
				}
			}
		}
		return nil
	}
	return fmt.Errorf("%s sends on SPI %s, %s cannot receive it", a.Name, out.SPI, b.Name)
}

func containsSelector(ss []ipsec.Selector, s ipsec.Selector) bool {
	for _, x := range ss {
		if x == s {
			return true
		}
	}
	return false
}

// Agree reports how two hosts disagree about what exists between them, nil when
// they do not: every outbound SA has its inbound half at the other end, every
// SA belongs to a CHILD SA of a machine, and machines have their counterparts.
func Agree(a, b *Host) error {
	for _, p := range [][2]*Host{{a, b}, {b, a}} {
		x, y := p[0], p[1]
		ids := map[ipsec.SAID]bool{}
		for _, c := range x.Children() {
			ids[c.In], ids[c.Out] = true, true
		}
		for i := range x.SAs {
			s := &x.SAs[i]
			if !ids[s.ID] {
				return fmt.Errorf("%s has %s SA %s that no CHILD SA owns", x.Name, s.Direction, s.SPI)
			}
			if s.Direction == ipsec.Outbound {
				if err := received(x, y, s); err != nil {
					return err
				}
				if in := y.inbound(s.SPI); (in.Encap == nil) != (s.Encap == nil) {
					return fmt.Errorf("SPI %s: one end encapsulates in UDP", s.SPI)
				}
			}
		}
		for _, m := range x.Machines {
			i := m.Info()
			found := false
			for _, o := range y.Machines {
				j := o.Info()
				found = found || j.LocalSPI == i.RemoteSPI && j.RemoteSPI == i.LocalSPI
			}
			if !found {
				return fmt.Errorf("%s has an IKE SA %x (%s) that %s does not have", x.Name, i.LocalSPI, i.State, y.Name)
			}
		}
		if len(x.Children()) != len(y.Children()) {
			return fmt.Errorf("%s has %d CHILD SAs, %s has %d", x.Name, len(x.Children()), y.Name, len(y.Children()))
		}
	}
	return nil
}
