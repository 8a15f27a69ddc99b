package ikev2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// offer is an SA payload of all our proposals, each with our SPI.
func offer(ours []ipsec.Proposal, spi []byte) *wire.SA {
	sa := &wire.SA{}
	for i, p := range ours {
		w := wire.Proposal{Number: uint8(i + 1), Protocol: wire.ProtocolID(p.Protocol), SPI: spi}
		for _, t := range p.Transforms {
			w.Transforms = append(w.Transforms, wire.Transform{Transform: t})
		}
		sa.Proposals = append(sa.Proposals, w)
	}
	return sa
}

// choice is one proposal of the peer that was chosen.
type choice struct {
	suite    ipsec.Suite
	proposal wire.Proposal // the answer: one transform of each type; the SPI is the peer's
}

// choose picks the first of our proposals that any of theirs satisfies
// (RFC 7296 §3.3.6): of each type our first transform that they also have.
// tolerated has the key exchanges that are accepted though we name none: for a
// peer that wants perfect forward secrecy where our policy does not ask for it.
func choose(ours []ipsec.Proposal, theirs *wire.SA, spiLen int, tolerated ipsec.Suite) (choice, bool) {
	for _, o := range ours {
		for _, t := range theirs.Proposals {
			if t.Protocol != wire.ProtocolID(o.Protocol) || len(t.SPI) != spiLen {
				continue
			}
			if c, ok := match(o, t, tolerated); ok {
				return c, true
			}
		}
	}
	return choice{}, false
}

func match(o ipsec.Proposal, t wire.Proposal, tolerated ipsec.Suite) (choice, bool) {
	c := choice{suite: ipsec.Suite{Protocol: o.Protocol}, proposal: wire.Proposal{Number: t.Number, Protocol: t.Protocol, SPI: t.SPI}}
	var buf [8]ipsec.Transform
	for typ := range typesOf(o, t) {
		ours := o.OfType(typ)
		if also := tolerated.KeyExchange(typ); len(ours) == 0 && also != ipsec.KENone {
			ours = []ipsec.Transform{{Type: typ}, {Type: typ, ID: also}}
		}
		picked, sent, ok := matchType(ours, theirsOf(buf[:0], t, typ))
		if !ok {
			return choice{}, false
		}
		if sent {
			if c.proposal.Transforms == nil {
				c.proposal.Transforms = make([]wire.Transform, 0, 4) // most have no more
			}
			c.proposal.Transforms = append(c.proposal.Transforms, wire.Transform{Transform: picked})
		}
		if picked.ID == 0 {
			continue // NONE: the suite is without
		}
		if !put(&c.suite, picked) {
			return choice{}, false
		}
	}
	if c.suite.KE.ID == ipsec.KENone && len(c.suite.Additional()) > 0 {
		return choice{}, false // an additional key exchange comes after a first one
	}
	return c, true
}

// put gives a transform its place in a suite; false when there is none for its type.
func put(s *ipsec.Suite, t ipsec.Transform) bool {
	switch t.Type {
	case ipsec.TransformENCR:
		s.Encr = t
	case ipsec.TransformPRF:
		s.PRF = t
	case ipsec.TransformINTEG:
		s.Integ = t
	case ipsec.TransformKE:
		s.KE = t
	case ipsec.TransformESN:
		s.ESN = t.ID == ipsec.ESNYes
	default:
		if !t.Type.AdditionalKE() {
			return false
		}
		s.ADDKE[t.Type-ipsec.TransformADDKE] = t
	}
	return true
}

// matchType picks a transform of one type. A side that does not name the type
// means ID 0, which is NONE for integrity and key exchange and "no extended
// sequence numbers" for ESN. sent is false when the peer left the type out.
func matchType(ours, theirs []ipsec.Transform) (picked ipsec.Transform, sent, ok bool) {
	none := func(t ipsec.Transform) bool { return t.ID == 0 && t.KeyBits == 0 }
	switch {
	case len(theirs) == 0:
		return ipsec.Transform{}, false, len(ours) == 0 || slices.ContainsFunc(ours, none)
	case len(ours) == 0:
		i := slices.IndexFunc(theirs, none)
		if i < 0 {
			return ipsec.Transform{}, false, false
		}
		return theirs[i], true, true
	}
	for _, o := range ours {
		if slices.Contains(theirs, o) {
			return o, true, true
		}
	}
	return ipsec.Transform{}, false, false
}

// theirsOf are the peer's transforms of one type, without those that carry an
// attribute we do not know: they "MUST NOT" be chosen (RFC 7296 §3.3.6). They are
// appended to out, which is empty.
func theirsOf(out []ipsec.Transform, p wire.Proposal, typ ipsec.TransformType) []ipsec.Transform {
	unknown := false
	for _, t := range p.Transforms {
		if t.Type != typ {
			continue
		}
		if t.Unknown != nil {
			unknown = true
			continue
		}
		out = append(out, t.Transform)
	}
	if unknown && len(out) == 0 {
		return append(out, ipsec.Transform{Type: typ, ID: 0xffff}) // present, and nothing of it is ours
	}
	return out
}

// typesOf are the types of transforms that either proposal has, each once, ours first.
func typesOf(o ipsec.Proposal, t wire.Proposal) iter.Seq[ipsec.TransformType] {
	return func(yield func(ipsec.TransformType) bool) {
		var seen [256]bool
		for _, x := range o.Transforms {
			if !seen[x.Type] && !yield(x.Type) {
				return
			}
			seen[x.Type] = true
		}
		for _, x := range t.Transforms {
			if !seen[x.Type] && !yield(x.Type) {
				return
			}
			seen[x.Type] = true
		}
	}
}

