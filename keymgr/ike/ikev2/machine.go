package ikev2

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
)

// Times and bounds.
const (
	halfOpenTime    = 30 * time.Second // a responder without IKE_AUTH lives this long
	replacedTime    = 60 * time.Second // a rekeyed IKE SA waits this long for its delete
	drainTime       = 5 * time.Second  // a replaced inbound SA goes on receiving
	maxQueue        = 256              // tasks waiting
	maxChildren     = 1024             // CHILD SAs of one IKE SA
	maxSteers       = 4                // COOKIE and INVALID_KE_PAYLOAD answers followed, each
	maxMessageID    = 1 << 31          // rekey long before message IDs run out (RFC 7296 §2.2)
	lifetimeOverrun = 10               // the IKE SA ends this part of its lifetime after the end
)

type state uint8

const (
	stateIdle        state = iota // initiator: nothing asked for yet; responder: nothing received
	stateConnecting               // IKE_SA_INIT and IKE_AUTH
	stateEstablished              //
	stateDeleting                 // our delete of the IKE SA is under way
	stateReplaced                 // rekeyed: only the delete of this IKE SA is left to do
	stateRefused                  // authentication failed: only retransmissions are answered
	stateGone
)

// Machine is one IKE SA. Its fields are values that can be saved and read back.
type Machine struct {
	env    ike.Env
	policy *ipsec.NodePolicy

	candidates []ipsec.Peer // profiles that the peer may have, until IKE_AUTH tells
	peer       ipsec.Peer
	secret     int // which candidate secret the initiator signs with
	kind       int // which of ourKinds we prove ourselves with
	localAuth  string
	remoteAuth string
	ppk        string // identifier of the PPK in the keys

	state     state
	initiator bool // original initiator: the I flag of our messages
	spiI      uint64
	spiR      uint64
	path      ike.Path
	nat       nat
	mob       mobility
	localID   ipsec.Identity
	remoteID  ipsec.Identity
	peerToken ipsec.Secret // proves that the peer has lost the IKE SA: qcd.go

	suite ipsec.Suite
	keys  suite.IKEKeys
	prf   suite.PRF
	tx    *suite.Cipher
	rx    *suite.Cipher

	first    *firstContact // IKE_SA_INIT, as far as IKE_AUTH needs it
	restored bool          // read back after a restart, and no policy has come yet

	window    window
	frag      fragmentation
	task      *task   // the one that the present event is about, while Handle runs
	flight    []*task // those under way
	queue     []task  // those that wait
	serve     *serve
	followUps []*followUp // what the peer has not finished yet

	children []*child
	drains   []drain

	created  time.Time
	since    time.Time // established
	heard    time.Time // last proof of liveness
	rekeyAt  time.Time
	reauthAt time.Time
	proveBy  time.Time // the end, unless the ends prove themselves anew: policy.go
	endAt    time.Time

	now     time.Time
	effects []ike.Effect
}

var _ ike.Machine = (*Machine)(nil)

// NewInitiator makes the machine of an IKE SA that this node will initiate, at
// the first CreateChild.
func NewInitiator(env ike.Env, policy *ipsec.NodePolicy, peer ipsec.Peer, path ike.Path) *Machine {
	return &Machine{env: defaults(env), policy: policy, peer: peer, path: path, initiator: true, localID: peer.LocalID}
}

// NewResponder makes the machine that answers one IKE_SA_INIT request, which
// comes as its first Datagram. The peer's profile is one of candidates, in order
// of preference; its identity decides.
func NewResponder(env ike.Env, policy *ipsec.NodePolicy, candidates []ipsec.Peer, path ike.Path) *Machine {
	return &Machine{env: defaults(env), policy: policy, candidates: candidates, path: path}
}

func defaults(env ike.Env) ike.Env {
	if env.Rand == nil {
		env.Rand = rand.Reader
	}
	return env
}

// Machines makes machines for peer profiles by name.
type Machines struct{}

