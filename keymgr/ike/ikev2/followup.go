package ikev2

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// IKE_FOLLOWUP_KE (RFC 9370 §2.2.4): the additional key exchanges after a
// CREATE_CHILD_SA that has agreed on them, one each. The SA is made when the last
// one is done; until then the old one serves.
//
//	HDR, SK {SA, Ni, KEi(0), ...}  -->
//	                    <--  HDR, SK {SA, Nr, KEr(0), N(ADDITIONAL_KEY_EXCHANGE)(link1)}
//	HDR, SK {KEi(1), N(ADDITIONAL_KEY_EXCHANGE)(link1)}  -->
//	                    <--  HDR, SK {KEr(1), [N(ADDITIONAL_KEY_EXCHANGE)(link2)]}
//
// The link ties an exchange to the one before; it means nothing to the initiator.
var followUpRows = []row{
	{exchange: wire.IKEFollowUpKE,
		required: []wire.PayloadType{wire.TypeKE}, optional: []wire.PayloadType{wire.TypeNotify},
		handle: (*Machine).followUpRequest},
	{exchange: wire.IKEFollowUpKE, response: true,
		required: []wire.PayloadType{wire.TypeKE}, optional: []wire.PayloadType{wire.TypeNotify},
		handle: (*Machine).followUpResponse},
}

const (
	followUpTime = 70 * time.Second // a responder waits so long for the next one: an initiator repeats it so long
	maxFollowUps = 4                // unfinished ones; the oldest gives way
)

// followUp is what a responder keeps between the exchanges.
type followUp struct {
	link    []byte
	methods []uint16       // still to do
	secrets []ipsec.Secret // SK(0), SK(1) and so on
	ike     *ikeNegotiation
	child   *negotiation // one of both
	until   time.Time
}

// linkNotify carries a link.
func linkNotify(link []byte) *wire.Notify {
	return &wire.Notify{Message: wire.AdditionalKeyExchange, Data: link}
}

// awaitFollowUp waits for the next exchange, and returns the notify that says so.
func (m *Machine) awaitFollowUp(f *followUp) *wire.Notify {
	if len(m.followUps) >= maxFollowUps {
		m.dropFollowUp(m.followUps[0])
	}
	f.link, f.until = m.random(8), m.now.Add(followUpTime)
	m.followUps = append(m.followUps, f)
	return linkNotify(f.link)
}

// takeFollowUp finds what a link leads to.
func (m *Machine) takeFollowUp(n *wire.Notify) *followUp {
	for i, f := range m.followUps {
		if n != nil && subtle.ConstantTimeCompare(n.Data, f.link) == 1 {
			m.followUps = append(m.followUps[:i:i], m.followUps[i+1:]...)
			return f
		}
	}
	return nil
}

// dropFollowUp forgets what the peer has left unfinished. Our own rekey of the same
// SA, which would have crossed it, is free to go on.
func (m *Machine) dropFollowUp(f *followUp) {
	m.takeFollowUp(linkNotify(f.link))
	wipe(f.secrets)
	if t := m.doing(taskRekeyIKE); t != nil && f.ike != nil && t.crossIKE == f.ike {
		t.crossIKE = nil
	}
	if f.child == nil {
		return
	}
	m.uncross(f.child)
	if old := m.childByID(f.child.replaces); old != nil && old.rekeyAt.IsZero() {
		old.rekeyAt = m.now.Add(m.below(rekeyPause))
	}
}

// dropFollowUps forgets those that fit.
func (m *Machine) dropFollowUps(fits func(*followUp) bool) {
	for _, f := range slices.Clone(m.followUps) {
		if fits(f) {
			m.dropFollowUp(f)
		}
	}
}

func ofIKE(f *followUp) bool    { return f.ike != nil }
func ofChild(f *followUp) bool  { return f.child != nil }
func ofAnything(*followUp) bool { return true }

// rekeyingIKE reports that the peer is rekeying the IKE SA.
func (m *Machine) rekeyingIKE() bool {
	return m.serve != nil && m.serve.ike != nil || slices.ContainsFunc(m.followUps, ofIKE)
}

