package ikev2

import (
	"bytes"
	"crypto/subtle"
	"net/netip"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// MOBIKE (RFC 4555): an IKE SA and its tunnel-mode CHILD SAs move to other
// addresses. The original initiator decides on the path:
//
//	HDR, SK {N(UPDATE_SA_ADDRESSES), N(NAT_DETECTION_*), N(COOKIE2), [N(ADDITIONAL_*_ADDRESS)]}  -->
//	                                        <--  HDR, SK {N(NAT_DETECTION_*), N(COOKIE2)}
//
// Two paths have to be told apart: that of the IKE SA, which changes at once, and
// that of the CHILD SAs, which follows when the other end has shown that it
// receives at the new addresses: for the initiator that is the response to its
// update, for the responder a return routability check of its own (§3.7), which is
// left out for addresses that the policy lists.
//
// A transport-mode CHILD SA is bound to its addresses and stays where it is.

// maxAdditional bounds the addresses that are announced and remembered.
const maxAdditional = 16

// mobility is the state of MOBIKE of an IKE SA.
type mobility struct {
	on       bool         // both ends have said MOBIKE_SUPPORTED
	deciding bool         // this end initiated the first IKE SA, before all rekeys (§2.1)
	local    []netip.Addr // ours at present, best first
	remote   []netip.Addr // the peer's additional ones
	told     []netip.Addr // what the peer was last told of ours, besides the one in use
	children ike.Path     // where the CHILD SAs go
	refused  int          // updates refused in a row
	seen     []byte       // how the peer saw us: NAT_DETECTION_DESTINATION_IP of its last response (§3.8)
}

// offerMobike are the payloads of an IKE_AUTH message that speak of MOBIKE.
func (m *Machine) offerMobike() []wire.Payload {
	if !m.peer.Mobike {
		return nil
	}
	m.mob.told = m.additional()
	return append([]wire.Payload{&wire.Notify{Message: wire.MobikeSupported}}, addressNotifies(m.mob.told)...)
}

// readMobike takes the peer's half out of its IKE_AUTH message.
func (m *Machine) readMobike(msg *message) {
	m.mob.deciding = m.initiator
	m.mob.on = m.peer.Mobike && msg.notify(wire.MobikeSupported) != nil
	m.mob.children = m.path
	if m.mob.on {
		m.mob.remote = additionalOf(msg)
	}
}

// additional are our addresses besides the one in use (§3.4).
func (m *Machine) additional() []netip.Addr {
	var out []netip.Addr
	for _, a := range m.mob.local {
		if a != m.path.Local.Addr() && announceable(a) && len(out) < maxAdditional {
			out = append(out, a)
		}
	}
	return out
}

func announceable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.IsLinkLocalUnicast()
}

func addressNotifies(as []netip.Addr) []wire.Payload {
	var ps []wire.Payload
	for _, a := range as {
		t := wire.AdditionalIP6Address
		if a.Is4() {
			t = wire.AdditionalIP4Address
		}
		ps = append(ps, &wire.Notify{Message: t, Data: a.AsSlice()})
	}
	return ps
}

func additionalOf(msg *message) []netip.Addr {
	var out []netip.Addr
	for _, n := range msg.notifies {
		if n.Message != wire.AdditionalIP4Address && n.Message != wire.AdditionalIP6Address {
			continue
		}
		a, ok := netip.AddrFromSlice(n.Data)
		if ok && a.Is4() == (n.Message == wire.AdditionalIP4Address) && announceable(a) && len(out) < maxAdditional {
			out = append(out, a)
		}
	}
	return out
}

// addresses is the event: this node's addresses have changed.
func (m *Machine) addresses(local []netip.Addr) {
	m.mob.local = slices.Clone(local)
	if !m.mob.on || m.state != stateEstablished {
		return
	}
	if !slices.Contains(local, m.path.Local.Addr()) {
		m.nextPath()
		return
	}
	if !slices.Equal(m.additional(), m.mob.told) {
		m.enqueue(task{kind: taskAnnounce})
	}
}

// nextPath goes over to the next pair of addresses after the present one. It
// reports whether there is one.
func (m *Machine) nextPath() bool {
	pairs := m.paths(false)
	if m.peer.TCP != ipsec.TCPNever && m.mob.deciding { // after all of UDP (RFC 9329 §7.1)
		pairs = append(pairs, m.paths(true)...)
	}
	at := slices.IndexFunc(pairs, func(p ike.Path) bool {
		return p.TCP == m.path.TCP && p.Local.Addr() == m.path.Local.Addr() && p.Remote.Addr() == m.path.Remote.Addr()
	})
	if len(pairs) == 0 || len(pairs) == 1 && at == 0 {
		return false
	}
	p := pairs[(at+1)%len(pairs)]
	if p.TCP {
		p = m.overTCP(p)
	}
	m.moveTo(p)
	return true
}