// Initiator is NewInitiator for a profile of the policy.
func (Machines) Initiator(env ike.Env, policy *ipsec.NodePolicy, peer string, path ike.Path) (ike.Machine, error) {
	p, ok := peerByName(policy, peer)
	if !ok {
		return nil, fmt.Errorf("peer %q is not in the policy of node %q (version %s)", peer, policy.Node, policy.Version)
	}
	return NewInitiator(env, policy, p, path), nil
}

// Responder is NewResponder for profiles of the policy.
func (Machines) Responder(env ike.Env, policy *ipsec.NodePolicy, candidates []string, path ike.Path) (ike.Machine, error) {
	ps := peersByName(policy, candidates)
	if len(ps) == 0 {
		return nil, fmt.Errorf("none of the peers %q is in the policy of node %q (version %s)", candidates, policy.Node, policy.Version)
	}
	return NewResponder(env, policy, ps, path), nil
}

func peersByName(policy *ipsec.NodePolicy, names []string) []ipsec.Peer {
	var ps []ipsec.Peer
	for _, name := range names {
		if p, ok := peerByName(policy, name); ok {
			ps = append(ps, p)
		}
	}
	return ps
}

func peerByName(policy *ipsec.NodePolicy, name string) (ipsec.Peer, bool) {
	if p := policy.PeerNamed(name); p != nil {
		return *p, true
	}
	return ipsec.Peer{}, false
}

// Handle implements ike.Machine.
func (m *Machine) Handle(now time.Time, ev ike.Event) []ike.Effect {
	m.now, m.effects = now, nil
	if m.created.IsZero() {
		m.created, m.heard = now, now
	}
	if m.state == stateGone {
		return nil
	}
	switch ev := ev.(type) {
	case ike.Datagram:
		m.datagram(ev)
	case ike.Timer:
		m.tick()
	case ike.CreateChild:
		m.createChild(ev)
	case ike.Connect:
		m.connect()
	case ike.RekeyChild:
		m.rekeyChild(ev.Child)
	case ike.RekeyIKE:
		m.rekeyIKE()
	case ike.DeleteChild:
		m.deleteChild(ev.Child, "deleted by command")
	case ike.Terminate:
		m.terminate(ev.Why)
	case ike.CheckPeer:
		m.checkPeer()
	case ike.ChildExpired:
		m.childExpired(ev)
	case ike.ChildActivity:
		if ev.Received.After(m.heard) && !ev.Received.After(now) {
			m.heard = ev.Received
		}
	case ike.Addresses:
		m.addresses(ev.Local)
	case ike.PeerMoved:
		// ESP tells of the mapping that it shares with IKE, in UDP on port 4500.
		if m.state == stateEstablished && ev.Path.Local == m.path.Local && !m.path.TCP {
			m.follow(ev.Path)
		}
	case ike.PolicyChanged:
		m.policyChanged(ev.Policy)
	case ike.PSKs:
		m.secretsFound(ev)
	case ike.Authorities:
		m.authoritiesFound(ev)
	case ike.Signed:
		m.signed(ev)
	case ike.Verified:
		m.verified(ev)
	case ike.KeyExchanged:
		m.keyExchanged(ev)
	case ike.Installed:
		m.noteInstalled(ev.ID)
		m.installed(ev)
	case ike.Restored:
		m.resume()
	}
	m.stow()
	m.serveEarly()
	m.takeTurns()
	m.startNext()
	m.settleDown()
	// Kept no longer than they are needed: they hold datagrams, and this machine may
	// be one of a hundred thousand.
	effects := m.effects
	m.effects = nil
	return effects
}

// settleDown gives up the expanded keys while no exchange is under way.
func (m *Machine) settleDown() {
	if m.state == stateEstablished && m.serve == nil && len(m.flight) == 0 {
		m.tx.Rest()
		m.rx.Rest()
	}
}

func (m *Machine) emit(e ike.Effect) {
	if m.effects == nil {
		m.effects = make([]ike.Effect, 0, 4) // most events have no more
	}
	m.effects = append(m.effects, e)
}

