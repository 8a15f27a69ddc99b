package ikev2

import (
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

type taskKind uint8

const (
	taskConnect     taskKind = iota // IKE_SA_INIT and IKE_AUTH
	taskNewChild                    // CREATE_CHILD_SA
	taskRekeyChild                  // CREATE_CHILD_SA with REKEY_SA
	taskRekeyIKE                    // CREATE_CHILD_SA with an IKE proposal
	taskDeleteChild                 // INFORMATIONAL
	taskDeleteIKE                   // INFORMATIONAL
	taskLiveness                    // INFORMATIONAL, empty
	taskUpdate                      // INFORMATIONAL: UPDATE_SA_ADDRESSES (mobike.go)
	taskAnnounce                    // INFORMATIONAL: ADDITIONAL_*_ADDRESS
	taskRoutability                 // INFORMATIONAL: COOKIE2
	taskToken                       // INFORMATIONAL, our token after a rekey (qcd.go)
)

// phase is what a task or a serve waits for.
type phase uint8

const (
	phaseNew         phase = iota
	phaseKey               // our key pair, or as responder both the public value and the secret
	phaseSent              // the response
	phaseShared            // the shared secret
	phaseSecret            // the pre-shared key we prove ourselves with
	phaseInstallIn         // the worker has the inbound SA
	phaseInstallOut        // the worker has the outbound SA
	phaseAuthorities       // the names of our trust anchors
	phaseSign              // our signature
	phasePeerSecret        // the pre-shared keys that the peer may have
	phaseVerify            // the peer's certificates and signature are checked
	phasePPK               // the postquantum preshared key
)

// task is an exchange that this side initiates.
type task struct {
	kind      taskKind
	rule      string      // taskConnect, taskNewChild
	packet    *ipsec.Flow // the same: what raised the acquire
	resource  uint32      // taskNewChild: the queue it is for (resource.go)
	child     uint64      // taskRekeyChild, taskDeleteChild
	why       string      // deletes
	path      ike.Path    // mobike.go: where the request was sent
	cookie2   []byte      // mobike.go
	notBefore time.Time
	tries     int // after TEMPORARY_FAILURE

	begun time.Time
	phase phase
	wait  uint64

	half     half         // our half of the key exchange
	nego     *negotiation // of a CHILD SA
	ike      *ikeNegotiation
	crossed  *negotiation    // the peer's rekey of the same CHILD SA (collide.go)
	dead     []ipsec.SPI     // deleted by the peer while our request was under way
	crossIKE *ikeNegotiation // the peer's rekey of the IKE SA

	more    []uint16       // IKE_FOLLOWUP_KE: methods still to do,
	secrets []ipsec.Secret // SK(0) and so on of those that are done,
	link    []byte         // and what ties the next one to the last

	exchange  wire.ExchangeType
	id        uint32
	plain     plain    // of the request; IKE_SA_INIT has none
	datagrams [][]byte // the request as sent
	sent      int
	sendAt    time.Time
	refused   *ike.Failure // an unauthenticated refusal: believed when nothing better comes
}

// wipe overwrites the secrets of key exchanges.
func (t *task) wipe() {
	t.half.wipe()
	wipe(t.secrets)
	t.secrets = nil
}

// enqueue adds a task unless the same one waits or runs.
func (m *Machine) enqueue(t task) {
	same := func(o *task) bool {
		return o.kind == t.kind && o.rule == t.rule && o.child == t.child && o.resource == t.resource
	}
	if m.task != nil && same(m.task) {
		return
	}
	for i := range m.queue {
		if same(&m.queue[i]) {
			return
		}
	}
	if len(m.queue) >= maxQueue {
		m.drop(WhyQueueFull)
		return
	}
	m.queue = append(m.queue, t)
}

// startNext starts waiting tasks while nothing is under way. Tasks that have
// become pointless end at once, so it loops.
func (m *Machine) startNext() {
	for m.task == nil && m.state != stateGone {
		i := m.nextTask()
		if i < 0 {
			return
		}
		t := m.queue[i]
		m.queue = append(m.queue[:i:i], m.queue[i+1:]...)
		t.begun, t.phase = m.now, phaseNew
		m.task = &t
		switch t.kind {
		case taskConnect:
			m.startConnect()
		case taskNewChild, taskRekeyChild:
			m.startChild()
		case taskRekeyIKE:
			m.startRekeyIKE()
		case taskDeleteChild:
			m.startDeleteChild()
		case taskDeleteIKE:
			m.startDeleteIKE()
		case taskLiveness:
			m.request(wire.Informational, m.livenessPayloads()...)
		case taskToken:
			m.request(wire.Informational, m.tokenPayload(m.spiI, m.spiR)...)
		case taskUpdate, taskAnnounce, taskRoutability:
			m.startMobike()
		}
	}
}

// nextTask is the first waiting task that may start now, or -1.
func (m *Machine) nextTask() int {
	for i := range m.queue {
		t := &m.queue[i]
		if m.mayStart(t) && !t.notBefore.After(m.now) {
			return i
		}
	}
	return -1
}

// mayStart holds tasks back that the state of the machine has no place for.
func (m *Machine) mayStart(t *task) bool {
	switch m.state {
	case stateIdle:
		return t.kind == taskConnect
	case stateEstablished:
	case stateReplaced:
		return t.kind == taskDeleteIKE
	default:
		return false
	}
	if m.rekeyingIKE() {
		return t.kind == taskDeleteIKE // the peer is rekeying the IKE SA
	}
	switch t.kind {
	case taskRekeyIKE:
		return m.settled()
	case taskNewChild, taskRekeyChild:
		return !m.restored // the rule is not known yet
	case taskDeleteChild: // not before the peer knows of it, and the worker has answered
		c := m.childByID(t.child)
		return c == nil || c.state != childInstalling
	}
	return true
}

// settled reports that no CHILD SA waits for the worker: then they can move to
// another machine.
func (m *Machine) settled() bool {
	for _, c := range m.children {
		if c.wait != 0 || c.state == childInstalling {
			return false
		}
	}
	return m.serve == nil && m.followUps == nil
}

// postpone puts the current task back, to be tried again a little later: the
// peer is busy (RFC 7296 §2.25). False when it was tried often enough.
func (m *Machine) postpone() bool {
	const tries, pause = 8, 2 * time.Second
	t := m.task
	m.task = nil
	if t.tries++; t.tries > tries {
		return false
	}
	kind := t.kind
	if kind == taskConnect {
		kind = taskNewChild // only its CHILD SA is left to do
	}
	m.queue = append(m.queue, task{kind: kind, rule: t.rule, packet: t.packet, resource: t.resource, child: t.child, why: t.why, tries: t.tries,
		notBefore: m.now.Add(pause/2 + m.below(pause))})
	return true
}

func (m *Machine) nextID() uint64 { return m.env.NextID() }

// createChild is the command: on a machine that has not started, it starts.
func (m *Machine) createChild(ev ike.CreateChild) {
	kind := taskNewChild
	switch m.state {
	case stateIdle:
		if !m.initiator {
			return
		}
		if len(m.queue) == 0 {
			kind = taskConnect
		}
	case stateConnecting:
	case stateEstablished:
		for _, c := range m.children {
			if c.state == childUp && c.Rule == ev.Rule && c.Resource == 0 && c.carries(ev.Packet) {
				m.emit(ike.ChildUp{Child: c.Child}) // the acquire crossed it
				return
			}
		}
	default:
		m.emit(ike.Failed{Failure: m.childFailure(wire.CreateChildSA, ev.Rule, WhyClosing, "the IKE SA is being closed", "retry: a new IKE SA will be made")})
		return
	}
	if t := m.task; t != nil && t.kind == taskConnect && t.rule == ev.Rule {
		return
	}
	for i := range m.queue {
		if m.queue[i].kind == taskConnect && m.queue[i].rule == ev.Rule {
			return
		}
	}
	m.enqueue(task{kind: kind, rule: ev.Rule, packet: ev.Packet})
}

func (m *Machine) checkPeer() {
	if m.state == stateEstablished && m.task == nil {
		m.enqueue(task{kind: taskLiveness})
	}
}
