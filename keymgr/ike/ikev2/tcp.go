package ikev2

import (
	"net/netip"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// TCP encapsulation (RFC 9329), for networks that drop UDP. The initiator's worker
// opens the connection when a message is to go out over such a path, and again when
// it was lost; requests are sent again as over UDP, which §6.2 allows.

// tcpTries is how often IKE_SA_INIT goes out over UDP before TCP is tried: "the
// initial message over UDP be retransmitted at least once" (§5.1).
const tcpTries = 3

// overTCP is a path between the same addresses in a TCP connection of its own.
func (m *Machine) overTCP(p ike.Path) ike.Path {
	const first, count = 49152, 16384 // dynamic ports (RFC 6335 §6)
	b := m.random(2)
	p.TCP = true
	p.Local = netip.AddrPortFrom(p.Local.Addr(), first+(uint16(b[0])<<8|uint16(b[1]))%count)
	p.Remote = netip.AddrPortFrom(p.Remote.Addr(), portNATT)
	return p
}

// fallBack gives UDP up: "a new IKE_SA_INIT exchange MUST be initiated with the
// Initiator's new SPI" (§5.1).
func (m *Machine) fallBack() bool {
	t := m.task
	if t.exchange != wire.IKESAInit || m.peer.TCP != ipsec.TCPFallback || m.path.TCP || t.sent < tcpTries || t.refused != nil {
		return false
	}
	n := m.startOver(m.secret, m.kind)
	n.path = m.overTCP(m.path)
	m.emit(ike.Spawn{Machine: n})
	m.end("no answer over UDP")
	return true
}

// acceptTCP leaves the candidates that may come over the path of the first message.
func (m *Machine) acceptTCP() {
	if m.path.TCP {
		m.candidates = slices.DeleteFunc(slices.Clone(m.candidates), func(p ipsec.Peer) bool { return p.TCP == ipsec.TCPNever })
	}
}

// reconnected reports a new connection of a peer that opened the last one: "the TCP
// Responder MUST allow packets for existing SAs to be received from new source IP
// addresses and ports" (§6.1).
func (m *Machine) reconnected(p ike.Path) bool {
	return p.TCP && m.path.TCP && p.Local == m.path.Local && p.Local.Port() == portNATT
}
