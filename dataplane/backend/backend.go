package backend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Backend enforces policy and carries SAs on one host. All methods may be
// called from any goroutine.
type Backend interface {
	// Apply does all operations in order, or none: on failure it returns an
	// *OpError that names the first operation that cannot be done, and nothing
	// has changed. When it returns nil the operations are in force. The backend
	// owns the SAs (and their secrets) afterwards.
	Apply(ops []Op) error

	// SetPolicy replaces the node's policy in one step. On error the policy in
	// force is unchanged. The backend does not change p and may keep it.
	SetPolicy(ctx context.Context, p *ipsec.NodePolicy) error

	// AcquireFailed drops the packets that wait for an acquire. With
	// Template.FallbackClear set for the rule, later packets go in clear until
	// the backend's fallback time is over. An unknown id is ignored.
	AcquireFailed(id uint64, why string)

	// SendIKE sends an IKE message. Data holds no non-ESP marker: the backend
	// adds it when path.Local's port is 4500. Data is not kept.
	SendIKE(path Path, data []byte) error

	// Events is the one channel of events; it is closed by Close. A reader that
	// stops reading loses events, which are counted (WhyEventsLost), never
	// packets.
	Events() <-chan Event

	// Counters is a snapshot of what passed and what was dropped, and why.
	Counters() Counters

	// Inventory lists the SAs in force, without keys, ordered by ID.
	Inventory() []Installed

	// Explain says what would happen to a packet, without sending one.
	Explain(f ipsec.Flow, d ipsec.Direction) Explanation

	// Close stops and leaves the host as it was before the backend started.
	Close() error
}

// OpKind is what an operation does.
type OpKind uint8

const (
	OpInstall OpKind = 1 // SA: put it in force; its ID and inbound SPI must be new
	OpReplace OpKind = 2 // SA: change Local, Remote and Encap of the SA of the same ID (RFC 4555); keys and numbers stay
	OpRemove  OpKind = 3 // ID: take it out of force and wipe its keys; an unknown ID is fine
	OpLease   OpKind = 4 // ID, Lease: grant more outbound sequence numbers
)

var opNames = [...]string{OpInstall: "install", OpReplace: "replace", OpRemove: "remove", OpLease: "lease"}

func (k OpKind) String() string {
	if k >= OpInstall && int(k) < len(opNames) {
		return opNames[k]
	}
	return fmt.Sprintf("op-%d", uint8(k))
}

// Op is one operation of a batch.
type Op struct {
	Kind  OpKind
	SA    *ipsec.SA   // OpInstall, OpReplace
	ID    ipsec.SAID  // OpRemove, OpLease
	Lease ipsec.Lease // OpLease
}

// Target is the SA that the operation is about.
func (o Op) Target() ipsec.SAID {
	if o.SA != nil {
		return o.SA.ID
	}
	return o.ID
}

// OpError names the operation that made Apply refuse a batch.
type OpError struct {
	Index int
	Kind  OpKind
	SA    ipsec.SAID
	Err   error
}

func (e *OpError) Error() string {
	return fmt.Sprintf("operation %d (%s %s): %v", e.Index, e.Kind, e.SA, e.Err)
}

func (e *OpError) Unwrap() error { return e.Err }

// What Apply refuses; test with errors.Is.
var (
	ErrExists    = errors.New("an SA with this ID or inbound SPI is already installed")
	ErrNotFound  = errors.New("no SA with this ID is installed")
	ErrNotUsable = errors.New("the SA cannot be used")
	ErrOverlap   = errors.New("the lease overlaps or precedes numbers already granted")
	ErrClosed    = errors.New("the backend is closed")
)

// Path is the way of an IKE datagram: this host's end and the peer's.
type Path struct {
	Local  netip.AddrPort
	Remote netip.AddrPort
	TCP    bool // in the connection between the two (RFC 9329)
}

// Installed is one SA in force.
type Installed struct {
	ID        ipsec.SAID
	Direction ipsec.Direction
	Protocol  ipsec.Protocol
	SPI       ipsec.SPI
	Mode      ipsec.Mode
	Local     netip.Addr
	Remote    netip.Addr
	Encap     *ipsec.Encap
	Suite     ipsec.Suite
	Selectors []ipsec.Selector
	Rule      string
	Peer      string
	Child     uint64
	Lease     ipsec.Lease // outbound: the last one granted
	Counters  ipsec.SACounters
}

// Counters is a snapshot of everything a backend counts.
type Counters struct {
	SAs   []ipsec.SACounters // by ID
	Whys  []WhyCount         // by name; reasons never met are left out
	Rules []RuleCount        // by rule name
}

// WhyCount is how often something happened to a packet for one reason.
type WhyCount struct {
	Why     string
	Packets uint64
}

// RuleCount is what one policy rule did.
type RuleCount struct {
	Rule    string
	Packets uint64
	Bytes   uint64
}

// Explanation is the answer of Explain.
type Explanation struct {
	Flow      ipsec.Flow
	Direction ipsec.Direction
	Action    ipsec.Action
	Rule      string // "" when the default action decided
	Why       string // one of the why constants
	Detail    string // one sentence for an operator
	SA        ipsec.SAID
	SPI       ipsec.SPI
	Mode      ipsec.Mode
	Suite     string
	Local     netip.Addr // outer addresses, when an SA would carry it
	Remote    netip.Addr

	// Around is what happens to what the SA sends, when a rule protects that once
	// more; nil otherwise.
	Around *Explanation
}
