package engine

import (
	"encoding/binary"

	"github.com/testudo-ipsec/testudo/dataplane/natt"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/dataplane/spd"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// One SA inside another one (RFC 4301 §4.3, Appendix E). What an SA sends and a rule
// for packets of IPsec covers, the host leads back into the TUN, where it is a packet
// like any other; what an SA has carried goes out of the TUN, and when it is ESP, AH
// or IKE for this host, it comes in by a socket again. So each SA stands alone, and
// what is seen to here is only that they go together.

// sends is the flow of what an SA sends on a path.
func sends(p *path, protocol ipsec.Protocol) ipsec.Flow {
	f := ipsec.Flow{Local: p.local.Addr(), Remote: p.remote.Addr(), Protocol: uint8(protocol)}
	if p.encap != nil && !p.encap.TCP {
		f.Protocol, f.LocalPort, f.RemotePort = packet.ProtoUDP, p.encap.LocalPort, p.encap.RemotePort
	}
	return f
}

// around is the rule that protects a packet of IPsec once more, or spd.NoRule.
func (s *state) around(f ipsec.Flow, d ipsec.Direction) int32 {
	k := spd.FlowKey(f, d)
	return s.table.Around(&k)
}

// nests says whether what an SA sends goes through another SA, and why that cannot be.
func (w *outWorker) nests(s *state, o *outSA) (nested bool, why packet.Why) {
	for depth := 1; ; depth++ {
		p, protocol := o.path.Load(), o.SA().Protocol
		f := sends(p, protocol)
		rule := s.around(f, ipsec.Outbound)
		switch {
		case rule != spd.NoRule && depth == ipsec.MaxNesting:
			return true, packet.WhyNesting // too deep, or for ever
		case rule == spd.NoRule && p.encap != nil:
			// A rule for ESP does not cover the UDP or TCP that it travels in.
			f.Protocol, f.LocalPort, f.RemotePort = packet.ProtoESP, 0, 0
			if s.around(f, ipsec.Outbound) != spd.NoRule {
				return true, packet.WhyNesting
			}
			fallthrough
		case rule == spd.NoRule:
			return depth > 1, packet.WhyOK
		}
		k := spd.FlowKey(f, ipsec.Outbound)
		if o = w.carrier(s, rule, &k); o == nil {
			return true, packet.WhyOK // there will be one
		}
	}
}

// carrier is the SA of a rule that may be used, covers the packet and suits this
// worker best; of those the newest. nil for none.
func (w *outWorker) carrier(s *state, rule int32, k *spd.Key) *outSA {
	var out *outSA
	best := unsuited
	for _, o := range *s.outs.of(int(rule)) {
		if o.Usable(w.now) != packet.WhyOK || o.sel.Check(k) != packet.WhyOK {
			continue
		}
		if suits := w.suits(o); suits < best {
			out, best = o, suits
		}
	}
	return out
}

// misplaced reports a packet of IPsec that came in another SA than policy wants around it.
func (s *state) misplaced(in *inSA, h *packet.Header, b []byte) bool {
	f := h.Flow(b, ipsec.Inbound)
	inUDP := f.Protocol == packet.ProtoUDP && (f.LocalPort == ipsec.PortIKE || f.LocalPort == ipsec.PortNATT)
	if f.Protocol != packet.ProtoESP && f.Protocol != packet.ProtoAH && !inUDP {
		return false
	}
	rule := s.around(f, ipsec.Inbound)
	if rule == spd.NoRule && inUDP && f.LocalPort == ipsec.PortNATT && !holdsIKE(h, b) {
		f.Protocol, f.LocalPort, f.RemotePort = packet.ProtoESP, 0, 0
		rule = s.around(f, ipsec.Inbound)
	}
	return rule != spd.NoRule && s.table.Rules[rule].Name != in.SA().Rule
}

// holdsIKE tells IKE from ESP in UDP on the same port. What a fragment does not show may
// be ESP.
func holdsIKE(h *packet.Header, b []byte) bool {
	kind, _ := natt.Demux(b[min(int(h.Upper)+8, h.Length):h.Length])
	return kind == natt.IKE
}

// tellInner tells the SA that has sent a packet how much fits into the one around it,
// and reports whether there is one: no ICMP need go to this host itself.
func (w *outWorker) tellInner(b []byte, h *packet.Header, mtu int) bool {
	s := w.e.state.Load()
	if !s.table.Nests || h.LaterFragment() {
		return false
	}
	protocol, at := ipsec.ProtocolESP, int(h.Upper)
	switch {
	case h.Protocol == packet.ProtoESP:
	case h.Protocol == packet.ProtoAH:
		protocol, at = ipsec.ProtocolAH, at+4
	case h.Protocol == packet.ProtoUDP && h.SrcPort == ipsec.PortNATT:
		at += 8
	default:
		return false
	}
	if at+4 > h.Length {
		return false
	}
	spi, local, remote := ipsec.SPI(binary.BigEndian.Uint32(b[at:])), h.Src(b), h.Dst(b)
	least := packet.MinMTU4
	if h.Version == 6 {
		least = packet.MinMTU6
	}
	for _, page := range s.outs {
		for _, list := range page {
			for _, o := range list {
				if p := o.path.Load(); o.SA().SPI == spi && o.SA().Protocol == protocol && p.remote.Addr() == remote && p.local.Addr() == local {
					p.learn(max(mtu, least), w.now)
					return true
				}
			}
		}
	}
	return false
}
