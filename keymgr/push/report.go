package push

import (
	"net/netip"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// Hello is the first thing a worker says on a link.
type Hello struct {
	Node        string
	Incarnation uint64 // differs after every start of the worker's process; not 0
	Addresses   []netip.Addr
	Software    string // version of the worker, for operators
	Inventory   []Held
}

// Held is one SA that the worker has. SPI to Child let a key manager that has
// lost its memory look after an SA it did not make.
type Held struct {
	ID        ipsec.SAID
	SPI       ipsec.SPI
	Direction ipsec.Direction
	Rule      string
	Child     uint64
	Top       uint64 // outbound: highest number used; inbound: top of the replay window
	LeaseLast uint64 // outbound: end of the last lease it has
}

// Report is what a worker says after Hello.
type Report interface{ report() }

type (
	// Ack answers a batch: all of it is in place.
	Ack struct{ Nonce uint64 }

	// Nack answers a batch: none of it is in place, because of Ops[Op].
	Nack struct {
		Nonce uint64
		Op    int
		Why   string
	}

	// Acquire asks for an SA for a packet that a secure rule matched.
	Acquire struct {
		ID   uint64
		Flow ipsec.Flow
		Rule string
	}

	// Datagram is an IKE message without its non-ESP marker. Path.Node is
	// ignored: the link says which node it is. The receiver owns Data.
	Datagram struct {
		Path ike.Path
		Data []byte
	}

	// Expire says that an SA met a limit.
	Expire struct{ ipsec.Expiry }

	// Addresses are those the worker can send from, from now on.
	Addresses struct{ Local []netip.Addr }

	// PeerMoved says where the newest authenticated packet of an inbound SA in UDP came
	// from, when that is not where the SA has its peer. Path.Node is ignored.
	PeerMoved struct {
		ID   ipsec.SAID
		Path ike.Path
	}

	// Counters are totals since the worker installed each SA.
	Counters struct{ SAs []ipsec.SACounters }

	// LeaseRequest asks for more outbound numbers; Used is the highest one used.
	LeaseRequest struct {
		ID   ipsec.SAID
		Used uint64
	}
)

func (Ack) report()          {}
func (Nack) report()         {}
func (Acquire) report()      {}
func (Datagram) report()     {}
func (Expire) report()       {}
func (Counters) report()     {}
func (LeaseRequest) report() {}
func (Addresses) report()    {}
func (PeerMoved) report()    {}
