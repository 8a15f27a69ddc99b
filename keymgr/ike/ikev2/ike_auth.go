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
		required: []wire.PayloadType{wire.TypeIDi, wire.TypeSA, wire.TypeTSi, wire.TypeTSr},
		optional: []wire.PayloadType{wire.TypeIDr, wire.TypeAUTH, wire.TypeNotify},
		handle:   (*Machine).authRequest},
	{exchange: wire.IKEAuth, response: true,
		required: []wire.PayloadType{wire.TypeIDr, wire.TypeAUTH, wire.TypeSA, wire.TypeTSi, wire.TypeTSr},
		optional: []wire.PayloadType{wire.TypeNotify},
		handle:   (*Machine).authResponse},
}

// authServe is what the responder keeps of the request while the secret is
// looked up.
type authServe struct {
	idi, idr *wire.ID
	auth     *wire.Auth
	msg      *message
	psk      ipsec.Secret
}

// sendAuth is the initiator's request, with the first CHILD SA.
func (m *Machine) sendAuth() {
	t := m.task
	m.defaultID()
	id := &wire.ID{PayloadType: wire.TypeIDi, Identity: m.localID}
	psk := m.first.secrets[min(m.secret, len(m.first.secrets)-1)]
	auth, err := m.sign(psk, id.Body())
	if err == nil {
		t.nego, err = m.propose(t.rule, t.packet, false)
	}
	if err != nil {
		f := m.failure(wire.IKEAuth, WhyPolicy, err.Error(), "check the rule and the peer it names")
		f.Rule = t.rule
		m.fail(f)
		return
	}
	ps := []wire.Payload{id}
	if !m.peer.RemoteID.IsZero() {
		ps = append(ps, &wire.ID{PayloadType: wire.TypeIDr, Identity: m.peer.RemoteID})
	}
	ps = append(ps, auth)
	if m.announceOnly {
		ps = append(ps, &wire.Notify{Message: wire.InitialContact})
	}
	m.request(wire.IKEAuth, append(ps, t.nego.payloads()...)...)
}

// defaultID gives a profile without a local identity that of the address.
func (m *Machine) defaultID() {
	if m.localID.IsZero() {
		m.localID = ipsec.AddrIdentity(m.path.Local.Addr())
	}
}

// authRequest is the responder's side: find out who asks, then the secret.
func (m *Machine) authRequest(msg *message) {
	m.remoteID = msg.idi.Identity
	a := &authServe{idi: msg.idi, idr: msg.idr, auth: msg.auth, msg: msg}
	m.serve.auth = a
	var method wire.AuthMethod
	if msg.auth == nil {
		m.refuseAuth(WhyUnsupported, "the peer asks for EAP (it sent no AUTH), which is not supported here", "configure a pre-shared key on the peer")
		return
	} else if method = msg.auth.Method; method != wire.AuthSharedKey {
		m.refuseAuth(WhyUnsupported, fmt.Sprintf("the peer authenticates with %s, only psk is supported here", method), "configure a pre-shared key on the peer")
		return
	}
	p, ok := m.whoIs(msg.idi.Identity, msg.idr)
	if !ok {
		m.verify([]ipsec.Secret{m.dummySecret()}, msg.idi.Body(), msg.auth.Data)
		m.refuseAuth(WhyPeerID, fmt.Sprintf("no peer profile for identity %s at this address (asked for us as %s)", msg.idi.Identity, askedFor(msg.idr)),
			"add a peer with this remote identity, or correct the identity on the peer")
		return
	}
	m.peer, m.localID = p, p.LocalID
	refs := pskRefs(p)
	if len(refs) == 0 {
		m.verify([]ipsec.Secret{m.dummySecret()}, msg.idi.Body(), msg.auth.Data)
		m.refuseAuth(WhyNoCredential, "peer "+p.Name+" has no pre-shared key in the policy", "add a psk method to its authentication")
		return
	}
	m.serve.phase, m.serve.wait = phaseSecret, m.nextID()
	m.emit(ike.NeedPSK{ID: m.serve.wait, Refs: refs})
}

func askedFor(idr *wire.ID) string {
	if idr == nil {
		return "anyone"
	}
	return idr.Identity.String()
}

// whoIs finds the candidate whose identities and suites fit. A profile without
// a remote identity takes anyone who knows its secret.
func (m *Machine) whoIs(idi ipsec.Identity, idr *wire.ID) (ipsec.Peer, bool) {
	for _, exact := range []bool{true, false} {
		for _, p := range m.candidates {
			if p.RemoteID.IsZero() == exact || exact && p.RemoteID != idi {
				continue
			}
			if idr != nil && !p.LocalID.IsZero() && idr.Identity != p.LocalID {
				continue
			}
			if allows(p.Proposals, m.suite) {
				return p, true
			}
		}
	}
	return ipsec.Peer{}, false
}

