package convert

import (
	"fmt"

	"github.com/testudo-ipsec/testudo/ipsec"
	ipsecv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/ipsec/v1"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
)

// ToVersion makes a message.
func ToVersion(v ipsec.Version) *policyv1.StoreVersion {
	return &policyv1.StoreVersion{Cluster: v.Cluster, Epoch: v.Epoch, Revision: v.Revision}
}

// FromVersion reads a version; an absent one is zero.
func FromVersion(m *policyv1.StoreVersion) ipsec.Version {
	return ipsec.Version{Cluster: m.GetCluster(), Epoch: m.GetEpoch(), Revision: m.GetRevision()}
}

// ToRule makes a message.
func ToRule(r *ipsec.Rule) *policyv1.Rule {
	m := &policyv1.Rule{
		Name: r.Name, Policy: r.Policy, Weight: r.Weight, Direction: ipsecv1.Direction(r.Direction),
		Selector: ToSelector(r.Selector), Action: ipsecv1.Action(r.Action), Peer: r.Peer,
	}
	if t := r.Template; t != nil {
		m.Template = &policyv1.Template{
			Mode: ipsecv1.Mode(t.Mode), Proposals: toProposals(t.Proposals), Pfs: uint32(t.PFS),
			Lifetime: toLifetime(t.Lifetime), ReplayWindow: t.ReplayWindow, ForceEncap: t.ForceEncap,
			AcceptClear: t.AcceptClear, FallbackClear: t.FallbackClear, Outer: toOuter(t.Outer), Resources: t.Resources, PadTo: uint32(t.PadTo),
		}
	}
	return m
}

// FromRule reads a rule.
func FromRule(m *policyv1.Rule) (*ipsec.Rule, error) {
	r := &ipsec.Rule{
		Name: m.GetName(), Policy: m.GetPolicy(), Weight: m.GetWeight(), Direction: small[ipsec.Direction](m.GetDirection()),
		Action: small[ipsec.Action](m.GetAction()), Peer: m.GetPeer(),
	}
	if r.Name == "" {
		return nil, fmt.Errorf("rule has no name")
	}
	if r.Direction < ipsec.Inbound || r.Direction > ipsec.Both {
		return nil, fmt.Errorf("rule %s: direction is %s, want in, out or both", r.Name, r.Direction)
	}
	var err error
	if r.Selector, err = FromSelector(m.GetSelector()); err != nil {
		return nil, fmt.Errorf("rule %s: %w", r.Name, err)
	}
	switch r.Action {
	case ipsec.ActionPermit, ipsec.ActionBlock:
		return r, nil
	case ipsec.ActionSecure:
	default:
		return nil, fmt.Errorf("rule %s: action is %s, want permit, block or secure", r.Name, r.Action)
	}
	t := m.GetTemplate()
	if t == nil || r.Peer == "" {
		return nil, fmt.Errorf("rule %s: a secure rule needs a template and a peer", r.Name)
	}
	r.Template = &ipsec.Template{
		Mode: small[ipsec.Mode](t.GetMode()), PFS: uint16(t.GetPfs()), ReplayWindow: t.GetReplayWindow(),
		ForceEncap: t.GetForceEncap(), AcceptClear: t.GetAcceptClear(), FallbackClear: t.GetFallbackClear(), Resources: t.GetResources(), PadTo: uint16(min(t.GetPadTo(), ipsec.PadToMTU)),
	}
	if t.GetPfs() > 65535 {
		return nil, fmt.Errorf("rule %s: key exchange is %d, want 0 to 65535", r.Name, t.GetPfs())
	}
	if r.Template.Lifetime, err = fromLifetime(t.GetLifetime()); err != nil {
		return nil, fmt.Errorf("rule %s: %w", r.Name, err)
	}
	if r.Template.Outer, err = fromOuter(t.GetOuter()); err != nil {
		return nil, fmt.Errorf("rule %s: %w", r.Name, err)
	}
	if r.Template.Mode != ipsec.ModeTunnel && r.Template.Mode != ipsec.ModeTransport {
		return nil, fmt.Errorf("rule %s: mode is %s, want tunnel or transport", r.Name, r.Template.Mode)
	}
	if r.Template.Proposals, err = fromProposals(t.GetProposals()); err != nil {
		return nil, fmt.Errorf("rule %s: %w", r.Name, err)
	}
	return r, nil
}

