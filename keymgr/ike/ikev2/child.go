package ikev2

import (
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
)

type childState uint8

const (
	childInstalling childState = iota
	childUp                    // both directions are in place
	childHeld                  // made by the peer's rekey: inbound in place, outbound waits for the delete of the old one
	childReplaced              // rekeyed: the delete is to come
	childDeleting              // our delete is under way
	childGone
)

// child is one CHILD SA: a pair of SAs.
type child struct {
	ike.Child
	state    childState
	protocol ipsec.Protocol
	replaces uint64
	wait     uint64    // an Install of the outbound SA outside of a task
	out      *ipsec.SA // until the worker is asked to install it
	asked    []asked   // until the worker has answered: saved.go
	inAsked  bool      // the worker may have it
	outAsked bool
	reported bool           // ChildUp
	rekey    bool           // when it is up
	fills    bool           // this end makes those for the queues beside it (resource.go)
	life     ipsec.Lifetime // of the rule when it was made,
	pad      uint16         // and its padding
	outAt    time.Time      // when the outbound SA of a queue is installed
	rekeyAt  time.Time
	dieAt    time.Time
}

// drain is an inbound SA that goes on receiving what was sent on it before the
// peer changed over: packets may arrive after the delete that overtook them.
type drain struct {
	sa ipsec.SAID
	at time.Time
}

func (m *Machine) childByID(id uint64) *child {
	for _, c := range m.children {
		if c.ID == id {
			return c
		}
	}
	return nil
}

// childByPeerSPI finds the CHILD SA whose outbound SPI the peer names.
func (m *Machine) childByPeerSPI(p ipsec.Protocol, spi ipsec.SPI) *child {
	for _, c := range m.children {
		if c.SPIOut == spi && c.protocol == p {
			return c
		}
	}
	return nil
}

// carries reports whether a packet fits the selectors; nil fits any.
func (c *child) carries(p *ipsec.Flow) bool {
	if p == nil {
		return true
	}
	for _, s := range c.Selectors {
		if s.Matches(*p) {
			return true
		}
	}
	return false
}

// newChild makes the pair of SAs of a negotiation that is agreed, and asks the
// worker for the inbound one. It returns the ID of that effect.
func (m *Machine) newChild(n *negotiation, secrets []ipsec.Secret) (uint64, error) {
	var first ipsec.Secret
	var others []ipsec.Secret
	if len(secrets) > 0 {
		first, others = secrets[0], secrets[1:]
	}
	keys, err := suite.NewChildKeys(m.prf, n.suite, m.keys.SKd, first, n.ni, n.nr, others...)
	if err != nil {
		return 0, err
	}
	// RFC 7296 §2.17: the first keys are for what the exchange's initiator sends.
	inEncr, inInteg, outEncr, outInteg := keys.EncrI, keys.IntegI, keys.EncrR, keys.IntegR
	if n.initiator {
		inEncr, inInteg, outEncr, outInteg = outEncr, outInteg, inEncr, inInteg
	}
	c := m.describe(n)
	t := n.rule.Template
	life := m.jitter(t.Lifetime)
	sa := ipsec.SA{
		Protocol: n.suite.Protocol, Mode: n.mode, Local: m.path.Local.Addr(), Remote: m.path.Remote.Addr(), Encap: m.encap(),
		Suite: n.suite, Selectors: c.Selectors, Lifetime: life, Rule: n.rule.Name, Peer: m.peer.Name, Child: c.ID, Resource: n.resource,
	}
	in, out := sa, sa
	in.ID, in.Direction, in.SPI, in.EncrKey, in.IntegKey, in.ReplayWindow = c.In, ipsec.Inbound, n.spi, inEncr, inInteg, t.ReplayWindow
	out.ID, out.Direction, out.SPI, out.EncrKey, out.IntegKey = c.Out, ipsec.Outbound, n.peerSPI, outEncr, outInteg
	out.PadTo = c.PadTo
	c.out = &out
	if life.TimeSoft > 0 {
		c.rekeyAt = m.now.Add(life.TimeSoft)
	}
	if life.TimeHard > 0 {
		c.dieAt = m.now.Add(life.TimeHard)
	}
	c.inAsked = true
	return m.install(in), nil
}

