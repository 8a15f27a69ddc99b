package engine

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
)

// Bounds, per negotiation, IKE SA and peer.
const (
	maxWaiting  = 64   // acquires and operators that wait for one negotiation
	maxInFlight = 64   // CREATE_CHILD_SA asked of one machine at a time
	maxQueued   = 4096 // negotiations that wait for a peer's IKE SA
	talkTime    = 5 * time.Minute
)

// talk is the one negotiation for a rule that this node has under way.
type talk struct {
	flow     *ipsec.Flow
	cell     *cell // nil while it waits for an IKE SA
	limit    *time.Timer
	acquires []acquire
	waiters  []chan<- outcome
}

// assign gives the negotiation to a machine. The caller holds node.mu.
func (t *talk) assign(c *cell, rule string) {
	t.cell = c
	c.rules.add(rule)
}

// endTalks ends the negotiations that a machine has under way. Those of an
// initiator that came to nothing go to an IKE SA that the peer started, if
// there is one by now.
func (n *node) endTalks(c *cell, f ike.Failure) {
	p := n.peers[c.peer]
	rescue := c.initiator && !c.established && p != nil && len(p.up) != 0
	for _, rule := range slices.Sorted(maps.Keys(c.rules)) {
		if rescue {
			n.talks[rule].cell = nil
			delete(c.rules, rule)
			p.queued = append(p.queued, rule)
			continue
		}
		n.endTalk(rule, f)
	}
	if rescue {
		n.feed(p)
	}
}

// endQueued ends the negotiations that wait for a peer's IKE SA.
func (n *node) endQueued(p *peer, f ike.Failure) {
	queued := p.queued
	p.queued = nil
	for _, rule := range queued {
		if t := n.talks[rule]; t != nil && t.cell == nil {
			n.endTalk(rule, f)
		}
	}
}

// acquire is a worker's request, valid for the session it came on.
type acquire struct {
	session *Session
	id      uint64
}

type outcome struct {
	child   ike.Child
	failure *ike.Failure
}

// FailedError is a negotiation that came to nothing.
type FailedError struct{ ike.Failure }

func (e *FailedError) Error() string {
	s := fmt.Sprintf("negotiation with peer %q failed: %s", e.Peer, e.Why)
	if e.Rule != "" {
		s = fmt.Sprintf("negotiation for rule %q with peer %q failed: %s", e.Rule, e.Peer, e.Why)
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Advice != "" {
		s += "; " + e.Advice
	}
	return s
}

// negotiate joins or starts the negotiation for a rule. force ignores back-off.
func (n *node) negotiate(rule string, flow *ipsec.Flow, force bool) (*talk, string) {
	if t := n.talks[rule]; t != nil {
		return t, ""
	}
	r := n.rules[rule]
	switch {
	case n.policy == nil:
		return nil, whyNoPolicy
	case r == nil:
		return nil, whyNoRule
	case r.Action != ipsec.ActionSecure:
		return nil, whyNotSecure
	case n.profiles[r.Peer] == nil:
		return nil, whyNoPeerName
	case n.session == nil:
		return nil, whyNoWorker
	}
	now := time.Now()
	p := n.peer(r.Peer)
	if b := n.retries[rule]; !force && (now.Before(p.until) || b != nil && now.Before(b.until)) {
		return nil, whyBackOff
	}
	t := &talk{flow: flow}
	switch {
	case len(p.up) != 0 || p.connecting != nil:
		if len(p.queued) >= maxQueued {
			return nil, whyTooMany
		}
		p.queued = append(p.queued, rule)
	default:
		c, ok := n.dial(r.Peer)
		if !ok {
			return nil, whyNoAddress
		}
		t.assign(c, rule)
		c.post(ike.CreateChild{Rule: rule, Packet: flow})
	}
	n.talks[rule] = t
	n.feed(p)
	// A machine tells how a negotiation ends; one that does not is not waited for.
	t.limit = n.e.after(talkTime, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.talks[rule] == t {
			n.endTalk(rule, ike.Failure{Time: time.Now(), Peer: r.Peer, Rule: rule, Role: "initiator", Why: whyNoAnswer,
				Detail: "the negotiation neither succeeded nor failed in " + talkTime.String()})
		}
	})
	return t, ""
}

// dial makes the machine of an IKE SA with a peer that there is none with; false when
// no address is known.
func (n *node) dial(name string) (*cell, bool) {
	p := n.peer(name)
	path, ok := n.path(n.profiles[name], p.failures)
	if !ok {
		return nil, false
	}
	policy := n.policy
	c := &cell{shard: n.e.pickShard(), node: n, initiator: true, remote: path.Remote.Addr(), began: time.Since(n.e.started), slot: -1, peer: name}
	c.make = func() (ike.Machine, error) { return n.e.cfg.Machines.Initiator(n.env, policy, name, path) }
	n.cells[c] = true
	n.e.stats.machines.Add(1)
	p.connecting = c
	n.tellAddresses(c)
	return c, true
}

