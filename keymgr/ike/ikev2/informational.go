package ikev2

import (
	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// INFORMATIONAL (RFC 7296 §1.4): deletes, errors, or nothing at all, which is a
// liveness check (§2.4).
//
//	HDR, SK {[N,] [D,] [CP,] ...}  -->
//	                    <--  HDR, SK {[N,] [D,] [CP,] ...}
var informationalRows = []row{
	{exchange: wire.Informational,
		optional: []wire.PayloadType{wire.TypeNotify, wire.TypeDelete},
		handle:   (*Machine).informationalRequest},
	{exchange: wire.Informational, response: true,
		optional: []wire.PayloadType{wire.TypeNotify, wire.TypeDelete},
		handle:   (*Machine).informationalResponse},
}

func (m *Machine) startDeleteChild() {
	t := m.task
	c := m.childByID(t.child)
	if c == nil || c.state == childDeleting {
		m.task = nil
		return
	}
	if t.why == "rekeyed" || c.state == childReplaced {
		c.state = childReplaced
	} else {
		c.state = childDeleting
	}
	m.removeOut(c)
	m.request(wire.Informational, &wire.Delete{Protocol: wire.ProtocolID(c.protocol), SPIs: []ipsec.SPI{c.SPIIn}})
}

func (m *Machine) startDeleteIKE() {
	if m.state == stateEstablished {
		m.state = stateDeleting
	}
	m.request(wire.Informational, &wire.Delete{Protocol: wire.ProtocolID(ipsec.ProtocolIKE)})
}

// informationalResponse ends the current task.
func (m *Machine) informationalResponse(msg *message) {
	t := m.task
	m.task = nil
	switch t.kind {
	case taskDeleteIKE:
		m.end(t.why)
	case taskLiveness:
		m.livenessAnswered(msg)
	case taskUpdate, taskAnnounce, taskRoutability:
		m.mobikeResponse(t, msg)
	case taskDeleteChild:
		c := m.childByID(t.child)
		if c == nil {
			return
		}
		if next := m.heldBy(c); next != nil && next.out != nil { // we closed it before the peer did
			next.wait = m.installOut(next)
		}
		m.dropChild(c, t.why)
	}
}

// informationalRequest answers the peer.
func (m *Machine) informationalRequest(msg *message) {
	m.takeToken(msg)
	m.takeWindow(msg)
	// RFC 7296 §2.21.2 and §2.21.3: these two end the IKE SA without a delete.
	for _, fatal := range []wire.NotifyType{wire.AuthenticationFailed, wire.InvalidSyntax} {
		if msg.notify(fatal) != nil {
			m.reply()
			m.fail(m.failure(msg.Exchange, fatal.String(), "the peer ended the IKE SA with "+fatal.String(), "look at the peer's log; for authentication, compare identities and secrets"))
			return
		}
	}
	m.obeyLifetime(msg)
	for _, d := range msg.deletes {
		if d.OfIKE() {
			m.reply()
			m.deletedIKE()
			return
		}
	}
	m.serve.answer = m.mobikeRequest(msg)
	m.serve.phase = phaseInstallOut
	for _, d := range msg.deletes {
		for _, p := range []ipsec.Protocol{ipsec.ProtocolESP, ipsec.ProtocolAH} {
			if d.Protocol != wire.ProtocolID(p) {
				continue
			}
			for _, spi := range d.SPIs {
				if c := m.childByPeerSPI(p, spi); c != nil {
					m.serve.deleted = append(m.serve.deleted, c)
				} else {
					m.remember(spi)
				}
			}
		}
	}
	// A rekeyed CHILD SA goes: now the peer is ready to receive on the new one,
	// and we change over before the old one is closed.
	var outs []ipsec.SA
	for _, c := range m.serve.deleted {
		if next := m.heldBy(c); next != nil && next.out != nil {
			outs = append(outs, *next.out)
			next.out, next.outAsked = nil, true
			m.serve.held = append(m.serve.held, next)
		}
	}
	if len(outs) > 0 {
		m.serve.wait = m.install(outs...)
		return
	}
	m.answerDelete(nil)
}

// heldBy finds the CHILD SA whose outbound half waits for the delete of c.
func (m *Machine) heldBy(c *child) *child {
	for _, x := range m.children {
		if x.state == childHeld && x.replaces == c.ID {
			return x
		}
	}
	return nil
}

// answerDelete responds when the outbound SAs that were held are in place.
func (m *Machine) answerDelete(err error) {
	deleted, held, ps := m.serve.deleted, m.serve.held, m.serve.answer
	answer := map[ipsec.Protocol]*wire.Delete{}
	for _, c := range deleted {
		// RFC 7296 §1.4.1: the answer names the other direction, but not of a
		// CHILD SA that we are closing ourselves: deletes have crossed.
		if c.state == childDeleting || c.state == childReplaced && m.closing(c) {
			continue
		}
		d := answer[c.protocol]
		if d == nil {
			d = &wire.Delete{Protocol: wire.ProtocolID(c.protocol)}
			answer[c.protocol] = d
		}
		d.SPIs = append(d.SPIs, c.SPIIn)
	}
	for _, p := range []ipsec.Protocol{ipsec.ProtocolESP, ipsec.ProtocolAH} {
		if d := answer[p]; d != nil {
			ps = append(ps, d)
		}
	}
	m.reply(ps...)
	for _, c := range deleted {
		if c.state == childGone {
			continue // named twice
		}
		if m.heldBy(c) != nil {
			c.state = childReplaced
			m.dropChild(c, "rekeyed")
		} else {
			m.dropChild(c, "deleted by the peer")
		}
	}
	for _, next := range held {
		switch {
		case next.state != childHeld: // closed meanwhile
		case err != nil:
			next.outAsked = false
			m.installFailed(next, err)
		default:
			m.up(next)
		}
	}
}

// closing reports that our delete of a CHILD SA is on its way.
func (m *Machine) closing(c *child) bool {
	return m.underWay(func(t *task) bool { return t.kind == taskDeleteChild && t.child == c.ID }) != nil
}

// deletedIKE is the peer's delete of the IKE SA. A rekey of the peer that
// crossed ours, and of which ours is now forgotten, takes the CHILD SAs.
func (m *Machine) deletedIKE() {
	if t := m.doing(taskRekeyIKE); t != nil && t.crossIKE != nil && t.crossIKE.machine != nil {
		m.handOver(t.crossIKE.machine, false)
		m.end("rekeyed")
		return
	}
	why := "deleted by the peer"
	if m.state == stateReplaced {
		why = "rekeyed"
	}
	m.end(why)
}