// describe adds the CHILD SA of a negotiation, with nothing installed.
func (m *Machine) describe(n *negotiation) *child {
	c := &child{protocol: n.suite.Protocol, replaces: n.replaces, Child: ike.Child{
		ID: m.nextID(), Rule: n.rule.Name, Suite: n.suite, Mode: n.mode, Encap: m.encap() != nil, Selectors: n.selectors,
		In: ipsec.SAID(m.nextID()), Out: ipsec.SAID(m.nextID()), SPIIn: n.spi, SPIOut: n.peerSPI, Since: m.now, Rekeyed: n.rekeyed,
		Resource: n.resource,
	}}
	c.fills, c.life, c.pad = n.fills, n.rule.Template.Lifetime, n.rule.Template.PadTo
	if n.mode == ipsec.ModeTunnel && n.suite.Protocol == ipsec.ProtocolESP && !n.plain {
		c.PadTo = n.rule.Template.PadTo
	}
	m.children = append(m.children, c)
	n.child = c
	return c
}

// jitter takes up to a tenth off the soft limits, so that the two ends, and a
// fleet that started together, do not rekey at the same time (RFC 7296 §2.8). A
// hard limit in time or use without a soft one gets one.
func (m *Machine) jitter(l ipsec.Lifetime) ipsec.Lifetime {
	if l.TimeSoft == 0 {
		l.TimeSoft = l.TimeHard - l.TimeHard/10
	}
	l.TimeSoft -= m.below(l.TimeSoft / 10)
	if l.UseSoft == 0 {
		l.UseSoft = l.UseHard - l.UseHard/10
	}
	l.UseSoft -= m.below(l.UseSoft / 10)
	l.Bytes.Soft -= uint64(m.below(time.Duration(l.Bytes.Soft / 10)))
	l.Packets.Soft -= uint64(m.below(time.Duration(l.Packets.Soft / 10)))
	return l
}

// installOut asks the worker for the outbound SA.
func (m *Machine) installOut(c *child) uint64 {
	c.outAsked = true
	out := *c.out
	c.out = nil
	return m.install(out)
}

// install asks the worker for SAs, and returns the ID of the effect.
func (m *Machine) install(sas ...ipsec.SA) uint64 {
	id := m.nextID()
	for _, sa := range sas {
		if c := m.childByID(sa.Child); c != nil {
			c.asked = append(c.asked, asked{id, sa})
		}
	}
	m.emit(ike.Install{ID: id, SAs: sas, Unproven: m.unproven()})
	return id
}

// up reports a CHILD SA that is complete.
func (m *Machine) up(c *child) {
	c.state, c.reported = childUp, true
	m.emit(ike.ChildUp{Child: c.Child})
	if !m.restored && !m.keeps(c) { // it was agreed on before the policy changed
		m.deleteChild(c.ID, "the policy has changed: rule "+c.Rule)
		return
	}
	m.renew(c)
	m.fill(c)
	if c.rekey {
		m.rekeyChild(c.ID)
	}
}

// removeOut takes the outbound SA out of the worker.
func (m *Machine) removeOut(c *child) {
	if c.outAsked {
		c.outAsked = false
		m.emit(ike.Remove{SAs: []ipsec.SAID{c.Out}})
	}
}

