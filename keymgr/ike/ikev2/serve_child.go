package ikev2

import (
	"encoding/binary"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// createChildRequest is the responder's side.
func (m *Machine) createChildRequest(msg *message) {
	if isIKE(msg.sa) {
		m.rekeyIKERequest(msg)
		return
	}
	m.dropFollowUps(ofIKE) // the peer would not ask for this before its rekey is done: it has given it up
	if msg.tsi == nil || msg.tsr == nil {
		m.refuse(wire.InvalidSyntax)
		m.fail(m.failure(msg.Exchange, wire.InvalidSyntax.String(), "a CHILD SA request without traffic selectors", "report this to the maker of the peer's IKE implementation"))
		return
	}
	if t, busy := m.refusesChild(); busy {
		m.refuse(t)
		return
	}
	m.serveChild(msg)
}

func isIKE(sa *wire.SA) bool {
	return len(sa.Proposals) > 0 && sa.Proposals[0].Protocol == wire.ProtocolID(ipsec.ProtocolIKE)
}

// serveChild answers a CHILD SA request, of IKE_AUTH or CREATE_CHILD_SA.
func (m *Machine) serveChild(msg *message) {
	n := &negotiation{}
	m.serve.child = n
	if rekey := msg.notify(wire.RekeySA); rekey != nil && m.serve.auth == nil {
		old, refusal := m.rekeyed(rekey)
		if refusal != nil {
			m.refuseChild(refusal, nil)
			return
		}
		n.replaces, n.rekeyed, n.resource, n.fills = old.ID, old.Rekeyed+1, old.Resource, old.fills
		n.rule.Name = old.Rule
	}
	if n.replaces == 0 && len(m.children) >= maxChildren {
		m.refuseChild(&wire.Notify{Message: wire.NoAdditionalSAs}, nil)
		return
	}
	var ok bool
	if n.rule, n.local, n.remote, ok = m.answerRule(msg, n.rule.Name); !ok {
		f := m.childFailure(msg.Exchange, "", wire.TSUnacceptable.String(), "none of our rules for this peer overlaps the selectors it proposes", "add a rule for them, or correct the peer's")
		f = m.selectorFailure(f, msg)
		m.refuseChild(&wire.Notify{Message: wire.TSUnacceptable}, &f)
		return
	}
	if !m.takesResource(n, msg) {
		m.refuseChild(&wire.Notify{Message: wire.TSMaxQueue}, nil)
		return
	}
	n.spreads = msg.notify(wire.SAResourceInfo) != nil
	n.selectors = pairs(n.local, n.remote)
	n.mode = n.rule.Template.Mode
	n.plain = msg.notify(wire.ESPTFCPaddingNotSupported) != nil
	n.more = n.replaces == 0 && m.takesMore(n, msg)
	// What comes in fragments is made whole before it is compared (RFC 4301 §7.2).
	n.fragments = n.mode == ipsec.ModeTunnel && msg.notify(wire.NonFirstFragmentsAlso) != nil
	if n.mode == ipsec.ModeTransport && msg.notify(wire.UseTransportMode) == nil {
		f := m.childFailure(msg.Exchange, n.rule.Name, WhyMode, "the rule wants transport mode, the peer asks for tunnel mode", "use the same mode on both ends")
		m.refuseChild(&wire.Notify{Message: wire.NoProposalChosen}, &f)
		return
	}
	createChild := m.serve.auth == nil
	n.proposals = m.childProposals(n.rule.Template, createChild)
	var tolerated ipsec.Suite
	if createChild {
		tolerated = m.suite
	}
	c, ok := choose(n.proposals, msg.sa, 4, tolerated)
	if !ok {
		f := m.childFailure(msg.Exchange, n.rule.Name, wire.NoProposalChosen.String(), "none of the peer's proposals is ours", "")
		if f = compare(f, n.proposals, msg.sa); len(n.proposals) == 0 {
			f.Detail, f.Advice = errAHNAT.Error(), adviceAHNAT
		}
		m.refuseChild(&wire.Notify{Message: wire.NoProposalChosen}, &f)
		return
	}
	n.suite, n.peerSPI = c.suite, ipsec.SPI(binary.BigEndian.Uint32(c.proposal.SPI))
	n.spi = m.env.AllocSPI()
	c.proposal.SPI = binary.BigEndian.AppendUint32(nil, uint32(n.spi))
	n.sa = &wire.SA{Proposals: []wire.Proposal{c.proposal}}
	if !createChild {
		n.ni, n.nr = m.first.ni, m.first.nr
		m.installAnswer(nil)
		return
	}
	n.ni, n.nonce = msg.nonce.Data, m.random(32)
	n.nr = n.nonce
	n.method = c.suite.KE.ID
	if n.method != ipsec.KENone && (msg.ke == nil || msg.ke.Method != n.method) {
		m.refuseChild(&wire.Notify{Message: wire.InvalidKEPayload, Data: octets16(n.method)}, nil)
		return
	}
	m.cross(n)
	if n.method == ipsec.KENone {
		m.installAnswer(nil)
		return
	}
	m.respond(n.method, msg.ke.Data)
}

func (m *Machine) answerChildKE(a ike.KeyExchanged) {
	n := m.serve.child
	if a.Err != nil {
		f := m.childFailure(wire.CreateChildSA, n.rule.Name, wire.InvalidSyntax.String(), a.Err.Error(), "report this to the maker of the peer's IKE implementation")
		m.refuse(wire.InvalidSyntax)
		m.emit(ike.Failed{Failure: f})
		m.end(wire.InvalidSyntax.String()) // RFC 6989 §2.5
		return
	}
	n.public = a.Public
	if methods := methodsOf(n.suite); len(methods) > 0 {
		m.reply(append(n.payloads(), m.awaitFollowUp(&followUp{methods: methods, secrets: []ipsec.Secret{a.Shared}, child: n}))...)
		return
	}
	m.installAnswer([]ipsec.Secret{a.Shared})
}

// installAnswer puts the inbound SA in place; the response waits for it, because
// the peer may send as soon as it has the response.
func (m *Machine) installAnswer(secrets []ipsec.Secret) {
	defer wipe(secrets)
	id, err := m.newChild(m.serve.child, secrets)
	if err != nil {
		m.uncross(m.serve.child)
		f := m.childFailure(m.serve.exchange, m.serve.child.rule.Name, WhyUnsupported, err.Error(), "remove this suite from the rule's action")
		m.refuseChild(&wire.Notify{Message: wire.NoProposalChosen}, &f)
		return
	}
	m.serve.phase, m.serve.wait = phaseInstallIn, id
}

// answerChild responds when the worker has the inbound SA.
func (m *Machine) answerChild(err error) {
	s, n := m.serve, m.serve.child
	c := n.child
	if err != nil {
		m.uncross(n)
		c.inAsked = false
		m.dropChild(c, WhyInstall)
		f := m.childFailure(s.exchange, n.rule.Name, WhyInstall, err.Error(), adviceInstall(err))
		m.refuseChild(&wire.Notify{Message: wire.TemporaryFailure}, &f)
		return
	}
	if s.auth != nil {
		m.answerAuth(n, nil)
	} else if s.answer != nil {
		m.reply(s.answer...) // to the last IKE_FOLLOWUP_KE
	} else {
		m.reply(n.payloads()...)
	}
	if n.void {
		c.state, c.replaces = childHeld, 0
		return
	}
	if m.childByID(n.replaces) != nil {
		c.state = childHeld // we go on sending on the old one until its delete arrives: answerDelete
		return
	}
	if n.resource != 0 {
		c.outAt = m.now.Add(settleTime)
		return
	}
	c.wait = m.installOut(c)
}

// refuseChild answers without a CHILD SA; in IKE_AUTH the IKE SA stands.
func (m *Machine) refuseChild(n *wire.Notify, f *ike.Failure) {
	if f != nil {
		m.emit(ike.Failed{Failure: *f})
	}
	if m.serve.auth != nil {
		m.answerAuth(nil, n)
		return
	}
	m.reply(n)
}
