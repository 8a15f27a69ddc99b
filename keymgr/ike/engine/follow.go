package engine

import (
	"net/netip"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// initialContact drops the older IKE SAs with a peer that has no other than the
// present one (RFC 7296 §2.4): it has forgotten them, so it gets no deletes. Each
// is asked on its own shard, for only there its identity is known. One that came about
// after this one had begun is none of them: both ends began at the same time.
func (n *node) initialContact(c *cell, f ike.InitialContact) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for x := range n.cells {
		if x == c || !x.established || x.peer != f.Peer {
			continue
		}
		x.shard.inbox.post(item{fn: func() {
			if info, ok := x.shard.info(x); ok && info.RemoteID == f.RemoteID.String() && info.Since.Before(n.e.started.Add(c.began)) {
				x.shard.retire(x, whyForgotten)
			}
		}})
	}
}

// alone reports that the node knows of no IKE SA with an identity: the machine then says
// so in IKE_AUTH. SAs that an earlier key manager left in the worker go on until fresh
// ones are there, and what the peer has of them should too.
func (n *node) alone(name string, id ipsec.Identity) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.identities[id.String()] != 0 || n.policy == nil {
		return false
	}
	for r := range n.policy.RulesOf(name) {
		if len(n.sadb.OrphansOf(r.Name)) != 0 {
			return false
		}
	}
	return true
}

func (n *node) knows(c *cell, id string) {
	c.remoteID = id
	n.identities[id]++
}

func (n *node) knowsNot(c *cell) {
	if !c.established {
		return
	}
	if n.identities[c.remoteID]--; n.identities[c.remoteID] == 0 {
		delete(n.identities, c.remoteID)
	}
}

// setAddresses takes note of what the worker can send from, and tells the machines.
func (n *node) setAddresses(local []netip.Addr) {
	fresh := make([]netip.Addr, len(local)) // machines keep it
	for i, a := range local {
		fresh[i] = a.Unmap()
	}
	if slices.Equal(fresh, n.addresses) {
		return
	}
	n.addresses = fresh
	n.tellAllAddresses()
}

// usable are the addresses to talk from: the policy's as far as the host has them,
// and when it has none of them, it has moved, and any of its own.
func (n *node) usable() []netip.Addr {
	var out []netip.Addr
	if n.policy != nil {
		for _, a := range n.policy.Addresses {
			if slices.Contains(n.addresses, a.Unmap()) {
				out = append(out, a.Unmap())
			}
		}
	}
	if len(out) == 0 {
		return n.addresses
	}
	return out
}

// tellAllAddresses tells the machines when the usable addresses are others.
func (n *node) tellAllAddresses() {
	usable := n.usable()
	if !n.mobile || slices.Equal(usable, n.told) {
		return
	}
	n.told = usable
	for c := range n.cells {
		n.tellAddresses(c)
	}
}

func (n *node) tellAddresses(c *cell) {
	if n.mobile {
		c.post(ike.Addresses{Local: n.told})
	}
}

// move gives some SAs other outer addresses or ports. An SA that cannot be put
// there is replaced.
func (n *node) move(f ike.Move) {
	for _, id := range f.SAs {
		op, err := n.sadb.Move(time.Now(), id, f.Local, f.Remote, f.Encap)
		if err != nil {
			n.rekeyChildOf(id)
			continue
		}
		n.stage(push.Group[*errand]{Ops: []push.Op{op}, Owner: &errand{mend: id}})
	}
	n.persist()
	n.flush()
}
