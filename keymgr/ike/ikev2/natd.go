package ikev2

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"net/netip"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// IKE ports (RFC 7296 §2.23).
const (
	portIKE  = 500
	portNATT = 4500
)

// nat is what NAT detection has found, and whether policy wants UDP
// encapsulation in any case.
type nat struct {
	local  bool // this side is behind a NAT
	remote bool
	forced bool
}

// encap reports whether ESP travels in UDP.
func (n nat) encap() bool { return n.local || n.remote || n.forced }

func (n nat) String() string {
	switch {
	case n.local && n.remote:
		return "both"
	case n.local:
		return "local"
	case n.remote:
		return "remote"
	}
	return "none"
}

// natHash is the data of a NAT_DETECTION notify. SHA-1 is prescribed; nothing
// depends on its strength, because the notify is not authenticated by it.
func natHash(spiI, spiR uint64, a netip.AddrPort) [sha1.Size]byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 8+8+16+2), spiI)
	b = binary.BigEndian.AppendUint64(b, spiR)
	b = append(b, a.Addr().Unmap().AsSlice()...)
	return sha1.Sum(binary.BigEndian.AppendUint16(b, a.Port()))
}

// natNotifies announces where this message is sent from and to. With forced
// encapsulation the source hash is wrong on purpose: the peer then sees a NAT in
// front of us, and encapsulates too.
func (m *Machine) natNotifies(spiI, spiR uint64, p ike.Path) []wire.Payload {
	hashes := [2][sha1.Size]byte{natHash(spiI, spiR, p.Local), natHash(spiI, spiR, p.Remote)}
	if m.nat.forced {
		copy(hashes[0][:], m.random(sha1.Size))
	}
	ns := []wire.Notify{
		{Message: wire.NATDetectionSourceIP, Data: hashes[0][:]},
		{Message: wire.NATDetectionDestinationIP, Data: hashes[1][:]},
	}
	return []wire.Payload{&ns[0], &ns[1]}
}

// detectNAT compares the peer's notifies with the addresses its message came
// with. A peer without them does not do NAT traversal.
func (m *Machine) detectNAT(msg *message) {
	var sources, matched, destinations, here int
	source, destination := natHash(msg.SPIi, msg.SPIr, msg.path.Remote), natHash(msg.SPIi, msg.SPIr, msg.path.Local)
	for _, n := range msg.notifies {
		switch n.Message {
		case wire.NATDetectionSourceIP:
			sources++
			if bytes.Equal(n.Data, source[:]) {
				matched++
			}
		case wire.NATDetectionDestinationIP:
			destinations++
			if bytes.Equal(n.Data, destination[:]) {
				here++
			}
		}
	}
	m.nat.remote = sources > 0 && matched == 0
	m.nat.local = destinations > 0 && here == 0
}

// forceEncap reports that policy wants UDP encapsulation with a peer: the CHILD
// SAs of one IKE SA share the choice, because they share the path.
func forceEncap(policy *ipsec.NodePolicy, p ipsec.Peer) bool {
	if p.ForceEncap {
		return true
	}
	for r := range policy.RulesOf(p.Name) {
		if r.Template != nil && r.Template.ForceEncap {
			return true
		}
	}
	return false
}

// float moves the initiator to port 4500, from IKE_AUTH on.
func (m *Machine) float() {
	// RFC 4555 §3.3: with MOBIKE always, so that a NAT on a later path changes no port.
	if (m.nat.encap() || m.peer.Mobike) && !m.path.TCP && m.path.Local.Port() == portIKE {
		m.path.Local = netip.AddrPortFrom(m.path.Local.Addr(), portNATT)
		m.path.Remote = netip.AddrPortFrom(m.path.Remote.Addr(), portNATT)
	}
}

// follow adopts the path of a new authenticated message, of IKE or ESP. Before IKE_AUTH is
// answered the responder follows any change, because that is when the initiator
// floats; afterwards only a peer behind a NAT may move, and only when we are not
// behind one (RFC 7296 §2.23: dynamic address update).
func (m *Machine) follow(p ike.Path) {
	if p == m.path {
		return
	}
	if m.state == stateConnecting {
		if !m.initiator {
			m.path = p
		}
		return
	}
	// With MOBIKE only UPDATE_SA_ADDRESSES moves an IKE SA (RFC 4555 §3.8).
	renatted := m.nat.remote && !m.nat.local && p.Remote != m.path.Remote && p.TCP == m.path.TCP
	if m.mob.on || !renatted && !m.reconnected(p) {
		return
	}
	m.path = p
	encap := m.encap()
	move := ike.Move{Local: p.Local.Addr(), Remote: p.Remote.Addr(), Encap: encap}
	for _, c := range m.children {
		if c.inAsked {
			move.SAs = append(move.SAs, c.In)
		}
		if c.outAsked {
			move.SAs = append(move.SAs, c.Out)
		} else if c.out != nil {
			c.out.Remote, c.out.Encap = move.Remote, encap
		}
	}
	if len(move.SAs) > 0 {
		m.emit(move)
	}
}

// encap is the encapsulation of CHILD SAs, nil for none; childProposals sees to it
// that those of AH need none. UDP encapsulation "MUST NOT be done on port 500". In
// TCP it is that of the IKE SA, NAT or not (RFC 9329 §6.5).
func (m *Machine) encap() *ipsec.Encap {
	if !m.nat.encap() && !m.path.TCP {
		return nil
	}
	e := &ipsec.Encap{LocalPort: m.path.Local.Port(), RemotePort: m.path.Remote.Port(), TCP: m.path.TCP}
	if e.LocalPort == portIKE {
		e.LocalPort, e.RemotePort = portNATT, portNATT
	}
	return e
}
