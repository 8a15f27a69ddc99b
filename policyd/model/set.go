package model

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Set is a linked set of documents: every name in it that refers to another
// document refers to one that is there. It is read-only once loaded.
type Set struct {
	Nodes           map[string]*Node
	FilterLists     map[string]*FilterList
	FilterActions   map[string]*FilterAction
	Authentications map[string]*Authentication
	Policies        map[string]*Policy
	Assignments     map[string]*Assignment
}

// Load links documents. The error is every mistake found (Errors).
func Load(docs []Document) (*Set, error) {
	l := loader{
		set: &Set{
			Nodes: map[string]*Node{}, FilterLists: map[string]*FilterList{}, FilterActions: map[string]*FilterAction{},
			Authentications: map[string]*Authentication{}, Policies: map[string]*Policy{}, Assignments: map[string]*Assignment{},
		},
		bad: map[any]bool{},
	}
	for _, d := range docs {
		l.add(d)
	}
	l.nodes()
	for _, name := range slices.Sorted(maps.Keys(l.set.FilterLists)) {
		l.filterList(l.set.FilterLists[name])
	}
	for _, name := range slices.Sorted(maps.Keys(l.set.Policies)) {
		l.policy(l.set.Policies[name])
	}
	for _, name := range slices.Sorted(maps.Keys(l.set.Assignments)) {
		l.assignment(l.set.Assignments[name])
	}
	l.assigned()
	if err := l.errs.Err(); err != nil {
		return nil, err
	}
	return l.set, nil
}

// NodeNames lists the nodes, sorted.
func (s *Set) NodeNames() []string { return slices.Sorted(maps.Keys(s.Nodes)) }

// AssignmentOf is the assignment that decides a node's policy, or nil.
func (s *Set) AssignmentOf(n *Node) *Assignment {
	var best *Assignment
	nearest := 0
	for _, a := range s.Assignments {
		d := a.Nearness(n)
		if d > nearest || d == nearest && best != nil && a.Name < best.Name {
			best, nearest = a, d
		}
	}
	return best
}

// PolicyOf is the policy of a node, or nil.
func (s *Set) PolicyOf(n *Node) *Policy {
	if a := s.AssignmentOf(n); a != nil {
		return s.Policies[a.Policy]
	}
	return nil
}

// loader links; bad documents take part by name only, so that one mistake is
// reported once.
type loader struct {
	set  *Set
	bad  map[any]bool
	errs Errors
}

func put[T any](l *loader, m map[string]T, kind Kind, name string, v T, pos func(T) Pos) {
	if old, dup := m[name]; dup {
		l.errs.Add(pos(v), "metadata.name", "%s %q is already at %s; want another name", kind, name, pos(old))
		return
	}
	m[name] = v
}

func (l *loader) add(d Document) {
	if d.bad {
		l.bad[d.Spec] = true
	}
	switch s := d.Spec.(type) {
	case *Node:
		put(l, l.set.Nodes, d.Kind, d.Name, s, func(x *Node) Pos { return x.Pos })
	case *FilterList:
		put(l, l.set.FilterLists, d.Kind, d.Name, s, func(x *FilterList) Pos { return x.Pos })
	case *FilterAction:
		put(l, l.set.FilterActions, d.Kind, d.Name, s, func(x *FilterAction) Pos { return x.Pos })
	case *Authentication:
		put(l, l.set.Authentications, d.Kind, d.Name, s, func(x *Authentication) Pos { return x.Pos })
	case *Policy:
		put(l, l.set.Policies, d.Kind, d.Name, s, func(x *Policy) Pos { return x.Pos })
	case *Assignment:
		put(l, l.set.Assignments, d.Kind, d.Name, s, func(x *Assignment) Pos { return x.Pos })
	}
}

// nodes checks that an address, an identity and a protected subnet belong to
// one node each: the compiler finds a peer by them.
func (l *loader) nodes() {
	byAddr, byID, byNet := map[netip.Addr]*Node{}, map[ipsec.Identity]*Node{}, map[netip.Prefix]*Node{}
	for _, name := range l.set.NodeNames() {
		n := l.set.Nodes[name]
		if l.bad[n] {
			continue
		}
		for i, a := range n.Addresses {
			if o := byAddr[a]; o != nil {
				l.errs.Add(n.Pos, fmt.Sprintf("spec.addresses[%d]", i), "%s is also an address of node %q (%s), want each address on one node", a, o.Name, o.Pos)
			}
			byAddr[a] = n
		}
		if o := byID[n.Identity]; o != nil {
			l.errs.Add(n.Pos, "spec.identity", "%s is also the identity of node %q (%s), want each identity on one node", n.Identity, o.Name, o.Pos)
		}
		byID[n.Identity] = n
		for i, p := range n.Protects {
			if o := byNet[p]; o != nil {
				l.errs.Add(n.Pos, fmt.Sprintf("spec.protects[%d]", i), "%s is also protected by node %q (%s), want one gateway for a subnet", p, o.Name, o.Pos)
			}
			byNet[p] = n
		}
	}
}

