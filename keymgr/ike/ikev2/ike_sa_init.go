package ikev2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// IKE_SA_INIT (RFC 7296 §1.2):
//
//	HDR, SAi1, KEi, Ni  -->
//	                    <--  HDR, SAr1, KEr, Nr, [CERTREQ]
//
// Nothing here is authenticated. A request that cannot be served costs an answer
// and no state; a response that is no good is dropped, and the right one may
// still come (RFC 7296 §2.21.1).
var (
	initRequest = row{exchange: wire.IKESAInit,
		required: []wire.PayloadType{wire.TypeSA, wire.TypeKE, wire.TypeNonce}, optional: []wire.PayloadType{wire.TypeNotify}}
	initResponse = row{exchange: wire.IKESAInit, response: true,
		required: []wire.PayloadType{wire.TypeSA, wire.TypeKE, wire.TypeNonce}, optional: []wire.PayloadType{wire.TypeCERTREQ, wire.TypeNotify}}
)

// refusedWait is how long an unauthenticated refusal waits for a better answer
// before it is believed.
const refusedWait = 2 * time.Second

// firstContact is what IKE_AUTH needs of IKE_SA_INIT.
type firstContact struct {
	ni, nr    []byte
	request   []byte // the messages as they were on the wire: both are signed
	response  []byte
	answer    choice
	cookie    []byte
	cookies   int // COOKIE answers followed
	methods   int // INVALID_KE_PAYLOAD answers followed
	reply     ike.Path
	more      intermediate
	childless bool         // the peer can make an IKE SA without a CHILD SA (childless.go)
	public    []byte       // the initiator's half of the key exchange, as the responder has it
	skeyseed  ipsec.Secret // responder: of the keys that IKE_AUTH comes under, or IKE_INTERMEDIATE
	secrets   []ipsec.Secret
	offer     authOffer
	judged    *message // IKE_AUTH of the peer
	missing   []string // why our methods could not be used
	ppk       ppkUse
}

// wipe overwrites what is secret. The first contact may be over, and nil.
func (f *firstContact) wipe() {
	if f == nil {
		return
	}
	f.ppk.forget()
	for _, s := range []ipsec.Secret{f.skeyseed, f.more.ske, f.more.ska} {
		s.Wipe()
	}
}

// startConnect is the initiator's first step.
func (m *Machine) startConnect() {
	m.state = stateConnecting
	m.spiI = m.newSPI()
	m.nat.forced = forceEncap(m.policy, m.peer)
	if m.peer.TCP == ipsec.TCPAlways && !m.path.TCP {
		m.path = m.overTCP(m.path)
	}
	m.first = &firstContact{ni: m.random(32)}
	method := firstKE(m.peer.Proposals)
	if method == ipsec.KENone {
		m.fail(m.failure(wire.IKESAInit, WhyPolicy, "peer "+m.peer.Name+" has no IKE proposal with a key exchange", "give the peer a key exchange suite such as aes256gcm16-prfsha256-x25519"))
		return
	}
	if !m.askPPK() {
		m.generate(method)
	}
}

// sendInit sends the request, again from the start after COOKIE or
// INVALID_KE_PAYLOAD, with the same SPI and nonce: RFC 7296 §2.6 wants all else
// unchanged after a cookie.
func (m *Machine) sendInit(err error) {
	if err != nil {
		m.fail(m.failure(wire.IKESAInit, WhyUnsupported, err.Error(), "choose another key exchange in the peer's suites"))
		return
	}
	f := m.first
	var ps []wire.Payload
	if f.cookie != nil {
		ps = append(ps, &wire.Notify{Message: wire.Cookie, Data: f.cookie}) // first payload: RFC 7296 §2.6
	}
	ps = append(ps, offer(m.peer.Proposals, nil), &wire.KE{Method: m.task.half.Method, Data: m.task.half.Public}, &wire.Nonce{Data: f.ni})
	ps = append(ps, m.natNotifies(m.spiI, 0, m.path)...)
	ps = append(ps, fragmentationSupported)
	if additional(m.peer.Proposals) {
		ps = append(ps, intermediateSupported)
	}
	ps = append(ps, m.hashNotify()...)
	ps = append(ps, m.usePPK()...)
	f.request = wire.AppendMessage(nil, m.header(wire.IKESAInit, 0, false), ps)
	m.transmit(wire.IKESAInit, 0, [][]byte{f.request})
}

// initDatagram takes both messages of the exchange.
func (m *Machine) initDatagram(h wire.Header, ev ike.Datagram) {
	if m.initiator {
		if h.SPIi != m.spiI || !h.Response() || h.FromInitiator() || h.MessageID != 0 {
			m.drop(WhyWrongSPI)
			return
		}
		if m.state != stateConnecting || !m.take(requestOf(h)) {
			m.drop(WhyNoRequest)
			return
		}
		if msg := m.parseInit(initResponse, ev); msg != nil {
			m.initResponse(msg)
		}
		m.stow()
		return
	}
	switch {
	case !isInitRequest(h):
		m.drop(WhyMalformed)
	case m.state == stateIdle:
		if msg := m.parseInit(initRequest, ev); msg != nil {
			m.initRequest(msg)
		} else {
			m.end(WhyMalformed)
		}
	case m.first != nil && m.first.response != nil && bytes.Equal(ev.Data, m.first.request):
		m.drop(WhyRetransmitted)
		m.emit(ike.Send{Path: ev.Path, Data: bytes.Clone(m.first.response)})
	case m.first != nil && m.first.response == nil && bytes.Equal(ev.Data, m.first.request):
		m.drop(WhyBusy)
	default:
		m.drop(WhyState)
	}
}

