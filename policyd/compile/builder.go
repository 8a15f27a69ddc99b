package compile

import (
	"net/netip"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/model"
)

// builder makes the rules and peers of one node.
type builder struct {
	c      *Compiler
	node   *model.Node
	policy *model.Policy
	errs   *mistakes
	rules  []built
	peers  map[string]*ipsec.Peer
	auth   map[string]authUse
}

// built is a rule with its origin.
type built struct {
	rule   ipsec.Rule
	origin Origin
}

// target is one remote side and, in a secure rule, the peer it belongs to.
type target struct {
	span
	peer peerRef
	own  bool // behind this node itself: not protected, whatever covers it
}

// job is one filter under one rule of the policy.
type job struct {
	rule   *model.Rule
	action *model.FilterAction
	filter *model.Filter
	prefix string // of the names of its rules
	done   map[ipsec.Selector]bool
}

func (b *builder) filter(r *model.Rule, a *model.FilterAction, f *model.Filter, index int) {
	j := job{rule: r, action: a, filter: f, prefix: b.policy.Name + "/" + r.Name + "#" + f.Label(index)}
	forward, backward := ipsec.Both, ipsec.Both
	if !f.Mirrored {
		forward, backward = ipsec.Outbound, ipsec.Inbound
	} else {
		j.done = map[ipsec.Selector]bool{} // the two views of a symmetric filter are one
	}
	b.view(j, f.From, f.To, f.FromPorts, f.ToPorts, forward, ">")
	b.view(j, f.To, f.From, f.ToPorts, f.FromPorts, backward, "<")
}

// view makes the rules in which the node is on one given side of the filter.
func (b *builder) view(j job, local, remote model.Endpoint, localPorts, remotePorts model.PortRange, d ipsec.Direction, mark string) {
	locals := b.locals(j, local)
	if len(locals) == 0 {
		return
	}
	targets := b.targets(j, remote)
	perFamily := map[bool]int{}
	for _, l := range locals {
		perFamily[l.is4()]++
	}
	for _, l := range locals {
		if j.filter.Protocol == 1 && !l.is4() || j.filter.Protocol == 58 && l.is4() {
			continue // ICMP is of IPv4, ICMPv6 of IPv6
		}
		for _, t := range targets {
			if t.is4() != l.is4() || b.relays(j.rule) && t.peer.node != nil && b.c.ownerOf(l.first) == t.peer.node && l.first == l.last {
				continue // a peer sends nothing to itself through this node
			}
			s := ipsec.Selector{Local: side(l, j.filter.Protocol, localPorts), Remote: side(t.span, j.filter.Protocol, remotePorts)}
			if j.done != nil {
				if j.done[s] {
					continue
				}
				j.done[s] = true
			}
			name := j.prefix
			if perFamily[l.is4()] > 1 {
				name += "[" + l.String() + "]"
			}
			rule := ipsec.Rule{
				Name: name + mark + t.String(), Policy: b.policy.Name, Weight: Weight(TierOf(s), s, d),
				Direction: d, Selector: s, Action: j.action.Action,
			}
			if t.own {
				rule.Action, rule.Direction, rule.Weight = ipsec.ActionPermit, ipsec.Both, Weight(TierOf(s), s, ipsec.Both)
			} else if j.action.Action == ipsec.ActionSecure {
				rule.Template = &j.action.Template
				rule.Peer = b.peer(j, t)
			}
			b.rules = append(b.rules, built{rule, Origin{Rule: j.rule.Pos, Filter: j.filter.Pos, Relays: b.relays(j.rule)}})
		}
	}
}

func side(s span, protocol uint8, p model.PortRange) ipsec.TrafficSelector {
	return ipsec.TrafficSelector{Protocol: protocol, First: s.first, Last: s.last, PortFirst: p.First, PortLast: p.Last}
}

// locals is the node's part of an endpoint. Of a rule that names the node as its
// gateway that is all of it: the peers reach each other through it.
func (b *builder) locals(j job, e model.Endpoint) []span {
	var out []span
	switch e.Kind {
	case model.EndpointMe:
		return b.addresses(b.node)
	case model.EndpointNode, model.EndpointLabels, model.EndpointUnit:
		for _, m := range b.c.Members(e) {
			if m == b.node || b.relays(j.rule) {
				out = append(out, b.addresses(m)...)
			}
		}
		return out
	}
	secure := j.action.Action == ipsec.ActionSecure
	for _, w := range written(e) {
		if b.relays(j.rule) {
			out = append(out, w)
			continue
		}
		out = append(out, b.own(w, !secure || j.action.Template.Mode == ipsec.ModeTunnel)...)
		if e.Kind == model.EndpointAny && !secure {
			out = append(out, w)
		}
	}
	return out
}