// feed gives waiting negotiations to a peer's IKE SA, a few at a time.
func (n *node) feed(p *peer) {
	for len(p.queued) != 0 && len(p.up) != 0 {
		c := p.best()
		if len(c.rules) >= maxInFlight {
			return
		}
		rule := p.queued[0]
		p.queued = p.queued[1:]
		if t := n.talks[rule]; t != nil && t.cell == nil {
			t.assign(c, rule)
			c.post(ike.CreateChild{Rule: rule, Packet: t.flow})
		}
	}
}

// acquire serves a worker whose packet found no SA.
func (n *node) acquire(s *Session, id uint64, rule string, flow ipsec.Flow) {
	n.e.stats.acquires.Add(1)
	if !n.sadb.Coming(rule) {
		n.acquireNow(s, id, rule, flow)
		return
	}
	// The peer's answer to the first packet comes back before the worker has the outbound
	// SA, and asks for one.
	n.e.after(coming, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.session == s && !n.serves(rule, flow) {
			n.acquireNow(s, id, rule, flow)
		}
	})
}

// coming is how long an acquire waits for an SA that is on its way to the worker.
const coming = 50 * time.Millisecond

// serves reports that a CHILD SA of a rule is up that takes a packet.
func (n *node) serves(rule string, flow ipsec.Flow) bool {
	for _, r := range n.children[rule] {
		if r.child.Resource == 0 && slices.ContainsFunc(r.child.Selectors, func(s ipsec.Selector) bool { return s.Matches(flow) }) {
			return true
		}
	}
	return false
}

func (n *node) acquireNow(s *Session, id uint64, rule string, flow ipsec.Flow) {
	t, why := n.negotiate(rule, &flow, false)
	switch {
	case t == nil && why == whyBackOff:
		why = n.heldBack(rule)
	case t != nil && len(t.acquires) >= maxWaiting:
		why = whyTooMany
	case t != nil:
		t.acquires = append(t.acquires, acquire{s, id})
		return
	}
	n.refuse(acquire{s, id}, why)
}

// heldBack says why a rule is not negotiated just now.
func (n *node) heldBack(rule string) string {
	last := n.peer(n.rules[rule].Peer).last
	if b := n.retries[rule]; b != nil && b.until.After(time.Now()) {
		last = b.last
	}
	return fmt.Sprintf("%s after %s", whyBackOff, last.Why)
}

func (n *node) refuse(a acquire, why string) {
	n.e.stats.acquiresFailed.Add(1)
	if a.session == n.session && a.session != nil {
		if err := a.session.link.AcquireFailed(a.id, why); err != nil {
			n.lose(a.session, err.Error())
		}
	}
}

// failed takes a machine's report of a failure: of one rule, or of the IKE SA
// and with it of all that waits for it.
func (n *node) failed(c *cell, f ike.Failure) {
	n.e.failures.add(n.name, f)
	n.e.stats.failed(f.Why)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.e.watchers.publish(Event{Kind: KindFailed, Node: n.name, Peer: f.Peer, SPI: c.spi, Failure: &f,
		Detail: (&FailedError{f}).Error()})
	n.reauthFailed(c, f)
	if f.Why == ikev2.WhyLost {
		c.anew = n.rulesOf(c)
	}
	if f.Rule != "" {
		t := n.talks[f.Rule]
		if t == nil || t.cell != c {
			return // it was the peer's wish, which holds back none of ours
		}
		b := n.retries[f.Rule]
		if b == nil && n.rules[f.Rule] != nil {
			b = &backOff{}
			n.retries[f.Rule] = b
		}
		if b != nil {
			b.fail(&n.e.cfg, f)
		}
		n.endTalk(f.Rule, f)
		return
	}
	if c.initiator && !c.established {
		p := n.peer(c.peer)
		p.fail(&n.e.cfg, f)
		if p.connecting == c {
			p.connecting = nil
			p.tell(outcome{failure: &f})
			if len(p.up) == 0 {
				n.endQueued(p, f)
			}
		}
	}
	n.endTalks(c, f)
}

// negotiationLost is a CreateChild that came to a machine that was gone.
func (n *node) negotiationLost(c *cell, rule string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if t := n.talks[rule]; t != nil && t.cell == c {
		n.endTalk(rule, c.failure(whyGone, "the IKE SA ended before the CHILD SA was asked for"))
	}
}

