package ike

import (
	"net/netip"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Effect is what a machine asks the engine to do.
type Effect interface{ effect() }

type (
	// Send hands a datagram to the network. The engine owns Data afterwards and
	// may still be sending it when Handle is called again.
	Send struct {
		Path Path
		Data []byte
	}

	// Install puts SAs into the node's worker, all or none, and is answered by
	// Installed. SA.Lease of an outbound SA is left zero: the engine grants it.
	Install struct {
		ID       uint64
		SAs      []ipsec.SA
		Unproven bool // as Info says: the SAs must not displace those of a peer that has proven itself
	}

	// Remove takes SAs out of the worker. It is not answered.
	Remove struct{ SAs []ipsec.SAID }

	// NeedPSK asks for the secret behind references, in order; PSKs answers.
	NeedPSK struct {
		ID       uint64
		Refs     []string
		Optional bool // the negotiation goes on without
	}

	// NeedKE asks for a slow key exchange off the engine's loop; KeyExchanged
	// answers. With Peer nil: make a key pair. With Peer and State: finish as
	// initiator. With Peer alone: respond (Public and Shared).
	NeedKE struct {
		ID     uint64
		Method uint16
		State  ipsec.Secret
		Peer   []byte
	}

	// Spawn hands over the machine of the IKE SA that replaces this one.
	Spawn struct{ Machine Machine }

	// Move reports that an address or a port has changed (RFC 7296 §2.23, dynamic
	// address update; RFC 4555 §3.5): the SAs named have these outer addresses
	// and this encapsulation from now on. It is not answered.
	Move struct {
		SAs    []ipsec.SAID
		Local  netip.Addr
		Remote netip.Addr
		Encap  *ipsec.Encap
	}

	// InitialContact reports that the authenticated peer has no other IKE SA
	// with us (RFC 7296 §2.4): the engine drops older ones of the same
	// identities, without deletes.
	InitialContact struct {
		Peer     string
		RemoteID ipsec.Identity
	}

	// Dropped counts a message that was ignored, and why.
	Dropped struct{ Why string }

	// Established reports that the IKE SA is up.
	Established struct{}

	// ChildUp reports a CHILD SA whose both directions are installed.
	ChildUp struct{ Child Child }

	// ChildDown reports that a CHILD SA is gone.
	ChildDown struct {
		Child uint64
		Why   string
	}

	// Failed reports a negotiation that came to nothing: of the IKE SA, or of
	// one CHILD SA when Rule is set.
	Failed struct{ Failure Failure }

	// Done is the last effect of a machine: the IKE SA is gone.
	Done struct{ Why string }
)

func (Send) effect()           {}
func (Install) effect()        {}
func (Remove) effect()         {}
func (NeedPSK) effect()        {}
func (NeedKE) effect()         {}
func (Spawn) effect()          {}
func (Move) effect()           {}
func (InitialContact) effect() {}
func (Dropped) effect()        {}
func (Established) effect()    {}
func (ChildUp) effect()        {}
func (ChildDown) effect()      {}
func (Failed) effect()         {}
func (Done) effect()           {}

// Child describes a CHILD SA.
type Child struct {
	ID        uint64
	Rule      string
	Suite     ipsec.Suite
	Mode      ipsec.Mode
	Encap     bool
	Selectors []ipsec.Selector // as this host sees them
	In        ipsec.SAID
	Out       ipsec.SAID
	SPIIn     ipsec.SPI
	SPIOut    ipsec.SPI
	Since     time.Time
	Rekeyed   uint32 // how many rekeys led to this one
	Resource  uint32 // as ipsec.SA has it
	PadTo     uint16 // of the outbound SA
}

// Failure explains a negotiation that came to nothing, so that an operator can
// see ours beside theirs and what to change.
type Failure struct {
	Time     time.Time
	Peer     string // profile name, or the remote address when none matched
	Remote   string // address and port
	RemoteID string
	Rule     string // CHILD SA failures only
	Role     string // initiator or responder
	Exchange string // IKE_SA_INIT, IKE_AUTH, CREATE_CHILD_SA or INFORMATIONAL
	Why      string // a constant, such as NO_PROPOSAL_CHOSEN
	Detail   string // one sentence: what was got, what was wanted
	Advice   string // what to change
	Ours     []string
	Theirs   []string
	Diff     []TransformDiff
	Nearest  string // the suite nearest to both sides that would work; empty when there is none
}

// TransformDiff is one transform type of the nearest pair of proposals.
type TransformDiff struct {
	Type    string // ENCR, PRF, INTEG, KE or ESN
	Ours    []string
	Theirs  []string
	Matches bool
}
