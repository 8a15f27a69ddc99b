package engine

import (
	"cmp"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// dropDuplicates closes CHILD SAs that do the same as another. They come about
// when both ends start at once, and all of them work, so there is no hurry. The
// one with the lowest SPI stays: both ends see the same two SPIs of each, so
// both choose alike. Of two that were made at different times the newest stays: a
// peer that asks for what it has has forgotten that it has it. An IKE SA that is left empty beside another one with the
// same peer is closed after its last CHILD SA.
func (n *node) dropDuplicates(rule string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	refs := make([]childRef, 0, len(n.children[rule]))
	for _, r := range n.children[rule] {
		// A young one may be a rekey whose predecessor is about to be deleted;
		// its own coming up has planned another look.
		if time.Since(r.since) < n.e.cfg.Drain/2 {
			return
		}
		if r.cell.successor != nil {
			return // authentication is repeated, and decides which goes
		}
		refs = append(refs, r)
	}
	slices.SortFunc(refs, func(a, b childRef) int {
		const together = 5 * time.Second // a start at once, with a retransmission or two
		if a.cell.unproven != b.cell.unproven {
			if a.cell.unproven {
				return 1
			}
			return -1
		}
		if d := a.since.Sub(b.since); d.Abs() > together {
			return -cmp.Compare(d, 0)
		}
		return cmp.Or(cmp.Compare(min(a.child.SPIIn, a.child.SPIOut), min(b.child.SPIIn, b.child.SPIOut)),
			cmp.Compare(max(a.child.SPIIn, a.child.SPIOut), max(b.child.SPIIn, b.child.SPIOut)))
	})
	for i, r := range refs {
		same := func(k childRef) bool {
			return k.child.Mode == r.child.Mode && k.child.Resource == r.child.Resource && k.cell.peer == r.cell.peer && slices.Equal(k.child.Selectors, r.child.Selectors)
		}
		if !slices.ContainsFunc(refs[:i], same) {
			continue
		}
		// The CHILD SA first: its outbound half goes before the peer is told, so
		// that nothing is under way on it; a delete of the IKE SA has no such order.
		p := n.peers[r.cell.peer]
		r.cell.redundant = p != nil && len(p.up) > 1 && len(r.cell.children) == 1
		r.cell.post(ike.DeleteChild{Child: r.child.ID})
	}
}