func (m *Machine) unproven() bool {
	return ike.Info{RemoteAuth: m.remoteAuth, PPK: m.ppk}.Unproven()
}

func (m *Machine) drop(why string) { m.emit(ike.Dropped{Why: why}) }

// random gives octets from Env. A machine cannot go on without randomness, and
// neither can its process: there is nothing safer left to do than to stop.
func (m *Machine) random(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(m.env.Rand, b); err != nil {
		panic("ikev2: the source of randomness failed: " + err.Error())
	}
	return b
}

// newSPI is a random IKE SPI, never zero (RFC 7296 §2.6).
func (m *Machine) newSPI() uint64 {
	if m.env.IKESPI != nil {
		return m.env.IKESPI()
	}
	for {
		if v := binary.BigEndian.Uint64(m.random(8)); v != 0 {
			return v
		}
	}
}

// below is a random duration in [0, d).
func (m *Machine) below(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(binary.BigEndian.Uint64(m.random(8)) % uint64(d))
}

func (m *Machine) localSPI() uint64 {
	if m.initiator {
		return m.spiI
	}
	return m.spiR
}

// Terminate, and the ways in which a machine ends.

func (m *Machine) terminate(why string) {
	switch m.state {
	case stateEstablished:
		m.queue = []task{{kind: taskDeleteIKE, why: why}}
	case stateDeleting:
	default:
		m.end(why)
	}
}

// end is the end of the machine: CHILD SAs leave the worker, keys are wiped.
func (m *Machine) end(why string) {
	for len(m.children) > 0 {
		m.dropChild(m.children[0], why)
	}
	m.endDrains()
	m.dropFollowUps(ofAnything)
	m.keys.Wipe()
	m.first.wipe()
	if m.serve != nil && m.serve.followUp != nil {
		wipe(m.serve.followUp.secrets)
	}
	m.underWay(func(t *task) bool { t.wipe(); return false })
	m.task, m.flight, m.serve, m.queue, m.first, m.tx, m.rx = nil, nil, nil, nil, nil, nil, nil
	m.state = stateGone
	m.emit(ike.Done{Why: why})
}

// fail ends the machine with a report.
func (m *Machine) fail(f ike.Failure) {
	m.emit(ike.Failed{Failure: f})
	m.end(f.Why)
}

// established starts the life of the IKE SA.
func (m *Machine) established() {
	m.state, m.since, m.heard = stateEstablished, m.now, m.now
	m.first.wipe()
	m.first, m.candidates = nil, nil // m.peer is the one that it is
	if l := m.peer.Lifetime; l > 0 {
		m.rekeyAt = m.now.Add(l - m.below(l/10)) // jitter: RFC 7296 §2.8.1
		m.endAt = m.now.Add(l + l/lifetimeOverrun)
	}
}

// Info implements ike.Machine.
func (m *Machine) Info() ike.Info {
	i := ike.Info{
		Node: m.path.Node, Peer: m.peer.Name, Version: 2, Initiator: m.initiator, State: m.stateName(),
		LocalSPI: m.localSPI(), RemoteSPI: m.spiI ^ m.spiR ^ m.localSPI(), Path: m.path,
		LocalID: m.localID.String(), RemoteID: m.remoteID.String(), Suite: m.suite, NAT: m.nat.String(),
		LocalAuth: m.localAuth, PPK: m.ppk, RemoteAuth: m.remoteAuth,
		Since: m.since, RekeyAt: m.rekeyAt, ReauthAt: m.reauthAt,
	}
	for _, c := range m.children {
		i.Children = append(i.Children, c.Child)
	}
	for _, d := range m.drains {
		i.Draining = append(i.Draining, d.sa)
	}
	return i
}

func (m *Machine) stateName() string {
	switch m.state {
	case stateEstablished:
		if m.doing(taskRekeyIKE) != nil {
			return "rekeying"
		}
		return "established"
	case stateDeleting, stateReplaced:
		return "deleting"
	case stateRefused:
		return ike.StateRefused
	case stateGone:
		return "gone"
	}
	return "connecting"
}
