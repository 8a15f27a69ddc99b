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
// both choose alike. An IKE SA that is left empty beside another one with the
// same peer is closed with its last CHILD SA.
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
		refs = append(refs, r)
	}
	slices.SortFunc(refs, func(a, b childRef) int {
		return cmp.Or(cmp.Compare(min(a.child.SPIIn, a.child.SPIOut), min(b.child.SPIIn, b.child.SPIOut)),
			cmp.Compare(max(a.child.SPIIn, a.child.SPIOut), max(b.child.SPIIn, b.child.SPIOut)))
	})
	for i, r := range refs {
		same := func(k childRef) bool {
			return k.child.Mode == r.child.Mode && k.cell.peer == r.cell.peer && slices.Equal(k.child.Selectors, r.child.Selectors)
		}
		if !slices.ContainsFunc(refs[:i], same) {
			continue
		}
		if p := n.peers[r.cell.peer]; p != nil && len(p.up) > 1 && len(r.cell.children) == 1 {
			r.cell.post(ike.Terminate{Why: whyDuplicate})
		} else {
			r.cell.post(ike.DeleteChild{Child: r.child.ID})
		}
	}
}
