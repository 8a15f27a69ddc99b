package ikev2

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/archive"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// A machine can be written out and read back, so that an IKE SA outlives its key
// manager. Only one that is authenticated is: what has not come that far is
// forgotten, and begun again by whoever wants it.
//
// What is written is a point to go on from, not a picture of the moment:
//
//	a request of the peer that is being answered    is not written: the peer sends
//	                                                it again, and nothing of it was
//	                                                answered yet (RFC 7296 §2.1)
//	a request of ours that was sent                 is written with all that its
//	                                                response needs, and sent again
//	one that is not sent yet                        is back in the queue
//	one whose slow key exchange is being computed   is as it was when it was sent:
//	                                                the peer repeats its response
//	an SA that the worker has not acknowledged      is asked for again: child.asked
//
// The engine writes before it lets out what Handle asked for, so the peer never
// knows of a state that is not on the disk. saved_test.go fails for a field that
// is neither written here nor on its list of those that need not be, and for a layout
// that is not the version's.
const savedVersion = 2

// Bounds of what is read back, beside those that the machine keeps to: a CHILD SA may be
// there with one of each end that replaces it, and what is put back into a full queue
// comes on top.
const (
	savedChildren = 3 * (maxChildren + windowSize)
	savedDrains   = 2*savedChildren + 2
	savedTasks    = maxQueue + 4*windowSize
)

// ivJump is how far, at random, a restored machine's IV counter is from the one
// written. Messages sealed after that need not have been written (the engine
// skips some), and a copy of the state that is older than the truth must not
// make an IV be used twice either.
const ivJump = 1 << 48

// Save appends the machine to dst; false when it is not one to be saved.
func (m *Machine) Save(dst []byte) ([]byte, bool) {
	switch m.state {
	case stateEstablished, stateDeleting, stateReplaced:
	default:
		return dst, false
	}
	c := archive.Writer(dst)
	c.Version(savedVersion)
	m.resumable().archive(c)
	return c.Octets(), c.Err() == nil
}

// resumable is a shallow copy of the machine as it is to be resumed.
func (m *Machine) resumable() *Machine {
	s := *m
	if x := m.serve; x != nil && x.child != nil && x.child.child != nil {
		s.children = slices.DeleteFunc(slices.Clone(m.children), func(c *child) bool { return c == x.child.child })
	}
	s.flight = nil
	var again []task
	for _, t := range m.flight {
		if r := m.resumableTask(*t); r == nil {
			again = append(again, task{kind: t.kind, rule: t.rule, packet: t.packet, resource: t.resource, single: t.single, child: t.child, why: t.why, tries: t.tries})
		} else if r.nego == nil || r.nego.child == nil || r.nego.child.state != childGone { // else closed by the peer meanwhile
			s.flight = append(s.flight, r)
		}
	}
	s.queue = append(again, m.queue...)
	return &s
}

// resumableTask is a task as it is to be resumed, nil when it begins again.
func (m *Machine) resumableTask(t task) *task {
	if x := m.serve; x != nil && x.child != nil && x.child == t.crossed {
		t.crossed = nil
	}
	if x := m.serve; x != nil && x.ike != nil && x.ike == t.crossIKE {
		t.crossIKE = nil
	}
	for _, f := range m.followUps { // not saved: the peer starts them over
		if f.child != nil && f.child == t.crossed {
			t.crossed = nil
		}
		if f.ike != nil && f.ike == t.crossIKE {
			t.crossIKE = nil
		}
	}
	switch t.phase {
	case phaseNew, phaseKey, phaseTurn:
		return nil
	case phaseShared:
		t.phase, t.wait = phaseSent, 0
	}
	return &t
}

