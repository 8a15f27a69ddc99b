// Package analyze answers questions about a policy without a host at hand: what
// happens to a flow and why, and what in a set of documents is likely not meant.
package analyze

import (
	"fmt"
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/compile"
	"github.com/testudo-ipsec/testudo/policyd/model"
)

// Why is why a rule did or did not decide. Each is a constant.
type Why string

const (
	WhyDecides    Why = "decides"
	WhyOutweighed Why = "matches, but a heavier rule decides"
	WhyDirection  Why = "is for the other direction"
	WhyFamily     Why = "is for the other address family"
	WhyProtocol   Why = "is for another protocol"
	WhyLocal      Why = "local address is outside"
	WhyRemote     Why = "remote address is outside"
	WhyLocalPort  Why = "local port is outside"
	WhyRemotePort Why = "remote port is outside"
)

// Considered is one rule of the node and what became of it.
type Considered struct {
	Rule   *ipsec.Rule
	Origin compile.Origin
	Why    Why
}

// Explanation of one flow at one node. Rules are all of the node's, by falling
// weight.
type Explanation struct {
	Node      string
	Flow      ipsec.Flow
	Direction ipsec.Direction
	Action    ipsec.Action
	Rule      *ipsec.Rule // nil when the node's default decided
	Peer      *ipsec.Peer // of a secure rule
	Rules     []Considered
}

// Explain says what the node does with a packet of the flow. Direction is
// Inbound or Outbound.
func Explain(n compile.Compiled, f ipsec.Flow, d ipsec.Direction) Explanation {
	e := Explanation{Node: n.Policy.Node, Flow: f, Direction: d, Action: n.Policy.Default}
	f.Local, f.Remote = f.Local.Unmap(), f.Remote.Unmap()
	for i := range n.Policy.Rules {
		r := &n.Policy.Rules[i]
		c := Considered{Rule: r, Why: mismatch(r, f, d)}
		if i < len(n.Origins) {
			c.Origin = n.Origins[i]
		}
		switch {
		case c.Why != "":
		case e.Rule != nil:
			c.Why = WhyOutweighed
		default:
			c.Why, e.Rule, e.Action = WhyDecides, r, r.Action
		}
		e.Rules = append(e.Rules, c)
	}
	if e.Rule != nil && e.Rule.Peer != "" {
		for i := range n.Policy.Peers {
			if n.Policy.Peers[i].Name == e.Rule.Peer {
				e.Peer = &n.Policy.Peers[i]
			}
		}
	}
	return e
}

// mismatch is the first reason why a rule does not match, "" when it does.
func mismatch(r *ipsec.Rule, f ipsec.Flow, d ipsec.Direction) Why {
	l, m := r.Selector.Local, r.Selector.Remote
	switch {
	case r.Direction&d == 0:
		return WhyDirection
	case l.First.Is4() != f.Local.Is4() || m.First.Is4() != f.Remote.Is4():
		return WhyFamily
	case l.Protocol != 0 && l.Protocol != f.Protocol:
		return WhyProtocol
	case !l.ContainsAddr(f.Local):
		return WhyLocal
	case !m.ContainsAddr(f.Remote):
		return WhyRemote
	case f.LocalPort < l.PortFirst || f.LocalPort > l.PortLast:
		return WhyLocalPort
	case f.RemotePort < m.PortFirst || f.RemotePort > m.PortLast:
		return WhyRemotePort
	}
	return ""
}

// String tells it for people: the verdict, the rules that match, and the
// nearest of those that do not.
func (e Explanation) String() string {
	var w strings.Builder
	fmt.Fprintf(&w, "%s, %s at %s: %s", e.Flow, e.Direction, e.Node, e.Action)
	switch {
	case e.Rule == nil:
		w.WriteString(" (no rule matches; this is the policy's default)\n")
	case e.Peer != nil:
		fmt.Fprintf(&w, " with %s, %s mode\n", e.Peer.Name, e.Rule.Template.Mode)
	default:
		w.WriteByte('\n')
	}
	for _, c := range e.Rules {
		fmt.Fprintf(&w, "  %s  %s: %s", c.Rule.Action, c.Rule.Name, c.Why)
		if c.Why == WhyDecides && c.Origin.Filter != (model.Pos{}) {
			fmt.Fprintf(&w, " (filter at %s, rule at %s)", c.Origin.Filter, c.Origin.Rule)
		}
		w.WriteByte('\n')
	}
	return w.String()
}
