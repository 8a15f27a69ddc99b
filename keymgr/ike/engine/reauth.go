package engine

import (
	"maps"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
)

// Repeated authentication (RFC 4478), make before break: an initiator of ours
// makes an IKE SA with CHILD SAs for the same rules; when the last of them carries
// traffic, those of the old IKE SA are closed, and it with the last of them.

// reauthSettle is how long both ends have to change over before the old CHILD SAs
// are closed: the outbound half of a new one is held back by settle, at the peer
// too when that is one of ours.
const reauthSettle = 2 * settle

// reauth is what a new IKE SA is to take over.
type reauth struct {
	old   *cell
	rules set[string] // that have no CHILD SA on it yet
}

// reauthenticate starts it, unless it is under way. A machine that is left alone
// asks again.
func (n *node) reauthenticate(c *cell, at ike.Path) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peers[c.peer]
	if p == nil || p.connecting != nil || c.redundant || c.successor != nil || n.session == nil {
		return
	}
	var rules set[string]
	for id := range c.children {
		rules.add(n.ruleOf[id])
	}
	profile := n.profiles[c.peer]
	path, ok := ike.Path{}, false
	if profile != nil {
		// A peer that moved (RFC 4555), or that the policy gives no address, is where it
		// is; but only its own end can open another TCP connection from there.
		if path, ok = n.path(profile, 0); (!ok || profile.Mobike) && !at.TCP {
			path, ok = at, true
		}
	}
	if len(rules) == 0 || !ok {
		// There is nothing to take over, or no way to the peer but its own: traffic,
		// or the peer, starts anew.
		n.e.cfg.Log.Info("IKE SA ends: it is time to authenticate anew", "node", n.name, "peer", c.peer, "children", len(rules))
		c.post(ike.Terminate{Why: whyReauth})
		return
	}
	policy, name := n.policy, c.peer
	x := &cell{shard: n.e.pickShard(), node: n, initiator: true, remote: path.Remote.Addr(), began: time.Since(n.e.started), slot: -1, peer: name}
	x.make = func() (ike.Machine, error) { return n.e.cfg.Machines.Initiator(n.env, policy, name, path) }
	x.takes = &reauth{old: c, rules: rules}
	c.successor = x
	n.cells[x] = true
	n.e.stats.machines.Add(1)
	p.connecting = x
	n.tellAddresses(x)
	for _, rule := range slices.Sorted(maps.Keys(rules)) {
		x.post(ike.CreateChild{Rule: rule})
	}
}

// tookOver notes a CHILD SA of a new IKE SA. The caller holds node.mu.
func (n *node) tookOver(x *cell, rule string) {
	r := x.takes
	if r == nil {
		return
	}
	if delete(r.rules, rule); len(r.rules) != 0 {
		return
	}
	x.takes = nil
	old := r.old
	n.e.after(reauthSettle, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for old.heir != nil { // rekeyed meanwhile
			old = old.heir
		}
		old.redundant = true // it ends with its last CHILD SA
		if len(old.children) == 0 {
			old.post(ike.Terminate{Why: whyReauth})
		}
		for id := range old.children {
			old.post(ike.DeleteChild{Child: id})
		}
	})
}

// reauthFailed notes a new IKE SA, or one CHILD SA of it, that came to nothing.
// What keeps the answer away keeps the old IKE SA; a peer that could not prove
// itself, or does not accept us, loses it. The caller holds node.mu.
func (n *node) reauthFailed(x *cell, f ike.Failure) {
	r := x.takes
	if r == nil {
		return
	}
	if f.Rule != "" {
		n.tookOver(x, f.Rule) // this rule has failed by itself: others do not wait
		return
	}
	x.takes, r.old.successor = nil, nil
	switch f.Why {
	case ikev2.WhyPeerAuth, ikev2.WhyPeerID, "AUTHENTICATION_FAILED":
		n.e.cfg.Log.Warn("IKE SA ends: the ends could not authenticate anew", "node", n.name, "peer", x.peer, "why", f.Why)
		r.old.post(ike.Terminate{Why: whyReauth})
	}
}

// inheritReauth gives the part of c in a reauthentication to the machine that
// replaces it. The caller holds node.mu.
func (c *cell) inheritReauth(from *cell) {
	c.takes, from.takes = from.takes, nil
	c.successor, from.successor = from.successor, nil
	if c.takes != nil {
		c.takes.old.successor = c
	}
	if c.successor != nil && c.successor.takes != nil {
		c.successor.takes.old = c
	}
}