// accept checks the responder's choice: exactly one of our proposals, with one
// transform of each type (RFC 7296 §2.7).
func accept(ours []ipsec.Proposal, sa *wire.SA, spiLen int) (choice, error) {
	if len(sa.Proposals) != 1 {
		return choice{}, fmt.Errorf("got %d proposals in the response, want the one chosen", len(sa.Proposals))
	}
	p := sa.Proposals[0]
	if p.Number < 1 || int(p.Number) > len(ours) {
		return choice{}, fmt.Errorf("got proposal number %d, offered 1 to %d", p.Number, len(ours))
	}
	seen := map[ipsec.TransformType]bool{}
	for _, t := range p.Transforms {
		if seen[t.Type] {
			return choice{}, fmt.Errorf("got more than one %s transform in %s, want one", t.Type, p)
		}
		seen[t.Type] = true
	}
	c, ok := choose(ours[p.Number-1:p.Number], sa, spiLen, ipsec.Suite{})
	if !ok {
		return choice{}, fmt.Errorf("got %s, which is not part of the proposal offered: %s", p, ours[p.Number-1])
	}
	return c, nil
}

const adviceAHNAT = "put esp into the rule's security; or take the NAT away, and forceEncap out of the rules with this peer"

var errAHNAT = errors.New("there is a NAT between the ends, or one of them forces UDP encapsulation: AH covers the addresses that a NAT changes (RFC 3715 section 2.1), and has no encapsulation in UDP")

// adviceFor says what to do when a rule cannot be proposed.
func adviceFor(err error) string {
	if errors.Is(err, errAHNAT) {
		return adviceAHNAT
	}
	return "check the rule and the peer it names"
}

// childProposals are those of a template that can work on this path: all of them,
// or all but AH.
func (m *Machine) childProposals(t *ipsec.Template, createChild bool) []ipsec.Proposal {
	ps := childProposals(t, createChild)
	if m.encap() != nil {
		ps = slices.DeleteFunc(ps, func(p ipsec.Proposal) bool { return p.Protocol == ipsec.ProtocolAH })
	}
	return ps
}

// childProposals are a template's proposals as one exchange may use them: in
// IKE_AUTH without key exchanges (RFC 7296 §1.2), in CREATE_CHILD_SA with the
// methods the proposal names or else the template's PFS.
func childProposals(t *ipsec.Template, createChild bool) []ipsec.Proposal {
	out := make([]ipsec.Proposal, 0, len(t.Proposals))
	for _, p := range t.Proposals {
		q := ipsec.Proposal{Protocol: p.Protocol, Transforms: make([]ipsec.Transform, 0, len(p.Transforms)+2)}
		for _, x := range p.Transforms {
			if x.Type != ipsec.TransformKE && !x.Type.AdditionalKE() || createChild {
				q.Transforms = append(q.Transforms, x)
			}
		}
		if createChild && t.PFS != ipsec.KENone && len(p.OfType(ipsec.TransformKE)) == 0 {
			q.Transforms = append(q.Transforms, ipsec.Transform{Type: ipsec.TransformKE, ID: t.PFS})
		}
		if len(p.OfType(ipsec.TransformESN)) == 0 { // mandatory in ESP and AH (RFC 7296 §3.3.3)
			q.Transforms = append(q.Transforms, ipsec.Transform{Type: ipsec.TransformESN, ID: ipsec.ESNNo})
		}
		out = append(out, q)
	}
	return out
}

// withoutAdditional are the proposals of a peer that we may choose from when it
// does not do IKE_INTERMEDIATE, without which there is no additional key exchange
// (RFC 9370 §2.2.1).
func withoutAdditional(sa *wire.SA) *wire.SA {
	has := func(p wire.Proposal) bool {
		return slices.ContainsFunc(p.Transforms, func(t wire.Transform) bool { return t.Type.AdditionalKE() && t.ID != ipsec.KENone })
	}
	if !slices.ContainsFunc(sa.Proposals, has) {
		return sa
	}
	out := &wire.SA{}
	for _, p := range sa.Proposals {
		if !has(p) {
			out.Proposals = append(out.Proposals, p)
		}
	}
	return out
}

// additional reports whether any of the proposals has an additional key exchange.
func additional(ps []ipsec.Proposal) bool {
	return slices.ContainsFunc(ps, func(p ipsec.Proposal) bool {
		return slices.ContainsFunc(p.Transforms, func(t ipsec.Transform) bool { return t.Type.AdditionalKE() })
	})
}

// firstKE is the method to try first: the first of the first proposal.
func firstKE(ps []ipsec.Proposal) uint16 {
	if len(ps) == 0 {
		return ipsec.KENone
	}
	for _, t := range ps[0].OfType(ipsec.TransformKE) {
		if t.ID != ipsec.KENone {
			return t.ID
		}
	}
	return ipsec.KENone
}

// offers reports whether a method is in any of the proposals.
func offers(ps []ipsec.Proposal, method uint16) bool {
	return slices.ContainsFunc(ps, func(p ipsec.Proposal) bool {
		return slices.Contains(p.Transforms, ipsec.Transform{Type: ipsec.TransformKE, ID: method})
	})
}

func octets16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
