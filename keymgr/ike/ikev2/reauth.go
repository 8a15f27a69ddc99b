package ikev2

import (
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Repeated authentication (RFC 4478): after a time, of our policy or of the
// peer's AUTH_LIFETIME, both ends prove themselves anew. That is a new IKE SA, so
// it is the engine's work: it makes one with the CHILD SAs of this one, and then
// has this one deleted. A rekey of the IKE SA proves nothing and changes nothing.

const (
	// reauthMargin is the part of the time that is kept for doing it.
	reauthMargin = 10
	// reauthMin bounds how often a peer can make us do it.
	reauthMin = 10 * time.Second
	// reauthPause is how long the engine has before it is reminded.
	reauthPause = time.Minute
	// lifetimeMin is the shortest AUTH_LIFETIME that is sent. strongSwan keeps a
	// tenth of its own rekey time as a margin, 24 minutes by default, and starts at
	// once, over and over, when it is told less.
	lifetimeMin = time.Hour
)

// scheduleReauth starts the time of our policy. A responder that tells the
// initiator its time gives it the first chance.
func (m *Machine) scheduleReauth() {
	d := m.peer.Reauth
	if d <= 0 {
		return
	}
	if m.initiator || d < lifetimeMin {
		m.reauthAt = m.now.Add(d - m.below(d/reauthMargin))
	} else {
		m.reauthAt = m.now.Add(d + d/reauthMargin)
	}
}

// authLifetime is the responder's notify in IKE_AUTH.
func (m *Machine) authLifetime() []wire.Payload {
	if m.peer.Reauth < lifetimeMin {
		return nil
	}
	return []wire.Payload{wire.LifetimeNotify(m.peer.Reauth)}
}

// obeyLifetime takes the peer's AUTH_LIFETIME: within IKE_AUTH, or at any time
// later in an INFORMATIONAL request (RFC 4478 §2).
func (m *Machine) obeyLifetime(msg *message) {
	n := msg.notify(wire.AuthLifetime)
	if n == nil {
		return
	}
	d, ok := n.Lifetime()
	if !ok {
		return
	}
	at := later(m.now.Add(d-d/reauthMargin), m.since.Add(reauthMin))
	if m.reauthAt.IsZero() || at.Before(m.reauthAt) {
		m.reauthAt = at
	}
}

// reauthDue asks the engine, and again as long as this IKE SA is there.
func (m *Machine) reauthDue() {
	m.reauthAt = m.now.Add(reauthPause)
	m.emit(ike.Reauthenticate{})
}
