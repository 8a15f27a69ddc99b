package ikev2

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// CREATE_CHILD_SA that rekeys the IKE SA (RFC 7296 §1.3.2, §2.18):
//
//	HDR, SK {SA, Ni, KEi}  -->
//	                    <--  HDR, SK {SA, Nr, KEr}
//
// The new IKE SA is a machine of its own. It inherits the CHILD SAs as they are,
// and the tasks that wait; the old machine is left with its delete, which the
// initiator of the exchange sends.

// ikeNegotiation is an IKE SA being agreed within another.
type ikeNegotiation struct {
	spi     uint64 // ours
	peerSPI uint64
	ni, nr  []byte
	choice  choice
	methods int

	// The peer's rekey that crosses ours. Either may be complete first.
	machine *Machine // ready, waiting for the comparison
	void    bool     // it has lost: the peer closes it
}

// rekeyIKE is the command, and the end of the lifetime.
func (m *Machine) rekeyIKE() {
	if m.state == stateEstablished {
		m.rekeyAt = time.Time{} // rekeyIKEFailed sets the next attempt
		m.enqueue(task{kind: taskRekeyIKE})
	}
}

func (m *Machine) startRekeyIKE() {
	m.task.ike = &ikeNegotiation{spi: m.newSPI(), ni: m.random(32)}
	method := firstKE(m.peer.Proposals)
	if offers(m.peer.Proposals, m.suite.KE.ID) {
		method = m.suite.KE.ID // known to be common
	}
	m.generate(method)
}

func (m *Machine) sendRekeyIKE(err error) {
	t := m.task
	if err != nil {
		m.rekeyIKEFailed(m.failure(wire.CreateChildSA, WhyUnsupported, err.Error(), "choose another key exchange in the peer's suites"))
		return
	}
	m.request(wire.CreateChildSA,
		offer(m.peer.Proposals, binary.BigEndian.AppendUint64(nil, t.ike.spi)),
		&wire.Nonce{Data: t.ike.ni},
		&wire.KE{Method: t.half.Method, Data: t.half.Public})
}

// rekeyIKEFailed reports and tries again later; the old IKE SA goes on.
func (m *Machine) rekeyIKEFailed(f ike.Failure) {
	t := m.task
	t.wipe()
	m.task = nil
	m.emit(ike.Failed{Failure: f})
	m.rekeyAt = m.now.Add(rekeyPause + m.below(rekeyPause))
	if x := t.crossIKE; x != nil && x.machine != nil {
		m.handOver(x.machine, false)
	}
}

// rekeyIKEResponse is the initiator's side.
func (m *Machine) rekeyIKEResponse(msg *message) {
	t, n := m.task, m.task.ike
	if x := msg.notify(wire.InvalidKEPayload); x != nil && len(x.Data) == 2 {
		method := binary.BigEndian.Uint16(x.Data)
		if n.methods++; n.methods <= maxSteers && method != t.half.Method && offers(m.peer.Proposals, method) {
			m.generate(method)
			return
		}
	}
	if x := msg.refusal(); x != nil {
		m.rekeyIKERefused(x)
		return
	}
	var c choice
	err := errors.New("the response lacks an SA or Nonce payload")
	if msg.sa != nil && msg.nonce != nil {
		c, err = accept(m.peer.Proposals, msg.sa, 8)
	}
	if err == nil && (msg.ke == nil || msg.ke.Method != t.half.Method || c.suite.KE.ID != t.half.Method) {
		err = errors.New("the response's key exchange is not the one asked for")
	}
	if err == nil && binary.BigEndian.Uint64(c.proposal.SPI) == 0 {
		err = errors.New("the peer's new IKE SPI is zero")
	}
	if err == nil {
		err = t.agreed(c.suite, msg)
	}
	if err != nil {
		// The peer has an IKE SA that we do not: start over.
		m.rekeyIKEFailed(m.failure(wire.CreateChildSA, wire.NoProposalChosen.String(), err.Error(), "report this to the maker of the peer's IKE implementation"))
		m.terminate(wire.NoProposalChosen.String())
		return
	}
	n.choice, n.nr, n.peerSPI = c, msg.nonce.Data, binary.BigEndian.Uint64(c.proposal.SPI)
	m.finish(msg.ke.Data)
}

