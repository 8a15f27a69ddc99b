package ikev2

import (
	"encoding/binary"
	"slices"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// windowSize is how many requests a peer may have under way (RFC 7296 §2.3). They
// are served one after the other, in order, whatever order they come in: what is
// early waits. It is also the most that we have under way ourselves, in the window
// that the peer grants. Only what concerns a single CHILD SA is done beside others:
// mayJoin.
const windowSize = 4

// window is the state of both message windows (RFC 7296 §2.2, §2.3).
type window struct {
	next     uint32        // message ID of our next request
	expected uint32        // message ID of the peer's next request
	size     uint32        // how many the peer may have under way, once we have told it; before that 1
	granted  uint32        // how many we may, once the peer has told us; before that 1
	reply    [][]byte      // our last response, for a request that is retransmitted
	rx       *suite.Cipher // of that request: IKE_INTERMEDIATE changes keys after it
	older    [][][]byte    // responses before the last one, the newest last, less than size
	early    []arrived     // requests that came before their turn, less than size
}

// grantWindow tells the peer that it may have more requests under way.
func (m *Machine) grantWindow() wire.Payload {
	m.window.size = windowSize
	return setWindowSize
}

var setWindowSize = &wire.Notify{Message: wire.SetWindowSize, Data: binary.BigEndian.AppendUint32(nil, windowSize)}

// takeWindow takes the window that the peer grants: "you can only increase it"
// (RFC 7296 §2.3).
func (m *Machine) takeWindow(msg *message) {
	if n := msg.notify(wire.SetWindowSize); n != nil && len(n.Data) == 4 {
		m.window.granted = max(m.window.granted, min(binary.BigEndian.Uint32(n.Data), windowSize))
	}
}

// ours is how many requests we may have under way.
func (w *window) ours() int { return int(max(w.granted, 1)) }

// windowOpen reports whether the next request is within the peer's window: "when the
// initiator needs to make a request X, it MUST wait until it has received responses
// to all requests up through request X-N" (RFC 7296 §2.3). A response whose slow part is
// being computed is yet to come: it may be asked for again, after a restart.
func (m *Machine) windowOpen() bool {
	return m.underWay(func(t *task) bool {
		return (t.phase == phaseSent || t.phase == phaseShared) && int(m.window.next-t.id) >= m.window.ours()
	}) == nil
}

// takeTurns sends the requests that waited for room in the window.
func (m *Machine) takeTurns() {
	for m.state != stateGone && m.windowOpen() && m.take(func(t *task) bool { return t.phase == phaseTurn }) {
		m.sendRequest()
		m.stow()
	}
}

// requestOf fits the task whose request a response names.
func requestOf(h wire.Header) func(*task) bool {
	return func(t *task) bool { return t.phase == phaseSent && h.MessageID == t.id && h.Exchange == t.exchange }
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

// serveEarly serves the requests whose turn it is by now.
func (m *Machine) serveEarly() {
	w := &m.window
	for m.serve == nil && m.state != stateGone {
		i := slices.IndexFunc(w.early, func(a arrived) bool { return a.MessageID == w.expected })
		if i < 0 {
			return
		}
		a := w.early[i]
		w.early = slices.Delete(w.early, i, i+1)
		if !m.allowed(a.Header) { // the state has changed meanwhile
			m.drop(WhyState)
			return
		}
		m.dispatch(a)
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
		if m.underWay(requestOf(h)) == nil {
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
	case slices.ContainsFunc(w.early, func(a arrived) bool { return a.MessageID == h.MessageID }):
		return WhyBusy // it waits for its turn
	case h.MessageID < w.expected+w.size:
		return "" // before its turn
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