// parseInit reads an unprotected message. One that is malformed is dropped:
// INVALID_SYNTAX "may only be returned for and in an encrypted packet"
// (RFC 7296 §3.10.1).
func (m *Machine) parseInit(r row, ev ike.Datagram) *message {
	msg, err := r.read(bytes.Clone(ev.Data)) // payloads alias it, and AUTH covers it
	if err != nil {
		m.drop(WhyMalformed)
		return nil
	}
	msg.path = ev.Path
	return msg
}

// initRequest is the responder's side.
func (m *Machine) initRequest(msg *message) {
	m.path = msg.path
	m.acceptTCP()
	m.spiI = msg.SPIi
	if len(m.candidates) == 0 {
		m.end("no candidate peer")
		return
	}
	theirs := msg.sa
	if msg.notify(wire.IntermediateExchangeSupported) == nil {
		theirs = withoutAdditional(theirs)
	}
	var c choice
	ok := slices.ContainsFunc(m.candidates, func(p ipsec.Peer) (ok bool) {
		c, ok = choose(p.Proposals, theirs, 0, ipsec.Suite{})
		return ok
	})
	if !ok {
		var ours []ipsec.Proposal
		for _, p := range m.candidates {
			ours = append(ours, p.Proposals...)
		}
		m.refuseInit(&wire.Notify{Message: wire.NoProposalChosen})
		f := m.failure(wire.IKESAInit, wire.NoProposalChosen.String(), "none of the peer's IKE proposals is ours", "")
		if len(m.candidates) == 1 {
			f.Peer = m.candidates[0].Name
		}
		m.fail(compare(f, ours, msg.sa))
		return
	}
	// RFC 7296 §1.2: the responder names the group it wants, and keeps no state.
	if c.suite.KE.ID != msg.ke.Method {
		m.refuseInit(&wire.Notify{Message: wire.InvalidKEPayload, Data: octets16(c.suite.KE.ID)})
		m.end(wire.InvalidKEPayload.String())
		return
	}
	m.state = stateConnecting
	m.spiR = m.newSPI()
	m.first = &firstContact{ni: msg.nonce.Data, nr: m.random(32), request: msg.raw, answer: c, reply: msg.path, public: msg.ke.Data}
	m.first.more.methods = methodsOf(c.suite)
	m.first.offer.read(msg)
	m.first.ppk.asked = msg.notify(wire.UsePPK) != nil
	for _, p := range m.candidates {
		m.nat.forced = m.nat.forced || forceEncap(m.policy, p)
	}
	m.detectNAT(msg)
	m.frag.agreed = msg.notify(wire.IKEv2FragmentationSupported) != nil
	m.serve = &serve{exchange: wire.IKESAInit, path: msg.path}
	if !m.askAuthorities() {
		m.respond(c.suite.KE.ID, msg.ke.Data)
	}
}

// refuseInit answers without state: the responder's SPI is zero.
func (m *Machine) refuseInit(n *wire.Notify) {
	h := wire.Header{SPIi: m.spiI, Exchange: wire.IKESAInit, Flags: wire.FlagResponse}
	m.emit(ike.Send{Path: m.path, Data: wire.AppendMessage(nil, h, []wire.Payload{n})})
}

func (m *Machine) answerInit(a ike.KeyExchanged) {
	m.serve = nil
	if a.Err != nil {
		m.drop(WhyBadInit) // RFC 6989 §2.5
		m.end(WhyBadInit)
		return
	}
	f := m.first
	m.suite = f.answer.suite
	prf, err := suite.NewPRF(m.suite.PRF)
	if err != nil {
		a.Shared.Wipe()
		m.fail(m.failure(wire.IKESAInit, WhyUnsupported, err.Error(), "remove this suite from the peer's profile"))
		return
	}
	f.skeyseed = suite.SKEYSEED(prf, f.ni, f.nr, a.Shared)
	a.Shared.Wipe()
	ps := append(make([]wire.Payload, 0, usualPayloads), &wire.SA{Proposals: []wire.Proposal{f.answer.proposal}},
		&wire.KE{Method: f.answer.suite.KE.ID, Data: a.Public}, &wire.Nonce{Data: f.nr})
	ps = append(ps, m.natNotifies(m.spiI, m.spiR, f.reply)...)
	if m.frag.agreed {
		ps = append(ps, fragmentationSupported)
	}
	if len(f.more.methods) > 0 {
		ps = append(ps, intermediateSupported)
	}
	ps = append(ps, childlessSupported)
	ps = append(ps, m.certReq()...)
	ps = append(ps, m.hashNotify()...)
	ps = append(ps, m.announce()...)
	ps = append(ps, m.usePPK()...)
	b := wire.AppendMessage(make([]byte, 0, usualMessage), m.header(wire.IKESAInit, 0, true), ps)
	f.response = bytes.Clone(b)
	m.window = window{next: 0, expected: 1}
	m.emit(ike.Send{Path: f.reply, Data: b})
}

