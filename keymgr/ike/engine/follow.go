package engine

import (
	"net/netip"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// initialContact drops the older IKE SAs with a peer that has no other than the
// present one (RFC 7296 §2.4): it has forgotten them, so it gets no deletes. Each
// is asked on its own shard, for only there its identity is known.
func (n *node) initialContact(c *cell, f ike.InitialContact) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for x := range n.cells {
		if x == c || !x.established || x.peer != f.Peer {
			continue
		}
		x.shard.inbox.post(item{fn: func() {
			if info, ok := x.shard.info(x); ok && info.RemoteID == f.RemoteID.String() {
				x.shard.retire(x, whyForgotten)
			}
		}})
	}
}

// move sends what goes out on some SAs to another address or port from now on. An
// SA that cannot be put there is replaced.
func (n *node) move(ids []ipsec.SAID, to netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, id := range ids {
		op, err := n.sadb.Move(time.Now(), id, to)
		switch {
		case err != nil:
			n.rekeyChildOf(id)
		case n.session != nil: // else the next Attach finds the difference
			n.queue.Add(push.Group[*errand]{Ops: []push.Op{op}, Owner: &errand{mend: id}})
		}
	}
	n.flush()
}