func (b *builder) addresses(n *model.Node) []span {
	out := make([]span, len(n.Addresses))
	for i, a := range n.Addresses {
		out[i] = single(a)
	}
	return out
}

// own is what of a range the node has, and what it protects.
func (b *builder) own(w span, protects bool) []span {
	var out []span
	if protects {
		for _, p := range b.node.Protects {
			if s, ok := w.intersect(spanOf(p)); ok && !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	for _, x := range b.node.Addresses {
		if w.contains(x) && !slices.ContainsFunc(out, func(s span) bool { return s.contains(x) }) {
			out = append(out, single(x))
		}
	}
	return out
}

// targets is the other part of an endpoint.
func (b *builder) targets(j job, e model.Endpoint) []target {
	if e.Kind == model.EndpointMe {
		return nil // the node itself
	}
	secure := j.action.Action == ipsec.ActionSecure
	gateway, tunnelled := b.gateway(j.rule)
	var out []target
	for _, m := range b.c.Members(e) {
		if m == b.node {
			continue
		}
		ref := peerRef{node: m}
		if tunnelled {
			ref = gateway
		}
		for _, a := range m.Addresses {
			out = append(out, target{span: single(a), peer: ref})
		}
	}
	for _, w := range written(e) {
		switch {
		case !secure:
			out = append(out, target{span: w})
		case !b.hasFamily(w.is4()) && j.action.Template.Mode == ipsec.ModeTransport:
		case tunnelled:
			out = append(out, target{span: w, peer: gateway})
		default:
			out = append(out, b.direct(w, j.action.Template.Mode)...)
		}
		if secure && j.action.Template.Mode == ipsec.ModeTunnel {
			for _, s := range b.own(w, true) {
				if slices.ContainsFunc(out, func(t target) bool { return t.overlaps(s) }) {
					out = append(out, target{span: s, own: true})
				}
			}
		}
	}
	return out
}

func (b *builder) hasFamily(is4 bool) bool {
	return slices.ContainsFunc(b.node.Addresses, func(a netip.Addr) bool { return a.Is4() == is4 })
}

// relays reports a rule that names this node as its gateway.
func (b *builder) relays(r *model.Rule) bool {
	n := b.c.set.Nodes[r.TunnelNode]
	if r.TunnelAddr.IsValid() {
		n = b.c.ownerOf(r.TunnelAddr)
	}
	return n == b.node
}

// gateway is the one that a rule names. A node is not its own gateway: for it
// the rule reads as if it named none, which makes it the other end of its
// clients' tunnels.
func (b *builder) gateway(r *model.Rule) (peerRef, bool) {
	n := b.c.set.Nodes[r.TunnelNode]
	if r.TunnelAddr.IsValid() {
		if n = b.c.ownerOf(r.TunnelAddr); n == nil {
			return peerRef{addr: r.TunnelAddr}, true
		}
	}
	return peerRef{node: n}, n != nil && n != b.node
}

// direct finds the peers of a range of addresses when no gateway is named.
func (b *builder) direct(w span, mode ipsec.Mode) []target {
	var out []target
	var known []span // parts of w that need no peer "any"
	add := func(s span, ref peerRef) {
		known = append(known, s)
		if ref.node != b.node {
			out = append(out, target{span: s, peer: ref})
		}
	}
	if mode == ipsec.ModeTunnel {
		for _, g := range b.c.gateways {
			if s, ok := w.intersect(g.span); ok {
				add(s, peerRef{node: g.node})
			}
		}
	}
	for _, o := range b.c.ownersIn(w) {
		if mode == ipsec.ModeTunnel && o.node != b.node && b.c.protectorOf(o.addr) != nil {
			continue // reached through its gateway
		}
		add(single(o.addr), peerRef{node: o.node})
	}
	switch {
	case w.coveredBy(known):
	case w.first == w.last:
		out = append(out, target{span: w, peer: peerRef{addr: w.first}})
	default:
		out = append(out, target{span: w})
	}
	return out
}
