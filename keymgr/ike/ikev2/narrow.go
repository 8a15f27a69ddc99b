package ikev2

import (
	"net/netip"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// maxSide bounds the traffic selectors of one side of a CHILD SA, and with it
// the selectors of an SA: every pair of both sides.
const maxSide = 8

// ruleOf finds a secure rule for this peer by name.
func (m *Machine) ruleOf(name string) (ipsec.Rule, bool) {
	for r := range m.policy.RulesOf(m.peer.Name) {
		if r.Name == name && r.Template != nil {
			return *r, true
		}
	}
	return ipsec.Rule{}, false
}

// sides are the traffic selectors to offer for a rule. In transport mode both
// sides are the ends of the IKE SA (RFC 7296 §1.3.1, §2.23.1). A packet that
// raised the acquire goes first (§2.9).
func (m *Machine) sides(r ipsec.Rule, packet *ipsec.Flow) (local, remote []ipsec.TrafficSelector, ok bool) {
	s := r.Selector
	if r.Template.Mode == ipsec.ModeTransport {
		s, ok = s.Intersect(ipsec.Selector{
			Local:  ipsec.AddrSelector(m.path.Local.Addr().Unmap()),
			Remote: ipsec.AddrSelector(m.path.Remote.Addr().Unmap()),
		})
		if !ok {
			return nil, nil, false
		}
	}
	if packet != nil && s.Matches(*packet) {
		local = append(local, packetSide(packet.Protocol, packet.Local, packet.LocalPort))
		remote = append(remote, packetSide(packet.Protocol, packet.Remote, packet.RemotePort))
	}
	return append(local, s.Local), append(remote, s.Remote), true
}

func packetSide(proto uint8, a netip.Addr, port uint16) ipsec.TrafficSelector {
	return ipsec.TrafficSelector{Protocol: proto, First: a, Last: a, PortFirst: port, PortLast: port}
}

// narrow cuts what the peer proposes down to a rule (RFC 7296 §2.9).
func narrow(r ipsec.Rule, local, remote []ipsec.TrafficSelector) (l, rem []ipsec.TrafficSelector, ok bool) {
	l, rem = cut(r.Selector.Local, local), cut(r.Selector.Remote, remote)
	return l, rem, len(pairs(l, rem)) > 0
}

// cut intersects each selector with the rule's, and leaves out what another
// one covers: the packet's own selector, as a rule, which is there to say what
// must not be cut off.
func cut(rule ipsec.TrafficSelector, ts []ipsec.TrafficSelector) []ipsec.TrafficSelector {
	var out []ipsec.TrafficSelector
	for _, t := range ts {
		x, ok := rule.Intersect(t)
		if !ok || slices.ContainsFunc(out, func(o ipsec.TrafficSelector) bool { return o.Covers(x) }) {
			continue
		}
		out = slices.DeleteFunc(out, func(o ipsec.TrafficSelector) bool { return x.Covers(o) })
		if len(out) < maxSide {
			out = append(out, x)
		}
	}
	return out
}

// pairs are the selectors of an SA: any local one with any remote one, under a
// protocol that both have.
func pairs(local, remote []ipsec.TrafficSelector) []ipsec.Selector {
	var out []ipsec.Selector
	for _, l := range local {
		for _, r := range remote {
			switch {
			case l.Protocol == 0:
				l.Protocol = r.Protocol
			case r.Protocol == 0:
				r.Protocol = l.Protocol
			case l.Protocol != r.Protocol:
				continue
			}
			out = append(out, ipsec.Selector{Local: l, Remote: r})
		}
	}
	return out
}

// within reports whether the responder has only narrowed: each selector lies in
// one that was offered.
func within(got, offered []ipsec.TrafficSelector) bool {
	if len(got) == 0 || len(got) > 2*maxSide {
		return false
	}
	for _, g := range got {
		if !slices.ContainsFunc(offered, func(o ipsec.TrafficSelector) bool { return o.Covers(g) }) {
			return false
		}
	}
	return true
}

// substitute puts an address in place of the one that a NAT has made
// meaningless, for transport mode (RFC 7296 §2.23.1).
func substitute(ts []ipsec.TrafficSelector, a netip.Addr) []ipsec.TrafficSelector {
	out := slices.Clone(ts)
	for i := range out {
		out[i].First, out[i].Last = a.Unmap(), a.Unmap()
	}
	return out
}

// answerRule finds the rule that a CHILD SA request is for, as the responder:
// the first by weight that the initiator's first pair of selectors (the packet)
// falls into, else the first that any pair does. A single pair is no packet but what
// the initiator's rule says: then one that covers all of it comes first, or a request
// for all protocols would be answered by a rule for one of them. With only set, no other rule
// counts: a rekey stays with its rule.
func (m *Machine) answerRule(msg *message, only string) (r ipsec.Rule, local, remote []ipsec.TrafficSelector, ok bool) {
	tsr, tsi := msg.tsr.Selectors, msg.tsi.Selectors
	if msg.notify(wire.UseTransportMode) != nil {
		sl, sr := tsr, tsi
		if m.nat.local {
			sl = substitute(sl, m.path.Local.Addr())
		}
		if m.nat.remote {
			sr = substitute(sr, m.path.Remote.Addr())
		}
		if r, local, remote, ok = m.searchRules(sl, sr, only, ipsec.ModeTransport); ok {
			return r, local, remote, true
		}
		// The initiator lives with tunnel mode or deletes the SA (RFC 7296 §1.3.1).
		return m.searchRules(tsr, tsi, only, ipsec.ModeTunnel)
	}
	if r, local, remote, ok = m.searchRules(tsr, tsi, only, ipsec.ModeTunnel); ok {
		return r, local, remote, true
	}
	return m.searchRules(tsr, tsi, only, ipsec.ModeTransport)
}

func (m *Machine) searchRules(tsl, tsr []ipsec.TrafficSelector, only string, mode ipsec.Mode) (ipsec.Rule, []ipsec.TrafficSelector, []ipsec.TrafficSelector, bool) {
	if len(tsl) == 1 && len(tsr) == 1 {
		for r := range m.policy.RulesOf(m.peer.Name) {
			if r.Template != nil && r.Template.Mode == mode && (only == "" || r.Name == only) && r.Selector.Local.Covers(tsl[0]) && r.Selector.Remote.Covers(tsr[0]) {
				return *r, tsl, tsr, true
			}
		}
	}
	for _, count := range []int{1, wire.MaxSelectors} {
		for r := range m.policy.RulesOf(m.peer.Name) {
			if r.Template == nil || r.Template.Mode != mode || only != "" && r.Name != only {
				continue
			}
			if _, _, hit := narrow(*r, tsl[:min(count, len(tsl))], tsr[:min(count, len(tsr))]); !hit {
				continue
			}
			if l, rem, ok := narrow(*r, tsl, tsr); ok {
				return *r, l, rem, true
			}
		}
	}
	return ipsec.Rule{}, nil, nil, false
}

// takesMore reports that what the peer proposes overlaps another rule too, where the one
// chosen does not cover it: then there could be another SA for that (RFC 7296 §2.9).
func (m *Machine) takesMore(n *negotiation, msg *message) bool {
	for r := range m.policy.RulesOf(m.peer.Name) {
		if r.Template == nil || r.Template.Mode != n.mode || r.Name == n.rule.Name {
			continue
		}
		l, rem, ok := narrow(*r, msg.tsr.Selectors, msg.tsi.Selectors)
		if ok && slices.ContainsFunc(pairs(l, rem), func(s ipsec.Selector) bool {
			return !slices.ContainsFunc(n.selectors, func(o ipsec.Selector) bool { return o.Covers(s) })
		}) {
			return true
		}
	}
	return false
}

// singlePair is the pair of addresses that a task is for, when the peer takes no more
// (SINGLE_PAIR_REQUIRED, RFC 7296 §2.9): those of the packet, or of the CHILD SA to be
// replaced. It is nil when the peer takes more, or when there is none.
func (m *Machine) singlePair(t *task) *ipsec.Selector {
	switch old := m.childByID(t.child); {
	case !t.single:
	case t.packet != nil:
		return &ipsec.Selector{Local: ipsec.AddrSelector(t.packet.Local), Remote: ipsec.AddrSelector(t.packet.Remote)}
	case old != nil && len(old.Selectors) > 0:
		return &old.Selectors[0]
	}
	return nil
}

// selectorFailure shows our rules beside the peer's selectors.
func (m *Machine) selectorFailure(f ike.Failure, msg *message) ike.Failure {
	for r := range m.policy.RulesOf(m.peer.Name) {
		if r.Template != nil {
			f.Ours = append(f.Ours, r.Name+": "+r.Selector.String())
		}
	}
	for _, l := range msg.tsr.Selectors {
		for _, r := range msg.tsi.Selectors {
			if len(f.Theirs) < maxSide*maxSide {
				f.Theirs = append(f.Theirs, ipsec.Selector{Local: l, Remote: r}.String())
			}
		}
	}
	return f
}