func toOuter(h ipsec.OuterHeader) *policyv1.OuterHeader {
	if h == (ipsec.OuterHeader{}) {
		return nil
	}
	m := &policyv1.OuterHeader{Df: uint32(h.DF), CopyFlowLabel: h.CopyLabel}
	if h.FixedDSCP {
		dscp := uint32(h.DSCP)
		m.Dscp = &dscp
	}
	return m
}

func fromOuter(m *policyv1.OuterHeader) (ipsec.OuterHeader, error) {
	if m.GetDf() > uint32(ipsec.DFClear) || m.GetDscp() > 63 {
		return ipsec.OuterHeader{}, fmt.Errorf("outer header: DF is %d and DSCP %d, want at most %d and 63", m.GetDf(), m.GetDscp(), ipsec.DFClear)
	}
	return ipsec.OuterHeader{DF: ipsec.DF(m.GetDf()), FixedDSCP: m != nil && m.Dscp != nil, DSCP: uint8(m.GetDscp()), CopyLabel: m.GetCopyFlowLabel()}, nil
}

func toIdentity(i ipsec.Identity) *policyv1.Identity {
	if i.IsZero() {
		return nil
	}
	return &policyv1.Identity{Kind: uint32(i.Kind), Data: []byte(i.Data)}
}

func fromIdentity(m *policyv1.Identity) (ipsec.Identity, error) {
	if m == nil {
		return ipsec.Identity{}, nil
	}
	if m.Kind == 0 || m.Kind > 255 {
		return ipsec.Identity{}, fmt.Errorf("identity kind is %d, want an ID type of RFC 7296 section 3.5", m.Kind)
	}
	return ipsec.Identity{Kind: ipsec.IdentityKind(m.Kind), Data: string(m.Data)}, nil
}

// ToPeer makes a message.
func ToPeer(p *ipsec.Peer) *policyv1.Peer {
	m := &policyv1.Peer{
		Name: p.Name, Local: ToAddrs(p.Local), Remote: ToAddrs(p.Remote), LocalId: toIdentity(p.LocalID), RemoteId: toIdentity(p.RemoteID),
		Proposals: toProposals(p.Proposals), Lifetime: duration(p.Lifetime), Reauth: duration(p.Reauth), Dpd: duration(p.DPD), ForceEncap: p.ForceEncap, Mobike: p.Mobike, Tcp: uint32(p.TCP),
	}
	for _, a := range p.Auth {
		m.Auth = append(m.Auth, toAuthMethod(a))
	}
	if k := p.PPK; k != nil {
		m.Ppk = &policyv1.Ppk{Id: k.ID, Secret: k.Secret, Required: k.Required}
	}
	return m
}

// FromPeer reads a peer.
func FromPeer(m *policyv1.Peer) (*ipsec.Peer, error) {
	p := &ipsec.Peer{Name: m.GetName(), ForceEncap: m.GetForceEncap(), Mobike: m.GetMobike()}
	if p.Name == "" {
		return nil, fmt.Errorf("peer has no name")
	}
	fail := func(err error) (*ipsec.Peer, error) { return nil, fmt.Errorf("peer %s: %w", p.Name, err) }
	if m.GetTcp() > uint32(ipsec.TCPAlways) {
		return fail(fmt.Errorf("use of TCP is %d, want 0 to %d", m.GetTcp(), ipsec.TCPAlways))
	}
	p.TCP = ipsec.TCPUse(m.GetTcp())
	var err error
	if p.Lifetime, err = fromDuration(m.GetLifetime()); err != nil {
		return fail(fmt.Errorf("lifetime: %w", err))
	}
	if p.DPD, err = fromDuration(m.GetDpd()); err != nil {
		return fail(fmt.Errorf("dpd: %w", err))
	}
	if p.Local, err = FromAddrs(m.GetLocal()); err != nil {
		return fail(err)
	}
	if p.Remote, err = FromAddrs(m.GetRemote()); err != nil {
		return fail(err)
	}
	if p.LocalID, err = fromIdentity(m.GetLocalId()); err != nil {
		return fail(err)
	}
	if p.RemoteID, err = fromIdentity(m.GetRemoteId()); err != nil {
		return fail(err)
	}
	for _, a := range m.GetAuth() {
		method, err := fromAuthMethod(a)
		if err != nil {
			return fail(err)
		}
		p.Auth = append(p.Auth, method)
	}
	if p.PPK, err = fromPPK(m.GetPpk()); err != nil {
		return fail(err)
	}
	if p.Reauth, err = fromDuration(m.GetReauth()); err != nil {
		return fail(fmt.Errorf("reauth: %w", err))
	}
	if p.Proposals, err = fromProposals(m.GetProposals()); err != nil {
		return fail(err)
	}
	return p, nil
}