// failure is one that the engine, not the machine, tells of.
func (c *cell) failure(why, detail string) ike.Failure {
	return ike.Failure{Time: time.Now(), Peer: c.peer, Remote: c.remote.String(), Role: role(c.initiator), Why: why, Detail: detail}
}

// endTalk tells all who wait that a negotiation failed.
func (n *node) endTalk(rule string, f ike.Failure) {
	t := n.talks[rule]
	if t == nil {
		return
	}
	n.closeTalk(rule, t)
	if f.Rule == "" {
		f.Rule = rule
	}
	for _, a := range t.acquires {
		n.refuse(a, f.Why)
	}
	for _, w := range t.waiters {
		w <- outcome{failure: &f} // has room for one
	}
	if len(n.sadb.OrphansOf(rule)) != 0 {
		n.replaceOrphansOf(rule, n.e.cfg.backOff(n.failuresOf(rule)))
	}
}

func (n *node) closeTalk(rule string, t *talk) {
	t.limit.Stop()
	delete(n.talks, rule)
	if t.cell != nil {
		delete(t.cell.rules, rule)
		if p := n.peers[t.cell.peer]; p != nil {
			n.feed(p)
		}
	}
}

func (n *node) failuresOf(rule string) int {
	f := 1
	if b := n.retries[rule]; b != nil {
		f = b.failures
	}
	if r := n.rules[rule]; r != nil {
		f = max(f, n.peer(r.Peer).failures)
	}
	return f
}

// warnLegacy counts SAs with algorithms that should not be used any more, which
// policy has allowed, and says so.
func (n *node) warnLegacy(peer, what string, s ipsec.Suite) {
	names := s.Legacy()
	if len(names) == 0 {
		return
	}
	n.e.stats.legacy.Add(1)
	if n.e.weak.allow(n.name+" "+peer+" "+what, time.Now()) {
		n.e.cfg.Log.Warn("an SA has legacy algorithms", "node", n.name, "peer", peer, "sa", what, "suite", s.String(), "legacy", strings.Join(names, " "))
	}
}

// childUp takes note of a CHILD SA.
func (n *node) childUp(c *cell, ch ike.Child) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.retries, ch.Rule)
	if t := n.talks[ch.Rule]; t != nil && ch.Resource == 0 {
		// Whoever started it, the rule has an SA now. A machine that still
		// negotiates another one is left alone: see dropDuplicates.
		n.closeTalk(ch.Rule, t)
		for _, w := range t.waiters {
			w <- outcome{child: ch}
		}
	}
	if _, again := n.ruleOf[ch.ID]; again {
		return // an acquire crossed it
	}
	n.e.stats.childrenUp.Add(1)
	n.tookOver(c, ch.Rule)
	n.warnLegacy(c.peer, "CHILD SA", ch.Suite)
	if n.children[ch.Rule] == nil {
		n.children[ch.Rule] = make(map[uint64]childRef)
	}
	n.children[ch.Rule][ch.ID] = childRef{c, ch, time.Now()}
	n.ruleOf[ch.ID] = ch.Rule
	c.children.add(ch.ID)
	n.removeOrphansLater(ch.Rule)
	n.dropUnproven(c, ch)
	if len(n.children[ch.Rule]) > 1 {
		n.e.after(n.e.cfg.Drain, func() { n.dropDuplicates(ch.Rule) })
	}
	if !n.e.watchers.idle() {
		n.e.watchers.publish(Event{Kind: KindChildUp, Node: n.name, Peer: c.peer, SPI: c.spi, Child: &ch,
			Detail: fmt.Sprintf("CHILD SA %s/%s for rule %q is up, %s", ch.SPIIn, ch.SPIOut, ch.Rule, ch.Suite)})
	}
}

func (n *node) childDown(c *cell, id uint64, why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	rule, ok := n.ruleOf[id]
	if !ok {
		return
	}
	r := n.children[rule][id]
	n.forgetChild(id)
	if c.redundant && len(c.children) == 0 {
		c.post(ike.Terminate{Why: whyDuplicate})
	}
	if !n.e.watchers.idle() {
		n.e.watchers.publish(Event{Kind: KindChildDown, Node: n.name, Peer: c.peer, SPI: c.spi, Child: &r.child,
			Detail: fmt.Sprintf("CHILD SA %s/%s for rule %q ended: %s", r.child.SPIIn, r.child.SPIOut, rule, why)})
	}
}

func (n *node) forgetChild(id uint64) {
	rule := n.ruleOf[id]
	delete(n.ruleOf, id)
	if c := n.children[rule][id].cell; c != nil {
		delete(c.children, id)
	}
	if delete(n.children[rule], id); len(n.children[rule]) == 0 {
		delete(n.children, rule)
	}
}
