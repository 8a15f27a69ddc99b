package feedclient

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
	"github.com/testudo-ipsec/testudo/services/internal/convert"
)

type key struct{ node, kind, name string }

func keyOf(m *policyv1.ResourceKey) key { return key{m.GetNode(), m.GetKind(), m.GetName()} }

func (k key) proto() *policyv1.ResourceKey {
	return &policyv1.ResourceKey{Node: k.node, Kind: k.kind, Name: k.name}
}

func (k key) String() string { return k.node + " " + k.kind + " " + k.name }

type entry struct {
	version string
	message *policyv1.Resource // kept for the last-known-good file
	rule    *ipsec.Rule
	peer    *ipsec.Peer
}

// state is what the feed has said so far, by node.
type state struct {
	only  string // the one node that is followed; "" for all
	store ipsec.Version
	nodes map[string]map[key]entry
}

func newState(only string) *state { return &state{only: only, nodes: map[string]map[key]entry{}} }

// refusal names the resource that could not be used.
type refusal struct {
	key key
	err error
}

func (r *refusal) Error() string { return fmt.Sprintf("policy resource %s: %v", r.key, r.err) }

// with returns the state after a delta, and the nodes that it touches. The
// receiver is unchanged, so a delta that is refused leaves nothing behind; only
// the maps of touched nodes are copied.
func (s *state) with(d *policyv1.SubscribeResponse) (*state, []string, error) {
	next := &state{only: s.only, store: convert.FromVersion(d.GetStore()), nodes: maps.Clone(s.nodes)}
	touched := map[string]bool{}
	of := func(node string) map[key]entry {
		if !touched[node] {
			touched[node] = true
			m := maps.Clone(next.nodes[node])
			if m == nil {
				m = map[key]entry{}
			}
			next.nodes[node] = m
		}
		return next.nodes[node]
	}
	for _, r := range d.GetResources() {
		k := keyOf(r.GetKey())
		e := entry{version: r.GetVersion(), message: r}
		var err error
		// Whoever follows one node would put any policy in force as that node's.
		if s.only != "" && k.node != s.only {
			return nil, nil, &refusal{k, fmt.Errorf("it is for node %q, want node %q only", k.node, s.only)}
		}
		switch v := r.GetValue().(type) {
		case *policyv1.Resource_Settings:
			if a := v.Settings.GetDefaultAction(); a != 1 && a != 2 {
				err = fmt.Errorf("default action is %s, want permit or block", a)
			}
			if _, aerr := convert.FromAddrs(v.Settings.GetAddresses()); aerr != nil {
				err = aerr
			}
		case *policyv1.Resource_Rule:
			e.rule, err = convert.FromRule(v.Rule)
		case *policyv1.Resource_Peer:
			e.peer, err = convert.FromPeer(v.Peer)
		default:
			err = fmt.Errorf("kind %q is unknown; this software is older than policyd", k.kind)
		}
		if err != nil {
			return nil, nil, &refusal{k, err}
		}
		of(k.node)[k] = e
	}
	for _, m := range d.GetRemoved() {
		k := keyOf(m)
		if s.nodes[k.node] == nil {
			continue
		}
		delete(of(k.node), k)
	}
	return next, slices.Sorted(maps.Keys(touched)), nil
}

// policy assembles what a node should enforce; nil when policy says nothing of it.
func (s *state) policy(node string) *ipsec.NodePolicy {
	resources := s.nodes[node]
	if len(resources) == 0 {
		return nil
	}
	// Without settings, which policyd always sends, what no rule matches is blocked.
	p := &ipsec.NodePolicy{Node: node, Version: s.store, Default: ipsec.ActionBlock}
	for _, e := range resources {
		switch {
		case e.rule != nil:
			p.Rules = append(p.Rules, *e.rule)
		case e.peer != nil:
			p.Peers = append(p.Peers, *e.peer)
		default:
			st := e.message.GetSettings()
			p.Default, p.FailClosed, p.KeepMSS = ipsec.Action(st.GetDefaultAction()), st.GetFailClosed(), st.GetKeepMss()
			p.Addresses, _ = convert.FromAddrs(st.GetAddresses()) // checked when the delta came
		}
	}
	slices.SortFunc(p.Rules, func(a, b ipsec.Rule) int {
		return cmp.Or(cmp.Compare(b.Weight, a.Weight), strings.Compare(a.Name, b.Name))
	})
	slices.SortFunc(p.Peers, func(a, b ipsec.Peer) int { return strings.Compare(a.Name, b.Name) })
	return p
}

// have lists the versions held, for a subscription.
func (s *state) have() []*policyv1.ResourceVersion {
	var out []*policyv1.ResourceVersion
	for _, resources := range s.nodes {
		for k, e := range resources {
			out = append(out, &policyv1.ResourceVersion{Key: k.proto(), Version: e.version})
		}
	}
	return out
}

// snapshot is the state as one delta from nothing.
func (s *state) snapshot() *policyv1.SubscribeResponse {
	d := &policyv1.SubscribeResponse{Store: convert.ToVersion(s.store)}
	for _, resources := range s.nodes {
		for _, e := range resources {
			d.Resources = append(d.Resources, e.message)
		}
	}
	return d
}
