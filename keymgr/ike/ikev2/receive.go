package ikev2

import (
	"errors"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Why a message was dropped.
const (
	WhyMalformed     = "malformed"
	WhyWrongSPI      = "wrong-spi"
	WhyWrongRole     = "initiator-flag" // a reflected message, for one
	WhyUnprotected   = "unprotected"
	WhyIntegrity     = "integrity"
	WhyReplayed      = "message-id-replayed"
	WhyOutOfWindow   = "message-id-out-of-window"
	WhyNoRequest     = "response-without-request"
	WhyBusy          = "request-in-progress"
	WhyState         = "not-in-this-state"
	WhyRetransmitted = "retransmitted" // answered from the reply cache
	WhyBadInit       = "init-unacceptable"
	WhyQueueFull     = "queue-full"
)

// datagram takes a message from the network through the gates, in this order:
// header, SPIs, direction, message ID, integrity, syntax, row. Nothing changes
// the machine before integrity (RFC 7296 §2.21.4).
func (m *Machine) datagram(ev ike.Datagram) {
	h, err := wire.ParseHeader(ev.Data)
	if err != nil {
		m.drop(WhyMalformed)
		return
	}
	if h.Exchange == wire.IKESAInit {
		m.initDatagram(h, ev)
		return
	}
	if h.SPIi != m.spiI || h.SPIr != m.spiR {
		m.drop(WhyWrongSPI)
		return
	}
	if err := m.deriveKeys(); err != nil {
		m.fail(m.failure(h.Exchange, WhyUnsupported, err.Error(), "remove this suite from the peer's profile"))
		return
	}
	if m.rx == nil {
		m.drop(WhyWrongSPI)
		return
	}
	if h.FromInitiator() == m.initiator {
		m.drop(WhyWrongRole)
		return
	}
	if h.Response() && h.Next == wire.TypeNotify {
		m.unprotected(h, ev)
		return
	}
	if why := m.outOfWindow(h); why != "" {
		m.drop(why)
		return
	}
	c, why, err := m.open(h, ev.Data)
	if why != "" {
		m.drop(why)
		return
	}
	if m.replay(h, c, ev) {
		return
	}
	early := !h.Response() && h.MessageID != m.window.expected
	if early && m.state != stateEstablished {
		m.drop(WhyOutOfWindow)
		return
	}
	if !m.allowed(h) {
		m.drop(WhyState)
		return
	}
	if c.total != 0 && err == nil {
		var whole bool
		if c, whole = m.collect(h, ev, c); !whole {
			return
		}
	}
	m.dropFragments(h)
	if early {
		m.window.early = append(m.window.early, arrived{h, ev.Path, c, err})
		return
	}
	m.dispatch(arrived{h, ev.Path, c, err})
}

// arrived is a message that is known to be the peer's: what was inside of SK, and an
// error when that is malformed.
type arrived struct {
	wire.Header
	path ike.Path
	content
	err error
}

// dispatch hands a message to its handler.
func (m *Machine) dispatch(a arrived) {
	h, err := a.Header, a.err
	r, known := findRow(h)
	if !known {
		// An exchange that we do not know is a request we cannot serve.
		m.badMessage(h, a.path, &wire.Error{Notify: wire.InvalidSyntax, Detail: h.Exchange.String() + " is not known here"})
		return
	}
	var ps []wire.Payload
	if err == nil {
		ps, err = wire.ParsePayloads(a.first, a.inner)
	}
	var msg *message
	if err == nil {
		var bad *wire.Error
		if msg, bad = r.index(h, ps); bad != nil {
			err = bad
		}
	}
	if err != nil {
		m.badMessage(h, a.path, err)
		return
	}
	msg.path, msg.content = a.path, a.content
	m.heard = m.now
	m.follow(a.path)
	if h.Response() {
		m.take(requestOf(h))
	} else {
		m.serve = &serve{id: h.MessageID, exchange: h.Exchange, path: a.path}
	}
	r.handle(m, msg)
	m.stow()
}

// allowed is the list of exchanges by state: before IKE_AUTH has succeeded there
// is no other exchange but IKE_INTERMEDIATE, as often as agreed, in either direction.
func (m *Machine) allowed(h wire.Header) bool {
	switch m.state {
	case stateConnecting:
		want := wire.IKEAuth
		if len(m.first.more.methods) > 0 {
			want = wire.IKEIntermediate
		}
		return h.Exchange == want && h.Response() == m.initiator
	case stateEstablished, stateDeleting, stateReplaced:
		return h.Exchange != wire.IKEAuth && h.Exchange != wire.IKEIntermediate
	}
	return false
}

// badMessage refuses a message that is the peer's (its integrity holds) and is
// not well formed.
func (m *Machine) badMessage(h wire.Header, path ike.Path, err error) {
	bad := &wire.Error{Notify: wire.InvalidSyntax, Detail: err.Error()}
	errors.As(err, &bad)
	f := m.failure(h.Exchange, bad.Notify.String(), bad.Detail, "report this to the maker of the peer's IKE implementation")
	if h.Response() {
		// No error message answers a response (RFC 7296 §2.21); a delete cleans up.
		m.take(requestOf(h))
		if m.state == stateConnecting || m.task.kind == taskDeleteIKE {
			m.fail(f)
			return
		}
		m.emit(ike.Failed{Failure: f})
		m.task.wipe()
		m.task = nil
		m.terminate(bad.Notify.String())
		return
	}
	m.serve = &serve{id: h.MessageID, exchange: h.Exchange, path: path}
	m.reply(&wire.Notify{Message: bad.Notify, Data: bad.Data})
	// RFC 7296 §2.21.3: INVALID_SYNTAX is fatal to both ends, without a delete.
	// An unsupported critical payload only is while authenticating (§2.21.2).
	if bad.Notify == wire.InvalidSyntax || m.state == stateConnecting {
		m.fail(f)
		return
	}
	m.emit(ike.Failed{Failure: f})
}

// content is what was inside of SK, or of one SKF.
type content struct {
	first         wire.PayloadType
	reserved      byte // of the payload's header, of the first fragment's: zero in our time
	inner         []byte
	number, total uint16 // of a fragment, else zero
}

// open decrypts the SK or SKF payload. A why means that the message must be
// dropped; an error with an empty why that the peer sent it malformed.
func (m *Machine) open(h wire.Header, b []byte) (c content, why string, err error) {
	// Nothing else is expected outside of SK.
	if h.Next != wire.TypeSK && h.Next != wire.TypeSKF {
		return content{}, WhyUnprotected, nil
	}
	sk, err := wire.ParseEncrypted(h, b)
	if err != nil {
		return content{}, WhyMalformed, nil
	}
	if h.Next == wire.TypeSKF {
		if why := m.unwanted(h, &sk); why != "" {
			return content{}, why, nil
		}
	}
	c = content{first: sk.Inner, reserved: b[wire.HeaderLen+1], number: sk.Fragment, total: sk.Total}
	rx := m.rx
	if !h.Response() && h.MessageID < m.window.expected && m.window.rx != nil {
		rx = m.window.rx
	}
	c.inner, err = rx.Open(nil, b[:len(b)-len(sk.Body)], sk.Body)
	if err != nil && !errors.Is(err, suite.ErrPadding) {
		return content{}, WhyIntegrity, nil
	}
	return c, "", err
}

func (m *Machine) header(x wire.ExchangeType, id uint32, response bool) wire.Header {
	h := wire.Header{SPIi: m.spiI, SPIr: m.spiR, Exchange: x, MessageID: id}
	if m.initiator {
		h.Flags |= wire.FlagInitiator
	}
	if response {
		h.Flags |= wire.FlagResponse
	}
	return h
}

// Describe prints a datagram that this machine has sent or could receive, with
// what is inside of SK when the keys are there. It is for logs and tests, and
// shows no key material.
func (m *Machine) Describe(b []byte, sent bool) string {
	h, ps, err := wire.Parse(b)
	if err != nil {
		return err.Error()
	}
	c := m.rx
	if sent {
		c = m.tx
	}
	if h.Next != wire.TypeSK || c == nil {
		return wire.Describe(h, ps)
	}
	sk := ps[0].(*wire.Encrypted)
	inner, err := c.Open(nil, b[:len(b)-len(sk.Body)], sk.Body)
	if err == nil {
		ps, err = wire.ParsePayloads(sk.Inner, inner)
	}
	if err != nil {
		return h.String() + " { SK: " + err.Error() + " }"
	}
	return wire.Describe(h, ps)
}
