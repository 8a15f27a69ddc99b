package ikev2

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// windowSize is how many requests a peer may have under way (RFC 7296 §2.3). They
// are served one after the other, in order, whatever order they come in: what is
// early waits. Our own requests stay one at a time.
const windowSize = 4

// window is the state of both message windows (RFC 7296 §2.2, §2.3).
type window struct {
	next     uint32         // message ID of our next request
	expected uint32         // message ID of the peer's next request
	size     uint32         // of the peer's window, once we have told it; before that 1
	reply    [][]byte       // our last response, for a request that is retransmitted
	rx       *suite.Cipher  // of that request: IKE_INTERMEDIATE changes keys after it
	older    [][][]byte     // responses before the last one, the newest last, less than size
	early    []ike.Datagram // authentic requests that come before their turn, less than size
}

// grantWindow tells the peer that it may have more requests under way.
func (m *Machine) grantWindow() wire.Payload {
	m.window.size = windowSize
	return &wire.Notify{Message: wire.SetWindowSize, Data: binary.BigEndian.AppendUint32(nil, windowSize)}
}

// answered is the response to a request that was served, nil when it is not kept
// any more.
func (w *window) answered(id uint32) [][]byte {
	switch back := int(w.expected - id); {
	case id >= w.expected:
		return nil
	case back == 1:
		return w.reply
	case back-1 <= len(w.older):
		return w.older[len(w.older)-back+1]
	}
	return nil
}

// keepEarly keeps an authentic request for its turn. One in fragments is left to
// the peer's retransmission.
func (m *Machine) keepEarly(h wire.Header, ev ike.Datagram, c content) {
	w := &m.window
	switch {
	case m.state != stateEstablished || c.total != 0:
		m.drop(WhyOutOfWindow)
	case slices.ContainsFunc(w.early, func(e ike.Datagram) bool { return messageID(e) == h.MessageID }):
		m.drop(WhyBusy)
	default:
		w.early = append(w.early, ike.Datagram{Path: ev.Path, Data: bytes.Clone(ev.Data)})
	}
}

func messageID(e ike.Datagram) uint32 {
	h, _ := wire.ParseHeader(e.Data) // it was parsed before
	return h.MessageID
}

// serveEarly serves the requests whose turn it is by now.
func (m *Machine) serveEarly() {
	for m.serve == nil && m.state != stateGone {
		i := slices.IndexFunc(m.window.early, func(e ike.Datagram) bool { return messageID(e) == m.window.expected })
		if i < 0 {
			return
		}
		e := m.window.early[i]
		m.window.early = slices.Delete(m.window.early, i, i+1)
		m.datagram(e)
	}
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
	case w.answered(h.MessageID) != nil:
		return "" // maybe a retransmission: replay decides after the integrity check
	case h.MessageID < w.expected:
		return WhyReplayed
	case h.MessageID < w.expected+w.size:
		return "" // early: keepEarly decides after the integrity check
	}
	return WhyOutOfWindow
}

// replay answers a retransmitted request with the response it had: the peer
// "MUST" get it again, bit by bit (RFC 7296 §2.1). Of a request in fragments
// only the first one does that (RFC 7383 §2.6.1).
func (m *Machine) replay(h wire.Header, c content, ev ike.Datagram) bool {
	if h.Response() || h.MessageID >= m.window.expected {
		return false
	}
	m.drop(WhyRetransmitted)
	if c.number <= 1 {
		m.sendAll(ev.Path, m.window.answered(h.MessageID))
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
	if w := &m.window; w.size > 1 && w.reply != nil {
		w.older = append(w.older[max(0, len(w.older)+2-int(w.size)):], w.reply)
	}
	m.window.reply, m.window.rx = m.seal(p), m.rx
	m.sendAll(s.path, m.window.reply)
}

// refuse answers with an error notify.
func (m *Machine) refuse(t wire.NotifyType, data ...byte) {
	m.reply(&wire.Notify{Message: t, Data: data})
}
