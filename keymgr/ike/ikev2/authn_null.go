package ikev2

import (
	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// NULL authentication (RFC 7619): an AUTH payload that proves no identity, but
// ties the exchange together. It is there only where a policy names it.

// nullSecret is what takes the place of the shared secret (RFC 7619 §2.1).
func (m *Machine) nullSecret(initiator bool) ipsec.Secret {
	if initiator {
		return m.keys.SKpi
	}
	return m.keys.SKpr
}

func (m *Machine) proveByNothing() {
	b, err := suite.AuthPSK(m.prf, m.nullSecret(m.initiator), m.signedBy(m.initiator, m.ownID()))
	if err != nil {
		m.proveOtherwise(err)
		return
	}
	m.proven(ownAuth{auth: &wire.Auth{Method: wire.AuthNull, Data: b}, name: kindNull})
}

func (m *Machine) judgeNothing(id []byte) {
	if _, ok := m.verify([]ipsec.Secret{m.nullSecret(!m.initiator)}, id, m.first.judged.auth.Data); !ok {
		m.notProven(WhyPeerAuth, "the AUTH value of NULL authentication does not belong to this exchange", "somebody may be in the middle")
		return
	}
	m.peerProven(kindNull)
}
