package ike

import (
	"errors"
	"io"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Machine is one IKE SA, of either version.
type Machine interface {
	// Handle takes one event and returns effects in the order in which they
	// must be performed. The slice is the engine's until the next call.
	Handle(now time.Time, ev Event) []Effect
	// Deadline is when Timer is due; the zero time for never.
	Deadline() time.Time
	// Info is a snapshot for operators; it holds no secret.
	Info() Info
	// Save appends the machine to dst, keys included, so that it can be restored
	// by another process. False when there is nothing worth it (yet): an IKE SA
	// that is not authenticated, or gone.
	Save(dst []byte) ([]byte, bool)
	// Rest appends to dst what there is to know, keys included, of a responder that
	// waits for its peer's next message, in a tenth of the memory; the machine is
	// spent then. False, and nothing changed, for all others.
	Rest(dst []byte) ([]byte, bool)
}

// Env is what a machine takes from outside: randomness, and numbers that are
// unique. Its functions are called from Handle only.
type Env struct {
	Rand     io.Reader
	AllocSPI func() ipsec.SPI // an unused inbound SPI of the node
	NextID   func() uint64    // for ipsec.SAID and CHILD SA numbers; never reused
	// IKESPI is an unused IKE SPI; nil for a random one.
	IKESPI func() uint64
	// Tokens are what proves that an IKE SA was lost (RFC 6290), best first; nil
	// when there are none to be had.
	Tokens func(spiI, spiR uint64) [][]byte
	// Alone reports that the node has no IKE SA with the owner of an identity, nor SAs
	// of one; nil when that is not known.
	Alone func(peer string, id ipsec.Identity) bool
}

// ErrUnproven is Installed's error for SAs that would displace others.
var ErrUnproven = errors.New("a peer that has not proven its identity (NULL authentication) cannot replace the CHILD SA of one that has")

// StateRefused is the state of a responder that has refused its peer: it is no IKE
// SA, and only answers retransmissions for a while.
const StateRefused = "refused"

// Info describes an IKE SA.
type Info struct {
	Node      string
	Peer      string
	Version   uint8 // 1 or 2
	Initiator bool
	State     string // connecting, established, rekeying, deleting, refused or gone
	LocalSPI  uint64
	RemoteSPI uint64
	Path      Path
	LocalID   string
	RemoteID  string
	PPK       string // identifier of the postquantum preshared key (RFC 8784), "" for none
	// How each end has proven its identity: psk, null, or a signature scheme such
	// as ecdsa-sha256.
	LocalAuth  string
	RemoteAuth string
	Suite      ipsec.Suite
	NAT        string // none, local, remote or both
	Since      time.Time
	RekeyAt    time.Time
	ReauthAt   time.Time // zero for never
	Children   []Child
	Draining   []ipsec.SAID // inbound SAs of CHILD SAs that are gone
}

// AuthNull is what Info says of an end that has proven no identity (RFC 7619).
const AuthNull = "null"

// Unproven reports that the peer may be anybody: it has proven no identity, nor that
// it knows the PPK.
func (i Info) Unproven() bool { return i.RemoteAuth == AuthNull && i.PPK == "" }
