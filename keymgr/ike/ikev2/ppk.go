package ikev2

import (
	"fmt"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Postquantum preshared keys (RFC 8784). USE_PPK in both messages of IKE_SA_INIT
// agrees on it; PPK_IDENTITY in IKE_AUTH names the key, and its presence in the
// response says that it is used. A PPK that is optional for the initiator comes
// with NO_PPK_AUTH, its AUTH data without the PPK, for a responder that lacks it.
//
// USE_PPK obliges the initiator to name one, so it reads its PPK first: one that is
// optional and cannot be read is not spoken of.

// ppkUse is what IKE_AUTH needs of it.
type ppkUse struct {
	asked   bool          // the initiator has sent USE_PPK
	secret  ipsec.Secret  // the initiator's PPK, until it is in the keys
	agreed  bool          // both have
	without suite.IKEKeys // SK_d', SK_pi' and SK_pr', while the keys have the PPK in them
	applied bool
}

// usePPK is the notify for IKE_SA_INIT: of an initiator that has one for the peer,
// and of a responder that may have, when it was asked.
func (m *Machine) usePPK() []wire.Payload {
	x := &m.first.ppk
	if m.initiator {
		x.asked = !x.secret.IsZero()
	} else {
		x.agreed = x.asked && slices.ContainsFunc(m.candidates, func(p ipsec.Peer) bool { return p.PPK != nil })
	}
	if m.initiator && x.asked || x.agreed {
		return []wire.Payload{&wire.Notify{Message: wire.UsePPK}}
	}
	return nil
}

// ppkAnswered reads the responder's side of the agreement. It reports false for
// one that lacks the PPK which our policy requires.
func (m *Machine) ppkAnswered(msg *message) bool {
	x := &m.first.ppk
	x.agreed = x.asked && msg.notify(wire.UsePPK) != nil
	return x.agreed || m.peer.PPK == nil || !m.peer.PPK.Required
}

// askPPK gets the secret, and reports whether there is one to wait for.
func (m *Machine) askPPK() bool {
	p := m.peer.PPK
	if p == nil {
		return false
	}
	m.emit(ike.NeedPSK{ID: m.await(phasePPK), Refs: []string{p.Secret}, Optional: !p.Required})
	return true
}

// ppkFound goes on with the secret, or without.
func (m *Machine) ppkFound(secrets []ipsec.Secret, err error) {
	if m.initiator {
		switch {
		case err == nil:
			m.first.ppk.secret = secrets[0]
		case m.peer.PPK.Required:
			m.fail(m.failure(wire.IKESAInit, WhyNoCredential, err.Error(), "check the ppk in the authentication of peer "+m.peer.Name+", and the secret store"))
			return
		}
		m.generate(firstKE(m.peer.Proposals))
		return
	}
	if err == nil {
		err = m.applyPPK(secrets[0])
	}
	if err == nil {
		m.judge(m.serve.auth.msg)
		return
	}
	if !m.withoutPPK() {
		m.refuseAuth(WhyNoCredential, err.Error(), "check the ppk in the authentication of peer "+m.peer.Name+", and the secret store")
	}
}

// applyPPK derives SK_d, SK_pi and SK_pr anew (RFC 8784 §3).
func (m *Machine) applyPPK(ppk ipsec.Secret) error {
	defer ppk.Wipe()
	keys, err := m.keys.WithPPK(m.prf, ppk)
	if err != nil {
		return err
	}
	m.first.ppk.without, m.keys = m.keys, keys
	m.first.ppk.applied, m.ppk = true, m.peer.PPK.ID
	return nil
}

// dropPPK goes back to the keys without it.
func (m *Machine) dropPPK() {
	x := &m.first.ppk
	for _, s := range []ipsec.Secret{m.keys.SKd, m.keys.SKpi, m.keys.SKpr} {
		s.Wipe()
	}
	m.keys, x.without = x.without, suite.IKEKeys{}
	x.applied, m.ppk = false, ""
}

// forget wipes what is left of the PPK, and of the keys without it.
func (x *ppkUse) forget() {
	x.secret.Wipe()
	if x.applied {
		for _, s := range []ipsec.Secret{x.without.SKd, x.without.SKpi, x.without.SKpr} {
			s.Wipe()
		}
	}
}

// ppkPayloads are the initiator's notifies in IKE_AUTH.
func (m *Machine) ppkPayloads(own ownAuth) []wire.Payload {
	if !m.first.ppk.applied {
		return nil
	}
	ps := []wire.Payload{wire.PPKNotify(m.peer.PPK.ID)}
	if own.without != nil {
		ps = append(ps, &wire.Notify{Message: wire.NoPPKAuth, Data: own.without})
	}
	return ps
}

// optionalPPK reports that AUTH data without the PPK goes along.
func (m *Machine) optionalPPK() bool {
	return m.initiator && m.first.ppk.applied && !m.peer.PPK.Required
}

// judgePPK is the responder's part before it judges (RFC 8784 §3, Table 1). It
// reports whether the judgement has to wait, or is over.
func (m *Machine) judgePPK() bool {
	msg, p := m.serve.auth.msg, m.peer.PPK
	if !m.first.ppk.agreed {
		if p == nil || !p.Required {
			return false
		}
		m.refuseAuth(WhyPPK, "the peer does not use a postquantum preshared key, and the policy for peer "+m.peer.Name+" requires one",
			"configure the peer with the PPK "+p.ID+", or set required: false")
		return true
	}
	n := msg.notify(wire.PPKIdentity)
	if n == nil {
		m.refuseAuth(WhyPPK, "the peer agreed to use a postquantum preshared key and named none", "report this to the maker of the peer's IKE implementation")
		return true
	}
	if id, ok := n.PPKID(); ok && p != nil && id == p.ID {
		return m.askPPK()
	}
	if m.withoutPPK() {
		return true
	}
	want := "none"
	if p != nil {
		want = p.ID
	}
	m.refuseAuth(WhyPPK, fmt.Sprintf("the peer names another postquantum preshared key than ours (ours is %s) and cannot do without, or we must not", want),
		"use the same ppk.id on both ends, or make it optional on both")
	return true
}

// withoutPPK judges by NO_PPK_AUTH, when the policy and the peer let us.
func (m *Machine) withoutPPK() bool {
	msg, p := m.serve.auth.msg, m.peer.PPK
	n := msg.notify(wire.NoPPKAuth)
	if n == nil || p != nil && p.Required {
		return false
	}
	msg.auth = &wire.Auth{Method: msg.auth.Method, Data: n.Data}
	m.judge(msg)
	return true
}
