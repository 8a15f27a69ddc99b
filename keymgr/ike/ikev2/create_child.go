package ikev2

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// CREATE_CHILD_SA (RFC 7296 §1.3), here for CHILD SAs, new (§1.3.1) and rekeyed
// (§1.3.3):
//
//	HDR, SK {[N(REKEY_SA),] SA, Ni, [KEi,] TSi, TSr}  -->
//	                    <--  HDR, SK {SA, Nr, [KEr,] TSi, TSr}
//
// The CHILD SA of IKE_AUTH takes the same way, without nonces and key exchange
// of its own. With an IKE proposal in SA it is in rekey_ike.go.
var createChildRows = []row{
	{exchange: wire.CreateChildSA,
		required: []wire.PayloadType{wire.TypeSA, wire.TypeNonce},
		optional: []wire.PayloadType{wire.TypeKE, wire.TypeTSi, wire.TypeTSr, wire.TypeNotify},
		handle:   (*Machine).createChildRequest},
	{exchange: wire.CreateChildSA, response: true,
		required: []wire.PayloadType{wire.TypeSA, wire.TypeNonce},
		optional: []wire.PayloadType{wire.TypeKE, wire.TypeTSi, wire.TypeTSr, wire.TypeNotify},
		handle:   (*Machine).createChildResponse},
}

// rekeyPause is the time until a failed rekey is tried again.
const rekeyPause = 30 * time.Second

// negotiation is one CHILD SA being agreed, on either side.
type negotiation struct {
	initiator bool // of this exchange
	rule      ipsec.Rule
	mode      ipsec.Mode

	replaces    uint64 // the CHILD SA that it rekeys,
	old         ipsec.SPI
	oldProtocol ipsec.Protocol
	rekeyed     uint32 // and how many rekeys led to it, this one included

	resource uint32 // the queue it is for (resource.go)
	fills    bool   // this end makes those for the queues
	spreads  bool   // the peer sent SA_RESOURCE_INFO

	plain     bool // the peer sent ESP_TFC_PADDING_NOT_SUPPORTED
	fragments bool // the peer sent NON_FIRST_FRAGMENTS_ALSO, and we are the responder
	more      bool // another rule of ours would take what the peer proposed besides

	proposals []ipsec.Proposal // ours
	sa        *wire.SA         // to send: all of them, or the one chosen
	suite     ipsec.Suite
	spi       ipsec.SPI // inbound
	peerSPI   ipsec.SPI
	local     []ipsec.TrafficSelector // to send
	remote    []ipsec.TrafficSelector
	selectors []ipsec.Selector

	ni, nr  []byte
	nonce   []byte // ours, when this exchange has nonces
	method  uint16 // key exchange, or KENone
	public  []byte // ours
	methods int    // INVALID_KE_PAYLOAD answers followed

	child *child
	void  bool // the peer's rekey that has lost against ours: the peer closes it
}

// payloads are our half of the negotiation.
func (n *negotiation) payloads() []wire.Payload {
	return n.appendPayloads(make([]wire.Payload, 0, usualPayloads))
}

func (n *negotiation) appendPayloads(ps []wire.Payload) []wire.Payload {
	tsi, tsr := n.remote, n.local
	if n.initiator {
		tsi, tsr = tsr, tsi
		if n.replaces != 0 {
			ps = append(ps, wire.ChildNotify(wire.RekeySA, n.oldProtocol, n.old))
		}
	}
	if n.mode == ipsec.ModeTransport {
		ps = append(ps, &wire.Notify{Message: wire.UseTransportMode})
	}
	if n.rule.Template.Resources > 0 && (n.initiator || n.spreads) {
		ps = append(ps, resourceInfo(n.resource))
	}
	// In transport mode nothing tells where padding begins (RFC 4303 §2.7).
	if n.mode == ipsec.ModeTransport && slices.ContainsFunc(n.sa.Proposals, func(p wire.Proposal) bool { return p.Protocol == wire.ProtocolID(ipsec.ProtocolESP) }) {
		ps = append(ps, &wire.Notify{Message: wire.ESPTFCPaddingNotSupported})
	}
	if n.fragments {
		ps = append(ps, &wire.Notify{Message: wire.NonFirstFragmentsAlso})
	}
	ps = append(ps, n.sa)
	if n.nonce != nil {
		ps = append(ps, &wire.Nonce{Data: n.nonce})
	}
	if n.method != ipsec.KENone {
		ps = append(ps, &wire.KE{Method: n.method, Data: n.public})
	}
	ps = append(ps, &wire.TS{PayloadType: wire.TypeTSi, Selectors: tsi}, &wire.TS{PayloadType: wire.TypeTSr, Selectors: tsr})
	if n.more {
		ps = append(ps, &wire.Notify{Message: wire.AdditionalTSPossible})
	}
	return ps
}

