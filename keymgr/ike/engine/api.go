package engine

import (
	"net/netip"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// Filter selects SAs; zero fields match all.
type Filter struct {
	Node  string
	Peer  string // peer profile
	SPI   uint64 // this side's IKE SPI
	Rule  string // IKE SAs with a CHILD SA for this rule
	Child uint64 // the IKE SA with this CHILD SA
}

// IKESA is an IKE SA with its traffic. Traffic[i] belongs to Children[i].
type IKESA struct {
	ike.Info
	Traffic []Traffic
}

// Traffic is what the worker last reported of a CHILD SA, summed over worker
// restarts. Rates are octets per second over the last report interval.
type Traffic struct {
	In, Out         ipsec.SACounters
	InRate, OutRate float64
}

// Worker is one worker that is or was attached.
type Worker struct {
	Node      string
	Attached  bool
	Since     time.Time // of the state Attached tells
	Addresses []netip.Addr
	Software  string
	Desired   int    // simplex SAs it should have
	Installed int    // of these, acknowledged
	Orphans   int    // simplex SAs it has from an earlier key manager
	LastNack  string // last operation it refused, and why
}

// Event kinds, as Watch tells them.
const (
	KindIKEUp      = "ike-up"
	KindIKEDown    = "ike-down"
	KindChildUp    = "child-up"
	KindChildDown  = "child-down"
	KindFailed     = "failed"
	KindWorkerUp   = "worker-up"
	KindWorkerDown = "worker-down"
)

// Event is something that happened, for operators.
type Event struct {
	Time    time.Time
	Kind    string
	Node    string
	Peer    string
	SPI     uint64       // this side's IKE SPI; 0 for workers
	Child   *ike.Child   // child-up
	Failure *ike.Failure // failed
	Detail  string       // one sentence
}

// Failure is a failed negotiation on a node. Repeated counts the same failure
// in a row; Time is that of the last one.
type Failure struct {
	ike.Failure
	Node     string
	Repeated uint32
}

// Stats are the engine's counters since it started; gauges say so.
type Stats struct {
	Received    uint64            // IKE datagrams from workers
	Sent        uint64            // IKE datagrams handed to workers
	Drops       map[string]uint64 // datagrams ignored, by why
	InboxFull   uint64            // of these, because a shard did not keep up
	Panics      uint64            // machines ended by a panic
	Machines    uint64            // gauge
	HalfOpen    uint64            // gauge: responders not yet established
	CookiesSent uint64
	Established uint64            // IKE SAs that came up
	Legacy      uint64            // IKE and CHILD SAs that came up with a legacy algorithm
	ChildrenUp  uint64            // CHILD SAs that came up, rekeys included
	Failures    map[string]uint64 // failed negotiations, by why
	Handshakes  Histogram         // seconds from the first message to Established

	Acquires       uint64
	AcquiresFailed uint64
	Installs       uint64 // SAs acknowledged by workers
	Nacks          uint64
	Grants         uint64 // leases granted
	LeasesRefused  uint64 // lease requests answered by a rekey
	SlowRefused    uint64 // lookups, signatures and key exchanges over a pool's bound
	EventsDropped  uint64 // for Watch subscribers that did not keep up

	Restored       uint64        // IKE SAs taken up from the store at the start
	TooOld         uint64        // nodes whose stored state was an old copy
	Commits        uint64        // batches written to the store
	RecordsWritten uint64        // and their records
	OctetsWritten  uint64        // and what these hold
	CommitErrors   uint64        // batches that could not be written, each try
	CommitWait     time.Duration // from a change to its being durable, summed over changes
	StateFailing   bool          // gauge: the last batch could not be written

	Workers     uint64 // gauge: attached
	SADesired   uint64 // gauge
	SAInstalled uint64 // gauge
	Orphans     uint64 // gauge: SAs of an earlier key manager still in use
}

// Histogram counts observations; Counts[i] is those of at most Bounds[i] (not
// cumulative), and the last of Counts those above all bounds.
type Histogram struct {
	Bounds []float64
	Counts []uint64
	Sum    float64
}