// archive goes through all that is saved.
func (m *Machine) archive(c *archive.Coder) {
	archive.Num(c, &m.state)
	c.Bool(&m.initiator)
	archive.Num(c, &m.spiI)
	archive.Num(c, &m.spiR)
	archivePath(c, &m.path)
	m.mob.archive(c)
	for _, b := range []*bool{&m.nat.local, &m.nat.remote, &m.nat.forced} {
		c.Bool(b)
	}
	archive.Peer(c, &m.peer)
	archive.Int(c, &m.secret)
	archive.Int(c, &m.kind)
	c.String(&m.localAuth)
	c.String(&m.remoteAuth)
	c.String(&m.ppk)
	archive.Identity(c, &m.localID)
	archive.Identity(c, &m.remoteID)
	c.Secret(&m.peerToken)
	m.archiveKeys(c)

	for _, t := range []*time.Time{&m.created, &m.since, &m.rekeyAt, &m.reauthAt, &m.proveBy, &m.endAt} {
		c.Time(t)
	}
	archive.Num(c, &m.window.next)
	archive.Num(c, &m.window.expected)
	archive.Num(c, &m.window.size)
	archive.Num(c, &m.window.granted)
	archiveDatagrams(c, &m.window.reply)
	archive.Slice(c, &m.window.older, windowSize, archiveDatagrams)
	c.Bool(&m.frag.agreed)
	archive.Int(c, &m.frag.limit)

	archive.Slice(c, &m.children, savedChildren, func(c *archive.Coder, v **child) {
		if c.Reading() {
			*v = new(child)
		}
		(*v).archive(c)
	})
	archive.Slice(c, &m.drains, savedDrains, func(c *archive.Coder, d *drain) {
		archive.Num(c, &d.sa)
		c.Time(&d.at)
	})
	archive.Slice(c, &m.queue, savedTasks, func(c *archive.Coder, t *task) { t.archiveWaiting(c) })
	archive.Slice(c, &m.flight, windowSize, func(c *archive.Coder, v **task) {
		if c.Reading() {
			*v = new(task)
		}
		(*v).archive(c, m)
	})
}

// archiveKeys: the ciphers and the PRF are made from the keys.
func (m *Machine) archiveKeys(c *archive.Coder) {
	archive.Suite(c, &m.suite)
	k := &m.keys
	for _, s := range []*ipsec.Secret{&k.SKd, &k.SKai, &k.SKar, &k.SKei, &k.SKer, &k.SKpi, &k.SKpr} {
		c.Secret(s)
	}
	var iv uint64
	if !c.Reading() {
		iv = m.tx.NextIV()
	}
	archive.Num(c, &iv)
	if !c.Reading() || c.Err() != nil {
		return
	}
	err := m.useKeys(iv)
	if err != nil {
		c.Fail("keys: %w", err)
	}
}

