package ikev2

import (
	"encoding/binary"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Per-resource CHILD SAs (RFC 9611). A rule whose template has Resources gets, beside
// the CHILD SA that every queue of the worker may use, one for each of so many
// queues, with the same selectors:
//
//	N(SA_RESOURCE_INFO), SA, TSi, TSr, ...         -->
//	                       <--  N(SA_RESOURCE_INFO), SA, TSi, TSr, ...
//
// The first one says with the notify that more may follow, and so does the
// answer. The end that asked for the first then makes the others, one after the
// other; the other end takes as many as its own policy has, and then answers
// TS_MAX_QUEUE. Which queue of its worker sends on which SA is each end's own
// affair: what the notify holds is for debugging. A rekey keeps the queue.

// settleTime is how long the responder of an SA for a queue goes on without it: it
// cannot know when the initiator has the inbound half in place, and the queue has
// the first SA to send on.
const settleTime = 500 * time.Millisecond

// resourceInfo is the notify that says for which of our resources a CHILD SA is.
func resourceInfo(resource uint32) *wire.Notify {
	n := &wire.Notify{Message: wire.SAResourceInfo}
	if resource != 0 {
		n.Data = binary.BigEndian.AppendUint32(nil, resource)
	}
	return n
}

// fallback is the CHILD SA of a rule that any queue may use, nil for none.
func (m *Machine) fallback(rule string) *child {
	for _, c := range m.children {
		if c.Rule == rule && c.Resource == 0 && (c.state == childUp || c.state == childReplaced || c.state == childHeld) {
			return c
		}
	}
	return nil
}

// freeResource is the lowest resource of a rule without a CHILD SA, 0 when each has one.
func (m *Machine) freeResource(r *ipsec.Rule) uint32 {
	for i := uint32(1); i <= r.Template.Resources; i++ {
		if !m.hasResource(r.Name, i) {
			return i
		}
	}
	return 0
}

func (m *Machine) hasResource(rule string, resource uint32) bool {
	for _, c := range m.children {
		if c.Rule == rule && c.Resource == resource && c.state != childDeleting {
			return true
		}
	}
	return false
}

// fill asks for the CHILD SAs that a rule's queues still lack.
func (m *Machine) fill(c *child) {
	if !c.fills || c.Resource != 0 || c.state != childUp {
		return
	}
	r, ok := m.ruleOf(c.Rule)
	if !ok {
		return
	}
	for i := uint32(1); i <= r.Template.Resources; i++ {
		if !m.hasResource(r.Name, i) {
			m.enqueue(task{kind: taskNewChild, rule: r.Name, resource: i})
		}
	}
}

// takesResource decides about a CHILD SA that the peer wants beside the one that it
// has for a rule: false when there are enough.
func (m *Machine) takesResource(n *negotiation, msg *message) bool {
	if n.replaces != 0 || msg.notify(wire.SAResourceInfo) == nil || m.fallback(n.rule.Name) == nil {
		return true
	}
	n.resource = m.freeResource(&n.rule)
	return n.resource != 0
}

// resourceRefused ends the making of further CHILD SAs for the queues of a rule.
func (m *Machine) resourceRefused(refusal wire.NotifyType) {
	t := m.task
	if c := m.fallback(t.rule); c != nil {
		if !c.fills { // told so already, by the answer to another request that was under way
			t.wipe()
			m.task = nil
			return
		}
		c.fills = false
	}
	for i := 0; i < len(m.queue); {
		if o := &m.queue[i]; o.kind == taskNewChild && o.rule == t.rule && o.resource != 0 {
			m.queue = append(m.queue[:i:i], m.queue[i+1:]...)
		} else {
			i++
		}
	}
	m.childFailed(m.childFailure(t.exchange, t.rule, refusal.String(), "the peer wants no more CHILD SAs for the same traffic",
		"lower perResource in our policy, or raise the peer's; traffic goes over those that there are"))
}

// settle installs the outbound SAs whose time has come.
func (m *Machine) settle() {
	for _, c := range m.children {
		if m.due(c.outAt) && c.out != nil {
			c.outAt = time.Time{}
			c.wait = m.installOut(c)
		}
	}
}
