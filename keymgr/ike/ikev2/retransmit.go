package ikev2

import (
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Retransmission: 1, 2, 4, 8, 16, 16, 16 seconds with 10 % of jitter, about a
// minute in all. RFC 7296 §2.4 asks for "at least a dozen times over a period of
// at least several minutes" before a peer is given up; that is for operators
// whose tunnels are rare. Here a fresh negotiation follows at once, and traffic
// waits for it.
const (
	retransmitFirst = time.Second
	retransmitMax   = 16 * time.Second
	retransmitTries = 7
	pathTries       = 3 // after these, another path is tried for each
	deleteTries     = 3 // nothing but tidiness is lost with a delete
)

// transmit sends the request of the current task and starts its timer.
func (m *Machine) transmit(x wire.ExchangeType, id uint32, datagrams [][]byte) {
	t := m.task
	t.phase, t.exchange, t.id, t.datagrams, t.sent = phaseSent, x, id, datagrams, 0
	m.send()
}

// request sends payloads as the current task's request, as soon as the peer's window
// has room.
func (m *Machine) request(x wire.ExchangeType, ps ...wire.Payload) {
	m.task.plain = plainOf(x, 0, false, ps)
	if m.task.phase = phaseTurn; m.windowOpen() {
		m.sendRequest()
	}
}

// sendRequest numbers and seals the current task's request.
func (m *Machine) sendRequest() {
	p := &m.task.plain
	p.id = m.window.next
	m.window.next++
	m.transmit(p.exchange, p.id, m.seal(*p))
}

func (m *Machine) send() {
	t := m.task
	wait := min(retransmitFirst<<t.sent, retransmitMax)
	t.sent++
	t.sendAt = m.now.Add(wait - wait/20 + m.below(wait/10))
	m.sendAll(m.path, t.datagrams)
}

// oldest reports that no request was sent before the current task's.
func (m *Machine) oldest() bool {
	return m.underWay(func(o *task) bool { return o.phase == phaseSent && o.id < m.task.id }) == nil
}

// retransmit is what the timer of the current task comes to.
func (m *Machine) retransmit() {
	if m.shrink() {
		m.send()
		return
	}
	if m.fallBack() {
		return
	}
	t := m.task
	tries := retransmitTries
	if t.kind == taskDeleteIKE {
		tries = deleteTries
	}
	if t.sent <= tries && (t.refused == nil || t.sent == 1) {
		// RFC 4555 §3.5: the path may be what is broken. The oldest request looks for
		// another one, for all.
		if m.mob.on && m.mob.deciding && m.state == stateEstablished && t.sent >= pathTries && m.oldest() {
			m.nextPath()
		}
		m.send()
		return
	}
	switch {
	case t.kind == taskDeleteIKE:
		m.end(t.why)
	case m.state == stateReplaced:
		m.end("rekeyed")
	case t.refused != nil:
		m.fail(*t.refused)
	default:
		m.fail(m.failure(t.exchange, WhyTimeout,
			"no answer from "+m.path.Remote.String()+" to the "+t.exchange.String()+" request after "+m.now.Sub(t.begun).Round(time.Second).String(),
			"check that the peer runs, that UDP 500 and 4500 pass in both directions, and that the peer has this node as a peer"))
	}
}