// rekeyIKERefused takes a refusal, of CREATE_CHILD_SA or what follows it.
func (m *Machine) rekeyIKERefused(x *wire.Notify) {
	t := m.task
	t.wipe()
	if x.Message == wire.TemporaryFailure && t.crossIKE == nil && m.postpone() {
		return
	}
	m.task = t
	m.rekeyIKEFailed(m.failure(t.exchange, x.Message.String(), "the peer refused to rekey the IKE SA with "+x.Message.String(), "look at the peer's log"))
}

// rekeyIKEShared makes the new machine, as the initiator.
func (m *Machine) rekeyIKEShared(shared ipsec.Secret, err error) {
	t, n := m.task, m.task.ike
	var next *Machine
	if err == nil {
		next, err = m.successor(true, n, append(t.secrets, shared))
	}
	if err != nil {
		m.rekeyIKEFailed(m.failure(wire.CreateChildSA, WhyUnsupported, err.Error(), "look at the peer's log"))
		m.terminate(WhyUnsupported)
		return
	}
	t.wipe()
	m.task = nil
	x := t.crossIKE
	if x == nil {
		m.handOver(next, true)
		return
	}
	// Both ends have rekeyed (RFC 7296 §2.8.2): the IKE SA with the lowest nonce
	// is closed by the end that made it, the other one inherits.
	if m.loses(n.ni, n.nr, x.ni, x.nr) {
		next.queue = []task{{kind: taskDeleteIKE, why: "redundant"}}
		m.emit(ike.Spawn{Machine: next})
		if x.machine != nil {
			m.handOver(x.machine, false)
		} // else answerRekeyIKE does when it is ready
		return
	}
	x.void = true
	if x.machine != nil {
		m.spawnVoid(x.machine)
	}
	m.handOver(next, true)
}

// spawnVoid makes the machine of an IKE SA that the peer is about to delete.
func (m *Machine) spawnVoid(next *Machine) {
	next.state, next.endAt = stateReplaced, m.now.Add(replacedTime)
	m.emit(ike.Spawn{Machine: next})
}

// rekeyIKERequest is the responder's side.
func (m *Machine) rekeyIKERequest(msg *message) {
	if m.refusesIKE() {
		m.refuse(wire.TemporaryFailure)
		return
	}
	c, ok := choose(m.peer.Proposals, msg.sa, 8, ipsec.Suite{})
	if !ok {
		f := m.failure(wire.CreateChildSA, wire.NoProposalChosen.String(), "none of the peer's IKE proposals is ours", "")
		m.emit(ike.Failed{Failure: compare(f, m.peer.Proposals, msg.sa)})
		m.refuse(wire.NoProposalChosen)
		return
	}
	if msg.ke == nil || msg.ke.Method != c.suite.KE.ID {
		m.refuse(wire.InvalidKEPayload, octets16(c.suite.KE.ID)...)
		return
	}
	n := &ikeNegotiation{spi: m.newSPI(), peerSPI: binary.BigEndian.Uint64(c.proposal.SPI), ni: msg.nonce.Data, nr: m.random(32), choice: c}
	if n.peerSPI == 0 {
		m.refuse(wire.InvalidSyntax)
		m.fail(m.failure(wire.CreateChildSA, wire.InvalidSyntax.String(), "the peer's new IKE SPI is zero", "report this to the maker of the peer's IKE implementation"))
		return
	}
	m.dropFollowUps(ofAnything) // the peer has given them up
	m.serve.ike = n
	if t := m.doing(taskRekeyIKE); t != nil {
		t.crossIKE = n
	}
	m.respond(c.suite.KE.ID, msg.ke.Data)
}

