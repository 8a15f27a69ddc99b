package ipsec

import (
	"fmt"
	"slices"
	"strings"
)

// Protocol is a security protocol by its IP protocol number, or IKE. On the
// wire IKE numbers them differently (RFC 7296 §3.3.1: IKE 1, AH 2, ESP 3).
type Protocol uint8

const (
	ProtocolIKE Protocol = 0
	ProtocolESP Protocol = 50
	ProtocolAH  Protocol = 51
)

func (p Protocol) String() string {
	switch p {
	case ProtocolIKE:
		return "ike"
	case ProtocolESP:
		return "esp"
	case ProtocolAH:
		return "ah"
	}
	return fmt.Sprintf("protocol-%d", uint8(p))
}

// Proposal is one alternative of an SA payload: for each transform type a list
// in order of preference, of which the responder picks one (RFC 7296 §3.3).
type Proposal struct {
	Protocol   Protocol
	Transforms []Transform
}

// OfType returns the transforms of one type, in order of preference.
func (p Proposal) OfType(t TransformType) []Transform {
	var out []Transform
	for _, x := range p.Transforms {
		if x.Type == t {
			out = append(out, x)
		}
	}
	return out
}

// String is the operators' spelling: names joined with "-".
func (p Proposal) String() string {
	names := make([]string, len(p.Transforms))
	for i, t := range p.Transforms {
		names[i] = t.String()
	}
	return strings.Join(names, "-")
}

// ParseProposal reads a suite such as "aes256gcm16-prfsha256-x25519" (IKE) or
// "aes128gcm16-x25519-esn" (ESP). Several algorithms of one type are
// alternatives. What is left out is filled in: an IKE suite without a PRF takes
// the PRF of its integrity algorithm; an ESP or AH suite without esn or noesn
// offers both, ESN first.
func ParseProposal(proto Protocol, s string) (Proposal, error) {
	p := Proposal{Protocol: proto}
	use := UseIKE
	switch proto {
	case ProtocolESP:
		use = UseESP
	case ProtocolAH:
		use = UseAH
	}
	for _, word := range strings.Split(s, "-") {
		a, ok := AlgorithmByName(word)
		if !ok {
			return Proposal{}, fmt.Errorf("suite %q: unknown algorithm %q; known for %s: %s", s, word, proto, strings.Join(names(use), " "))
		}
		if a.Use&use == 0 {
			return Proposal{}, fmt.Errorf("suite %q: %s is not for %s; known for %s: %s", s, a.Name, proto, proto, strings.Join(names(use), " "))
		}
		if !slices.Contains(p.Transforms, a.Transform) {
			p.Transforms = append(p.Transforms, a.Transform)
		}
	}
	if proto == ProtocolIKE && len(p.OfType(TransformPRF)) == 0 {
		for _, i := range p.OfType(TransformINTEG) {
			if prf, ok := prfOfInteg[i.ID]; ok {
				p.Transforms = append(p.Transforms, Transform{Type: TransformPRF, ID: prf})
			}
		}
	}
	if proto != ProtocolIKE && len(p.OfType(TransformESN)) == 0 {
		p.Transforms = append(p.Transforms, Transform{TransformESN, ESNYes, 0}, Transform{TransformESN, ESNNo, 0})
	}
	if err := p.Validate(); err != nil {
		return Proposal{}, fmt.Errorf("suite %q: %w", s, err)
	}
	return p, nil
}

var prfOfInteg = map[uint16]uint16{
	IntegHMACSHA256128: PRFHMACSHA2256,
	IntegHMACSHA384192: PRFHMACSHA2384,
	IntegHMACSHA512256: PRFHMACSHA2512,
	IntegHMACSHA196:    PRFHMACSHA1,
}

func names(u Use) []string {
	var out []string
	for _, a := range algorithms {
		if a.Use&u != 0 {
			out = append(out, a.Name)
		}
	}
	slices.Sort(out)
	return out
}

// Validate checks that a suite can be made of the proposal (RFC 7296 §3.3.3):
// an AEAD cipher stands alone, any other needs integrity, and AEAD and
// non-AEAD ciphers do not share a proposal.
func (p Proposal) Validate() error {
	encr := p.OfType(TransformENCR)
	aead := 0
	for _, t := range encr {
		if a, ok := LookupAlgorithm(t); ok && a.AEAD {
			aead++
		}
	}
	integ := len(p.OfType(TransformINTEG))
	switch {
	case p.Protocol != ProtocolAH && len(encr) == 0:
		return fmt.Errorf("%s needs an encryption algorithm (null for none), got none", p.Protocol)
	case aead != 0 && aead != len(encr):
		return fmt.Errorf("combined-mode and separate ciphers need proposals of their own (RFC 7296 §3.3), got %s", p)
	case aead != 0 && integ != 0:
		return fmt.Errorf("a combined-mode cipher takes no integrity algorithm, got %s", p)
	case aead == 0 && integ == 0:
		return fmt.Errorf("a cipher without integrity protection is not allowed, got %s; add one such as sha256", p)
	}
	if p.Protocol == ProtocolIKE {
		if len(p.OfType(TransformPRF)) == 0 {
			return fmt.Errorf("an IKE suite needs a PRF such as prfsha256, got %s", p)
		}
		if len(p.OfType(TransformKE)) == 0 {
			return fmt.Errorf("an IKE suite needs a key exchange such as x25519, got %s", p)
		}
	}
	return nil
}

// Suite is a chosen proposal: at most one transform of each type. A zero
// Transform means that the type is absent.
type Suite struct {
	Protocol Protocol
	Encr     Transform
	Integ    Transform
	PRF      Transform
	KE       Transform
	ESN      bool
}

func (s Suite) String() string {
	var out []string
	for _, t := range []Transform{s.Encr, s.Integ, s.PRF, s.KE} {
		if t.Type != 0 && (t.ID != 0 || t.Type == TransformENCR) {
			out = append(out, t.String())
		}
	}
	if s.ESN {
		out = append(out, "esn")
	}
	return strings.Join(out, "-")
}
