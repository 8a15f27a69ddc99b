package sadb

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// Node is the record of one node.
type Node struct {
	base        ipsec.SAID // IDs below are an earlier key manager's
	incarnation uint64
	sas         map[ipsec.SAID]*entry
	orphans     map[ipsec.SAID]push.Held
	orphansOf   map[string]map[ipsec.SAID]bool // by rule
	spis        map[ipsec.SPI]ipsec.SAID       // inbound, orphans included
	installed   int
	coming      map[string]int // outbound SAs that the worker does not have yet, by rule

	changed   map[ipsec.SAID]struct{} // since Changes
	buf       []byte                  // that SAs are saved into
	abandoned map[ipsec.SAID]bool     // orphans of this key manager
	resumed   bool                    // until the first Attach after Restore
	high      ipsec.SAID              // no ID above it was used by then

	distrusted bool // until the next Attach
}

// entry is one desired SA.
type entry struct {
	sa        ipsec.SA
	since     time.Time // when it was first desired
	pending   int       // Puts that are not settled
	mending   int       // operations of Attach and Move that are not answered
	installed bool      // the worker has this state of it

	next uint64 // outbound: end of the last lease granted; 0 before the first
	from uint64 // outbound: first number of the worker's present run of leases
	used uint64 // outbound: highest number reported used
	top  uint64 // inbound: last reported top of the replay window

	unsure   bool      // outbound: how much was used is not known, so no number is granted any more
	restored bool      // until the first Attach
	saved    time.Time // when top and counters were last saved

	count counters
}

// New returns an empty record. IDs from base on are this key manager's own: an
// SA with such an ID that a worker has and that is not desired was removed.
func New(base ipsec.SAID) *Node {
	return &Node{
		base:      base,
		sas:       make(map[ipsec.SAID]*entry),
		orphans:   make(map[ipsec.SAID]push.Held),
		orphansOf: make(map[string]map[ipsec.SAID]bool),
		spis:      make(map[ipsec.SPI]ipsec.SAID),
		coming:    make(map[string]int),
	}
}

// Put makes an SA desired, or replaces it, and returns the operation that
// installs it, with a fresh lease when it is an outbound one. Each Put is
// settled by one Settle.
func (n *Node) Put(now time.Time, sa ipsec.SA) (push.Install, error) {
	if sa.Direction == ipsec.Inbound {
		if id, ok := n.spis[sa.SPI]; ok && id != sa.ID {
			return push.Install{}, fmt.Errorf("inbound SPI %s of %s is in use by %s", sa.SPI, sa.ID, id)
		}
	}
	e := n.sas[sa.ID]
	if e == nil {
		e = &entry{since: now}
	}
	old := e.sa
	e.sa = sa
	if sa.Direction == ipsec.Outbound {
		l, err := e.lease()
		if err != nil {
			e.sa = old
			return push.Install{}, fmt.Errorf("install %s: %w", sa.ID, err)
		}
		e.from = l.First
		sa.Lease = l
	}
	if n.sas[sa.ID] == nil {
		n.sas[sa.ID] = e
	} else if old.Direction == ipsec.Inbound && old.SPI != sa.SPI {
		delete(n.spis, old.SPI)
	}
	if sa.Direction == ipsec.Inbound {
		n.spis[sa.SPI] = sa.ID
	}
	n.pend(e, 1)
	n.setInstalled(e, false)
	n.change(sa.ID)
	return push.Install{SA: sa}, nil
}

// Again returns a fresh operation for an SA whose Put is not settled, because
// the link that carried the first one is gone.
func (n *Node) Again(now time.Time, id ipsec.SAID) (push.Install, error) {
	e := n.sas[id]
	if e == nil {
		return push.Install{}, fmt.Errorf("%s was removed before it was installed", id)
	}
	n.change(id)
	return e.reinstall(now)
}

// Settle says what became of a Put.
func (n *Node) Settle(id ipsec.SAID, ok bool) {
	if e := n.sas[id]; e != nil {
		if e.pending > 0 {
			n.pend(e, -1)
		}
		n.setInstalled(e, ok && e.pending+e.mending == 0)
	}
}

// pend counts Puts that are not settled.
func (n *Node) pend(e *entry, d int) {
	e.pending += d
	if e.sa.Direction != ipsec.Outbound || d == 0 {
		return
	}
	if n.coming[e.sa.Rule] += d; n.coming[e.sa.Rule] == 0 {
		delete(n.coming, e.sa.Rule)
	}
}

// Coming reports that the worker will have an outbound SA of a rule, and has it not yet.
func (n *Node) Coming(rule string) bool { return n.coming[rule] != 0 }

