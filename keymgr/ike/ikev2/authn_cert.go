package ikev2

import (
	"crypto"
	"fmt"
	"io"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Authentication with certificates and signatures (RFC 7296 §2.15 and §3.6,
// RFC 7427). Signing, and checking of chains and signatures, are the engine's.

// PerformSignature signs what ike.NeedSignature asks for with one credential. The
// engine calls it off its loop, for each credential in turn, until one does.
func PerformSignature(random io.Reader, need ike.NeedSignature, key crypto.Signer, chain [][]byte) ike.Signed {
	a := ike.Signed{ID: need.ID, Chain: chain}
	if a.Scheme, a.Err = suite.ChooseScheme(key.Public(), need.Accepts); a.Err != nil {
		return a
	}
	for _, octets := range need.Octets {
		auth, err := a.Scheme.Sign(random, key, octets)
		if err != nil {
			a.Err = err
			return a
		}
		a.Auth = append(a.Auth, auth.Data)
	}
	return a
}

// PerformVerification checks the signature of ike.NeedVerification with the key
// of a chain that has been found good.
func PerformVerification(need ike.NeedVerification, key crypto.PublicKey) ike.Verified {
	return ike.Verified{ID: need.ID, Err: need.Scheme.Verify(key, need.Octets, need.Signature)}
}

// accepts is what a verifier takes, the peer of our signatures or we of its.
func (m *Machine) accepts(theirs bool, methods []ipsec.CertificateAuth) suite.Accepts {
	a := suite.Accepts{}
	for _, c := range methods {
		a.Legacy = a.Legacy || c.AllowLegacy
	}
	o := &m.first.offer
	if o.ours && o.hashes != nil { // RFC 7427 §3: both ends have sent them
		a.Hashes = suite.Hashes()
		if theirs {
			a.Hashes = o.hashes
		}
	}
	if theirs && len(o.announced) > 0 {
		a.Announced = o.announced
	}
	return a
}

func (m *Machine) proveByCertificate() {
	methods := certMethods(m.peer, ipsec.AuthMethod.Local)
	need := ike.NeedSignature{ID: m.await(phaseSign), Credentials: methods, Accepts: m.accepts(true, methods),
		Octets: [][]byte{m.signedBy(m.initiator, m.ownID())}}
	if m.optionalPPK() {
		need.Octets = append(need.Octets, m.signedWith(m.first.ppk.without, true, m.ownID()))
	}
	for _, w := range m.first.offer.wanted {
		need.Wanted = append(need.Wanted, w)
	}
	m.emit(need)
}

// signed is the engine's answer.
func (m *Machine) signed(ev ike.Signed) {
	if _, ok := m.awaited(ev.ID, phaseSign); !ok {
		return
	}
	if ev.Err != nil {
		m.proveOtherwise(ev.Err)
		return
	}
	own := ownAuth{auth: &wire.Auth{Method: ev.Scheme.Method, Data: ev.Auth[0]}, name: ev.Scheme.Name, certs: ev.Chain}
	if len(ev.Auth) > 1 {
		own.without = ev.Auth[1]
	}
	m.proven(own)
}

// chain are the certificates of a message, the leaf first. Other encodings than
// X.509 are passed over: hash-and-url above all, since nothing is fetched at the
// wish of somebody who has not proven anything.
func chain(msg *message) ([][]byte, error) {
	var out [][]byte
	size := 0
	for _, c := range msg.certs {
		if c.Encoding != wire.CertX509Signature {
			continue
		}
		out = append(out, c.Data)
		size += len(c.Data)
	}
	switch {
	case len(out) == 0:
		return nil, fmt.Errorf("the peer sent no X.509 certificate")
	case len(out) > wire.MaxCerts || size > wire.MaxCertOctets:
		return nil, fmt.Errorf("the peer sent %d certificates of %d octets, at most %d of %d are read", len(out), size, wire.MaxCerts, wire.MaxCertOctets)
	}
	return out, nil
}

func (m *Machine) judgeCertificate(msg *message) {
	methods := certMethods(m.peer, ipsec.AuthMethod.Remote)
	need, err := m.verification(msg, methods)
	if err != nil {
		m.notProven(WhyPeerAuth, err.Error(), "configure the peer with a certificate and a signature that the policy accepts")
		return
	}
	need.ID = m.await(phaseVerify)
	m.emit(need)
}

// verification is what has to be checked of a peer that signs.
func (m *Machine) verification(msg *message, methods []ipsec.CertificateAuth) (ike.NeedVerification, error) {
	s, sig, err := suite.FindScheme(msg.auth, m.accepts(false, methods))
	if err != nil {
		return ike.NeedVerification{}, err
	}
	if s.Legacy { // allowLegacy is of one method: it opens no other one's trust anchors
		methods = slices.DeleteFunc(methods, func(c ipsec.CertificateAuth) bool { return !c.AllowLegacy })
	}
	certs, err := chain(msg)
	if err != nil {
		return ike.NeedVerification{}, err
	}
	id := msg.sender()
	return ike.NeedVerification{Chain: certs, Identity: id.Identity, Methods: methods, Scheme: s,
		Octets: m.signedBy(!m.initiator, id.Body()), Signature: sig}, nil
}

// judgeStranger gives somebody without a profile the wait of somebody with one:
// what is checked is thrown away (RFC 7296 §2.21.2).
func (m *Machine) judgeStranger(msg *message) bool {
	for _, p := range m.candidates {
		if methods := certMethods(p, ipsec.AuthMethod.Remote); len(methods) > 0 {
			need, err := m.verification(msg, methods)
			if err != nil {
				return false
			}
			need.ID = m.await(phaseVerify)
			m.emit(need)
			return true
		}
	}
	return false
}

// verified is the engine's answer.
func (m *Machine) verified(ev ike.Verified) {
	if _, ok := m.awaited(ev.ID, phaseVerify); !ok {
		return
	}
	switch {
	case !m.initiator && m.serve.auth.stranger:
		m.refuseStranger()
	case ev.Unknown:
		m.notProven(WhyPeerAuth, ev.Err.Error(), "check the stores and the revocation servers behind the authentication of peer "+m.peer.Name)
	case ev.Err != nil:
		m.notProven(WhyPeerAuth, ev.Err.Error(), "check the peer's certificate, the trust anchors and the peerIdentity in the authentication of peer "+m.peer.Name)
	default:
		s, _, err := suite.FindScheme(m.first.judged.auth, m.accepts(false, certMethods(m.peer, ipsec.AuthMethod.Remote)))
		if err != nil { // the policy has changed meanwhile
			m.notProven(WhyPeerAuth, err.Error(), "compare the peer's signatures with the policy")
			return
		}
		m.peerProven(s.Name)
	}
}

// namedBy reports whether an identity is within the patterns of one of the
// profile's certificate methods. It chooses the profile; the engine checks again.
func namedBy(p ipsec.Peer, id ipsec.Identity) bool {
	for _, c := range certMethods(p, ipsec.AuthMethod.Remote) {
		if c.PeerIdentity == "" {
			return true
		}
		if pattern, err := ipsec.ParseIdentityPattern(c.PeerIdentity); err == nil && pattern.Match(id) {
			return true
		}
	}
	return false
}