// propose starts a negotiation for a rule.
func (m *Machine) propose(rule string, packet *ipsec.Flow, createChild bool) (*negotiation, error) {
	return m.proposeWithin(nil, rule, packet, createChild)
}

// proposeWithin is propose for a part of the rule's selectors; nil for all of them.
func (m *Machine) proposeWithin(part *ipsec.Selector, rule string, packet *ipsec.Flow, createChild bool) (*negotiation, error) {
	r, ok := m.ruleOf(rule)
	if !ok {
		return nil, fmt.Errorf("rule %q is not a secure rule for peer %q in policy %s", rule, m.peer.Name, m.policy.Version)
	}
	n := &negotiation{initiator: true, rule: r, mode: r.Template.Mode, proposals: m.childProposals(r.Template, createChild)}
	if len(n.proposals) == 0 && len(r.Template.Proposals) > 0 {
		return nil, errAHNAT
	}
	if len(n.proposals) == 0 {
		return nil, fmt.Errorf("rule %q has no ESP or AH proposal", rule)
	}
	if part != nil {
		both, ok := r.Selector.Intersect(*part)
		if !ok {
			return nil, fmt.Errorf("rule %q has the selector %s now, which does not hold %s any more", rule, r.Selector, part)
		}
		r.Selector, packet = both, nil
	}
	if n.local, n.remote, ok = m.sides(r, packet); !ok {
		return nil, fmt.Errorf("rule %q wants transport mode, but its selector %s does not hold both ends %s and %s", rule, r.Selector, m.path.Local.Addr(), m.path.Remote.Addr())
	}
	n.spi = m.env.AllocSPI()
	n.sa = offer(n.proposals, binary.BigEndian.AppendUint32(nil, uint32(n.spi)))
	if createChild {
		n.method = firstKE(n.proposals)
		n.nonce = m.random(32)
		n.ni = n.nonce
	}
	return n, nil
}

// offerExchange offers the key exchanges of the IKE SA besides: a peer may want perfect
// forward secrecy where our policy does not ask for it, and else has a CHILD SA that
// works until its first rekey. As a responder we tolerate the same (choose).
func (n *negotiation) offerExchange(s ipsec.Suite) {
	n.method = s.KE.ID
	for i := range n.proposals {
		p := &n.proposals[i]
		for _, t := range append([]ipsec.Transform{s.KE}, s.Additional()...) {
			p.Transforms = append(p.Transforms, t, ipsec.Transform{Type: t.Type}) // or NONE
		}
	}
	n.sa = offer(n.proposals, binary.BigEndian.AppendUint32(nil, uint32(n.spi)))
}

// startChild starts taskNewChild and taskRekeyChild.
func (m *Machine) startChild() {
	t := m.task
	if t.kind == taskRekeyChild {
		old := m.childByID(t.child)
		if old == nil || old.state != childUp {
			m.task = nil // gone, or about to go
			return
		}
		if m.heldBy(old) != nil || m.servesRekeyOf(old) {
			m.task = nil // the peer replaces it
			m.rekeyLater(old)
			return
		}
		t.rule = old.Rule
	} else if len(m.children) >= maxChildren {
		m.childFailed(m.childFailure(wire.CreateChildSA, t.rule, WhyPolicy, fmt.Sprintf("the IKE SA has %d CHILD SAs, which is the bound", maxChildren), "use wider selectors"))
		return
	}
	if t.resource != 0 && (m.fallback(t.rule) == nil || m.hasResource(t.rule, t.resource)) {
		m.task = nil // it has become pointless
		return
	}
	n, err := m.proposeWithin(m.singlePair(t), t.rule, t.packet, true)
	if err != nil {
		m.childFailed(m.childFailure(wire.CreateChildSA, t.rule, WhyPolicy, err.Error(), adviceFor(err)))
		return
	}
	if old := m.childByID(t.child); t.kind == taskRekeyChild {
		n.replaces, n.rekeyed, n.old, n.oldProtocol = old.ID, old.Rekeyed+1, old.SPIIn, old.protocol
		n.resource, n.fills = old.Resource, old.fills
		if old.Suite.KE.ID != ipsec.KENone && n.method == ipsec.KENone {
			n.offerExchange(m.suite) // the peer wanted one the last time
		}
	} else {
		n.resource = t.resource
	}
	t.nego = n
	if n.method == ipsec.KENone {
		m.sendCreateChild(nil)
		return
	}
	m.generate(n.method)
}

func (m *Machine) sendCreateChild(err error) {
	t := m.task
	if err != nil {
		m.childFailed(m.childFailure(wire.CreateChildSA, t.rule, WhyUnsupported, err.Error(), "choose another key exchange for pfs"))
		return
	}
	t.nego.method, t.nego.public = t.half.Method, t.half.Public
	m.request(wire.CreateChildSA, t.nego.payloads()...)
}

