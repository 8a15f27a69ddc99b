package ikev2

import (
	"errors"
	"fmt"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Authentication with pre-shared keys (RFC 7296 §2.15). A profile may lead to
// several secrets, newest first, so that a secret can be rotated: whoever
// verifies tries each, whoever speaks first signs with the first.

// secretsFound is the engine's answer to NeedPSK.
func (m *Machine) secretsFound(ev ike.PSKs) {
	p, ok := m.awaited(ev.ID, phaseSecret, phasePeerSecret, phasePPK)
	if !ok {
		return
	}
	err := ev.Err
	if err == nil && len(ev.Secrets) == 0 {
		err = errors.New("the secret store has no secret for " + m.peer.Name)
	}
	switch {
	case p == phasePPK:
		m.ppkFound(ev.Secrets, err)
	case p == phasePeerSecret:
		m.judgeSecret(ev.Secrets, err)
	case err != nil:
		m.proveOtherwise(err)
	case m.initiator:
		m.first.secrets = ev.Secrets
		m.proveBySecret(ev.Secrets[min(m.secret, len(ev.Secrets)-1)])
	default:
		m.proveBySecret(ev.Secrets[0])
	}
}

// proveBySecret makes our AUTH payload.
func (m *Machine) proveBySecret(psk ipsec.Secret) {
	b, err := suite.AuthPSK(m.prf, psk, m.signedBy(m.initiator, m.ownID()))
	if err != nil {
		m.proveOtherwise(err)
		return
	}
	own := ownAuth{auth: &wire.Auth{Method: wire.AuthSharedKey, Data: b}, name: kindPSK}
	if m.optionalPPK() {
		if own.without, err = suite.AuthPSK(m.prf, psk, m.signedWith(m.first.ppk.without, true, m.ownID())); err != nil {
			m.proveOtherwise(err)
			return
		}
	}
	m.proven(own)
}

// judgeSecret checks the peer's AUTH against each secret that it may have.
func (m *Machine) judgeSecret(secrets []ipsec.Secret, err error) {
	msg := m.first.judged
	if err != nil {
		m.notProven(WhyNoCredential, err.Error(), "check the secret reference of peer "+m.peer.Name+" and the secret store")
		return
	}
	psk, ok := m.verify(secrets, msg.sender().Body(), msg.auth.Data)
	if !ok {
		m.notProven(WhyPeerAuth, fmt.Sprintf("the AUTH value of %s was made with another secret than ours (%d tried)", m.remoteID, len(secrets)),
			"put the same pre-shared key on both ends")
		return
	}
	if !m.initiator {
		m.serve.auth.psk = psk // the answer is signed with the same
	}
	m.peerProven(kindPSK)
}

// verify finds the secret that the peer's AUTH was made with. Every secret is
// tried, whichever fits, so that the time does not tell.
func (m *Machine) verify(secrets []ipsec.Secret, id, auth []byte) (ipsec.Secret, bool) {
	signed := m.signedBy(!m.initiator, id)
	var found ipsec.Secret
	ok := false
	for _, s := range secrets {
		if suite.VerifyPSK(m.prf, s, signed, auth) && !ok {
			found, ok = s, true
		}
	}
	return found, ok
}

// dummySecret makes a check against an unknown identity take as long as one
// against a known identity (RFC 7296 §2.21.2 gives both the same answer).
func (m *Machine) dummySecret() ipsec.Secret { return ipsec.NewSecret(m.random(32)) }