func (m *Machine) useKeys(iv uint64) error {
	var err error
	if m.prf, err = suite.NewPRF(m.suite.PRF); err != nil {
		return err
	}
	i, r, err := m.keys.Ciphers(m.suite)
	if err != nil {
		return err
	}
	m.tx, m.rx = r, i
	if m.initiator {
		m.tx, m.rx = i, r
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	next := iv + 1 + binary.BigEndian.Uint64(b[:])%ivJump
	if next < iv {
		return fmt.Errorf("IV counter %d is at its end", iv)
	}
	return m.tx.SetNextIV(next)
}

func archivePath(c *archive.Coder, p *ike.Path) {
	c.String(&p.Node)
	c.AddrPort(&p.Local)
	c.AddrPort(&p.Remote)
	c.Bool(&p.TCP)
}

func (x *mobility) archive(c *archive.Coder) {
	c.Bool(&x.on)
	c.Bool(&x.deciding)
	for _, v := range []*[]netip.Addr{&x.local, &x.remote, &x.told} {
		archive.Slice(c, v, maxChildren, (*archive.Coder).Addr)
	}
	archivePath(c, &x.children)
	archive.Int(c, &x.refused)
	c.Bytes(&x.seen)
}

func (c *child) archive(a *archive.Coder) {
	d := &c.Child
	archive.Num(a, &d.ID)
	a.String(&d.Rule)
	archive.Suite(a, &d.Suite)
	archive.Num(a, &d.Mode)
	a.Bool(&d.Encap)
	archive.Slice(a, &d.Selectors, maxChildren, archive.Selector)
	archive.Num(a, &d.In)
	archive.Num(a, &d.Out)
	archive.Num(a, &d.SPIIn)
	archive.Num(a, &d.SPIOut)
	a.Time(&d.Since)
	archive.Num(a, &d.Rekeyed)
	archive.Num(a, &d.Resource)
	archive.Num(a, &d.PadTo)

	archive.Num(a, &c.state)
	archive.Num(a, &c.protocol)
	archive.Num(a, &c.replaces)
	archive.Num(a, &c.wait)
	archive.Ptr(a, &c.out, archive.SA)
	archive.Slice(a, &c.asked, maxChildren, func(a *archive.Coder, x *asked) {
		archive.Num(a, &x.id)
		archive.SA(a, &x.sa)
	})
	for _, b := range []*bool{&c.inAsked, &c.outAsked, &c.reported} {
		a.Bool(b)
	}
	a.Bool(&c.fills)
	archive.Lifetime(a, &c.life)
	archive.Num(a, &c.pad)
	a.Time(&c.outAt)
	a.Time(&c.rekeyAt)
	a.Time(&c.dieAt)
}

// archiveWaiting is a task in the queue.
func (t *task) archiveWaiting(c *archive.Coder) {
	archive.Num(c, &t.kind)
	c.String(&t.rule)
	archive.Ptr(c, &t.packet, archive.Flow)
	archive.Num(c, &t.resource)
	c.Bool(&t.single)
	archive.Num(c, &t.child)
	c.String(&t.why)
	c.Time(&t.notBefore)
	archive.Int(c, &t.tries)
}

// archive is the task under way.
func (t *task) archive(c *archive.Coder, m *Machine) {
	t.archiveWaiting(c)
	c.Time(&t.begun)
	archive.Num(c, &t.phase)
	archive.Num(c, &t.wait)
	t.half.archive(c)
	archive.Ptr(c, &t.nego, func(c *archive.Coder, n *negotiation) { n.archive(c, m) })
	archive.Ptr(c, &t.ike, func(c *archive.Coder, n *ikeNegotiation) { n.archive(c) })
	archive.Ptr(c, &t.crossed, func(c *archive.Coder, n *negotiation) {
		m.archiveChildRef(c, &n.child)
		c.Bytes(&n.ni)
		c.Bytes(&n.nr)
		c.Bool(&n.void)
	})
	archive.Slice(c, &t.dead, maxChildren, archive.Num[ipsec.SPI])
	archive.Ptr(c, &t.crossIKE, func(c *archive.Coder, n *ikeNegotiation) { n.archive(c) })
	archive.Slice(c, &t.more, ipsec.MaxADDKE, archive.Num[uint16])
	archive.Slice(c, &t.secrets, ipsec.MaxADDKE+1, (*archive.Coder).Secret)
	c.Bytes(&t.link)
	archive.Num(c, &t.exchange)
	archive.Num(c, &t.id)
	archivePath(c, &t.path)
	c.Bytes(&t.cookie2)
	p := &t.plain
	archive.Num(c, &p.exchange)
	archive.Num(c, &p.id)
	c.Bool(&p.response)
	archive.Num(c, &p.first)
	c.Bytes(&p.octets)
	archiveDatagrams(c, &t.datagrams)
}

// archiveDatagrams is a message as it was sent: fragments, or one datagram.
func archiveDatagrams(c *archive.Coder, v *[][]byte) {
	archive.Slice(c, v, archive.MaxOctets, (*archive.Coder).Bytes)
}

func (h *half) archive(c *archive.Coder) {
	archive.Num(c, &h.Method)
	c.Bytes(&h.Public)
	c.Secret(&h.State)
	if !c.Reading() || c.Err() != nil || h.State.IsZero() {
		return
	}
	k, ok := suite.LookupKE(h.Method)
	if !ok {
		c.Fail("key exchange method %d is not implemented", h.Method)
		return
	}
	if k.Slow {
		return // the engine works with State
	}
	p, err := k.Restore(h.State)
	if err != nil {
		c.Fail("key exchange: %w", err)
		return
	}
	h.pair = &p
}

func (n *negotiation) archive(c *archive.Coder, m *Machine) {
	c.Bool(&n.initiator)
	archive.Rule(c, &n.rule)
	archive.Num(c, &n.mode)
	archive.Num(c, &n.replaces)
	archive.Num(c, &n.rekeyed)
	archive.Num(c, &n.resource)
	c.Bool(&n.fills)
	c.Bool(&n.spreads)
	c.Bool(&n.plain)
	c.Bool(&n.fragments)
	c.Bool(&n.more)
	archive.Num(c, &n.old)
	archive.Num(c, &n.oldProtocol)
	archive.Slice(c, &n.proposals, maxChildren, archive.Proposal)
	archive.Suite(c, &n.suite)
	archive.Num(c, &n.spi)
	archive.Num(c, &n.peerSPI)
	archive.Slice(c, &n.local, maxChildren, archive.TrafficSelector)
	archive.Slice(c, &n.remote, maxChildren, archive.TrafficSelector)
	archive.Slice(c, &n.selectors, maxChildren, archive.Selector)
	for _, b := range []*[]byte{&n.ni, &n.nr, &n.nonce, &n.public} {
		c.Bytes(b)
	}
	archive.Num(c, &n.method)
	archive.Int(c, &n.methods)
	c.Bool(&n.void)
	m.archiveChildRef(c, &n.child)
	if c.Reading() {
		n.sa = offer(n.proposals, binary.BigEndian.AppendUint32(nil, uint32(n.spi)))
	}
}

// archiveChildRef is a pointer to one of the machine's CHILD SAs, by its number.
func (m *Machine) archiveChildRef(c *archive.Coder, v **child) {
	var id uint64
	if x := *v; x != nil && m.childByID(x.ID) == x { // else it is gone
		id = x.ID
	}
	if archive.Num(c, &id); !c.Reading() || id == 0 || c.Err() != nil {
		return
	}
	if *v = m.childByID(id); *v == nil {
		c.Fail("CHILD SA %d is not there", id)
	}
}

func (n *ikeNegotiation) archive(c *archive.Coder) {
	archive.Num(c, &n.spi)
	archive.Num(c, &n.peerSPI)
	c.Bytes(&n.ni)
	c.Bytes(&n.nr)
	archive.Suite(c, &n.choice.suite)
	archive.Int(c, &n.methods)
	c.Bool(&n.void)
	archive.Ptr(c, &n.machine, func(c *archive.Coder, next *Machine) {
		if c.Reading() && len(c.Octets()) > archive.MaxOctets*4 {
			c.Fail("a machine within a machine of %d octets", len(c.Octets()))
			return
		}
		next.archive(c)
	})
}

// Restore reads a machine that Save wrote. It does nothing until its first event,
// which should be ike.Restored; until a policy comes it has that of no rules, and
// answers what needs one with TEMPORARY_FAILURE.
func Restore(env ike.Env, b []byte) (*Machine, error) {
	m := &Machine{env: defaults(env)}
	c := archive.Reader(b)
	c.Version(savedVersion)
	m.archive(c)
	if err := c.Done(); err != nil {
		return nil, err
	}
	switch m.state {
	case stateEstablished, stateDeleting, stateReplaced:
	default:
		return nil, fmt.Errorf("archive: an IKE SA in state %d, want one that is authenticated", m.state)
	}
	for _, t := range m.flight {
		if err := t.check(); err != nil {
			return nil, err
		}
		if t.alone() && len(m.flight) > 1 {
			return nil, fmt.Errorf("archive: a task of kind %d beside others", t.kind)
		}
	}
	for m2 := m; m2 != nil; {
		m2.env = m.env
		m2.restored, m2.policy = true, &ipsec.NodePolicy{Node: m.path.Node}
		t := m2.doing(taskRekeyIKE)
		if t == nil || t.crossIKE == nil {
			break
		}
		m2 = t.crossIKE.machine
	}
	return m, nil
}

// check refuses what no machine writes, and its handlers would stumble over.
func (t *task) check() error {
	bad := false
	child := t.exchange == wire.CreateChildSA || t.exchange == wire.IKEFollowUpKE
	if t.phase == phaseSent {
		bad = child != (t.kind == taskNewChild || t.kind == taskRekeyChild || t.kind == taskRekeyIKE) || !child && t.exchange != wire.Informational
	}
	switch t.kind {
	case taskConnect, taskNewChild, taskRekeyChild:
		bad = bad || t.nego == nil || len(t.nego.proposals) == 0 || t.phase != phaseSent && t.nego.child == nil
	case taskRekeyIKE:
		bad = bad || t.ike == nil || t.phase != phaseSent
	default: // of INFORMATIONAL
		bad = bad || t.phase != phaseSent || t.kind > taskIntroduce
	}
	if t.kind == taskConnect && t.phase == phaseSent || t.crossIKE != nil && t.crossIKE.machine == nil {
		bad = true
	}
	if t.phase != phaseSent && t.phase != phaseInstallIn && t.phase != phaseInstallOut {
		bad = true
	}
	if t.phase == phaseSent && t.exchange == wire.IKEFollowUpKE && (len(t.more) == 0 || len(t.secrets) == 0) {
		bad = true
	}
	if bad {
		return fmt.Errorf("archive: a task of kind %d in phase %d lacks what it goes on with", t.kind, t.phase)
	}
	return nil
}

// resume is the first event of a restored machine: what was under way goes on.
func (m *Machine) resume() {
	// Peers are not asked for a sign of life all at once.
	m.heard = m.now.Add(-m.below(m.peer.DPD))
	for _, t := range m.flight {
		if t.phase == phaseSent {
			t.sendAt = m.now.Add(m.below(retransmitFirst))
		}
	}
	for _, c := range m.children {
		var ids []uint64
		for _, a := range c.asked {
			if !slices.Contains(ids, a.id) {
				ids = append(ids, a.id)
			}
		}
		for _, id := range ids {
			m.askAgain(c, id)
		}
	}
}

// askAgain repeats an Install effect that was not answered. Whoever waited for it
// does so again, but a request of the peer: then the CHILD SA does.
func (m *Machine) askAgain(c *child, id uint64) {
	var sas []ipsec.SA
	for _, a := range c.asked {
		if a.id == id {
			sas = append(sas, a.sa)
		}
	}
	if m.underWay(func(t *task) bool { return t.wait == id }) == nil && c.wait != id {
		c.wait = id
	}
	m.effects = append(m.effects, ike.Install{ID: id, SAs: sas, Unproven: m.unproven()})
}

// asked is an SA that the worker was asked to install and has not acknowledged. It
// holds the keys, which are the worker's alone afterwards, for a restart before that.
type asked struct {
	id uint64 // of the Install effect
	sa ipsec.SA
}

// noteInstalled forgets it when the worker has answered.
func (m *Machine) noteInstalled(id uint64) {
	for _, c := range m.children {
		c.asked = slices.DeleteFunc(c.asked, func(a asked) bool { return a.id == id })
		if len(c.asked) == 0 {
			c.asked = nil
		}
	}
}

// Restore reads a machine of this version back.
func (Machines) Restore(env ike.Env, b []byte) (ike.Machine, error) { return Restore(env, b) }
