package analyze

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/compile"
	"github.com/testudo-ipsec/testudo/policyd/model"
)

// Check is the kind of a warning.
type Check string

const (
	CheckShadowed   Check = "shadowed"    // a heavier rule of another action covers all of a rule
	CheckNoNodes    Check = "no-nodes"    // a selector names no node
	CheckUnassigned Check = "unassigned"  // a node has no policy
	CheckUnused     Check = "unused"      // nothing refers to a document
	CheckInert      Check = "inert"       // a rule makes no filter on any node
	CheckOneSided   Check = "one-sided"   // the peer does not secure the same traffic
	CheckLegacy     Check = "legacy"      // a legacy algorithm is offered
	CheckAnswerOnly Check = "answer-only" // the peer is nobody known: traffic is dropped until it starts IKE
)

// Warning is something in a policy that works and is likely not meant.
type Warning struct {
	Pos   model.Pos
	Check Check
	Text  string
}

func (w Warning) String() string { return fmt.Sprintf("%s: %s: %s", w.Pos, w.Check, w.Text) }

// Lint looks for what is likely not meant in a set that compiles. The error is
// that of compiling.
func Lint(set *model.Set) ([]Warning, error) {
	l := linter{set: set, c: compile.New(set), nodes: map[string]compile.Compiled{}, told: map[Warning]bool{}, owner: map[netip.Addr]string{}}
	var errs []error
	for _, name := range set.NodeNames() {
		for _, a := range set.Nodes[name].Addresses {
			l.owner[a] = name
		}
		if set.Nodes[name].External {
			continue
		}
		n, err := l.c.Node(name)
		if err != nil {
			errs = append(errs, err)
		}
		l.nodes[name] = n
	}
	if err := model.Join(errs...); err != nil {
		return nil, err
	}
	l.selectors()
	l.unused()
	l.legacy()
	live := map[model.Pos]bool{}
	for _, name := range slices.Sorted(maps.Keys(l.nodes)) {
		n := l.nodes[name]
		if l.set.PolicyOf(set.Nodes[name]) == nil {
			l.warn(set.Nodes[name].Pos, CheckUnassigned, "no assignment covers node %q: it permits everything in clear", name)
		}
		for _, o := range n.Origins {
			live[o.Rule] = true
		}
		l.shadows(n)
		l.peers(n)
	}
	for _, p := range set.Policies {
		for _, r := range p.Rules {
			if !live[r.Pos] && l.assigned[p.Name] {
				l.warn(r.Pos, CheckInert, "rule %q matches traffic of no node that has policy %q", r.Name, p.Name)
			}
		}
	}
	slices.SortFunc(l.out, func(a, b Warning) int {
		return cmp.Or(cmp.Compare(a.Pos.File, b.Pos.File), cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Check, b.Check), cmp.Compare(a.Text, b.Text))
	})
	return l.out, nil
}

type linter struct {
	set      *model.Set
	c        *compile.Compiler
	nodes    map[string]compile.Compiled
	assigned map[string]bool       // policies that some node has
	owner    map[netip.Addr]string // nodes by address
	out      []Warning
	told     map[Warning]bool
}

func (l *linter) warn(at model.Pos, c Check, format string, args ...any) {
	w := Warning{at, c, fmt.Sprintf(format, args...)}
	if !l.told[w] {
		l.told[w] = true
		l.out = append(l.out, w)
	}
}

// selectors finds endpoints and assignments that name nobody.
func (l *linter) selectors() {
	for _, f := range l.set.FilterLists {
		for _, x := range f.Filters {
			for _, e := range []model.Endpoint{x.From, x.To} {
				byLabelOrUnit := e.Kind == model.EndpointLabels || e.Kind == model.EndpointUnit
				if byLabelOrUnit && len(l.c.Members(e)) == 0 {
					l.warn(e.Pos, CheckNoNodes, "%s matches no node, so filter list %q does not do what it says", e, f.Name)
				}
			}
		}
	}
	l.assigned = map[string]bool{}
	covers := map[*model.Assignment]bool{}
	for _, n := range l.set.Nodes {
		if a := l.set.AssignmentOf(n); a != nil && !n.External {
			l.assigned[a.Policy] = true
		}
		for _, a := range l.set.Assignments {
			if a.Nearness(n) > 0 {
				covers[a] = true
			}
		}
	}
	for _, a := range l.set.Assignments {
		if !covers[a] {
			l.warn(a.Pos, CheckNoNodes, "assignment %q to %s covers no node", a.Name, a.To())
		}
	}
}

