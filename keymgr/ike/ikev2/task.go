package ikev2

import (
	"slices"
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
	taskIntroduce                   // INFORMATIONAL, what the peer must know anew after a rekey of the IKE SA
)

// phase is what a task or a serve waits for.
type phase uint8

const (
	phaseNew         phase = iota
	phaseKey               // our key pair, or as responder both the public value and the secret
	phaseTurn              // room in the peer's window: the request is ready
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
	single    bool        // taskNewChild, taskRekeyChild: for one pair of addresses (narrow.go)
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
	response  *reassembly
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
	if m.underWay(same) != nil {
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

// underWay finds a task that fits among those under way, nil for none.
func (m *Machine) underWay(fits func(*task) bool) *task {
	if m.task != nil && fits(m.task) {
		return m.task
	}
	for _, t := range m.flight {
		if fits(t) {
			return t
		}
	}
	return nil
}

// doing finds a task of one of these kinds among those under way.
func (m *Machine) doing(kinds ...taskKind) *task {
	return m.underWay(func(t *task) bool { return slices.Contains(kinds, t.kind) })
}

// take makes the task that fits the present one, as which it may send, end or begin
// something; false when there is none. What becomes of it is in m.task afterwards,
// and stow puts it back among those under way.
func (m *Machine) take(fits func(*task) bool) bool {
	i := slices.IndexFunc(m.flight, fits)
	if i < 0 {
		return false
	}
	m.task = m.flight[i]
	m.flight = slices.Delete(m.flight, i, i+1)
	return true
}

func (m *Machine) stow() {
	if m.task != nil {
		m.flight, m.task = append(m.flight, m.task), nil
	}
}

// alone reports whether a task is done with no other beside it: what moves the IKE
// SA as a whole, or asks for nothing but a sign of life.
func (t *task) alone() bool {
	return t.kind != taskNewChild && t.kind != taskRekeyChild && t.kind != taskDeleteChild
}

// startNext starts waiting tasks as long as they may be beside those under way.
// Tasks that have become pointless end at once, so it loops.
func (m *Machine) startNext() {
	for ; m.state != stateGone; m.stow() {
		i, at := m.nextTask()
		if i < 0 || at.After(m.now) {
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
		case taskIntroduce:
			m.request(wire.Informational, append(m.tokenPayload(m.spiI, m.spiR), m.grantWindow())...)
		case taskUpdate, taskAnnounce, taskRoutability:
			m.startMobike()
		}
	}
}

// nextTask is the waiting task that is to start next, and when; -1 for none. What has
// to be done alone is not overtaken once it is due.
func (m *Machine) nextTask() (next int, at time.Time) {
	next = -1
	for i := range m.queue {
		t := &m.queue[i]
		due := later(t.notBefore, later(m.created, m.now))
		switch {
		case m.mayStart(t) && m.mayJoin(t):
			if next < 0 || due.Before(at) {
				next, at = i, due
			}
		case t.alone() && len(m.flight) > 0 && !due.After(m.now):
			return next, at
		}
	}
	return next, at
}

// mayJoin reports whether a task may be under way beside those that are.
func (m *Machine) mayJoin(t *task) bool {
	if len(m.flight) == 0 {
		return true
	}
	if t.alone() || len(m.flight) >= m.window.ours() || !m.windowOpen() {
		return false
	}
	return m.underWay(func(o *task) bool { return o.alone() || o.child != 0 && o.child == t.child }) == nil
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
	return m.serve == nil && len(m.followUps) == 0
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
	m.queue = append(m.queue, task{kind: kind, rule: t.rule, packet: t.packet, resource: t.resource, single: t.single, child: t.child, why: t.why, tries: t.tries,
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
	if t := m.doing(taskConnect); t != nil && t.rule == ev.Rule {
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
	if m.state == stateEstablished && len(m.flight) == 0 {
		m.enqueue(task{kind: taskLiveness})
	}
}
