package ikev2

import (
	"fmt"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// IKE_AUTH (RFC 7296 §1.2):
//
//	HDR, SK {IDi, [CERT,] [CERTREQ,] [IDr,] AUTH, SAi2, TSi, TSr}  -->
//	                    <--  HDR, SK {IDr, [CERT,] AUTH, SAr2, TSi, TSr}
//
// An initiator that leaves AUTH out wants EAP (§2.16). A responder may leave SA,
// TSi and TSr out and send an error notify: then there is an IKE SA without a
// CHILD SA (§2.21.2).
var ikeAuthRows = []row{
	{exchange: wire.IKEAuth,
		required: []wire.PayloadType{wire.TypeIDi},
		optional: []wire.PayloadType{wire.TypeSA, wire.TypeTSi, wire.TypeTSr, wire.TypeIDr, wire.TypeAUTH, wire.TypeCERT, wire.TypeCERTREQ, wire.TypeNotify},
		handle:   (*Machine).authRequest},
	{exchange: wire.IKEAuth, response: true,
		required: []wire.PayloadType{wire.TypeIDr, wire.TypeAUTH},
		optional: []wire.PayloadType{wire.TypeSA, wire.TypeTSi, wire.TypeTSr, wire.TypeCERT, wire.TypeNotify},
		handle:   (*Machine).authResponse},
}

// authServe is what the responder keeps of the request while it is judged, and
// its own half is made.
type authServe struct {
	msg      *message
	psk      ipsec.Secret // that the initiator has used
	stranger bool         // nobody we know: the judgement is for show
	own      ownAuth
}

// startAuth is the initiator's first step.
func (m *Machine) startAuth() {
	if x := &m.first.ppk; x.agreed {
		if err := m.applyPPK(x.secret); err != nil {
			m.fail(m.failure(wire.IKEAuth, WhyUnsupported, err.Error(), "choose another PRF in the peer's suites"))
			return
		}
	}
	if !m.askAuthorities() {
		m.prove()
	}
}

// sendAuth is the initiator's request, with the first CHILD SA.
func (m *Machine) sendAuth(own ownAuth) {
	t := m.task
	var err error
	if m.childless() {
		if !m.first.childless {
			m.fail(m.failure(wire.IKEAuth, WhyUnsupported, "the peer makes no IKE SA without a CHILD SA: it sent no CHILDLESS_IKEV2_SUPPORTED",
				"initiate a rule instead, or have the peer allow childless IKE SAs"))
			return
		}
	} else if t.nego, err = m.propose(t.rule, t.packet, false); err != nil {
		f := m.failure(wire.IKEAuth, WhyPolicy, err.Error(), adviceFor(err))
		f.Rule = t.rule
		m.fail(f)
		return
	}
	ps := append([]wire.Payload{&wire.ID{PayloadType: wire.TypeIDi, Identity: m.localID}}, own.certPayloads()...)
	ps = append(ps, m.certReq()...)
	if !m.peer.RemoteID.IsZero() {
		ps = append(ps, &wire.ID{PayloadType: wire.TypeIDr, Identity: m.peer.RemoteID})
	}
	ps = append(ps, own.auth)
	ps = append(ps, m.tokenPayload(m.spiI, m.spiR)...)
	ps = append(ps, m.grantWindow())
	// RFC 7296 §2.4: what the peer still has is left over from before a restart.
	if id := m.peer.RemoteID; !id.IsZero() && m.env.Alone != nil && m.env.Alone(m.peer.Name, id) {
		ps = append(ps, &wire.Notify{Message: wire.InitialContact})
	}
	if m.first.offer.announces {
		ps = append(ps, m.announce()...)
	}
	if t.nego != nil {
		ps = append(ps, t.nego.payloads()...)
	}
	ps = append(ps, m.ppkPayloads(own)...)
	m.request(wire.IKEAuth, append(ps, m.offerMobike()...)...)
}

// defaultID gives a profile without a local identity that of the address.
func (m *Machine) defaultID() {
	if m.localID.IsZero() {
		m.localID = ipsec.AddrIdentity(m.path.Local.Addr())
	}
}

// authRequest is the responder's side: find out who asks, and whether it is true.
func (m *Machine) authRequest(msg *message) {
	m.remoteID = msg.idi.Identity
	m.serve.auth = &authServe{msg: msg}
	if !childlessRequest(msg) && (msg.sa == nil || msg.tsi == nil || msg.tsr == nil) {
		m.refuse(wire.InvalidSyntax)
		m.fail(m.failure(wire.IKEAuth, wire.InvalidSyntax.String(), "a part of the SA, TSi and TSr payloads is missing", "report this to the maker of the peer's IKE implementation"))
		return
	}
	if msg.auth == nil {
		m.refuseAuth(WhyUnsupported, "the peer asks for EAP (it sent no AUTH), which is not supported here", "configure a pre-shared key or a certificate on the peer")
		return
	}
	m.first.offer.read(msg)
	p, ok := m.whoIs(msg, kindOf(msg.auth.Method))
	if !ok {
		// The same work as for somebody we know, so that the time does not tell.
		m.serve.auth.stranger = true
		if kindOf(msg.auth.Method) == kindCertificate && m.judgeStranger(msg) {
			return
		}
		m.verify([]ipsec.Secret{m.dummySecret()}, msg.idi.Body(), msg.auth.Data)
		m.refuseStranger()
		return
	}
	m.peer, m.localID = p, p.LocalID
	if !m.judgePPK() {
		m.judge(msg)
	}
}

// refuseStranger answers somebody without a profile.
func (m *Machine) refuseStranger() {
	msg := m.serve.auth.msg
	if p, ok := m.whoIs(msg, ""); ok {
		if kind := kindOf(msg.auth.Method); kind == kindCertificate && hasKind(p, ipsec.AuthMethod.Remote, kind) {
			m.refuseAuth(WhyPeerID, fmt.Sprintf("the identity %s is not one that the policy accepts: it is outside the peerIdentity of the certificate methods of peer %s", msg.idi.Identity, p.Name),
				"change certificate.peerIdentity if this peer is meant, or the identity on the peer")
			return
		}
		m.refuseAuth(WhyUnsupported, fmt.Sprintf("the peer authenticates with %s, the policy for peer %s accepts %s", msg.auth.Method, p.Name, list(kinds(p, ipsec.AuthMethod.Remote))),
			"configure one of these on the peer, or add the peer's to our policy")
		return
	}
	m.refuseAuth(WhyPeerID, fmt.Sprintf("no peer profile for identity %s at this address (asked for us as %s)", msg.idi.Identity, askedFor(msg.idr)),
		"add a peer with this remote identity, or correct the identity on the peer")
}

func askedFor(idr *wire.ID) string {
	if idr == nil {
		return "anyone"
	}
	return idr.Identity.String()
}

// whoIs finds the candidate whose identities and suites fit, and whose policy
// accepts a kind of method; "" for any. A profile without a remote identity takes
// anyone who can prove what it says, within the patterns of its certificates.
func (m *Machine) whoIs(msg *message, kind string) (ipsec.Peer, bool) {
	for _, exact := range []bool{true, false} {
		for _, p := range m.candidates {
			// RFC 7619 §2.2: an identity that is not proven decides nothing.
			if kind != kindNull && (p.RemoteID.IsZero() == exact || exact && !p.RemoteID.Equal(msg.idi.Identity)) {
				continue
			}
			if msg.idr != nil && !p.LocalID.IsZero() && !msg.idr.Identity.Equal(p.LocalID) {
				continue
			}
			if kind != "" && !hasKind(p, ipsec.AuthMethod.Remote, kind) {
				continue
			}
			if kind == kindCertificate && !namedBy(p, msg.idi.Identity) {
				continue
			}
			if allows(p.Proposals, m.suite) {
				return p, true
			}
		}
	}
	return ipsec.Peer{}, false
}

// refuseAuth is the one answer to all that is wrong with authentication
// (RFC 7296 §2.21.2). The machine stays to repeat it, and serves nothing else.
func (m *Machine) refuseAuth(why, detail, advice string) {
	m.emit(ike.Failed{Failure: m.failure(wire.IKEAuth, why, detail, advice)})
	m.refuse(wire.AuthenticationFailed)
	m.state = stateRefused
}

// answerAuth is the responder's response: with the CHILD SA n, or with the notify
// that refuses it; with neither when none was asked for.
func (m *Machine) answerAuth(n *negotiation, refusal *wire.Notify) {
	own := m.serve.auth.own
	ps := append(make([]wire.Payload, 0, usualPayloads), &wire.ID{PayloadType: wire.TypeIDr, Identity: m.localID})
	ps = append(append(ps, own.certPayloads()...), own.auth)
	ps = append(ps, m.tokenPayload(m.spiI, m.spiR)...)
	ps = append(ps, m.grantWindow())
	if m.first.ppk.applied {
		ps = append(ps, &wire.Notify{Message: wire.PPKIdentity}) // RFC 8784 §3: it is used
	}
	switch {
	case refusal != nil:
		ps = append(ps, refusal)
	case n != nil:
		ps = n.appendPayloads(ps)
	}
	m.readMobike(m.serve.auth.msg)
	m.takeToken(m.serve.auth.msg)
	m.takeWindow(m.serve.auth.msg)
	if m.mob.on {
		ps = append(ps, m.offerMobike()...)
	}
	ps = append(ps, m.authLifetime()...)
	m.reply(ps...)
	m.established()
	m.scheduleReauth()
	m.emit(ike.Established{})
}

// authResponse is the initiator's side: the peer proves itself before anything
// else in the message counts.
func (m *Machine) authResponse(msg *message) {
	if msg.auth == nil || msg.idr == nil {
		n := msg.refusal()
		if n == nil { // a COOKIE, which has no place here
			m.authFailed(WhyPeerAuth, "the peer's response has no AUTH", "look at the peer's log")
			return
		}
		f := m.failure(wire.IKEAuth, n.Message.String(), "the peer refused IKE_AUTH with "+n.Message.String(), "look at the peer's log")
		if n.Message == wire.AuthenticationFailed {
			f.Detail = fmt.Sprintf("the peer does not accept us as %s, authenticated with %s", m.localID, m.localAuth)
			f.Advice = "put the same pre-shared key on both ends, or on the peer the CA of our certificate, and check that the peer expects this identity"
			if m.retryOtherwise() {
				f.Advice += "; another secret or method of ours is tried next"
			}
		}
		m.fail(f)
		return
	}
	m.remoteID = msg.idr.Identity
	// RFC 7619 §2.2: an identity that is not proven decides nothing.
	if !m.peer.RemoteID.IsZero() && !m.remoteID.Equal(m.peer.RemoteID) && msg.auth.Method != wire.AuthNull {
		m.authFailed(WhyPeerID, fmt.Sprintf("the peer says it is %s, the policy wants %s", m.remoteID, m.peer.RemoteID), "correct the identity on one of the ends")
		return
	}
	if m.first.ppk.applied && msg.notify(wire.PPKIdentity) == nil {
		if m.peer.PPK.Required {
			m.authFailed(WhyPPK, "the peer does not have the postquantum preshared key that the policy requires", "configure the peer with the PPK "+m.peer.PPK.ID+", or set required: false")
			return
		}
		m.dropPPK()
	}
	m.judge(msg)
}

// authenticated goes on with a responder that is who it says.
func (m *Machine) authenticated(msg *message) {
	n := m.task.nego
	if n != nil {
		n.ni, n.nr = m.first.ni, m.first.nr
	}
	m.readMobike(msg)
	m.takeToken(msg)
	m.takeWindow(msg)
	m.established()
	m.scheduleReauth()
	m.obeyLifetime(msg)
	m.emit(ike.Established{})
	if msg.notify(wire.InitialContact) != nil && m.remoteAuth != kindNull {
		m.emit(ike.InitialContact{Peer: m.peer.Name, RemoteID: m.remoteID})
	}
	if n == nil {
		m.task = nil
		return
	}
	m.childAnswered(msg)
}

// authFailed tells the peer that it did not prove itself, once, in an exchange
// of its own (RFC 7296 §2.21.2), and ends.
func (m *Machine) authFailed(why, detail, advice string) {
	f := m.failure(wire.IKEAuth, why, detail, advice)
	id := m.window.next
	m.window.next++
	m.sendAll(m.path, m.seal(plainOf(wire.Informational, id, false, []wire.Payload{&wire.Notify{Message: wire.AuthenticationFailed}})))
	m.fail(f)
}

// retryOtherwise starts over on a fresh IKE SA with the next secret, when there is
// one, since the peer may not have the newest yet; else with the next kind of
// method in the policy.
func (m *Machine) retryOtherwise() bool {
	secret, kind := m.secret, m.kind
	switch {
	case m.localAuth == kindPSK && secret+1 < len(m.first.secrets):
		secret++
	case kind+1 < len(m.ourKinds()):
		secret, kind = 0, kind+1
	default:
		return false
	}
	m.emit(ike.Spawn{Machine: m.startOver(secret, kind)})
	return true
}

// startOver is a machine that connects anew, and takes over what waits for it.
func (m *Machine) startOver(secret, kind int) *Machine {
	n := NewInitiator(m.env, m.policy, m.peer, m.path)
	n.mob.local = m.mob.local
	n.secret, n.kind, n.created, n.heard = secret, kind, m.now, m.now
	t := m.doing(taskConnect)
	n.queue = append([]task{{kind: taskConnect, rule: t.rule, packet: t.packet}}, m.queue...)
	m.queue = nil
	return n
}
