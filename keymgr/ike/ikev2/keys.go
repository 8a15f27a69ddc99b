package ikev2

import (
	"bytes"
	"fmt"
	"io"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
)

// PerformKE does what ike.NeedKE asks for. The machine calls it for fast
// methods; the engine does, off its loop, for slow ones.
func PerformKE(random io.Reader, need ike.NeedKE) ike.KeyExchanged {
	a := ike.KeyExchanged{ID: need.ID}
	k, ok := suite.LookupKE(need.Method)
	if !ok {
		a.Err = fmt.Errorf("key exchange method %s is not implemented", ipsec.Transform{Type: ipsec.TransformKE, ID: need.Method})
		return a
	}
	switch {
	case need.Peer == nil:
		var p suite.KeyPair
		p, a.Err = k.Generate(random)
		a.Public, a.State = p.Public, p.Private
	case need.State.IsZero():
		a.Public, a.Shared, a.Err = k.Respond(random, need.Peer)
	default:
		var p suite.KeyPair
		if p, a.Err = k.Restore(need.State); a.Err == nil {
			a.Shared, a.Err = p.Shared(need.Peer)
			p.Private.Wipe()
		}
		need.State.Wipe() // made for this effect
	}
	return a
}

// half is our half of a key exchange that we initiate.
type half struct {
	Method uint16
	Public []byte
	State  ipsec.Secret   // the private key
	pair   *suite.KeyPair // fast methods: the same, ready to use
}

func (h *half) wipe() {
	h.State.Wipe()
	*h = half{}
}

// generate makes the current task's half and goes on with keyReady, at once or
// when the engine has answered.
func (m *Machine) generate(method uint16) {
	t := m.task
	t.half.wipe()
	t.half.Method, t.phase = method, phaseKey
	k, ok := suite.LookupKE(method)
	if ok && k.Slow {
		t.wait = m.nextID()
		m.emit(ike.NeedKE{ID: t.wait, Method: method})
		return
	}
	var p suite.KeyPair
	err := fmt.Errorf("key exchange method %s is not implemented", ipsec.Transform{Type: ipsec.TransformKE, ID: method})
	if ok {
		p, err = k.Generate(m.env.Rand)
	}
	if err == nil {
		t.half.pair, t.half.Public, t.half.State = &p, p.Public, p.Private
	}
	m.keyReady(err)
}

// finish computes the shared secret with the peer's public value, and goes on
// with sharedReady.
func (m *Machine) finish(peer []byte) {
	t := m.task
	t.phase = phaseShared
	if t.half.pair == nil {
		t.wait = m.nextID()
		m.emit(ike.NeedKE{ID: t.wait, Method: t.half.Method, State: t.half.State.Clone(), Peer: append([]byte(nil), peer...)})
		return
	}
	shared, err := t.half.pair.Shared(peer)
	m.sharedReady(shared, err)
}

// respond answers the peer's public value, and goes on with publicReady.
func (m *Machine) respond(method uint16, peer []byte) {
	need := ike.NeedKE{Method: method, Peer: peer}
	if k, ok := suite.LookupKE(method); ok && k.Slow {
		need.ID, need.Peer = m.nextID(), bytes.Clone(peer)
		m.serve.phase, m.serve.wait = phaseKey, need.ID
		m.emit(need)
		return
	}
	m.publicReady(PerformKE(m.env.Rand, need))
}

// keyExchanged is the engine's answer.
func (m *Machine) keyExchanged(ev ike.KeyExchanged) {
	if ev.ID != 0 && m.take(func(t *task) bool { return t.wait == ev.ID }) {
		switch t := m.task; t.phase {
		case phaseKey:
			t.wait = 0
			t.half.Public, t.half.State = ev.Public, ev.State
			m.keyReady(ev.Err)
		case phaseShared:
			t.wait = 0
			m.sharedReady(ev.Shared, ev.Err)
		}
		return
	}
	if s := m.serve; s != nil && s.phase == phaseKey && s.wait == ev.ID {
		s.wait = 0
		m.publicReady(ev)
		return
	}
	ev.State.Wipe() // whoever waited is gone
	ev.Shared.Wipe()
}

// keyReady goes on with a task whose key pair is there.
func (m *Machine) keyReady(err error) {
	switch {
	case len(m.task.secrets) > 0:
		m.sendFollowUp(err)
		return
	case m.task.kind == taskConnect && m.tx != nil:
		m.sendIntermediate(err)
		return
	}
	switch m.task.kind {
	case taskConnect:
		m.sendInit(err)
	case taskNewChild, taskRekeyChild:
		m.sendCreateChild(err)
	case taskRekeyIKE:
		m.sendRekeyIKE(err)
	}
}

// sharedReady goes on with a task whose shared secret is there.
func (m *Machine) sharedReady(shared ipsec.Secret, err error) {
	if err == nil && m.further(shared) {
		return
	}
	switch m.task.kind {
	case taskConnect:
		if m.tx != nil {
			m.intermediateShared(shared, err)
			return
		}
		m.initShared(shared, err)
	case taskNewChild, taskRekeyChild:
		m.childShared(shared, err)
	case taskRekeyIKE:
		m.rekeyIKEShared(shared, err)
	}
}

// publicReady goes on with a request whose key exchange is done.
func (m *Machine) publicReady(a ike.KeyExchanged) {
	switch {
	case m.serve.first:
		m.answerIntermediate(a)
	case m.serve.followUp != nil:
		m.answerFollowUp(a)
	case m.serve.ike != nil:
		m.answerRekeyIKE(a)
	case m.serve.child != nil:
		m.answerChildKE(a)
	default:
		m.answerInit(a)
	}
}

// keyIKE derives the secrets of the IKE SA (RFC 7296 §2.14 or §2.18).
func (m *Machine) keyIKE(s ipsec.Suite, skeyseed ipsec.Secret, ni, nr []byte) error {
	defer skeyseed.Wipe()
	var err error
	if m.prf, err = suite.NewPRF(s.PRF); err != nil {
		return err
	}
	if m.keys, err = suite.NewIKEKeys(s, skeyseed, ni, nr, m.spiI, m.spiR); err != nil {
		return err
	}
	i, r, err := m.keys.Ciphers(s)
	if err != nil {
		return err
	}
	m.suite = s
	m.tx, m.rx = r, i
	if m.initiator {
		m.tx, m.rx = i, r
	}
	return nil
}
