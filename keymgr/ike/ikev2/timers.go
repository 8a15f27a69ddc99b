package ikev2

import (
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// Deadline implements ike.Machine.
func (m *Machine) Deadline() time.Time {
	var d time.Time
	at := func(t time.Time) {
		if !t.IsZero() && (d.IsZero() || t.Before(d)) {
			d = t
		}
	}
	switch m.state {
	case stateGone:
		return d
	case stateIdle, stateConnecting, stateRefused:
		if !m.initiator && !m.created.IsZero() {
			at(m.created.Add(halfOpenTime))
		}
	case stateEstablished:
		at(m.rekeyAt)
		at(m.reauthAt)
		at(m.proveBy)
		at(m.livenessAt())
		for _, c := range m.children {
			at(c.outAt)
			at(c.rekeyAt)
			at(c.dieAt)
		}
		at(m.endAt)
	case stateReplaced:
		at(m.endAt)
	}
	for _, t := range m.flight {
		if t.phase == phaseSent {
			at(t.sendAt)
		}
		if t.response != nil {
			at(t.response.until)
		}
	}
	if i, t := m.nextTask(); i >= 0 {
		at(t)
	}
	for _, x := range m.drains {
		at(x.at)
	}
	for _, f := range m.followUps {
		at(f.until)
	}
	for _, r := range m.frag.requests {
		at(r.until)
	}
	return d
}

// livenessAt is when the peer has been silent for long enough (RFC 7296 §2.4).
// A request under way is a check by itself.
func (m *Machine) livenessAt() time.Time {
	if m.peer.DPD <= 0 || len(m.flight) > 0 || len(m.queue) > 0 {
		return time.Time{}
	}
	return m.heard.Add(m.peer.DPD)
}

// due reports that a time is set and has come.
func (m *Machine) due(t time.Time) bool { return !t.IsZero() && !t.After(m.now) }

func (m *Machine) tick() {
	if (m.state == stateIdle || m.state == stateConnecting || m.state == stateRefused) && !m.initiator && m.due(m.created.Add(halfOpenTime)) {
		if m.state == stateConnecting {
			m.fail(m.failure(0, WhyHalfOpen, "the peer started a negotiation and did not finish it within "+halfOpenTime.String(),
				"check that the peer receives our answers; with large messages, that UDP fragments pass"))
			return
		}
		m.end("refused")
		return
	}
	if m.state == stateReplaced && m.due(m.endAt) {
		m.end("rekeyed")
		return
	}
	for m.take(func(t *task) bool { return t.phase == phaseSent && m.due(t.sendAt) }) {
		m.retransmit()
		m.stow()
	}
	m.tickDrains()
	m.settle()
	m.expireFragments()
	m.dropFollowUps(func(f *followUp) bool { return m.due(f.until) })
	if m.state != stateEstablished {
		return
	}
	if m.due(m.endAt) {
		m.endAt = time.Time{}
		m.terminate("lifetime")
		return
	}
	if m.due(m.proveBy) {
		m.proveBy = time.Time{}
		m.terminate("the policy has changed: the ends have not proven themselves anew as it asks")
		return
	}
	if m.due(m.rekeyAt) {
		m.rekeyIKE()
	}
	if m.due(m.reauthAt) {
		m.reauthDue()
	}
	for _, c := range m.children {
		if m.due(c.dieAt) {
			c.dieAt = time.Time{}
			m.childExpired(ike.ChildExpired{Child: c.ID, Hard: true, Cause: "time"})
		} else if m.due(c.rekeyAt) {
			c.rekeyAt = time.Time{}
			m.childExpired(ike.ChildExpired{Child: c.ID, Cause: "time"})
		}
	}
	if m.due(m.livenessAt()) {
		m.checkPeer()
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// sooner is the earlier of two times, of which a may not be set.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
