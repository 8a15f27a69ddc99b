package engine

import (
	"fmt"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// A peer with NULL authentication may be anybody. Where a policy takes it beside others,
// it "MUST NOT be able to replace the Child SAs of an authenticated IKE peer" (RFC 7619
// §3.3), as the newest SA that covers a packet would.

// mayInstall refuses SAs of a peer that has proven nothing when they overlap those of
// one that has. That one is asked whether it is still there: it may have been restarted,
// and now come without a proof. The caller holds node.mu.
func (n *node) mayInstall(c *cell, sas []ipsec.SA) error {
	if !c.unproven {
		return nil
	}
	for _, sa := range sas {
		p := n.profiles[sa.Peer]
		if p == nil || onlyNull(p) {
			continue
		}
		for _, r := range n.children[sa.Rule] {
			if !r.cell.unproven && overlap(r.child.Selectors, sa.Selectors) {
				r.cell.post(ike.CheckPeer{})
				return fmt.Errorf("rule %q: %w", sa.Rule, ike.ErrUnproven)
			}
		}
		// How the peers of an earlier key manager had proven themselves is not known.
		if len(n.sadb.OrphansOf(sa.Rule)) != 0 {
			return fmt.Errorf("rule %q, SAs of an earlier key manager: %w", sa.Rule, ike.ErrUnproven)
		}
	}
	return nil
}

// onlyNull reports a profile in which a peer cannot prove anything.
func onlyNull(p *ipsec.Peer) bool {
	return !slices.ContainsFunc(p.Auth, func(a ipsec.AuthMethod) bool { return a.Remote() && !a.Null })
}

func overlap(a, b []ipsec.Selector) bool {
	return slices.ContainsFunc(a, func(x ipsec.Selector) bool {
		return slices.ContainsFunc(b, func(y ipsec.Selector) bool { _, ok := x.Intersect(y); return ok })
	})
}

// dropUnproven closes what overlaps the CHILD SA of a peer that has proven itself, when
// both ends have had time to change over. The caller holds node.mu.
func (n *node) dropUnproven(c *cell, ch ike.Child) {
	if c.unproven {
		return
	}
	for id, r := range n.children[ch.Rule] {
		if r.cell.unproven && overlap(r.child.Selectors, ch.Selectors) {
			n.e.after(reauthSettle, func() {
				n.mu.Lock()
				defer n.mu.Unlock()
				if r, ok := n.children[ch.Rule][id]; ok { // maybe of an IKE SA that has replaced the other
					r.cell.post(ike.DeleteChild{Child: id})
				}
			})
		}
	}
}

// keepProven ends a reauthentication whose peer has proven less than it had before: the
// old IKE SA stays, and asks again. The caller holds node.mu.
func (n *node) keepProven(c *cell) {
	p := n.profiles[c.peer]
	if r := c.takes; r != nil && c.unproven && !r.old.unproven && p != nil && !onlyNull(p) {
		n.e.cfg.Log.Warn("the peer did not prove its identity anew: the IKE SA in which it had stays", "node", n.name, "peer", c.peer)
		c.takes, r.old.successor = nil, nil
		c.post(ike.Terminate{Why: whyUnproven})
	}
}

// best is the IKE SA to ask for CHILD SAs: the newest one whose peer has proven itself,
// else the newest.
func (p *peer) best() *cell {
	for _, c := range slices.Backward(p.up) {
		if !c.unproven {
			return c
		}
	}
	return p.up[len(p.up)-1]
}
