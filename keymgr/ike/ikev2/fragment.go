package ikev2

import (
	"bytes"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// IKE fragmentation (RFC 7383): a protected message that is too large for the
// path is sent as several, each of which is protected by itself. Both ends must
// have announced it in IKE_SA_INIT, which itself is never fragmented.
//
// A message is fragmented for IP datagrams of 1280 octets, the least that every
// IPv6 link carries (§2.5.1) and what most peers take for IPv4 too. When it is
// not answered, IPv4 goes down to 576 octets for the rest of the IKE SA (§2.5.2:
// the initiator of an exchange probes downwards). A responder follows the size
// that it sees.

const (
	datagramLimit  = 1280 // octets of an IP datagram
	datagramLimit4 = 576  // IPv4, once larger ones seem to be lost
	followLimit    = 256  // the peer's size is followed down to here
	probeTries     = 2    // requests sent with a size before a smaller one is tried

	maxFragments   = 128      // of one message
	maxReassembly  = 64 << 10 // octets of one message
	maxUnproven    = 16 << 10 // the same before the peer has authenticated
	reassemblyTime = 30 * time.Second
)

// Why a fragment was dropped.
const (
	WhyFragment           = "fragment-not-agreed"
	WhyFragmentRepeated   = "fragment-repeated"
	WhyFragmentSuperseded = "fragment-superseded" // by a set of smaller ones
	WhyFragmentBound      = "fragment-bound"
	WhyFragmentTimeout    = "fragment-timeout" // the rest did not come
)

// fragmentation is what one IKE SA knows of it.
type fragmentation struct {
	agreed   bool
	limit    int           // octets of an IP datagram; 0 for datagramLimit
	requests []*reassembly // at most the window
}

// reassembly collects the fragments of one message, each after it has been
// authenticated and decrypted.
type reassembly struct {
	id      uint32
	parts   [][]byte // by fragment number, from 0; nil for those still to come
	missing int
	octets  int
	head    content // of the first fragment
	largest int     // octets of the largest IP datagram
	until   time.Time
}

// fragmentationSupported is the announcement for IKE_SA_INIT (§2.3).
var fragmentationSupported = &wire.Notify{Message: wire.IKEv2FragmentationSupported}

// collected is what there is of a message, nil for nothing. outOfWindow has seen to
// it that a response has its task, and that a request is within the window.
func (m *Machine) collected(h wire.Header) *reassembly {
	if h.Response() {
		return m.underWay(requestOf(h)).response
	}
	for _, r := range m.frag.requests {
		if r.id == h.MessageID {
			return r
		}
	}
	return nil
}

// dropFragments forgets what there is of a message.
func (m *Machine) dropFragments(h wire.Header) {
	if h.Response() {
		m.underWay(requestOf(h)).response = nil
		return
	}
	m.frag.requests = slices.DeleteFunc(m.frag.requests, func(r *reassembly) bool { return r.id == h.MessageID })
}

// unwanted is why a fragment is dropped before it is looked into, "" when it is
// not. These are the tests of §2.6, in its order.
func (m *Machine) unwanted(h wire.Header, p *wire.Encrypted) string {
	if !m.frag.agreed {
		return WhyFragment
	}
	if p.Total > maxFragments {
		return WhyFragmentBound
	}
	r := m.collected(h)
	if r == nil {
		return ""
	}
	switch {
	case int(p.Total) < len(r.parts):
		return WhyFragmentSuperseded
	case int(p.Total) == len(r.parts) && r.parts[p.Fragment-1] != nil:
		return WhyFragmentRepeated
	}
	return ""
}

// collect stores a fragment that is the peer's, and returns the whole message
// when it was the last one.
func (m *Machine) collect(h wire.Header, ev ike.Datagram, c content) (content, bool) {
	r := m.collected(h)
	// A larger total starts over: the sender has gone to smaller fragments (§2.6).
	if r == nil || len(r.parts) != int(c.total) {
		m.dropFragments(h)
		r = &reassembly{id: h.MessageID, parts: make([][]byte, c.total), missing: int(c.total), until: m.now.Add(reassemblyTime)}
		if h.Response() {
			m.underWay(requestOf(h)).response = r
		} else {
			m.frag.requests = append(m.frag.requests, r)
		}
	}
	bound := maxReassembly
	if m.state == stateConnecting {
		bound = maxUnproven
	}
	if r.octets+len(c.inner) > bound {
		m.dropFragments(h)
		m.drop(WhyFragmentBound)
		return content{}, false
	}
	if c.number == 1 {
		r.head = c
	}
	if c.inner == nil {
		c.inner = []byte{} // an empty one is legal (§2.5.3), and there
	}
	r.parts[c.number-1] = c.inner
	r.missing--
	r.octets += len(c.inner)
	r.largest = max(r.largest, len(ev.Data)+datagramOverhead(ev.Path))
	if r.missing > 0 {
		return content{}, false
	}
	m.dropFragments(h)
	if r.largest < m.datagramLimit() && len(r.parts) > 1 {
		m.frag.limit = max(r.largest, followLimit)
	}
	whole := r.head
	whole.inner = bytes.Join(r.parts, nil)
	whole.number, whole.total = 0, 0
	return whole, true
}

// expireFragments gives up on messages whose rest did not come (§2.6).
func (m *Machine) expireFragments() {
	late := func(r *reassembly) bool {
		if r == nil || !m.due(r.until) {
			return false
		}
		m.drop(WhyFragmentTimeout)
		return true
	}
	m.frag.requests = slices.DeleteFunc(m.frag.requests, late)
	for _, t := range m.flight {
		if late(t.response) {
			t.response = nil
		}
	}
}

// datagramOverhead is what is around an IKE message: the IP header, UDP, and the
// non-ESP marker of port 4500, which is counted on port 500 too.
func datagramOverhead(p ike.Path) int {
	const ipv4, ipv6, udp, marker = 20, 40, 8, 4
	if p.Remote.Addr().Unmap().Is4() {
		return ipv4 + udp + marker
	}
	return ipv6 + udp + marker
}

func (m *Machine) datagramLimit() int {
	if m.frag.limit != 0 {
		return m.frag.limit
	}
	return datagramLimit
}

// plain is a protected message before it is encrypted. It can be sealed again
// with another fragment size.
type plain struct {
	exchange wire.ExchangeType
	id       uint32
	response bool
	first    wire.PayloadType
	octets   []byte
}

// plainOf is the message of payloads.
func plainOf(x wire.ExchangeType, id uint32, response bool, ps []wire.Payload) plain {
	return plain{exchange: x, id: id, response: response, first: wire.First(ps), octets: wire.AppendPayloads(make([]byte, 0, usualMessage), ps)}
}

// seal makes the datagrams of a protected message: one with SK (RFC 7296 §3.14),
// or several with SKF.
func (m *Machine) seal(p plain) [][]byte {
	room := m.datagramLimit() - datagramOverhead(m.path) - wire.HeaderLen - wire.GenericLen
	if !m.frag.agreed || m.path.TCP || m.tx.SealedLen(len(p.octets)) <= room {
		return [][]byte{m.sealPart(p, &wire.Encrypted{PayloadType: wire.TypeSK, Inner: p.first}, p.octets)}
	}
	size := m.tx.MaxPlaintext(room - wire.NumbersLen)
	total := (len(p.octets) + size - 1) / size
	out := make([][]byte, 0, total)
	for i, rest := 1, p.octets; i <= total; i++ {
		part := rest[:min(size, len(rest))]
		rest = rest[len(part):]
		skf := &wire.Encrypted{PayloadType: wire.TypeSKF, Fragment: uint16(i), Total: uint16(total)}
		if i == 1 {
			skf.Inner = p.first
		}
		out = append(out, m.sealPart(p, skf, part))
	}
	return out
}

// sealPart makes the datagram of one SK or SKF payload.
func (m *Machine) sealPart(p plain, e *wire.Encrypted, part []byte) []byte {
	n := m.tx.SealedLen(len(part))
	aad := e.AppendHead(make([]byte, 0, wire.HeaderLen+wire.GenericLen+wire.NumbersLen+n), m.header(p.exchange, p.id, p.response), n)
	out, err := m.tx.Seal(m.env.Rand, aad, aad, part)
	if err != nil {
		// The randomness failed, or 2^64 messages were sent: see random.
		panic("ikev2: " + err.Error())
	}
	return out
}

// shrink seals the current task's request again for smaller datagrams, when it
// was sent often enough without an answer and there is a smaller size. The number
// of fragments must grow, because that is how the peer tells the sets apart
// (§2.5.2).
func (m *Machine) shrink() bool {
	t := m.task
	least := datagramLimit
	if m.path.Remote.Addr().Unmap().Is4() {
		least = datagramLimit4
	}
	if !m.frag.agreed || t.sent != probeTries || t.plain.octets == nil {
		return false
	}
	m.frag.limit = min(m.datagramLimit(), least) // another request may have come here before
	smaller := m.seal(t.plain)
	if len(smaller) <= len(t.datagrams) {
		return false
	}
	t.datagrams, t.sent = smaller, 0 // "the node MUST reset its retransmission timers"
	return true
}

// sendAll hands datagrams to the network; what is kept of them stays ours.
func (m *Machine) sendAll(p ike.Path, datagrams [][]byte) {
	for _, b := range datagrams {
		m.emit(ike.Send{Path: p, Data: bytes.Clone(b)})
	}
}