// answerRekeyIKE responds to CREATE_CHILD_SA, at once or with follow-ups to come.
func (m *Machine) answerRekeyIKE(a ike.KeyExchanged) {
	n := m.serve.ike
	if a.Err != nil {
		m.badKE(wire.CreateChildSA, a.Err)
		return
	}
	n.choice.proposal.SPI = binary.BigEndian.AppendUint64(nil, n.spi)
	m.serve.answer = []wire.Payload{&wire.SA{Proposals: []wire.Proposal{n.choice.proposal}}, &wire.Nonce{Data: n.nr}, &wire.KE{Method: n.choice.suite.KE.ID, Data: a.Public}}
	if methods := methodsOf(n.choice.suite); len(methods) > 0 {
		m.reply(append(m.serve.answer, m.awaitFollowUp(&followUp{methods: methods, secrets: []ipsec.Secret{a.Shared}, ike: n}))...)
		return
	}
	m.completeRekeyIKE([]ipsec.Secret{a.Shared})
}

// completeRekeyIKE responds when all key exchanges are done.
func (m *Machine) completeRekeyIKE(secrets []ipsec.Secret) {
	n := m.serve.ike
	next, err := m.successor(false, n, secrets)
	if err != nil {
		m.badKE(m.serve.exchange, err)
		return
	}
	m.reply(m.serve.answer...)
	switch t := m.doing(taskRekeyIKE); {
	case n.void:
		m.spawnVoid(next)
	case t != nil && t.crossIKE == n:
		n.machine = next
	default:
		m.handOver(next, false)
	}
}

// successor makes the machine of the new IKE SA, without CHILD SAs yet.
func (m *Machine) successor(initiator bool, n *ikeNegotiation, secrets []ipsec.Secret) (*Machine, error) {
	defer wipe(secrets)
	next := &Machine{
		env: m.env, policy: m.policy, restored: m.restored, peer: m.peer, secret: m.secret, initiator: initiator,
		spiI: n.spi, spiR: n.peerSPI, path: m.path, nat: m.nat, localID: m.localID, remoteID: m.remoteID,
		frag:      fragmentation{agreed: m.frag.agreed, limit: m.frag.limit},
		localAuth: m.localAuth, remoteAuth: m.remoteAuth, ppk: m.ppk, reauthAt: m.reauthAt, proveBy: m.proveBy,
		created: m.now, now: m.now,
	}
	if !initiator {
		next.spiI, next.spiR = n.peerSPI, n.spi
	}
	// RFC 7296 §2.18: with the PRF of the old IKE SA.
	skeyseed := suite.RekeySKEYSEED(m.prf, m.keys.SKd, secrets[0], n.ni, n.nr, secrets[1:]...)
	if err := next.keyIKE(n.choice.suite, skeyseed, n.ni, n.nr); err != nil {
		return nil, err
	}
	next.established()
	// To a peer that knows what to do with it: a new token (RFC 6290 §4.3), and the
	// window, which starts at 1 again (RFC 7296 §2.3).
	if !m.peerToken.IsZero() && m.env.Tokens != nil || m.window.granted > 1 {
		next.enqueue(task{kind: taskIntroduce})
	}
	return next, nil
}

// handOver gives the CHILD SAs, and what waits to be done with them, to the new
// machine. closing says that the delete of the old IKE SA is ours to send.
func (m *Machine) handOver(next *Machine, closing bool) {
	next.children, next.drains = m.children, m.drains
	next.path, next.nat, next.mob = m.path, m.nat, m.mob
	for i := range m.queue {
		switch m.queue[i].kind {
		case taskNewChild, taskRekeyChild, taskDeleteChild, taskDeleteIKE, taskUpdate, taskAnnounce, taskRoutability:
			next.queue = append(next.queue, m.queue[i])
		}
	}
	if t := m.doing(taskUpdate, taskAnnounce, taskRoutability); t != nil {
		next.queue = append(next.queue, task{kind: t.kind}) // the peer takes the one under way for the old IKE SA
	}
	m.children, m.drains, m.queue = nil, nil, nil
	m.state, m.endAt = stateReplaced, m.now.Add(replacedTime)
	m.emit(ike.Spawn{Machine: next})
	if closing {
		m.queue = []task{{kind: taskDeleteIKE, why: "rekeyed"}}
	}
}