// verifyInitiator goes on when the secret is there.
func (m *Machine) verifyInitiator(secrets []ipsec.Secret, err error) {
	a := m.serve.auth
	if err != nil {
		m.refuseAuth(WhyNoCredential, err.Error(), "check the secret reference of peer "+m.peer.Name+" and the secret store")
		return
	}
	psk, ok := m.verify(secrets, a.idi.Body(), a.auth.Data)
	if !ok {
		m.refuseAuth(WhyPeerAuth, fmt.Sprintf("the AUTH value of %s was made with another secret than ours (%d tried)", a.idi.Identity, len(secrets)),
			"put the same pre-shared key on both ends")
		return
	}
	a.psk = psk
	if a.msg.notify(wire.InitialContact) != nil {
		m.emit(ike.InitialContact{Peer: m.peer.Name, RemoteID: m.remoteID})
	}
	m.serveChild(a.msg)
}

// refuseAuth is the one answer to all that is wrong with authentication
// (RFC 7296 §2.21.2). The machine stays to repeat it, and serves nothing else.
func (m *Machine) refuseAuth(why, detail, advice string) {
	m.emit(ike.Failed{Failure: m.failure(wire.IKEAuth, why, detail, advice)})
	m.refuse(wire.AuthenticationFailed)
	m.state = stateRefused
}

// answerAuth is the responder's response: with the CHILD SA n, or with the notify
// that refuses it.
func (m *Machine) answerAuth(n *negotiation, refusal *wire.Notify) {
	m.defaultID()
	id := &wire.ID{PayloadType: wire.TypeIDr, Identity: m.localID}
	auth, err := m.sign(m.serve.auth.psk, id.Body())
	if err != nil {
		m.refuseAuth(WhyNoCredential, err.Error(), "check the secret of peer "+m.peer.Name)
		return
	}
	ps := []wire.Payload{id, auth}
	if refusal != nil {
		ps = append(ps, refusal)
	} else {
		ps = append(ps, n.payloads()...)
	}
	m.reply(ps...)
	m.established()
	m.emit(ike.Established{})
}

// authResponse is the initiator's side: the peer proves itself before anything
// else in the message counts.
func (m *Machine) authResponse(msg *message) {
	t := m.task
	if msg.auth == nil || msg.idr == nil {
		n := msg.refusal()
		if n == nil { // a COOKIE, which has no place here
			m.authFailed(WhyPeerAuth, "the peer's response has no AUTH", "look at the peer's log")
			return
		}
		f := m.failure(wire.IKEAuth, n.Message.String(), "the peer refused IKE_AUTH with "+n.Message.String(), "look at the peer's log")
		if n.Message == wire.AuthenticationFailed {
			f.Detail = fmt.Sprintf("the peer does not accept us as %s", m.localID)
			f.Advice = "put the same pre-shared key on both ends, and check that the peer expects this identity"
			if m.retryWithNextSecret() {
				f.Advice += "; another secret of ours is tried next"
			}
		}
		m.fail(f)
		return
	}
	m.remoteID = msg.idr.Identity
	switch {
	case !m.peer.RemoteID.IsZero() && m.remoteID != m.peer.RemoteID:
		m.authFailed(WhyPeerID, fmt.Sprintf("the peer says it is %s, the policy wants %s", m.remoteID, m.peer.RemoteID), "correct the identity on one of the ends")
		return
	case msg.auth.Method != wire.AuthSharedKey:
		m.authFailed(WhyUnsupported, fmt.Sprintf("the peer authenticates with %s, only psk is supported here", msg.auth.Method), "configure a pre-shared key on the peer")
		return
	}
	if _, ok := m.verify(m.first.secrets, msg.idr.Body(), msg.auth.Data); !ok {
		m.authFailed(WhyPeerAuth, fmt.Sprintf("the AUTH value of %s was made with another secret than ours", m.remoteID), "put the same pre-shared key on both ends")
		return
	}
	n := t.nego
	n.ni, n.nr = m.first.ni, m.first.nr
	m.established()
	m.emit(ike.Established{})
	if msg.notify(wire.InitialContact) != nil {
		m.emit(ike.InitialContact{Peer: m.peer.Name, RemoteID: m.remoteID})
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

// retryWithNextSecret starts over on a fresh IKE SA with the next secret, when
// there is one: the peer may not have the newest yet.
func (m *Machine) retryWithNextSecret() bool {
	if m.secret+1 >= len(m.first.secrets) {
		return false
	}
	n := NewInitiator(m.env, m.policy, m.peer, m.path)
	n.secret, n.announceOnly, n.created, n.heard = m.secret+1, m.announceOnly, m.now, m.now
	n.queue = append([]task{{kind: taskConnect, rule: m.task.rule, packet: m.task.packet}}, m.queue...)
	m.queue = nil
	m.emit(ike.Spawn{Machine: n})
	return true
}