// paths are the pairs of our addresses and the peer's, over UDP or TCP.
func (m *Machine) paths(tcp bool) (out []ike.Path) {
	if !tcp && m.peer.TCP == ipsec.TCPAlways {
		return nil
	}
	local, remote := m.path.Local.Port(), m.path.Remote.Port()
	if m.path.TCP {
		local, remote = portNATT, portNATT
	}
	remotes := append([]netip.Addr{m.path.Remote.Addr()}, m.mob.remote...)
	for _, r := range append(remotes, m.peer.Remote...) {
		for _, l := range m.mob.local {
			p := ike.Path{Node: m.path.Node, Local: netip.AddrPortFrom(l, local), Remote: netip.AddrPortFrom(r.Unmap(), remote), TCP: tcp}
			if announceable(l) && l.Is4() == r.Unmap().Is4() && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

// moveTo changes the path of the IKE SA. Outstanding requests go on over the new
// one (§3.5).
func (m *Machine) moveTo(p ike.Path) {
	m.path = p
	m.resend()
	if m.mob.deciding {
		m.urgent(taskUpdate)
	} else {
		// "If the source address that the responder is currently using becomes
		// unavailable, the responder is allowed to update the IPsec SAs" (§3.5).
		m.moveChildren()
		m.urgent(taskAnnounce)
	}
}

// resend lets outstanding requests go out over the new path at once. That is no try of
// theirs: another one may be looking for a path.
func (m *Machine) resend() {
	for _, t := range m.flight {
		if t.phase == phaseSent {
			m.sendAll(m.path, t.datagrams)
		}
	}
}

// urgent puts a task in front of the others. One of the kind that is under way
// notices by itself that its path has changed.
func (m *Machine) urgent(k taskKind) {
	if m.doing(k) != nil {
		return
	}
	m.queue = slices.DeleteFunc(m.queue, func(t task) bool { return t.kind == k })
	m.queue = append([]task{{kind: k}}, m.queue...)
}

// startMobike sends the request of taskUpdate, taskAnnounce or taskRoutability.
func (m *Machine) startMobike() {
	t := m.task
	t.path = m.path
	t.cookie2 = m.random(16)
	var ps []wire.Payload
	switch t.kind {
	case taskUpdate:
		ps = append(ps, &wire.Notify{Message: wire.UpdateSAAddresses})
		ps = append(ps, m.natNotifies(m.spiI, m.spiR, m.path)...)
		if more := m.additional(); !slices.Equal(more, m.mob.told) {
			ps = append(ps, m.announcement(more)...)
		}
	case taskAnnounce:
		ps = m.announcement(m.additional())
	}
	m.request(wire.Informational, append(ps, &wire.Notify{Message: wire.Cookie2, Data: t.cookie2})...)
}

func (m *Machine) announcement(more []netip.Addr) []wire.Payload {
	m.mob.told = more
	if len(more) == 0 {
		return []wire.Payload{&wire.Notify{Message: wire.NoAdditionalAddresses}}
	}
	return addressNotifies(more)
}

// mobikeResponse is the answer to startMobike's request.
func (m *Machine) mobikeResponse(t *task, msg *message) {
	// §3.7: a COOKIE2 that is not the one sent closes the IKE SA. The message is
	// authentic, so the peer is broken.
	n := msg.notify(wire.Cookie2)
	if n == nil || subtle.ConstantTimeCompare(n.Data, t.cookie2) != 1 {
		m.fail(m.failure(msg.Exchange, WhyCookie2, "the peer did not return the COOKIE2 of our request", "report this to the maker of the peer's IKE implementation"))
		return
	}
	if t.path != m.path {
		// Sent to several addresses, or overtaken: it proves nothing (§3.5, §3.7).
		if t.kind != taskRoutability || m.path != m.mob.children {
			m.urgent(t.kind)
		}
		return
	}
	switch t.kind {
	case taskUpdate:
		if msg.notify(wire.UnacceptableAddresses) != nil {
			f := m.failure(msg.Exchange, wire.UnacceptableAddresses.String(), "the peer does not accept "+m.path.Local.String()+" ... "+m.path.Remote.String(),
				"let the peer's configuration accept this address, or give this node another one")
			m.emit(ike.Failed{Failure: f})
			if m.mob.refused++; m.mob.refused < maxAdditional {
				m.nextPath()
			}
			return
		}
		m.mob.refused = 0
		m.detectNAT(msg)
		m.noteNAT(msg)
		m.moveChildren()
	case taskRoutability:
		m.moveChildren()
	}
}

// mobikeRequest reads what an INFORMATIONAL request of the peer says of
// addresses, and returns what the response has to say.
func (m *Machine) mobikeRequest(msg *message) (answer []wire.Payload) {
	if n := msg.notify(wire.Cookie2); n != nil && len(n.Data) >= 8 && len(n.Data) <= 64 { // §4.2.5
		answer = append(answer, n)
	}
	if !m.mob.on || m.state != stateEstablished {
		return answer
	}
	if msg.notify(wire.NATDetectionSourceIP) != nil {
		answer = append(answer, m.natNotifies(m.spiI, m.spiR, msg.path)...) // §3.8
	}
	update := msg.notify(wire.UpdateSAAddresses) != nil && !m.mob.deciding
	announce := msg.notify(wire.AdditionalIP4Address) != nil || msg.notify(wire.AdditionalIP6Address) != nil || msg.notify(wire.NoAdditionalAddresses) != nil
	if n := msg.notify(wire.NoNATsAllowed); n != nil && !msg.path.TCP && (update || announce) && !bytes.Equal(n.Data, noNATs(msg.path)) {
		return append(answer, &wire.Notify{Message: wire.UnexpectedNATDetected}) // §3.9
	}
	if announce {
		m.mob.remote = additionalOf(msg)
	}
	switch {
	case update && !announceable(msg.path.Remote.Addr()):
		m.emit(ike.Failed{Failure: m.failure(msg.Exchange, wire.UnacceptableAddresses.String(), "the peer wants to move to "+msg.path.Remote.String(), "give the peer a unicast address")})
		return append(answer, &wire.Notify{Message: wire.UnacceptableAddresses})
	case update:
		m.path = msg.path
		m.resend()
		if msg.notify(wire.NATDetectionSourceIP) != nil {
			m.detectNAT(msg)
		}
		if m.path.TCP || slices.Contains(m.peer.Remote, m.path.Remote.Addr()) { // a TCP connection is a proof (RFC 9329 §7.1)
			m.moveChildren()
		} else {
			m.urgent(taskRoutability)
		}
	case announce && m.mob.deciding:
		known := append([]netip.Addr{msg.path.Remote.Addr()}, m.mob.remote...)
		if !slices.Contains(known, m.path.Remote.Addr()) {
			p := m.path
			p.Remote = msg.path.Remote
			m.moveTo(p)
		}
	}
	return answer
}

// noNATs is the data of NO_NATS_ALLOWED (§4.2.6): addresses and ports of the IP
// header as its sender sees it, which must be as we see it.
func noNATs(p ike.Path) []byte {
	b := slices.Concat(p.Remote.Addr().AsSlice(), p.Local.Addr().AsSlice())
	return append(b, byte(p.Remote.Port()>>8), byte(p.Remote.Port()), byte(p.Local.Port()>>8), byte(p.Local.Port()))
}

// livenessPayloads make a liveness check tell whether a NAT in front of us has
// changed its mapping (§3.8).
func (m *Machine) livenessPayloads() []wire.Payload {
	if !m.mob.on || !m.mob.deciding || !m.nat.local {
		return nil
	}
	return m.natNotifies(m.spiI, m.spiR, m.path)
}

// livenessAnswered compares how the peer sees us with how it did.
func (m *Machine) livenessAnswered(msg *message) {
	if !m.mob.on || !m.mob.deciding || !m.nat.local {
		return
	}
	before := m.mob.seen
	if m.noteNAT(msg); before != nil && !bytes.Equal(before, m.mob.seen) {
		m.urgent(taskUpdate)
	}
}

func (m *Machine) noteNAT(msg *message) {
	if n := msg.notify(wire.NATDetectionDestinationIP); n != nil {
		m.mob.seen = bytes.Clone(n.Data)
	}
}

// moveChildren lets the tunnel-mode CHILD SAs follow the IKE SA.
func (m *Machine) moveChildren() {
	m.mob.children = m.path
	encap := m.encap()
	move := ike.Move{Local: m.path.Local.Addr(), Remote: m.path.Remote.Addr(), Encap: encap}
	for _, c := range m.children {
		if c.Mode != ipsec.ModeTunnel {
			continue
		}
		if encap != nil && c.protocol == ipsec.ProtocolAH {
			m.deleteChild(c.ID, errAHNAT.Error())
			continue
		}
		c.Encap = encap != nil
		if c.inAsked {
			move.SAs = append(move.SAs, c.In)
		}
		if c.outAsked {
			move.SAs = append(move.SAs, c.Out)
		} else if c.out != nil {
			c.out.Local, c.out.Remote, c.out.Encap = move.Local, move.Remote, encap
		}
	}
	if len(move.SAs) > 0 {
		m.emit(move)
	}
}
