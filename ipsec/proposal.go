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
	is := func(x Transform) bool { return x.Type == t }
	first := slices.IndexFunc(p.Transforms, is)
	if first < 0 {
		return nil
	}
	n := 1
	for first+n < len(p.Transforms) && p.Transforms[first+n].Type == t {
		n++
	}
	out := p.Transforms[first : first+n : first+n]
	for _, x := range p.Transforms[first+n:] { // none, as a rule: one type after the other
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
// alternatives. An additional key exchange (RFC 9370) is a word such as
// ke1_mlkem768. What is left out is filled in: an IKE suite without a PRF takes
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
	IntegHMACMD596:     PRFHMACMD5,
	IntegAESXCBC96:     PRFAES128XCBC,
	IntegAESCMAC96:     PRFAES128CMAC,
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
	if err := p.validateKE(); err != nil {
		return err
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

// validateKE checks additional key exchanges (RFC 9370 §2.2.1): they come after a
// first one, and no method is done twice. A method is under one type only, so
// that no choice of the peer's repeats one.
func (p Proposal) validateKE() error {
	ke := p.OfType(TransformKE)
	under := map[uint16]TransformType{}
	for _, t := range p.Transforms {
		if t.Type != TransformKE && !t.Type.AdditionalKE() || t.ID == KENone {
			continue
		}
		if other, ok := under[t.ID]; ok && other != t.Type {
			return fmt.Errorf("key exchange %s is under %s and %s, want it once, got %s", Transform{TransformKE, t.ID, 0}, other, t.Type, p)
		}
		under[t.ID] = t.Type
		switch {
		case t.Type.AdditionalKE() && (len(ke) == 0 || slices.ContainsFunc(ke, func(k Transform) bool { return k.ID == KENone })):
			return fmt.Errorf("%s needs a first key exchange such as x25519, got %s", t, p)
		case t.Type == TransformKE && p.Protocol == ProtocolIKE && t.PostQuantum():
			// IKE_SA_INIT carries the first one, and is never fragmented (RFC 7383 §2.2).
			return fmt.Errorf("%s is too large for IKE_SA_INIT: write x25519-ke1_%s, got %s", t, t, p)
		}
	}
	return nil
}

// PostQuantum reports that every suite of the proposal has a key exchange that a
// quantum computer is not known to break.
func (p Proposal) PostQuantum() bool {
	for typ := TransformADDKE; typ.AdditionalKE(); typ++ {
		of := p.OfType(typ)
		if len(of) > 0 && !slices.ContainsFunc(of, func(t Transform) bool { return !t.PostQuantum() }) {
			return true
		}
	}
	return false
}

// Suite is a chosen proposal: at most one transform of each type. A zero
// Transform means that the type is absent.
type Suite struct {
	Protocol Protocol
	Encr     Transform
	Integ    Transform
	PRF      Transform
	KE       Transform
	ADDKE    [MaxADDKE]Transform // additional key exchanges (RFC 9370); their order is that of the types
	ESN      bool
}

// Additional are the additional key exchanges, in the order in which they are done.
func (s Suite) Additional() []Transform {
	var out []Transform
	for _, t := range s.ADDKE {
		if t.ID != KENone {
			out = append(out, t)
		}
	}
	return out
}

// transforms are all that the suite has.
func (s Suite) transforms() []Transform {
	var out []Transform
	for _, t := range append([]Transform{s.Encr, s.Integ, s.PRF, s.KE}, s.ADDKE[:]...) {
		if t.Type != 0 && (t.ID != 0 || t.Type == TransformENCR) {
			out = append(out, t)
		}
	}
	return out
}

// Legacy names the suite's algorithms that should not be used any more.
func (s Suite) Legacy() []string { return legacy(s.transforms()) }

// Legacy names the proposal's algorithms that should not be used any more.
func (p Proposal) Legacy() []string { return legacy(p.Transforms) }

func legacy(ts []Transform) []string {
	var out []string
	for _, t := range ts {
		if a, ok := LookupAlgorithm(t); ok && a.Standing == StandingLegacy {
			out = append(out, a.Name)
		}
	}
	return out
}

// KeyExchange is the method of one type, the first or an additional one; KENone
// for none.
func (s Suite) KeyExchange(t TransformType) uint16 {
	switch {
	case t == TransformKE:
		return s.KE.ID
	case t.AdditionalKE():
		return s.ADDKE[t-TransformADDKE].ID
	}
	return KENone
}

func (s Suite) String() string {
	var out []string
	for _, t := range s.transforms() {
		out = append(out, t.String())
	}
	if s.ESN {
		out = append(out, "esn")
	}
	return strings.Join(out, "-")
}
