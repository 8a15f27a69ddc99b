package ikev2

import (
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// window is the state of both message windows (RFC 7296 §2.2, §2.3), each of
// size 1, which is what the peer must assume of us as long as we do not send
// SET_WINDOW_SIZE.
type window struct {
	next     uint32        // message ID of our next request
	expected uint32        // message ID of the peer's next request
	reply    [][]byte      // our last response, for a request that is retransmitted
	rx       *suite.Cipher // of that request: IKE_INTERMEDIATE changes keys after it
}

// serve is a request of the peer that is being answered.
type serve struct {
	id       uint32
	exchange wire.ExchangeType
	path     ike.Path // the response goes back where the request came from (RFC 7296 §2.11)
	phase    phase
	wait     uint64 // the effect whose answer it goes on with

	auth     *authServe
	child    *negotiation
	ike      *ikeNegotiation
	first    bool           // IKE_INTERMEDIATE
	followUp *followUp      // IKE_FOLLOWUP_KE
	deleted  []*child       // informational.go: what the peer has closed,
	held     []*child       // and what takes its place
	answer   []wire.Payload // what the response holds, once that is known
}

// outOfWindow is why a message ID cannot be dealt with, "" when it can.
func (m *Machine) outOfWindow(h wire.Header) string {
	w := &m.window
	if h.Response() {
		if m.task == nil || m.task.phase != phaseSent || h.MessageID != m.task.id || h.Exchange != m.task.exchange {
			return WhyNoRequest
		}
		return ""
	}
	switch {
	case h.MessageID == w.expected && m.serve != nil:
		return WhyBusy
	case h.MessageID == w.expected:
		return ""
	case h.MessageID == w.expected-1 && w.reply != nil:
		return "" // maybe a retransmission: replay decides after the integrity check
	case h.MessageID < w.expected:
		return WhyReplayed
	}
	return WhyOutOfWindow
}

// replay answers a retransmitted request with the response it had: the peer
// "MUST" get it again, bit by bit (RFC 7296 §2.1). Of a request in fragments
// only the first one does that (RFC 7383 §2.6.1).
func (m *Machine) replay(h wire.Header, c content, ev ike.Datagram) bool {
	if h.Response() || h.MessageID == m.window.expected {
		return false
	}
	m.drop(WhyRetransmitted)
	if c.number <= 1 {
		m.sendAll(ev.Path, m.window.reply)
	}
	return true
}

// reply answers the request that is being served, and keeps the answer.
func (m *Machine) reply(ps ...wire.Payload) {
	m.answer(plainOf(m.serve.exchange, m.serve.id, true, ps))
}

func (m *Machine) answer(p plain) {
	s := m.serve
	m.serve = nil
	m.window.expected = s.id + 1
	m.window.reply, m.window.rx = m.seal(p), m.rx
	m.sendAll(s.path, m.window.reply)
}

// refuse answers with an error notify.
func (m *Machine) refuse(t wire.NotifyType, data ...byte) {
	m.reply(&wire.Notify{Message: t, Data: data})
}
