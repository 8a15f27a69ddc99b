package backend

import (
	"github.com/testudo-ipsec/testudo/ipsec"
)

// WhyEventsLost counts, among Counters.Whys, events that found no room.
const WhyEventsLost = "events-lost"

// Event is what a backend reports by itself.
type Event interface{ event() }

type (
	// Acquire asks for an outbound SA: a packet met a secure rule and no SA
	// carries it. It is repeated for the same rule and flow only after it was
	// answered (an outbound SA installed, or AcquireFailed) or timed out.
	Acquire struct {
		ID   uint64 // unique for the life of the backend
		Rule string
		Peer string
		Flow ipsec.Flow
	}

	// IKE is an IKE datagram from the network, without the non-ESP marker. The
	// reader owns Data.
	IKE struct {
		Path Path
		Data []byte
	}

	// Expire says that an SA met a limit of its lifetime.
	Expire struct{ ipsec.Expiry }

	// NeedLease says that three quarters of an outbound SA's last lease is used.
	// It comes once for each lease; when a lease is spent the SA sends nothing,
	// and its packets are dropped and counted as no-lease.
	NeedLease struct {
		ID   ipsec.SAID
		Used uint64 // highest number used
	}

	// PeerMoved says that authenticated packets of an inbound SA come from
	// another address or port than the SA's (RFC 3948 §4, RFC 7296 §2.23), at most
	// once a second as long as they do. The backend has changed nothing; OpReplace does.
	PeerMoved struct {
		ID   ipsec.SAID
		Path Path
	}

	// AddressesChanged says that the host has other addresses than before.
	AddressesChanged struct{}

	// BadSelectors says that an inbound SA carried a packet outside its
	// selectors, at most once a second for an SA (RFC 4301 §5.2: the key
	// manager may send INVALID_SELECTORS).
	BadSelectors struct {
		ID   ipsec.SAID
		Flow ipsec.Flow
	}

	// Panic says, at most once a minute, that a packet met a mistake in this program
	// and cost the batch it came in.
	Panic struct{ Value, Stack string }

	// Failed says that the backend cannot go on: the device or the sockets are
	// gone. It is the last event before the channel closes.
	Failed struct{ Err error }
)

func (Acquire) event()          {}
func (IKE) event()              {}
func (Expire) event()           {}
func (NeedLease) event()        {}
func (PeerMoved) event()        {}
func (AddressesChanged) event() {}
func (BadSelectors) event()     {}
func (Panic) event()            {}
func (Failed) event()           {}
