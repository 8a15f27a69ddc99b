package ikev2

import (
	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Childless IKE SAs (RFC 6023): IKE_AUTH without SA, TSi and TSr, for an IKE SA that
// is wanted before there is traffic. As responder we always say that we can; as
// initiator we do it when asked to, by a connect task without a rule, of a peer
// that says so. CHILD SAs follow by CREATE_CHILD_SA.

// childlessSupported is the notify; its protocol "MUST be 1" (§4).
var childlessSupported = &wire.Notify{Protocol: wire.ProtocolID(ipsec.ProtocolIKE), Message: wire.ChildlessSupported}

// connect is the command.
func (m *Machine) connect() {
	if m.state == stateIdle && m.initiator && len(m.queue) == 0 {
		m.enqueue(task{kind: taskConnect})
	}
}

// childless reports that the current task wants no CHILD SA.
func (m *Machine) childless() bool { return m.task.kind == taskConnect && m.task.rule == "" }

// childlessRequest reports that an IKE_AUTH request asks for none.
func childlessRequest(msg *message) bool { return msg.sa == nil && msg.tsi == nil && msg.tsr == nil }