// reference checks that a document of that name is there.
func reference[T any](l *loader, m map[string]T, kind Kind, name string, at Pos, field string) (v T, ok bool) {
	if name == "" {
		return v, false
	}
	if v, ok = m[name]; !ok {
		known := slices.Sorted(maps.Keys(m))
		hint := suggest(name, known)
		if hint == "" && len(known) > 0 && len(known) <= 10 {
			hint = fmt.Sprintf("; there are %q", known)
		} else if len(known) == 0 {
			hint = fmt.Sprintf("; there is no %s at all", kind)
		}
		l.errs.Add(at, field, "no %s is named %s%s", kind, quote(name), hint)
	}
	return v, ok
}

func (l *loader) filterList(f *FilterList) {
	for i, x := range f.Filters {
		for _, side := range []struct {
			field string
			e     Endpoint
		}{{"from", x.From}, {"to", x.To}} {
			if side.e.Kind == EndpointNode {
				reference(l, l.set.Nodes, KindNode, side.e.Name, side.e.Pos, fmt.Sprintf("spec.filters[%d].%s.node", i, side.field))
			}
		}
	}
}

func (l *loader) policy(p *Policy) {
	for i, r := range p.Rules {
		field := func(name string) string { return fmt.Sprintf("spec.rules[%d].%s", i, name) }
		filters, ok1 := reference(l, l.set.FilterLists, KindFilterList, r.Filters, r.Pos, field("filters"))
		action, ok2 := reference(l, l.set.FilterActions, KindFilterAction, r.Action, r.Pos, field("action"))
		reference(l, l.set.Authentications, KindAuthentication, r.Authentication, r.Pos, field("authentication"))
		reference(l, l.set.Nodes, KindNode, r.TunnelNode, r.Pos, field("tunnel"))
		if !ok2 || l.bad[action] || l.bad[p] {
			continue
		}
		if action.Action != ipsec.ActionSecure {
			if r.Authentication != "" {
				l.errs.Add(r.Pos, field("authentication"), "action %q is %s, which authenticates nobody; leave it out", action.Name, action.Action)
			}
			if r.HasTunnel() {
				l.errs.Add(r.Pos, field("tunnel"), "action %q is %s, which has no tunnel; want none", action.Name, action.Action)
			}
			continue
		}
		if r.Authentication == "" {
			l.errs.Add(r.Pos, field("authentication"), "missing: action %q is secure, want the name of an Authentication", action.Name)
		}
		if r.HasTunnel() && action.Template.Mode != ipsec.ModeTunnel {
			l.errs.Add(r.Pos, field("tunnel"), "action %q has mode: transport, which has no gateway; want mode: tunnel there or tunnel: none here", action.Name)
		}
		if ok1 {
			for j, f := range filters.Filters {
				if !f.Mirrored {
					l.errs.Add(r.Pos, field("filters"), "filter %s of list %q (%s) has mirrored: false; IKE makes SAs in pairs (RFC 7296 §1.4.1), want mirrored: true under a secure action", f.Label(j), filters.Name, f.Pos)
				}
			}
		}
	}
}

func (l *loader) assignment(a *Assignment) {
	reference(l, l.set.Policies, KindPolicy, a.Policy, a.Pos, "spec.policy")
	reference(l, l.set.Nodes, KindNode, a.Node, a.Pos, "spec.to")
}

// assigned looks for nodes whose policy two assignments dispute.
func (l *loader) assigned() {
	type dispute struct{ a, b *Assignment }
	told := map[dispute]bool{}
	names := slices.Sorted(maps.Keys(l.set.Assignments))
	for _, name := range l.set.NodeNames() {
		n := l.set.Nodes[name]
		best := l.set.AssignmentOf(n)
		if best == nil {
			continue
		}
		for _, other := range names {
			o := l.set.Assignments[other]
			if o == best || o.Policy == best.Policy || o.Nearness(n) != best.Nearness(n) || told[dispute{best, o}] {
				continue
			}
			told[dispute{best, o}] = true
			l.errs.Add(o.Pos, "spec.to", "%s and assignment %q (%s) to %s are equally near to node %q and name different policies (%q and %q); want one of them nearer, such as by the node's name",
				o.To(), best.Name, best.Pos, best.To(), n.Name, o.Policy, best.Policy)
		}
	}
}
