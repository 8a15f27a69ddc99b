package compile

import (
	"github.com/testudo-ipsec/testudo/ipsec"
)

// nesting looks at the rules for ESP, AH and IKE, which protect what the SAs of other
// rules send (RFC 4301 Appendix E), and refuses those that cannot be enforced: rules
// that cover what they send themselves, and ESP that gets around its rule in UDP or
// TCP. What only shows when the peers' addresses are known, a worker refuses.
func (b *builder) nesting() {
	n := nesting{builder: b}
	secure := false
	for i := range b.rules {
		if r := &b.rules[i]; r.rule.Selector.IPsec() {
			n.rules = append(n.rules, r)
			secure = secure || r.rule.Action == ipsec.ActionSecure
		}
	}
	if !secure {
		return
	}
	for _, r := range n.rules {
		if r.rule.Action != ipsec.ActionSecure {
			continue
		}
		if r.rule.Selector.Local.Protocol == uint8(ipsec.ProtocolESP) && b.policy.KeyExchange.TCP != ipsec.TCPNever {
			n.refuse(r, "protects ESP once more, and its policy lets ESP travel in TCP, which no rule can tell from other TCP; want tcp: never")
		}
		for f := range b.sends(&r.rule, ipsec.PortIKE, ipsec.PortNATT) {
			if n.around(f) == r {
				n.refuse(r, "covers the IKE that its own SA is made with (%s); want a filter without the address of %s", f, r.rule.Peer)
			}
		}
	}
	for i := range b.rules {
		if b.rules[i].rule.Action == ipsec.ActionSecure {
			n.follow(&b.rules[i], &b.rules[i], 1)
		}
	}
}

type nesting struct {
	*builder
	rules []*built // for the packets of IPsec, by falling weight
}

// around is the rule that protects a packet of IPsec once more, nil for none.
func (n *nesting) around(f ipsec.Flow) *built {
	for _, r := range n.rules {
		if r.rule.Direction&ipsec.Outbound != 0 && r.rule.Selector.Matches(f) {
			if r.rule.Action == ipsec.ActionSecure {
				return r
			}
			return nil
		}
	}
	return nil
}

// follow goes from a rule to those that protect what its SAs send.
func (n *nesting) follow(first, r *built, depth int) {
	for f := range n.sends(&r.rule) {
		o := n.around(f)
		switch {
		case o == nil:
		case f.Protocol == uint8(ipsec.ProtocolESP) && n.peers[r.rule.Peer].ForceEncap:
			f.Protocol, f.LocalPort, f.RemotePort = 17, ipsec.PortNATT, ipsec.PortNATT
			if n.around(f) == nil {
				n.refuse(o, "covers the ESP of %s, which travels in UDP (forceEncap); want a filter {protocol: udp, fromPort: %d, toPort: %d} beside it, or no forceEncap", r.rule.Name, ipsec.PortNATT, ipsec.PortNATT)
			}
		case depth == ipsec.MaxNesting:
			n.refuse(first, "is one of more than %d SAs one inside the other, or protects what it sends itself (%s), by %s; want filters for protocol esp or ah without the addresses of their own peers", ipsec.MaxNesting, f, o.rule.Name)
			return
		default:
			n.follow(first, o, depth+1)
		}
	}
}

func (n *nesting) refuse(r *built, format string, args ...any) {
	n.errs.once("nesting "+r.origin.Rule.String()+format, r.origin.Filter, "", "rule %s "+format, append([]any{r.rule.Name}, args...)...)
}

// sends yields what a rule's SAs send between the known addresses of both ends: ESP
// or AH, or UDP from the ports given to the same.
func (b *builder) sends(r *ipsec.Rule, ports ...uint16) func(yield func(ipsec.Flow) bool) {
	p := b.peers[r.Peer]
	return func(yield func(ipsec.Flow) bool) {
		for _, l := range p.Local {
			for _, m := range p.Remote {
				if l.Is4() != m.Is4() {
					continue
				}
				for _, port := range ports {
					if !yield(ipsec.Flow{Local: l, Remote: m, Protocol: 17, LocalPort: port, RemotePort: port}) {
						return
					}
				}
				if len(ports) > 0 {
					continue
				}
				for _, proto := range []ipsec.Protocol{ipsec.ProtocolESP, ipsec.ProtocolAH} {
					for _, x := range r.Template.Proposals {
						if x.Protocol != proto {
							continue
						}
						if !yield(ipsec.Flow{Local: l, Remote: m, Protocol: uint8(proto)}) {
							return
						}
						break
					}
				}
			}
		}
	}
}
