package ikev2

import (
	"errors"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Authentication with pre-shared keys (RFC 7296 §2.15). A profile may lead to
// several secrets, newest first, so that a secret can be rotated: whoever
// verifies tries each, whoever speaks first signs with the first.

// pskRefs are the secret references of a profile, in order.
func pskRefs(p ipsec.Peer) []string {
	var out []string
	for _, a := range p.Auth {
		if a.PSK != "" {
			out = append(out, a.PSK)
		}
	}
	return out
}

// needSecret asks for the initiator's secret.
func (m *Machine) needSecret() {
	t := m.task
	refs := pskRefs(m.peer)
	if len(refs) == 0 {
		m.fail(m.failure(wire.IKEAuth, WhyNoCredential, "peer "+m.peer.Name+" has no pre-shared key in the policy", "add a psk method to its authentication"))
		return
	}
	t.phase, t.wait = phaseSecret, m.nextID()
	m.emit(ike.NeedPSK{ID: t.wait, Refs: refs})
}

// secretsFound is the engine's answer to either side's question.
func (m *Machine) secretsFound(ev ike.PSKs) {
	err := ev.Err
	if err == nil && len(ev.Secrets) == 0 {
		err = errors.New("the secret store has no secret for " + m.peer.Name)
	}
	if t := m.task; t != nil && t.phase == phaseSecret && t.wait == ev.ID {
		t.wait = 0
		if err != nil {
			m.fail(m.failure(wire.IKEAuth, WhyNoCredential, err.Error(), "check the secret reference of peer "+m.peer.Name+" and the secret store"))
			return
		}
		m.first.secrets = ev.Secrets
		m.sendAuth()
		return
	}
	if s := m.serve; s != nil && s.phase == phaseSecret && s.wait == ev.ID {
		s.wait = 0
		m.verifyInitiator(ev.Secrets, err)
	}
}

// signedBy are the octets that one side's AUTH covers.
func (m *Machine) signedBy(initiator bool, id []byte) []byte {
	f := m.first
	if initiator {
		return suite.SignedOctets(m.prf, f.request, f.nr, m.keys.SKpi, id)
	}
	return suite.SignedOctets(m.prf, f.response, f.ni, m.keys.SKpr, id)
}

// sign is our AUTH payload.
func (m *Machine) sign(psk ipsec.Secret, id []byte) (*wire.Auth, error) {
	b, err := suite.AuthPSK(m.prf, psk, m.signedBy(m.initiator, id))
	return &wire.Auth{Method: wire.AuthSharedKey, Data: b}, err
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