// followUpRequest is the responder's side.
func (m *Machine) followUpRequest(msg *message) {
	f := m.takeFollowUp(msg.notify(wire.AdditionalKeyExchange))
	if f == nil {
		m.refuse(wire.StateNotFound)
		return
	}
	if msg.ke.Method != f.methods[0] {
		m.badKE(msg.Exchange, fmt.Errorf("got key exchange %s, want %s", keName(msg.ke.Method), keName(f.methods[0])))
		return
	}
	m.serve.followUp = f
	m.respond(msg.ke.Method, msg.ke.Data)
}

func (m *Machine) answerFollowUp(a ike.KeyExchanged) {
	f := m.serve.followUp
	if a.Err != nil {
		m.badKE(wire.IKEFollowUpKE, a.Err)
		return
	}
	answer := &wire.KE{Method: f.methods[0], Data: a.Public}
	f.methods, f.secrets = f.methods[1:], append(f.secrets, a.Shared)
	if len(f.methods) > 0 {
		m.reply(answer, m.awaitFollowUp(f))
		return
	}
	m.serve.followUp, m.serve.answer = nil, []wire.Payload{answer}
	if f.ike != nil {
		m.serve.ike = f.ike
		m.completeRekeyIKE(f.secrets)
		return
	}
	m.serve.child = f.child
	m.installAnswer(f.secrets)
}

// further starts the next follow-up of the current task, with the secret of the
// exchange before. False when there is none left.
func (m *Machine) further(shared ipsec.Secret) bool {
	t := m.task
	if len(t.secrets) > 0 {
		t.more = t.more[1:]
	}
	if len(t.more) == 0 {
		return false
	}
	t.secrets = append(t.secrets, shared)
	m.generate(t.more[0])
	return true
}

// agreed takes the follow-ups of the suite that the peer has chosen.
func (t *task) agreed(s ipsec.Suite, msg *message) error {
	t.more = methodsOf(s)
	return t.linked(msg, len(t.more))
}

// linked takes the link to the next exchange, when more are to come.
func (t *task) linked(msg *message, more int) error {
	n := msg.notify(wire.AdditionalKeyExchange)
	if more > 0 && (n == nil || len(n.Data) == 0) {
		return errors.New("the response does not link to the additional key exchange that was agreed")
	}
	if t.link = nil; more > 0 {
		t.link = n.Data
	}
	return nil
}

// sendFollowUp is the initiator's request.
func (m *Machine) sendFollowUp(err error) {
	t := m.task
	if err != nil {
		m.followUpFailed(WhyUnsupported, err.Error())
		return
	}
	m.request(wire.IKEFollowUpKE, &wire.KE{Method: t.half.Method, Data: t.half.Public}, linkNotify(t.link))
}

// followUpResponse is the initiator's side.
func (m *Machine) followUpResponse(msg *message) {
	t := m.task
	if n := msg.refusal(); n != nil {
		if n.Message == wire.StateNotFound {
			n = &wire.Notify{Message: wire.TemporaryFailure} // start over, a little later
		}
		if t.kind == taskRekeyIKE {
			m.rekeyIKERefused(n)
		} else {
			m.childRefused(msg, n)
		}
		return
	}
	if msg.ke == nil || msg.ke.Method != t.half.Method {
		m.followUpFailed(wire.InvalidSyntax.String(), "the response's key exchange is not the one asked for")
		return
	}
	if err := t.linked(msg, len(t.more)-1); err != nil {
		m.followUpFailed(wire.InvalidSyntax.String(), err.Error())
		return
	}
	m.finish(msg.ke.Data)
}

// followUpFailed gives up the SA that was being made: the peer has not made it
// either, or is told to delete it.
func (m *Machine) followUpFailed(why, detail string) {
	t := m.task
	if t.kind != taskRekeyIKE {
		m.badChild(t.nego.peerSPI, why, detail)
		return
	}
	m.rekeyIKEFailed(m.failure(wire.IKEFollowUpKE, why, detail, "look at the peer's log"))
	m.terminate(why)
}

func wipe(secrets []ipsec.Secret) {
	for _, s := range secrets {
		s.Wipe()
	}
}
