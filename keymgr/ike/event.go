package ike

import (
	"net/netip"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Path is the way of an IKE datagram: the node whose worker owns the socket,
// and both ends as that worker sees them. On local port 4500 the worker adds
// and removes the non-ESP marker; Data never holds it.
type Path struct {
	Node   string
	Local  netip.AddrPort
	Remote netip.AddrPort
	TCP    bool // in the TCP connection between the two (RFC 9329), with the marker too
}

func (p Path) String() string {
	s := p.Local.String() + " ... " + p.Remote.String()
	if p.TCP {
		s += " in TCP"
	}
	return s
}

// Event is what happens to a machine.
type Event interface{ event() }

type (
	// Datagram is an IKE message from the network. The machine does not keep Data.
	Datagram struct {
		Path Path
		Data []byte
	}

	// Timer says that the machine's Deadline has come.
	Timer struct{}

	// CreateChild asks for a CHILD SA for a rule. On a machine that has not
	// started it starts IKE_SA_INIT. Packet, when set, is the packet that
	// raised the acquire: it goes first in the traffic selectors (RFC 7296 §2.9).
	CreateChild struct {
		Rule   string
		Packet *ipsec.Flow
	}

	// Connect makes the IKE SA of a machine that has not started, without a CHILD
	// SA (RFC 6023).
	Connect struct{}

	// RekeyChild makes a new CHILD SA and then deletes this one.
	RekeyChild struct{ Child uint64 }

	// RekeyIKE replaces the IKE SA; its CHILD SAs move to the new one.
	RekeyIKE struct{}

	// DeleteChild closes one CHILD SA with a delete to the peer.
	DeleteChild struct{ Child uint64 }

	// Terminate closes the IKE SA and all its CHILD SAs.
	Terminate struct{ Why string }

	// CheckPeer starts a liveness check now.
	CheckPeer struct{}

	// ChildExpired is a worker's report on one of the machine's SAs.
	ChildExpired struct {
		Child uint64
		Hard  bool
		Cause string // bytes, packets, time or lease
	}

	// ChildActivity tells when a CHILD SA last received: inbound traffic is
	// proof of liveness (RFC 7296 §2.4).
	ChildActivity struct{ Received time.Time }

	// Addresses are this node's at present, best first (RFC 4555 §3.5).
	Addresses struct{ Local []netip.Addr }

	// PeerMoved tells that the newest packet of a CHILD SA, authenticated, came on
	// another path than the SA's (RFC 7296 §2.23).
	PeerMoved struct{ Path Path }

	// PolicyChanged replaces the node's policy snapshot. The machine keeps what
	// still matches and deletes the CHILD SAs whose rule is gone.
	PolicyChanged struct{ Policy *ipsec.NodePolicy }

	// Restored is the first event of a machine that was read back after a
	// restart. Installs that were under way are asked for again, with their IDs.
	Restored struct{}

	// PSKs answers NeedPSK: candidates, best first; or Err.
	PSKs struct {
		ID      uint64
		Secrets []ipsec.Secret
		Err     error
	}

	// KeyExchanged answers NeedKE.
	KeyExchanged struct {
		ID     uint64
		Public []byte       // ours, when the effect asked for it
		State  ipsec.Secret // private half for a later exchange, when asked for
		Shared ipsec.Secret // when the effect carried the peer's half
		Err    error
	}

	// Installed answers Install: the worker has (Err nil) or has not put all of
	// the SAs in place.
	Installed struct {
		ID  uint64
		Err error
	}
)

func (Datagram) event()      {}
func (Timer) event()         {}
func (CreateChild) event()   {}
func (Connect) event()       {}
func (RekeyChild) event()    {}
func (RekeyIKE) event()      {}
func (DeleteChild) event()   {}
func (Terminate) event()     {}
func (CheckPeer) event()     {}
func (ChildExpired) event()  {}
func (ChildActivity) event() {}
func (Addresses) event()     {}
func (PeerMoved) event()     {}
func (PolicyChanged) event() {}
func (Restored) event()      {}
func (PSKs) event()          {}
func (KeyExchanged) event()  {}
func (Installed) event()     {}