// createChildResponse is the initiator's side.
func (m *Machine) createChildResponse(msg *message) {
	if m.task.kind == taskRekeyIKE {
		m.rekeyIKEResponse(msg)
		return
	}
	t := m.task
	if n := msg.notify(wire.InvalidKEPayload); n != nil && len(n.Data) == 2 {
		method := binary.BigEndian.Uint16(n.Data)
		if t.nego.methods++; t.nego.methods <= maxSteers && method != t.nego.method && offers(t.nego.proposals, method) {
			m.generate(method)
			return
		}
	}
	_, ours := m.ruleOf(t.nego.rule.Name) // still, after a restart too
	if r := msg.refusal(); r != nil && r.Message == wire.NoProposalChosen && t.nego.method == ipsec.KENone && ours {
		t.nego.offerExchange(m.suite)
		m.generate(t.nego.method)
		return
	}
	if msg.nonce != nil {
		t.nego.nr = msg.nonce.Data
	}
	m.childAnswered(msg)
}

// childAnswered takes the responder's half, of IKE_AUTH or CREATE_CHILD_SA.
func (m *Machine) childAnswered(msg *message) {
	n := m.task.nego
	if refusal := msg.refusal(); refusal != nil {
		m.childRefused(msg, refusal)
		return
	}
	if msg.sa == nil || msg.tsi == nil || msg.tsr == nil || n.nonce != nil && msg.nonce == nil {
		m.badChild(0, "INVALID_SYNTAX", "the response lacks an SA, Nonce or TS payload")
		return
	}
	c, err := accept(n.proposals, msg.sa, 4)
	if err != nil {
		m.badChild(0, wire.NoProposalChosen.String(), err.Error())
		return
	}
	n.suite, n.peerSPI = c.suite, ipsec.SPI(binary.BigEndian.Uint32(c.proposal.SPI))
	if n.replaces == 0 && n.resource == 0 {
		n.fills = n.rule.Template.Resources > 0 && msg.notify(wire.SAResourceInfo) != nil
	}
	n.plain = msg.notify(wire.ESPTFCPaddingNotSupported) != nil
	transport := msg.notify(wire.UseTransportMode) != nil
	if transport != (n.mode == ipsec.ModeTransport) {
		// RFC 7296 §1.3.1: "If this is unacceptable to the initiator, the
		// initiator MUST delete the SA."
		m.badChild(n.peerSPI, WhyMode, fmt.Sprintf("the rule wants %s mode, and the peer did not agree to it", n.mode))
		return
	}
	local, remote := msg.tsi.Selectors, msg.tsr.Selectors
	if transport && m.nat.local {
		local = substitute(local, m.path.Local.Addr())
	}
	if transport && m.nat.remote {
		remote = substitute(remote, m.path.Remote.Addr())
	}
	n.selectors = pairs(local, remote)
	if !within(local, n.local) || !within(remote, n.remote) || len(n.selectors) == 0 {
		m.badChild(n.peerSPI, wire.TSUnacceptable.String(), fmt.Sprintf("the peer answered with selectors outside of those proposed: %s %s", msg.tsi, msg.tsr))
		return
	}
	if err := m.task.agreed(c.suite, msg); err != nil {
		m.badChild(n.peerSPI, wire.InvalidSyntax.String(), err.Error())
		return
	}
	switch {
	case c.suite.KE.ID == ipsec.KENone: // as offered, whether or not a KE payload went with it
		m.childShared(ipsec.Secret{}, nil)
	case msg.ke == nil || c.suite.KE.ID != n.method || msg.ke.Method != n.method:
		m.badChild(n.peerSPI, wire.InvalidKEPayload.String(), "the response's key exchange is not the one asked for")
	default:
		m.finish(msg.ke.Data)
	}
}

// childShared installs what was agreed, as the initiator: inbound first.
func (m *Machine) childShared(shared ipsec.Secret, err error) {
	t, n := m.task, m.task.nego
	secrets := append(t.secrets, shared)
	defer wipe(secrets)
	t.half.wipe()
	if err != nil {
		m.badChild(n.peerSPI, WhyUnsupported, err.Error()) // RFC 6989 §2.5 at worst
		return
	}
	if slices.Contains(t.dead, n.peerSPI) {
		m.childFailed(m.childFailure(t.exchange, n.rule.Name, WhyClosing, "the peer closed the CHILD SA before it was complete", "look at the peer's log"))
		return
	}
	if m.lost() {
		m.redundant(m.describe(n)) // never installed
		return
	}
	id, err := m.newChild(n, secrets)
	if err != nil {
		m.badChild(n.peerSPI, WhyUnsupported, err.Error())
		return
	}
	t.phase, t.wait = phaseInstallIn, id
}

