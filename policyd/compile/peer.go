package compile

import (
	"net/netip"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/model"
)

// peerRef is who is at the other end: a node, an address of nobody known, or
// anybody at all (the zero value).
type peerRef struct {
	node *model.Node
	addr netip.Addr
}

// AnyPeer is the name of the peer that only answers.
const AnyPeer = "any"

func (p peerRef) String() string {
	switch {
	case p.node != nil:
		return p.node.Name
	case p.addr.IsValid():
		return p.addr.String()
	}
	return AnyPeer
}

// authUse is the rule that first said how to authenticate a peer.
type authUse struct {
	name string
	rule *model.Rule
}

// peer returns the name of the profile to negotiate with for a target, making
// the profile when it is new.
func (b *builder) peer(j job, t target) string {
	b.checkAuth(j, t.peer)
	b.checkNAT(j, t.peer)
	name, is4 := t.peer.String(), t.is4()
	if j.action.Template.Mode == ipsec.ModeTunnel {
		is4 = b.outerFamily(j, t.peer)
	}
	if t.peer.node != nil && !is4 {
		name += "/v6"
	}
	p := b.peers[name]
	if p == nil {
		p = b.profile(name, t.peer, is4)
		a := b.c.set.Authentications[j.rule.Authentication]
		p.Auth, p.PPK = a.For(b.node), a.PPK
		b.peers[name] = p
	}
	p.ForceEncap = p.ForceEncap || j.action.Template.ForceEncap
	p.Mobike = p.Mobike || b.policy.KeyExchange.Mobike && j.action.Template.Mode == ipsec.ModeTunnel
	return name
}

func (b *builder) profile(name string, ref peerRef, is4 bool) *ipsec.Peer {
	k := b.policy.KeyExchange
	p := &ipsec.Peer{Name: name, LocalID: b.node.Identity, Proposals: k.Suites, Lifetime: k.Lifetime, Reauth: k.Reauth, DPD: k.DPD, TCP: k.TCP}
	switch {
	case ref.node != nil:
		p.Local, p.RemoteID = ofFamily(b.node.Addresses, is4), ref.node.Identity
		if !ref.node.BehindNAT {
			p.Remote = ofFamily(ref.node.Addresses, is4)
		}
	case ref.addr.IsValid():
		p.Local, p.Remote, p.RemoteID = ofFamily(b.node.Addresses, is4), []netip.Addr{ref.addr}, ipsec.AddrIdentity(ref.addr)
	default:
		p.Local = b.node.Addresses
	}
	return p
}

// outerFamily is the family of a tunnel's ends: the first of the node's own
// that the peer has too.
func (b *builder) outerFamily(j job, ref peerRef) (is4 bool) {
	remote := []netip.Addr{ref.addr}
	switch {
	case ref.node != nil:
		remote = ref.node.Addresses
	case !ref.addr.IsValid():
		return b.node.Addresses[0].Is4()
	}
	for _, a := range b.node.Addresses {
		if len(ofFamily(remote, a.Is4())) > 0 {
			return a.Is4()
		}
	}
	b.errs.once("family "+b.node.Name+" "+ref.String(), j.rule.Pos, "",
		"rule %q: node %q and tunnel peer %s have no address family in common; give one of them an address of the other's family", j.rule.Name, b.node.Name, ref)
	return true
}

func ofFamily(all []netip.Addr, is4 bool) []netip.Addr {
	var out []netip.Addr
	for _, a := range all {
		if a.Is4() == is4 {
			out = append(out, a)
		}
	}
	return out
}

// checkNAT refuses AH where it is known not to arrive: a NAT changes the addresses,
// which AH covers (RFC 3715 §2.1), and TCP carries ESP only (RFC 9329 §1).
func (b *builder) checkNAT(j job, ref peerRef) {
	if slices.ContainsFunc(j.action.Template.Proposals, func(p ipsec.Proposal) bool { return p.Protocol != ipsec.ProtocolAH }) {
		return
	}
	if b.policy.KeyExchange.TCP == ipsec.TCPAlways {
		b.errs.once("tcp "+j.rule.Pos.String(), j.rule.Pos, "",
			"rule %q protects with ah only, which cannot travel in TCP (RFC 9329), and its policy says tcp: always; want esp in its action's security, or tcp: fallback", j.rule.Name)
	}
	for _, n := range []*model.Node{b.node, ref.node} {
		if n != nil && n.BehindNAT {
			b.errs.once("nat "+j.rule.Pos.String()+n.Name, j.rule.Pos, "",
				"rule %q protects with ah only, and node %q is behind a NAT, which breaks it (RFC 3715); want esp in its action's security", j.rule.Name, n.Name)
		}
	}
}

// checkAuth keeps one remote to one way of authenticating: which rule an IKE
// SA is for is not known when its peer has to be authenticated.
func (b *builder) checkAuth(j job, ref peerRef) {
	remote := ref.String()
	first, ok := b.auth[remote]
	if !ok {
		b.auth[remote] = authUse{j.rule.Authentication, j.rule}
		return
	}
	if first.name != j.rule.Authentication {
		b.errs.once("auth "+j.rule.Pos.String()+first.rule.Pos.String(), j.rule.Pos, "",
			"rule %q authenticates peer %s of node %q with %q, and rule %q (%s) with %q; want one authentication for one peer",
			j.rule.Name, remote, b.node.Name, j.rule.Authentication, first.rule.Name, first.rule.Pos, first.name)
	}
}
