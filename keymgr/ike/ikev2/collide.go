package ikev2

import (
	"bytes"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// What happens when both ends act at the same time (RFC 7296 §2.8.1, §2.8.2,
// §2.25). What is refused is tried again by the other side a little later:
// postpone.
//
//	the peer asks to       while we                         answer
//	create or rekey CHILD  rekey or close the IKE SA        TEMPORARY_FAILURE
//	rekey a CHILD SA       do not have it                   CHILD_SA_NOT_FOUND
//	                       close it                         TEMPORARY_FAILURE
//	                       rekey it                         as usual; the lowest nonce loses
//	delete a CHILD SA      rekey it                         as usual
//	                       close it                         without a Delete payload
//	rekey the IKE SA       create, rekey or close a CHILD   TEMPORARY_FAILURE
//	                       rekey it                         as usual; the lowest nonce loses
//	                       close it                         TEMPORARY_FAILURE
//	close the IKE SA       rekey or close it                as usual; ours is forgotten

// refusesChild: may a CHILD SA be created or rekeyed by the peer now?
func (m *Machine) refusesChild() (wire.NotifyType, bool) {
	if m.restored || m.state != stateEstablished || m.doing(taskRekeyIKE) != nil {
		return wire.TemporaryFailure, true
	}
	return 0, false
}

// refusesIKE: may the IKE SA be rekeyed by the peer now?
func (m *Machine) refusesIKE() bool {
	if m.state != stateEstablished || m.doing(taskNewChild, taskRekeyChild, taskDeleteChild, taskConnect, taskDeleteIKE) != nil {
		return true
	}
	for _, c := range m.children {
		if c.wait != 0 || c.state == childInstalling {
			return true // not yet ours to move
		}
	}
	return false
}

// rekeyed finds the CHILD SA that a REKEY_SA notify is about, or the refusal.
func (m *Machine) rekeyed(n *wire.Notify) (*child, *wire.Notify) {
	notFound := &wire.Notify{Protocol: n.Protocol, SPI: n.SPI, Message: wire.ChildSANotFound}
	spi, ok := n.ChildSPI()
	if !ok {
		return nil, notFound
	}
	var old *child
	for _, p := range []ipsec.Protocol{ipsec.ProtocolESP, ipsec.ProtocolAH} {
		if n.Protocol == wire.ProtocolID(p) {
			old = m.childByPeerSPI(p, spi)
		}
	}
	switch {
	case old == nil && m.underWay((*task).creating) != nil:
		// It may be the one whose response we have not seen yet: "not found" would
		// make the peer drop it just when it is about to exist here.
		return nil, &wire.Notify{Message: wire.TemporaryFailure}
	case old == nil:
		return nil, notFound
	case old.state != childUp || m.heldBy(old) != nil:
		return nil, &wire.Notify{Message: wire.TemporaryFailure} // closing, or not complete yet
	}
	return old, nil
}

// cross remembers a rekey of the peer, which we are about to agree to, beside our
// own of the same CHILD SA, for the comparison of nonces. Either may be complete
// first.
func (m *Machine) cross(n *negotiation) {
	if n.replaces == 0 {
		return
	}
	if t := m.underWay(func(t *task) bool { return t.kind == taskRekeyChild && t.child == n.replaces }); t != nil {
		t.crossed = n
	}
}

// uncross forgets it when it has come to nothing.
func (m *Machine) uncross(n *negotiation) {
	if t := m.underWay(func(t *task) bool { return t.crossed == n }); t != nil {
		t.crossed = nil
	}
}

// servesRekeyOf reports that the peer's rekey of a CHILD SA is being answered.
func (m *Machine) servesRekeyOf(c *child) bool {
	return m.serve != nil && m.serve.child != nil && m.serve.child.replaces == c.ID ||
		slices.ContainsFunc(m.followUps, func(f *followUp) bool { return f.child != nil && f.child.replaces == c.ID })
}

// creating reports that a CHILD SA of ours is being agreed: the peer may have it
// already, under an SPI that leads us to nothing yet.
func (t *task) creating() bool {
	if t.kind != taskNewChild && t.kind != taskRekeyChild {
		return false
	}
	return t.phase == phaseSent || t.phase == phaseShared || t.phase == phaseKey && len(t.secrets) > 0
}

// remember keeps an SPI that the peer deleted while creating. maxDead bounds what
// a peer can make us keep.
func (m *Machine) remember(spi ipsec.SPI) {
	const maxDead = 16
	for _, t := range m.flight {
		if t.creating() && len(t.dead) < maxDead {
			t.dead = append(t.dead, spi)
		}
	}
}

// lost reports that the current task's rekey has crossed the peer's, and loses:
// also when the peer has replaced or closed its own meanwhile.
func (m *Machine) lost() bool {
	n, x := m.task.nego, m.task.crossed
	return x != nil && m.loses(n.ni, n.nr, x.ni, x.nr)
}

// redundant closes the CHILD SA of the current task, which has lost.
func (m *Machine) redundant(c *child) {
	c.state = childReplaced
	m.task = nil
	m.enqueue(task{kind: taskDeleteChild, child: c.ID, why: "redundant"})
}

// loses decides between two rekeys of the same SA: it reports whether the lowest of
// the four nonces is in ours, which then is closed by us (RFC 7296 §2.8.1). Nonces
// that are equal are no chance: somebody repeats ours. Both ends then keep the one
// of the IKE SA's initiator.
func (m *Machine) loses(ni, nr, otherNi, otherNr []byte) bool {
	switch bytes.Compare(least(ni, nr), least(otherNi, otherNr)) {
	case -1:
		return true
	case 0:
		return !m.initiator
	}
	return false
}

func least(a, b []byte) []byte {
	if bytes.Compare(a, b) < 0 {
		return a
	}
	return b
}