// initResponse is the initiator's side.
func (m *Machine) initResponse(msg *message) {
	f := m.first
	if n := msg.notify(wire.Cookie); n != nil {
		if f.cookies++; f.cookies > maxSteers || len(n.Data) == 0 || len(n.Data) > 64 {
			m.drop(WhyBadInit)
			return
		}
		f.cookie = bytes.Clone(n.Data)
		m.sendInit(nil)
		return
	}
	if n := msg.notify(wire.InvalidKEPayload); n != nil {
		// Only a method that we have offered: RFC 7296 §1.2, and a downgrade otherwise.
		if f.methods++; f.methods > maxSteers || len(n.Data) != 2 {
			m.drop(WhyBadInit)
			return
		}
		method := binary.BigEndian.Uint16(n.Data)
		if method == m.task.half.Method {
			m.drop(WhyBadInit) // repeated: this method is being tried
			return
		}
		if !offers(m.peer.Proposals, method) {
			m.refusedInit(m.failure(wire.IKESAInit, n.Message.String(),
				fmt.Sprintf("the peer wants key exchange %s, which our suites do not have", ipsec.Transform{Type: ipsec.TransformKE, ID: method}),
				"add it to a suite of our policy, or one of ours to the peer's"))
			return
		}
		m.generate(method)
		return
	}
	if n := msg.refusal(); n != nil {
		fail := m.failure(wire.IKESAInit, n.Message.String(), "the peer refused IKE_SA_INIT with "+n.Message.String(), "look at the peer's log")
		if n.Message == wire.NoProposalChosen {
			fail = compare(fail, m.peer.Proposals, nil)
			fail.Advice = "the peer accepts none of our IKE suites: compare them with its own, which this answer does not tell"
		}
		m.refusedInit(fail)
		return
	}
	c, err := accept(m.peer.Proposals, msg.sa, 0)
	if err == nil && (msg.SPIr == 0 || msg.ke.Method != m.task.half.Method || c.suite.KE.ID != msg.ke.Method) {
		err = errors.New("the peer's SPI is zero, or its key exchange is not the one asked for")
	}
	if err == nil && len(c.suite.Additional()) > 0 && msg.notify(wire.IntermediateExchangeSupported) == nil {
		err = errNoIntermediate
	}
	if err != nil {
		m.drop(WhyBadInit)
		return
	}
	if !m.ppkAnswered(msg) {
		m.refusedInit(m.failure(wire.IKESAInit, WhyPPK, "the peer does not use a postquantum preshared key, and the policy for peer "+m.peer.Name+" requires one",
			"configure the peer with the PPK "+m.peer.PPK.ID+", or set required: false"))
		return
	}
	f.answer, f.nr, f.response = c, msg.nonce.Data, msg.raw
	f.more.methods = methodsOf(c.suite)
	f.offer = authOffer{ours: f.offer.ours} // not what a response that was dropped has said
	f.offer.read(msg)
	m.spiR = msg.SPIr
	m.task.refused = nil
	m.detectNAT(msg)
	f.childless = msg.notify(wire.ChildlessSupported) != nil
	m.frag.agreed = msg.notify(wire.IKEv2FragmentationSupported) != nil
	m.finish(msg.ke.Data)
}

// refusedInit remembers a refusal that anyone may have sent. It is believed when
// nothing better comes, to one more request either (RFC 7296 §2.21.1).
func (m *Machine) refusedInit(f ike.Failure) {
	if m.path.TCP { // nothing better can come (RFC 9329 §6.4)
		m.fail(f)
		return
	}
	if m.task.refused == nil {
		m.task.refused = &f
		m.task.sendAt = m.now.Add(refusedWait)
	}
}

// initShared goes on to IKE_AUTH with the shared secret.
func (m *Machine) initShared(shared ipsec.Secret, err error) {
	f := m.first
	if errors.Is(err, suite.ErrPeerPublic) {
		// RFC 6989 §2.5: the message is dropped, the right one may still come.
		m.spiR, m.task.phase = 0, phaseSent
		m.drop(WhyBadInit)
		return
	}
	var prf suite.PRF
	if err == nil {
		prf, err = suite.NewPRF(f.answer.suite.PRF)
	}
	if err == nil {
		err = m.keyIKE(f.answer.suite, suite.SKEYSEED(prf, f.ni, f.nr, shared), f.ni, f.nr)
	}
	shared.Wipe()
	m.task.half.wipe()
	if err != nil {
		m.fail(m.failure(wire.IKESAInit, WhyUnsupported, err.Error(), "remove this suite from the peer's profile"))
		return
	}
	m.float()
	m.window = window{next: 1, expected: 0}
	m.nextIntermediate()
}
