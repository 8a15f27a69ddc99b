package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/model"
)

// Compiler compiles one set. It is read-only after New: nodes may be compiled
// at the same time.
type Compiler struct {
	set      *model.Set
	owners   []owner     // every address of every node, sorted
	gateways []protected // every protected subnet, sorted
	members  map[string][]*model.Node
}

// owner is an address of a node.
type owner struct {
	addr netip.Addr
	node *model.Node
}

// protected is a subnet behind a node.
type protected struct {
	span
	node *model.Node
}

// Compiled is what one node enforces, and where each of its rules comes from.
type Compiled struct {
	Policy  ipsec.NodePolicy
	Origins []Origin // of Policy.Rules, by index
}

// Origin is the place in the documents that made a rule.
type Origin struct {
	Rule   model.Pos // in the Policy
	Filter model.Pos // in the FilterList; the Policy itself for an exemption
	Exempt bool
	Relays bool // the rule names the node as its gateway: those whom nobody knows come to it
}

// New prepares a set.
func New(set *model.Set) *Compiler {
	c := &Compiler{set: set, members: map[string][]*model.Node{}}
	for _, name := range set.NodeNames() {
		n := set.Nodes[name]
		for _, a := range n.Addresses {
			c.owners = append(c.owners, owner{a, n})
		}
		for _, p := range n.Protects {
			t := ipsec.PrefixSelector(p)
			c.gateways = append(c.gateways, protected{span{t.First, t.Last}, n})
		}
	}
	slices.SortFunc(c.owners, func(a, b owner) int { return a.addr.Compare(b.addr) })
	slices.SortFunc(c.gateways, func(a, b protected) int {
		return cmp.Or(a.first.Compare(b.first), b.last.Compare(a.last))
	})
	for _, l := range set.FilterLists {
		for _, f := range l.Filters {
			for _, e := range []model.Endpoint{f.From, f.To} {
				c.members[e.String()] = c.Members(e)
			}
		}
	}
	return c
}

// Members are the nodes that an endpoint names by name, labels or unit, sorted
// by name; none for the other kinds.
func (c *Compiler) Members(e model.Endpoint) []*model.Node {
	if m, ok := c.members[e.String()]; ok {
		return m
	}
	var out []*model.Node
	switch e.Kind {
	case model.EndpointNode:
		if n := c.set.Nodes[e.Name]; n != nil {
			out = append(out, n)
		}
	case model.EndpointLabels, model.EndpointUnit:
		for _, name := range c.set.NodeNames() {
			if n := c.set.Nodes[name]; e.MatchesNode(n) {
				out = append(out, n)
			}
		}
	}
	return out
}

// Set is what is being compiled.
func (c *Compiler) Set() *model.Set { return c.set }

// All compiles every node that runs a worker. The error is every mistake found
// (model.Errors), each once however many nodes it concerns.
func All(set *model.Set) (map[string]ipsec.NodePolicy, error) {
	c := New(set)
	out := make(map[string]ipsec.NodePolicy, len(set.Nodes))
	var errs mistakes
	for _, name := range set.NodeNames() {
		if n := set.Nodes[name]; !n.External {
			out[name] = c.node(n, &errs).Policy
		}
	}
	if err := errs.Err(); err != nil {
		return nil, err
	}
	return out, nil
}

// Node compiles one node.
func (c *Compiler) Node(name string) (Compiled, error) {
	n := c.set.Nodes[name]
	if n == nil {
		return Compiled{}, fmt.Errorf("compile: no node is named %q", name)
	}
	if n.External {
		return Compiled{}, fmt.Errorf("compile: node %q is external: it runs no worker and has no rules of its own", name)
	}
	var errs mistakes
	out := c.node(n, &errs)
	return out, errs.Err()
}

func (c *Compiler) node(n *model.Node, errs *mistakes) Compiled {
	out := Compiled{Policy: ipsec.NodePolicy{Node: n.Name, Addresses: n.Addresses, Default: ipsec.ActionPermit}}
	p := c.set.PolicyOf(n)
	if p == nil {
		return out
	}
	b := &builder{c: c, node: n, policy: p, errs: errs, peers: map[string]*ipsec.Peer{}, auth: map[string]authUse{}}
	for i := range p.Rules {
		r := &p.Rules[i]
		list := c.set.FilterLists[r.Filters]
		for j := range list.Filters {
			b.filter(r, c.set.FilterActions[r.Action], &list.Filters[j], j)
		}
	}
	b.exempt()
	slices.SortFunc(b.rules, func(x, y built) int {
		return cmp.Or(cmp.Compare(y.rule.Weight, x.rule.Weight), cmp.Compare(x.rule.Name, y.rule.Name))
	})
	b.conflicts()
	b.nesting()

	out.Policy.Default, out.Policy.FailClosed, out.Policy.KeepMSS = p.Default, p.FailClosed, p.KeepMSS
	out.Policy.Rules = make([]ipsec.Rule, len(b.rules))
	out.Origins = make([]Origin, len(b.rules))
	for i, r := range b.rules {
		out.Policy.Rules[i], out.Origins[i] = r.rule, r.origin
	}
	for _, peer := range b.peers {
		out.Policy.Peers = append(out.Policy.Peers, *peer)
	}
	slices.SortFunc(out.Policy.Peers, func(x, y ipsec.Peer) int { return cmp.Compare(x.Name, y.Name) })
	return out
}

// mistakes collects errors and drops those that another node already had.
type mistakes struct {
	model.Errors
	told map[string]bool
}

func (m *mistakes) once(key string, at model.Pos, field, format string, args ...any) {
	if m.told == nil {
		m.told = map[string]bool{}
	}
	if !m.told[key] {
		m.told[key] = true
		m.Add(at, field, format, args...)
	}
}
