package ikev2

import (
	"reflect"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// policyChanged keeps what the new policy still allows, and closes the rest.
func (m *Machine) policyChanged(policy *ipsec.NodePolicy) {
	m.policy, m.restored = policy, false
	var candidates []ipsec.Peer
	for _, c := range m.candidates {
		if p, ok := peerByName(policy, c.Name); ok {
			candidates = append(candidates, p)
		}
	}
	m.candidates = candidates
	if m.peer.Name == "" {
		return
	}
	p, ok := peerByName(policy, m.peer.Name)
	if !ok || p.LocalID != m.peer.LocalID || p.RemoteID != m.peer.RemoteID {
		m.terminate("the policy has changed: peer " + m.peer.Name + " is gone or has other identities")
		return
	}
	old := m.peer
	m.peer = p
	if m.state == stateConnecting && !reflect.DeepEqual([]any{old.Auth, old.PPK, old.Proposals}, []any{p.Auth, p.PPK, p.Proposals}) {
		m.beginAnew()
		return
	}
	if m.state != stateEstablished {
		return
	}
	m.dropFollowUps(ofChild) // their rules may have changed: the peer starts over
	if !allows(p.Proposals, m.suite) {
		m.terminate("the policy has changed: it does not allow " + m.suite.String() + " with peer " + p.Name)
		return
	}
	if !reflect.DeepEqual([]any{old.Auth, old.PPK}, []any{p.Auth, p.PPK}) {
		m.proveAnew()
	}
	m.retime(old)
	for _, c := range m.children {
		if !m.keeps(c) {
			m.deleteChild(c.ID, "the policy has changed: rule "+c.Rule)
			continue
		}
		m.fill(c)
		m.renew(c)
	}
}

// renew has a CHILD SA rekeyed whose rule has other limits or another padding than when
// it was made: they are in the worker.
func (m *Machine) renew(c *child) {
	if r, ok := m.ruleOf(c.Rule); ok && (r.Template.Lifetime != c.life || r.Template.PadTo != c.pad) {
		c.rekeyAt = sooner(c.rekeyAt, m.now.Add(m.below(changeSpread)))
	}
}

// changeSpread is the time over which the IKE SAs of a fleet do what a new policy asks
// for.
const changeSpread = 30 * time.Second

// proveTime is how long an IKE SA lasts after its policy has another authentication.
const proveTime = 3 * time.Minute

// proveAnew replaces an IKE SA whose ends have proven themselves as the policy has it no
// more, and ends it when that comes to nothing. The other end has the new policy at
// about the same time: it comes a little later, and the original initiator first.
func (m *Machine) proveAnew() {
	at := m.now.Add(changeSpread/6 + m.below(changeSpread))
	if !m.initiator {
		at = at.Add(changeSpread)
	}
	m.reauthAt = sooner(m.reauthAt, at)
	m.proveBy = sooner(m.proveBy, m.now.Add(proveTime))
}

// retime makes new times of the profile count for the IKE SA that is up, but for a later
// reauthentication: that the peer has asked for the sooner one may be.
func (m *Machine) retime(old ipsec.Peer) {
	now := m.now.Add(m.below(changeSpread))
	if l := m.peer.Lifetime; l != old.Lifetime {
		m.rekeyAt, m.endAt = time.Time{}, time.Time{}
		if l > 0 {
			m.rekeyAt = later(m.since.Add(l-m.below(l/10)), now)
			m.endAt = later(m.since.Add(l), m.rekeyAt).Add(l / lifetimeOverrun)
		}
	}
	if d := m.peer.Reauth; d > 0 && d != old.Reauth {
		m.reauthAt = sooner(m.reauthAt, later(m.since.Add(d-m.below(d/reauthMargin)), now))
	}
}

// beginAnew ends a handshake: what was agreed and proven so far was so under a
// profile that is not in force any more.
func (m *Machine) beginAnew() {
	if m.initiator {
		m.emit(ike.Spawn{Machine: m.startOver(0, 0)})
	}
	m.end("the policy has changed: authentication or suites of peer " + m.peer.Name)
}

// keeps reports whether a CHILD SA is still what its rule asks for.
func (m *Machine) keeps(c *child) bool {
	r, ok := m.ruleOf(c.Rule)
	if !ok || r.Template.Mode != c.Mode || c.Resource > r.Template.Resources {
		return false
	}
	for _, s := range c.Selectors {
		if !r.Selector.Covers(s) {
			return false
		}
	}
	s := c.Suite
	s.KE, s.ADDKE = ipsec.Transform{}, [ipsec.MaxADDKE]ipsec.Transform{}
	return allows(childProposals(r.Template, false), s)
}

// allows reports whether a suite could come out of any of the proposals.
func allows(ps []ipsec.Proposal, s ipsec.Suite) bool {
	has := func(p ipsec.Proposal, typ ipsec.TransformType, t ipsec.Transform) bool {
		of := p.OfType(typ)
		if t.Type == 0 {
			return len(of) == 0 || slices.ContainsFunc(of, func(x ipsec.Transform) bool { return x.ID == 0 })
		}
		return slices.Contains(of, t)
	}
	return slices.ContainsFunc(ps, func(p ipsec.Proposal) bool {
		esn := true
		if of := p.OfType(ipsec.TransformESN); len(of) > 0 {
			want := ipsec.Transform{Type: ipsec.TransformESN, ID: ipsec.ESNNo}
			if s.ESN {
				want.ID = ipsec.ESNYes
			}
			esn = slices.Contains(of, want)
		}
		for i, x := range s.ADDKE {
			if !has(p, ipsec.TransformADDKE+ipsec.TransformType(i), x) {
				return false
			}
		}
		return p.Protocol == s.Protocol && has(p, ipsec.TransformENCR, s.Encr) && has(p, ipsec.TransformPRF, s.PRF) &&
			has(p, ipsec.TransformINTEG, s.Integ) && has(p, ipsec.TransformKE, s.KE) && esn
	})
}