func (l *linter) unused() {
	used := map[string]bool{}
	for _, p := range l.set.Policies {
		for _, r := range p.Rules {
			used["f"+r.Filters], used["a"+r.Action], used["u"+r.Authentication] = true, true, true
		}
	}
	for _, a := range l.set.Assignments {
		used["p"+a.Policy] = true
	}
	report := func(prefix string, kind model.Kind, m model.Meta) {
		if !used[prefix+m.Name] {
			l.warn(m.Pos, CheckUnused, "nothing refers to %s %q", kind, m.Name)
		}
	}
	for _, d := range l.set.FilterLists {
		report("f", model.KindFilterList, d.Meta)
	}
	for _, d := range l.set.FilterActions {
		report("a", model.KindFilterAction, d.Meta)
	}
	for _, d := range l.set.Authentications {
		report("u", model.KindAuthentication, d.Meta)
	}
	for _, d := range l.set.Policies {
		report("p", model.KindPolicy, d.Meta)
	}
}

// legacy finds what RFC 8221 and RFC 8247 say not to use.
func (l *linter) legacy() {
	for _, a := range l.set.FilterActions {
		if len(a.Legacy) > 0 {
			l.warn(a.Pos, CheckLegacy, "%s: offers %s, which RFC 8221 says not to use; traffic on such an SA is badly protected", a.Name, strings.Join(a.Legacy, ", "))
		}
	}
	for _, p := range l.set.Policies {
		if len(p.KeyExchange.Legacy) > 0 {
			l.warn(p.Pos, CheckLegacy, "%s: offers %s for IKE, which RFC 8247 says not to use; all keys with such a peer are badly protected", p.Name, strings.Join(p.KeyExchange.Legacy, ", "))
		}
	}
}

// shadows finds rules that can never decide because one other rule always does.
// A rule that only several others together cover is not found. By the weight
// that is the exemptions' doing or that of ranges which are no prefix.
func (l *linter) shadows(n compile.Compiled) {
	rules := n.Policy.Rules
	for i := range rules {
		for j := range i {
			heavy, light := &rules[j], &rules[i]
			if !canCover(heavy, light) || heavy.Action == light.Action ||
				heavy.Direction&light.Direction != light.Direction || !heavy.Selector.Covers(light.Selector) {
				continue
			}
			l.warn(n.Origins[i].Filter, CheckShadowed, "%s (%s) never decides on node %q: %s (%s, at %s) is heavier and covers it",
				light.Name, light.Action, n.Policy.Node, heavy.Name, heavy.Action, n.Origins[j].Filter)
			break
		}
	}
}

// canCover is the part of covering that the weights tell without looking
// further: within a tier a selector that covers another has no greater weight.
func canCover(heavy, light *ipsec.Rule) bool {
	return heavy.Weight == light.Weight || heavy.Weight>>60 != light.Weight>>60
}

// peers looks from each secure rule to the other end.
func (l *linter) peers(n compile.Compiled) {
	other := map[string]string{} // peer to node
	for _, p := range n.Policy.Peers {
		if len(p.Remote) > 0 {
			other[p.Name] = l.owner[p.Remote[0]]
		}
	}
	for i := range n.Policy.Rules {
		r := &n.Policy.Rules[i]
		if r.Action != ipsec.ActionSecure {
			continue
		}
		at := n.Origins[i].Filter
		if r.Peer == compile.AnyPeer {
			if n.Origins[i].Relays {
				continue
			}
			l.warn(at, CheckAnswerOnly, "%s on node %q has no known peer for %s: its traffic is dropped until somebody there starts IKE", r.Name, n.Policy.Node, r.Selector.Remote)
			continue
		}
		end, managed := l.nodes[other[r.Peer]]
		if managed && !secures(end, r.Selector.Swap()) {
			l.warn(at, CheckOneSided, "%s on node %q: peer %q has no secure rule for the same traffic, so it will not agree to the SA; assign it a policy with this filter", r.Name, n.Policy.Node, end.Policy.Node)
		}
	}
}

// secures reports whether a node secures all of a selector with one rule.
func secures(n compile.Compiled, s ipsec.Selector) bool {
	return slices.ContainsFunc(n.Policy.Rules, func(r ipsec.Rule) bool {
		return r.Action == ipsec.ActionSecure && r.Selector.Covers(s)
	})
}