// dropChild forgets a CHILD SA and takes what is left of it out of the worker:
// outbound first. The inbound half of a replaced one drains.
func (m *Machine) dropChild(c *child, why string) {
	m.removeOut(c)
	if c.inAsked {
		c.inAsked = false
		if c.state == childReplaced && m.state == stateEstablished {
			m.drains = append(m.drains, drain{sa: c.In, at: m.now.Add(drainTime)})
			m.boundDrains()
		} else {
			m.emit(ike.Remove{SAs: []ipsec.SAID{c.In}})
		}
	}
	if c.reported {
		m.emit(ike.ChildDown{Child: c.ID, Why: why})
	}
	c.state, c.out, c.wait, c.outAt = childGone, nil, 0, time.Time{}
	for i, x := range m.children {
		if x == c {
			m.children = append(m.children[:i:i], m.children[i+1:]...)
			return
		}
	}
}

// boundDrains ends the oldest drains when there are too many, so that a peer that
// rekeys without pause does not fill the worker.
func (m *Machine) boundDrains() {
	if most := 2 * (1 + len(m.children)); len(m.drains) > most {
		m.emit(ike.Remove{SAs: []ipsec.SAID{m.drains[0].sa}})
		m.drains = m.drains[1:]
	}
}

func (m *Machine) tickDrains() {
	var ids []ipsec.SAID
	rest := m.drains[:0]
	for _, d := range m.drains {
		if m.due(d.at) {
			ids = append(ids, d.sa)
		} else {
			rest = append(rest, d)
		}
	}
	m.drains = rest
	if ids != nil {
		m.emit(ike.Remove{SAs: ids})
	}
}

func (m *Machine) endDrains() {
	var ids []ipsec.SAID
	for _, d := range m.drains {
		ids = append(ids, d.sa)
	}
	m.drains = nil
	if ids != nil {
		m.emit(ike.Remove{SAs: ids})
	}
}

// installed is the worker's answer.
func (m *Machine) installed(ev ike.Installed) {
	if m.take(func(t *task) bool {
		return t.wait == ev.ID && (t.phase == phaseInstallIn || t.phase == phaseInstallOut)
	}) {
		m.task.wait = 0
		m.taskInstalled(ev.Err)
		return
	}
	if s := m.serve; s != nil && s.wait == ev.ID {
		switch s.phase {
		case phaseInstallIn:
			s.wait = 0
			m.answerChild(ev.Err)
		case phaseInstallOut:
			s.wait = 0
			m.answerDelete(ev.Err)
		}
		return
	}
	for _, c := range m.children {
		if c.wait == ev.ID {
			c.wait = 0
			if ev.Err != nil {
				c.outAsked = false
				m.installFailed(c, ev.Err)
			} else {
				m.up(c)
			}
			return
		}
	}
}

// installFailed closes a CHILD SA that the worker would not install.
func (m *Machine) installFailed(c *child, err error) {
	m.emit(ike.Failed{Failure: m.childFailure(0, c.Rule, WhyInstall, err.Error(), adviceInstall(err))})
	c.state = childUp // as far as the peer knows
	m.deleteChild(c.ID, WhyInstall)
}

// deleteChild is the command.
func (m *Machine) deleteChild(id uint64, why string) {
	c := m.childByID(id)
	if c == nil || c.state == childDeleting || m.state != stateEstablished {
		return
	}
	m.enqueue(task{kind: taskDeleteChild, child: id, why: why})
}

// rekeyChild is the command. A CHILD SA that is not up yet is rekeyed when it is: an SA
// of it may be one that the worker does not have any more.
func (m *Machine) rekeyChild(id uint64) {
	c := m.childByID(id)
	if c == nil || m.state != stateEstablished {
		return
	}
	switch c.state {
	case childUp:
		m.enqueue(task{kind: taskRekeyChild, child: id})
	case childInstalling, childHeld:
		c.rekey = true
	}
}

// childExpired: soft means rekey, hard means that the SA is of no use any more.
func (m *Machine) childExpired(ev ike.ChildExpired) {
	if ev.Hard {
		m.deleteChild(ev.Child, "lifetime: "+ev.Cause)
		return
	}
	m.rekeyChild(ev.Child)
}
