package ikev2

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Whys of failures that have no notify of their own.
const (
	WhyTimeout      = "TIMEOUT"
	WhyHalfOpen     = "HALF_OPEN_EXPIRED"
	WhyNoCredential = "NO_CREDENTIAL"
	WhyPeerAuth     = "PEER_NOT_AUTHENTICATED"
	WhyPeerID       = "PEER_IDENTITY"
	WhyPolicy       = "POLICY"
	WhyClosing      = "CLOSING"
	WhyInstall      = "INSTALL_FAILED"
	WhyUnsupported  = "NOT_SUPPORTED"
	WhyMode         = "MODE"
	WhyPPK          = "PPK"
	WhyCookie2      = "COOKIE2_MISMATCH"
)

// noRule stands for the rule of a CHILD SA failure that no rule was found for.
const noRule = "(none)"

func (m *Machine) role() string {
	if m.initiator {
		return "initiator"
	}
	return "responder"
}

// failure is a report on the IKE SA. Without an exchange type it is about the
// exchange that the state of the machine tells.
func (m *Machine) failure(x wire.ExchangeType, why, detail, advice string) ike.Failure {
	f := ike.Failure{
		Time: m.now, Peer: m.peer.Name, Remote: m.path.Remote.String(), Role: m.role(),
		Why: why, Detail: detail, Advice: advice,
	}
	if f.Peer == "" {
		f.Peer = m.path.Remote.Addr().String()
	}
	if !m.remoteID.IsZero() {
		f.RemoteID = m.remoteID.String()
	}
	switch {
	case x != 0:
		f.Exchange = x.String()
	case m.first != nil && m.first.response != nil:
		f.Exchange = wire.IKEAuth.String()
	case m.state == stateIdle || m.state == stateConnecting:
		f.Exchange = wire.IKESAInit.String()
	default:
		f.Exchange = wire.CreateChildSA.String()
	}
	return f
}

// adviceInstall says what to do about SAs that were not installed.
func adviceInstall(err error) string {
	if errors.Is(err, ike.ErrUnproven) {
		return "if it is the same peer, have it prove its identity as before; else nothing: a stranger was kept off"
	}
	return "look at the worker's log"
}

// childFailure is a report on one CHILD SA.
func (m *Machine) childFailure(x wire.ExchangeType, rule, why, detail, advice string) ike.Failure {
	f := m.failure(x, why, detail, advice)
	f.Rule = rule
	if rule == "" {
		f.Rule = noRule
	}
	return f
}

// compare puts our proposals beside theirs and shows the nearest pair, transform
// type by transform type, with what to change.
func compare(f ike.Failure, ours []ipsec.Proposal, theirs *wire.SA) ike.Failure {
	for _, o := range ours {
		f.Ours = append(f.Ours, o.String())
	}
	strict := len(ours) > 0 && !slices.ContainsFunc(ours, func(p ipsec.Proposal) bool { return !p.PostQuantum() })
	if theirs == nil {
		if strict {
			f.Detail += "; our policy requires post-quantum key exchange, which it may not do"
		}
		return f
	}
	best := -1
	var protocols []string
	for _, t := range theirs.Proposals {
		f.Theirs = append(f.Theirs, t.String())
		if p := wire.ProtocolName(t.Protocol); !slices.Contains(protocols, p) {
			protocols = append(protocols, p)
		}
		for _, o := range ours {
			d, score := diff(o, t)
			if score > best {
				best, f.Diff = score, d
			}
		}
	}
	if best < 0 && len(ours) > 0 && len(protocols) > 0 {
		f.Detail = fmt.Sprintf("the protocols differ: ours is %s, theirs %s", ours[0].Protocol, strings.Join(protocols, " "))
		f.Advice = "use the same protocol, esp or ah, on both ends"
	}
	var missing []string
	for _, d := range f.Diff {
		if !d.Matches {
			missing = append(missing, fmt.Sprintf("%s (ours %s, theirs %s)", d.Type, list(d.Ours), list(d.Theirs)))
		}
	}
	if len(missing) > 0 {
		f.Detail = "nearest proposals differ in " + strings.Join(missing, " and ")
		if f.Advice = advise(f.Diff); strict && !slices.ContainsFunc(theirs.Proposals, postQuantum) {
			f.Detail = "our policy requires post-quantum key exchange, which the peer does not offer: " + f.Detail
			f.Advice += ", or leave requirePQ out of our policy's keyExchange"
		}
		f.Nearest = nearest(ours, f.Diff)
	}
	return f
}

