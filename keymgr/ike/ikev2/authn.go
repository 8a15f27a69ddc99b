package ikev2

import (
	"fmt"
	"slices"
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Authentication (RFC 7296 §2.15), of both ends in either role. Each end proves
// itself by a method of its own choice:
//
//	prove   makes our AUTH payload, by the first kind of method in the policy that
//	        can work; it goes on with proven or cannotProve
//	judge   checks the peer's; it goes on with peerProven or notProven
//
// Either may have to wait for the engine: for a secret, a signature, a chain of
// certificates. The initiator proves itself first, the responder judges first.

// The kinds of methods.
const (
	kindPSK         = "psk"
	kindCertificate = "certificate"
	kindNull        = ike.AuthNull
)

// kindOf is the kind of method that an AUTH payload belongs to, "" for those that
// nobody has here.
func kindOf(m wire.AuthMethod) string {
	switch m {
	case wire.AuthSharedKey:
		return kindPSK
	case wire.AuthNull:
		return kindNull
	case wire.AuthRSA, wire.AuthECDSA256, wire.AuthECDSA384, wire.AuthECDSA521, wire.AuthSignature:
		return kindCertificate
	}
	return ""
}

func pskRefs(p ipsec.Peer, of func(ipsec.AuthMethod) bool) []string {
	var out []string
	for _, a := range p.Auth {
		if a.PSK != "" && of(a) {
			out = append(out, a.PSK)
		}
	}
	return out
}

func certMethods(p ipsec.Peer, of func(ipsec.AuthMethod) bool) []ipsec.CertificateAuth {
	var out []ipsec.CertificateAuth
	for _, a := range p.Auth {
		if a.Certificate != nil && of(a) {
			out = append(out, *a.Certificate)
		}
	}
	return out
}

// kinds are the kinds of methods of one side of a profile, in order, each once.
func kinds(p ipsec.Peer, of func(ipsec.AuthMethod) bool) []string {
	var out []string
	for _, a := range p.Auth {
		if of(a) && !slices.Contains(out, a.Name()) {
			out = append(out, a.Name())
		}
	}
	return out
}

// hasKind reports that a kind is among them.
func hasKind(p ipsec.Peer, of func(ipsec.AuthMethod) bool, kind string) bool {
	return slices.ContainsFunc(p.Auth, func(a ipsec.AuthMethod) bool { return a.Name() == kind && of(a) })
}

func usesCertificates(ps []ipsec.Peer) bool {
	return slices.ContainsFunc(ps, func(p ipsec.Peer) bool {
		return slices.ContainsFunc(p.Auth, func(a ipsec.AuthMethod) bool { return a.Certificate != nil })
	})
}

// known are the profiles that the peer may have.
func (m *Machine) known() []ipsec.Peer {
	if m.peer.Name != "" {
		return []ipsec.Peer{m.peer}
	}
	return m.candidates
}

// offers of authentication: what the two ends tell each other beforehand.
type authOffer struct {
	ours   bool                 // we have announced hashes
	hashes []wire.HashAlgorithm // of the peer's SIGNATURE_HASH_ALGORITHMS

	announced []wire.Announcement // of the peer's SUPPORTED_AUTH_METHODS; nil for none
	announces bool                // the peer has sent that notify

	asked  bool             // the peer has sent CERTREQ
	wanted []wire.Authority // that it holds

	authorities []wire.Authority // ours, for CERTREQ
}

// read takes what a message tells of its sender.
func (o *authOffer) read(msg *message) {
	if n := msg.notify(wire.SignatureHashAlgorithms); n != nil && msg.Exchange == wire.IKESAInit {
		o.hashes = n.Hashes()
	}
	if n := msg.notify(wire.SupportedAuthMethods); n != nil {
		o.announces, o.announced = true, n.Announcements()
	}
	for _, c := range msg.certReqs {
		if c.Encoding == wire.CertX509Signature {
			o.asked = true
			o.wanted = append(o.wanted, c.Authorities...)
		}
	}
}

// hashNotify announces hashes: when certificates are in the policy at all, and to
// an initiator that has done so itself.
func (m *Machine) hashNotify() []wire.Payload {
	o := &m.first.offer
	o.ours = usesCertificates(m.known()) && (m.initiator || o.hashes != nil)
	if !o.ours {
		return nil
	}
	return []wire.Payload{wire.HashNotify(suite.Hashes())}
}

// maxCertReq bounds what CERTREQ adds to a message that should fit a datagram. A
// CERTREQ without authorities asks for any certificate.
const maxCertReq = 16

// certReq asks the peer for a certificate.
func (m *Machine) certReq() []wire.Payload {
	as := m.first.offer.authorities
	switch {
	case len(as) == 0:
		return nil
	case len(as) > maxCertReq:
		as = nil
	}
	return []wire.Payload{&wire.CertReq{Encoding: wire.CertX509Signature, Authorities: as}}
}

// announce tells the peer how it may prove itself (RFC 9593), where there is a
// choice to be made.
func (m *Machine) announce() []wire.Payload {
	if !slices.ContainsFunc(m.known(), func(p ipsec.Peer) bool { return hasKind(p, ipsec.AuthMethod.Remote, kindCertificate) }) {
		return nil
	}
	var as []wire.Announcement
	var said []string
	for _, p := range m.known() {
		for _, kind := range kinds(p, ipsec.AuthMethod.Remote) {
			if slices.Contains(said, kind) {
				continue
			}
			said = append(said, kind)
			switch kind {
			case kindPSK:
				as = append(as, wire.Announcement{Method: wire.AuthSharedKey})
			case kindNull:
				as = append(as, wire.Announcement{Method: wire.AuthNull})
			case kindCertificate:
				as = append(as, suite.Announcements()...)
			}
		}
	}
	return []wire.Payload{wire.AnnounceNotify(as)}
}

// askAuthorities gets the names of our trust anchors, when the peer may prove
// itself with a certificate. It reports whether there is an answer to wait for.
func (m *Machine) askAuthorities() bool {
	var trust []string
	for _, p := range m.known() {
		for _, c := range certMethods(p, ipsec.AuthMethod.Remote) {
			for _, t := range c.Trust {
				if !slices.Contains(trust, t) {
					trust = append(trust, t)
				}
			}
		}
	}
	if trust == nil {
		return false
	}
	m.emit(ike.NeedAuthorities{ID: m.await(phaseAuthorities), Trust: trust})
	return true
}

// await makes the task or the serve wait for the answer to an effect.
func (m *Machine) await(p phase) uint64 {
	id := m.nextID()
	if m.initiator {
		m.task.phase, m.task.wait = p, id
	} else {
		m.serve.phase, m.serve.wait = p, id
	}
	return id
}

// awaited reports whether an answer is the one waited for, and that in a phase.
func (m *Machine) awaited(id uint64, ps ...phase) (phase, bool) {
	var p phase
	var wait *uint64
	switch {
	case m.state != stateConnecting:
		return 0, false
	case m.initiator && m.take(func(t *task) bool { return t.wait == id }):
		p, wait = m.task.phase, &m.task.wait
	case !m.initiator && m.serve != nil:
		p, wait = m.serve.phase, &m.serve.wait
	default:
		return 0, false
	}
	if *wait != id || !slices.Contains(ps, p) {
		return 0, false
	}
	*wait = 0
	return p, true
}

// authoritiesFound goes on. Without an answer the peer is not asked for a
// certificate; it may send one all the same.
func (m *Machine) authoritiesFound(ev ike.Authorities) {
	if _, ok := m.awaited(ev.ID, phaseAuthorities); !ok {
		return
	}
	for _, k := range ev.Keys {
		m.first.offer.authorities = append(m.first.offer.authorities, k)
	}
	if m.initiator {
		m.prove()
		return
	}
	m.respond(m.first.answer.suite.KE.ID, m.first.public)
}

// ourKinds are the kinds of methods that we may prove ourselves with, the ones
// that can work first: what the peer announces, and certificates only to a peer
// that shows that it can check them, as far as there is another way.
func (m *Machine) ourKinds() []string {
	all := kinds(m.peer, ipsec.AuthMethod.Local)
	o := &m.first.offer
	signs := m.first.judged != nil && kindOf(m.first.judged.auth.Method) == kindCertificate
	rank := func(kind string) int {
		r := 0
		if len(o.announced) > 0 && !slices.ContainsFunc(o.announced, func(a wire.Announcement) bool { return kindOf(a.Method) == kind }) {
			r += 2
		}
		if kind == kindCertificate && !o.asked && !signs {
			r++
		}
		return r
	}
	slices.SortStableFunc(all, func(a, b string) int { return rank(a) - rank(b) })
	return all
}

// prove makes our AUTH payload.
func (m *Machine) prove() {
	ours := m.ourKinds()
	if m.kind >= len(ours) {
		m.cannotProve()
		return
	}
	m.defaultID()
	switch ours[m.kind] {
	case kindPSK:
		if !m.initiator && !m.serve.auth.psk.IsZero() {
			m.proveBySecret(m.serve.auth.psk)
			return
		}
		m.emit(ike.NeedPSK{ID: m.await(phaseSecret), Refs: pskRefs(m.peer, ipsec.AuthMethod.Local)})
	case kindCertificate:
		m.proveByCertificate()
	case kindNull:
		m.proveByNothing()
	}
}

// proveOtherwise goes on with the next kind of method, when this one cannot be
// had: what keeps certificates away need not keep secrets away.
func (m *Machine) proveOtherwise(err error) {
	m.first.missing = append(m.first.missing, err.Error())
	m.kind++
	m.prove()
}

// cannotProve ends the negotiation: there is nothing to sign with.
func (m *Machine) cannotProve() {
	detail := "peer " + m.peer.Name + " has no method in the policy that we could prove ourselves with"
	advice := "add a psk, or a certificate with a credential, to its authentication"
	if m.first.missing != nil {
		detail = strings.Join(m.first.missing, "; ")
		advice = "check the references in the authentication of peer " + m.peer.Name + ", and the stores behind them"
	}
	if m.initiator {
		m.fail(m.failure(wire.IKEAuth, WhyNoCredential, detail, advice))
		return
	}
	m.refuseAuth(WhyNoCredential, detail, advice)
}

// ownAuth is our half of the authentication, ready to be sent.
type ownAuth struct {
	auth    *wire.Auth
	without []byte   // AUTH data without the PPK, for NO_PPK_AUTH (RFC 8784)
	name    string   // for operators
	certs   [][]byte // leaf first
}

func (o ownAuth) certPayloads() []wire.Payload {
	var ps []wire.Payload
	for _, c := range o.certs {
		ps = append(ps, &wire.Cert{Encoding: wire.CertX509Signature, Data: c})
	}
	return ps
}

// proven goes on with our AUTH payload.
func (m *Machine) proven(o ownAuth) {
	m.localAuth = o.name
	if m.initiator {
		m.sendAuth(o)
		return
	}
	m.serve.auth.own = o
	if childlessRequest(m.serve.auth.msg) {
		m.answerAuth(nil, nil)
		return
	}
	m.serveChild(m.serve.auth.msg)
}

// ownID is the body of our ID payload.
func (m *Machine) ownID() []byte {
	return (&wire.ID{Identity: m.localID}).Body()
}

// signedBy are the octets that one side's AUTH covers.
func (m *Machine) signedBy(initiator bool, id []byte) []byte {
	return m.signedWith(m.keys, initiator, id)
}

func (m *Machine) signedWith(k suite.IKEKeys, initiator bool, id []byte) []byte {
	f := m.first
	octets := suite.SignedOctets(m.prf, f.response, f.ni, k.SKpr, id)
	if initiator {
		octets = suite.SignedOctets(m.prf, f.request, f.nr, k.SKpi, id)
	}
	return append(octets, f.more.signed()...)
}

// judge checks the peer's AUTH payload in an IKE_AUTH message.
func (m *Machine) judge(msg *message) {
	m.first.judged = msg
	id := msg.sender().Body()
	switch kind := kindOf(msg.auth.Method); {
	case !hasKind(m.peer, ipsec.AuthMethod.Remote, kind):
		m.notProven(WhyUnsupported, fmt.Sprintf("the peer authenticates with %s, the policy for peer %s accepts %s", msg.auth.Method, m.peer.Name, list(kinds(m.peer, ipsec.AuthMethod.Remote))),
			"configure one of these on the peer, or add the peer's to our policy")
	case kind == kindPSK:
		refs := pskRefs(m.peer, ipsec.AuthMethod.Remote)
		if m.initiator && m.first.secrets != nil && slices.Equal(refs, pskRefs(m.peer, ipsec.AuthMethod.Local)) {
			m.judgeSecret(m.first.secrets, nil)
			return
		}
		m.emit(ike.NeedPSK{ID: m.await(phasePeerSecret), Refs: refs})
	case kind == kindNull:
		m.judgeNothing(id)
	default:
		m.judgeCertificate(msg)
	}
}

// peerProven goes on with a peer that is who it says.
func (m *Machine) peerProven(name string) {
	msg := m.first.judged
	m.remoteAuth = name
	if m.initiator {
		m.authenticated(msg)
		return
	}
	// RFC 7619 §2.3: not by a peer whose identity is not proven.
	if msg.notify(wire.InitialContact) != nil && name != kindNull {
		m.emit(ike.InitialContact{Peer: m.peer.Name, RemoteID: m.remoteID})
	}
	m.prove()
}

// notProven ends the negotiation. The peer is told nothing but that.
func (m *Machine) notProven(why, detail, advice string) {
	if m.initiator {
		m.authFailed(why, detail, advice)
		return
	}
	m.refuseAuth(why, detail, advice)
}

// sender is the ID payload of whoever sent the message.
func (msg *message) sender() *wire.ID {
	if msg.Response() {
		return msg.idr
	}
	return msg.idi
}