// taskInstalled goes on when the worker has the inbound, then the outbound SA.
func (m *Machine) taskInstalled(err error) {
	t, c := m.task, m.task.nego.child
	switch {
	case c.state == childGone: // closed by the peer meanwhile
		m.task = nil
		return
	case err != nil:
		if t.phase == phaseInstallIn {
			c.inAsked = false
		} else {
			c.outAsked = false
		}
		m.task = nil
		m.installFailed(c, err)
		return
	case t.phase == phaseInstallIn:
		t.phase, t.wait = phaseInstallOut, m.installOut(c)
		return
	}
	if m.lost() {
		m.redundant(c)
		return
	}
	if x := t.crossed; x != nil {
		x.void = true
		if x.child != nil {
			x.child.replaces = 0
		}
	}
	m.up(c)
	m.task = nil
	if old := m.childByID(c.replaces); old != nil && old.state != childDeleting {
		old.state = childReplaced
		m.enqueue(task{kind: taskDeleteChild, child: old.ID, why: "rekeyed"})
	}
}

// childRefused takes the responder's refusal.
func (m *Machine) childRefused(msg *message, refusal *wire.Notify) {
	t, n := m.task, m.task.nego
	t.wipe() // whatever follows begins with another key pair
	switch refusal.Message {
	case wire.TemporaryFailure:
		if m.postpone() {
			return
		}
		m.task = t
	case wire.TSMaxQueue, wire.NoAdditionalSAs:
		if t.resource != 0 {
			m.resourceRefused(refusal.Message)
			return
		}
	case wire.SinglePairRequired:
		next := task{kind: t.kind, rule: n.rule.Name, packet: t.packet, resource: t.resource, single: true, child: t.child}
		if t.kind == taskConnect {
			next.kind = taskNewChild // only its CHILD SA is left to do
		}
		if !t.single && m.singlePair(&next) != nil {
			m.task = nil
			m.enqueue(next)
			return
		}
	case wire.ChildSANotFound:
		old := m.childByID(n.replaces)
		m.task = nil
		if old != nil && t.crossed == nil {
			// RFC 7296 §2.25.1: "it SHOULD silently delete the Child SA and send
			// a request to create a new Child SA from scratch".
			m.dropChild(old, refusal.Message.String())
			m.enqueue(task{kind: taskNewChild, rule: n.rule.Name, resource: n.resource})
		}
		return
	}
	f := m.childFailure(msg.Exchange, n.rule.Name, refusal.Message.String(), "the peer refused the CHILD SA with "+refusal.Message.String(), "look at the peer's log")
	switch refusal.Message {
	case wire.NoProposalChosen:
		f = compare(f, n.proposals, nil)
		f.Advice = "the peer accepts none of our ESP suites, or not this mode: compare them with its own"
		if msg.Exchange == wire.CreateChildSA {
			f.Advice = "the peer accepts none of our ESP suites, or not this mode, or wants another key exchange (pfs): compare them with its own"
		}
	case wire.TSUnacceptable, wire.SinglePairRequired:
		f.Ours = []string{n.rule.Name + ": " + n.rule.Selector.String()}
		f.Advice = "the peer has no rule for these selectors: compare them with its own"
	}
	m.childFailed(f)
}

// childFailed ends the current task with a report. A rekey is tried again before
// the hard lifetime.
func (m *Machine) childFailed(f ike.Failure) {
	t := m.task
	m.task = nil
	t.wipe()
	if t.resource != 0 {
		f.Rule = fmt.Sprintf("%s queue %d", t.rule, t.resource-1) // the rule itself has its SA
	}
	m.emit(ike.Failed{Failure: f})
	if old := m.childByID(t.child); t.kind == taskRekeyChild && old != nil {
		m.rekeyLater(old)
	}
}

// rekeyLater is for a CHILD SA whose rekey, ours or the peer's, may have come to nothing.
func (m *Machine) rekeyLater(c *child) { c.rekeyAt = m.now.Add(rekeyPause + m.below(rekeyPause)) }

// badChild is a response that we cannot live with. The peer believes in the
// CHILD SA, so it is deleted; without the peer's SPI, the IKE SA is.
func (m *Machine) badChild(spi ipsec.SPI, why, detail string) {
	t, n := m.task, m.task.nego
	m.childFailed(m.childFailure(t.exchange, n.rule.Name, why, detail, "compare the rule with the peer's configuration"))
	if spi == 0 {
		m.terminate(why)
		return
	}
	c := m.describe(n)
	c.state = childReplaced // nothing of it is installed
	m.enqueue(task{kind: taskDeleteChild, child: c.ID, why: why})
}