func postQuantum(p wire.Proposal) bool {
	return slices.ContainsFunc(p.Transforms, func(t wire.Transform) bool { return t.PostQuantum() })
}

func list(s []string) string {
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, " ")
}

// diff compares two proposals; a higher score is nearer.
func diff(o ipsec.Proposal, t wire.Proposal) (ds []ike.TransformDiff, score int) {
	if wire.ProtocolID(o.Protocol) != t.Protocol {
		return nil, -1
	}
	for _, typ := range slices.Sorted(typesOf(o, t)) {
		_, _, ok := matchType(o.OfType(typ), theirsOf(nil, t, typ))
		d := ike.TransformDiff{Type: typ.String(), Matches: ok}
		for _, x := range o.OfType(typ) {
			d.Ours = append(d.Ours, x.String())
		}
		for _, x := range t.Transforms {
			if x.Type == typ {
				d.Theirs = append(d.Theirs, x.String())
			}
		}
		if ok {
			score += 2
		} else if len(d.Ours) > 0 && len(d.Theirs) > 0 {
			score++
		}
		ds = append(ds, d)
	}
	return ds, score
}

// nearest is a suite that differs from both sides as little as can be: what they
// have in common, and where there is nothing, an algorithm of theirs that is
// known here, else one of ours.
func nearest(ours []ipsec.Proposal, ds []ike.TransformDiff) string {
	var words []string
	for _, d := range ds {
		name := ""
		for _, t := range d.Theirs {
			a, known := ipsec.AlgorithmByName(t)
			usable := known && a.Standing != ipsec.StandingLegacy
			if slices.Contains(d.Ours, t) || usable && name == "" && !d.Matches {
				name = t
				if slices.Contains(d.Ours, t) {
					break
				}
			}
		}
		if name == "" && len(d.Ours) > 0 && !d.Matches {
			name = d.Ours[0]
		}
		if name != "" {
			words = append(words, name)
		}
	}
	// What was put together must be a suite that can be written into a policy.
	suite := strings.Join(words, "-")
	if _, err := ipsec.ParseProposal(ours[0].Protocol, suite); err != nil {
		return ""
	}
	return suite
}

// advise names the nearest fix: an algorithm of theirs that is known here, to
// add to our policy; else one of ours, to add to theirs.
func advise(ds []ike.TransformDiff) string {
	var here, there []string
	for _, d := range ds {
		if d.Matches {
			continue
		}
		known := ""
		for _, name := range d.Theirs {
			a, ok := ipsec.AlgorithmByName(name)
			if ok && a.Standing != ipsec.StandingLegacy {
				known = name
				break
			}
		}
		switch {
		case known != "":
			here = append(here, known)
		case len(d.Theirs) == 0:
			there = append(there, d.Ours...)
		case len(d.Ours) > 0:
			there = append(there, d.Ours[0])
		default:
			there = append(there, "no "+d.Type)
		}
	}
	switch {
	case len(here) > 0 && len(there) == 0:
		return "add " + strings.Join(here, " and ") + " to a suite of our policy, or one of ours to the peer's"
	case len(here) > 0:
		return "add " + strings.Join(here, " and ") + " to a suite of our policy, and " + strings.Join(there, " and ") + " to the peer's"
	}
	return "add " + strings.Join(there, " and ") + " to the peer's configuration"
}
