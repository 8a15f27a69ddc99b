package engine

import (
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// SetPolicy replaces a node's policy; nil takes it away. Only machines whose
// peer profile, or whose rules, changed hear of it, and those that do not know
// their peer yet. The engine keeps p: it must not change any more.
func (e *Engine) SetPolicy(node string, p *ipsec.NodePolicy) {
	if e.isClosed() {
		return
	}
	n := e.node(node)
	n.mu.Lock()
	defer n.mu.Unlock()
	if p == nil {
		p = &ipsec.NodePolicy{Node: node}
	}
	p.Index()
	old, oldRules, oldProfiles := n.policy, n.rules, n.profiles
	n.policy = p
	n.rules = make(map[string]*ipsec.Rule, len(p.Rules))
	n.profiles = make(map[string]*ipsec.Peer, len(p.Peers))
	n.byRemote = make(map[netip.Addr][]string)
	n.anyRemote = nil
	n.mobile = slices.ContainsFunc(p.Peers, func(q ipsec.Peer) bool { return q.Mobike })
	for i := range p.Rules {
		n.rules[p.Rules[i].Name] = &p.Rules[i]
	}
	for i := range p.Peers {
		q := &p.Peers[i]
		n.profiles[q.Name] = q
		for _, a := range q.Remote {
			n.byRemote[a.Unmap()] = append(n.byRemote[a.Unmap()], q.Name)
		}
		if len(q.Remote) == 0 {
			n.anyRemote = append(n.anyRemote, q.Name)
		}
	}
	n.tellAllAddresses()
	if old != nil {
		changed := n.changedPeers(oldRules, oldProfiles)
		for c := range n.cells {
			if c.peer == "" || changed[c.peer] {
				c.post(ike.PolicyChanged{Policy: p})
			}
		}
	} else {
		for c := range n.cells { // restored, and without a policy so far
			c.post(ike.PolicyChanged{Policy: p})
		}
	}
	n.replaceOrphans()
}

// changedPeers are the profiles that differ, or a rule of which does. What held
// them back before is forgotten: the operator may have mended it.
func (n *node) changedPeers(oldRules map[string]*ipsec.Rule, oldProfiles map[string]*ipsec.Peer) map[string]bool {
	changed := make(map[string]bool)
	for name := range diff(oldProfiles, n.profiles) {
		changed[name] = true
	}
	for name := range diff(oldRules, n.rules) {
		delete(n.retries, name)
		for _, r := range []*ipsec.Rule{oldRules[name], n.rules[name]} {
			if r != nil && r.Peer != "" {
				changed[r.Peer] = true
			}
		}
	}
	for name := range changed {
		if p := n.peers[name]; p != nil {
			p.backOff = backOff{}
			if n.profiles[name] == nil && len(p.up) == 0 && p.connecting == nil {
				delete(n.peers, name)
			}
		}
	}
	return changed
}

// diff yields the names whose values differ.
func diff[T any](a, b map[string]*T) map[string]bool {
	out := make(map[string]bool)
	for name, x := range a {
		if y := b[name]; y == nil || !reflect.DeepEqual(x, y) {
			out[name] = true
		}
	}
	for name := range b {
		if a[name] == nil {
			out[name] = true
		}
	}
	return out
}

// path picks addresses of one family for a peer: the attempt-th pair of ours and
// theirs, in order of preference, so that a retry tries the next one. Port 500
// first; a machine that sees a NAT moves to 4500.
func (n *node) path(p *ipsec.Peer, attempt int) (ike.Path, bool) {
	locals := p.Local
	if len(locals) == 0 {
		locals = n.policy.Addresses
	}
	if len(locals) == 0 {
		locals = n.addresses
	}
	pairs := n.pairs(locals, p.Remote)
	if len(pairs) == 0 && p.Mobike {
		pairs = n.pairs(n.usable(), p.Remote) // the host has moved
	}
	if len(pairs) == 0 {
		return ike.Path{}, false
	}
	pair := pairs[attempt%len(pairs)]
	return ike.Path{Node: n.name, Local: netip.AddrPortFrom(pair[0], 500), Remote: netip.AddrPortFrom(pair[1], 500)}, true
}

// pairs are the addresses of one family to talk from and to. What the policy gives
// and the worker does not have cannot be sent from.
func (n *node) pairs(locals, remotes []netip.Addr) (pairs [][2]netip.Addr) {
	for _, r := range remotes {
		for _, l := range locals {
			if len(n.addresses) != 0 && !slices.Contains(n.addresses, l.Unmap()) {
				continue
			}
			if l.Unmap().Is4() == r.Unmap().Is4() {
				pairs = append(pairs, [2]netip.Addr{l.Unmap(), r.Unmap()})
			}
		}
	}
	return pairs
}

// replaceOrphans plans fresh negotiations for SAs that no machine looks after,
// spread in time, and the removal of those whose rule is gone.
func (n *node) replaceOrphans() {
	if n.policy == nil || n.session == nil {
		return
	}
	for _, rule := range n.sadb.OrphanRules() {
		if n.rules[rule] == nil {
			n.removeOrphansLater(rule)
			continue
		}
		n.replaceOrphansOf(rule, spread(n.e.cfg.Jitter))
	}
}

func (n *node) replaceOrphansOf(rule string, in time.Duration) {
	n.e.after(in, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(n.sadb.OrphansOf(rule)) == 0 || n.session == nil {
			return // the next Attach plans again
		}
		// Fresh SAs may have come up at the peer's wish.
		if len(n.children[rule]) != 0 {
			n.removeOrphansLater(rule)
			return
		}
		if t, why := n.negotiate(rule, nil, false); t == nil && (why == whyBackOff || why == whyNoAddress) {
			n.replaceOrphansOf(rule, n.e.cfg.RetryMax/2+spread(n.e.cfg.Jitter))
		}
	})
}

// removeOrphansLater removes the present orphans of a rule when packets under
// way have had time to arrive.
func (n *node) removeOrphansLater(rule string) {
	ids := n.sadb.OrphansOf(rule)
	if len(ids) == 0 {
		return
	}
	n.e.after(n.e.cfg.Drain, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.remove(ids)
	})
}