// Reinstalled says what became of an install of a Plan or a Move.
func (n *Node) Reinstalled(id ipsec.SAID, ok bool) {
	if e := n.sas[id]; e != nil {
		e.mending = max(e.mending-1, 0)
		n.setInstalled(e, ok && e.pending+e.mending == 0)
	}
}

func (n *Node) setInstalled(e *entry, ok bool) {
	if e.installed != ok {
		n.change(e.sa.ID)
	}
	switch {
	case ok && !e.installed:
		n.installed++
	case !ok && e.installed:
		n.installed--
	}
	e.installed = ok
}

// Delete makes an SA, or an orphan, undesired and reports whether it was known.
func (n *Node) Delete(id ipsec.SAID) (push.Remove, bool) {
	if h, ok := n.orphans[id]; ok {
		n.forgetOrphan(h)
		return push.Remove{ID: id}, true
	}
	e := n.sas[id]
	if e == nil {
		return push.Remove{}, false
	}
	n.pend(e, -e.pending)
	n.setInstalled(e, false)
	delete(n.sas, id)
	n.change(id)
	n.freeSPI(e.sa.Direction, e.sa.SPI, id)
	return push.Remove{ID: id}, true
}

func (n *Node) freeSPI(d ipsec.Direction, spi ipsec.SPI, id ipsec.SAID) {
	if d == ipsec.Inbound && n.spis[spi] == id {
		delete(n.spis, spi)
	}
}

// SA returns a desired SA without its keys.
func (n *Node) SA(id ipsec.SAID) (ipsec.SA, bool) {
	e := n.sas[id]
	if e == nil {
		return ipsec.SA{}, false
	}
	sa := e.sa
	sa.EncrKey, sa.IntegKey = ipsec.Secret{}, ipsec.Secret{}
	return sa, true
}

// SPIFree reports whether an inbound SPI may be allocated.
func (n *Node) SPIFree(spi ipsec.SPI) bool {
	_, used := n.spis[spi]
	return spi >= ipsec.FirstSPI && !used
}

// Desired and Installed count SAs; Orphans those of an earlier key manager.
func (n *Node) Desired() int   { return len(n.sas) }
func (n *Node) Installed() int { return n.installed }
func (n *Node) Orphans() int   { return len(n.orphans) }

// Abandon turns a desired SA whose IKE SA is lost into an orphan: it goes on
// working until OrphansOf its rule are deleted.
func (n *Node) Abandon(id ipsec.SAID) {
	e := n.sas[id]
	if e == nil {
		return
	}
	n.pend(e, -e.pending)
	n.setInstalled(e, false)
	delete(n.sas, id)
	n.abandon(id)
	n.addOrphan(push.Held{ID: id, SPI: e.sa.SPI, Direction: e.sa.Direction, Rule: e.sa.Rule, Child: e.sa.Child, Top: max(e.top, e.used), LeaseLast: e.next})
}

func (n *Node) addOrphan(h push.Held) {
	if old, ok := n.orphans[h.ID]; ok {
		mine := n.abandoned[h.ID]
		n.forgetOrphan(old)
		if mine {
			n.abandon(h.ID)
		}
	}
	n.orphans[h.ID] = h
	if n.orphansOf[h.Rule] == nil {
		n.orphansOf[h.Rule] = make(map[ipsec.SAID]bool)
	}
	n.orphansOf[h.Rule][h.ID] = true
	if h.Direction == ipsec.Inbound {
		n.spis[h.SPI] = h.ID
	}
}

func (n *Node) forgetOrphan(h push.Held) {
	delete(n.orphans, h.ID)
	if n.abandoned[h.ID] {
		delete(n.abandoned, h.ID)
		n.change(h.ID)
	}
	if delete(n.orphansOf[h.Rule], h.ID); len(n.orphansOf[h.Rule]) == 0 {
		delete(n.orphansOf, h.Rule)
	}
	n.freeSPI(h.Direction, h.SPI, h.ID)
}

// OrphanRule returns the rule of an orphan.
func (n *Node) OrphanRule(id ipsec.SAID) (rule string, ok bool) {
	h, ok := n.orphans[id]
	return h.Rule, ok
}

// OrphansOf lists the orphans of a rule.
func (n *Node) OrphansOf(rule string) []ipsec.SAID {
	return slices.Sorted(maps.Keys(n.orphansOf[rule]))
}

// OrphanRules lists the rules that orphans serve.
func (n *Node) OrphanRules() []string { return slices.Sorted(maps.Keys(n.orphansOf)) }
