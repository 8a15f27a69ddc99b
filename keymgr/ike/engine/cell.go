package engine

import (
	"net/netip"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// cell is the engine's side of one machine.
type cell struct {
	shard     *shard
	node      *node
	initiator bool
	remote    netip.Addr // of the first path: the key of fairness
	began     time.Time
	initKey   initKey // responder: its place among the half-open ones

	// Owned by the shard's goroutine.
	make    func() (ike.Machine, error) // until the first event
	machine ike.Machine
	spi     uint64 // as registered in the index
	trace   uint64 // of what is remembered of it; its heir has the same
	halfEnd time.Time
	gone    bool
	pending int    // groups of effects that wait for the disk
	saved   bool   // the store has it,
	sum     uint64 // and a hash of what it has
	slot    int    // in the shard's timers, -1 when not there
	at      time.Time

	// Guarded by node.mu.
	peer        string
	restored    bool     // by an earlier process
	anew        []string // rules to negotiate when it is gone
	barred      bool     // it must not send any more: condemn
	established bool
	remoteID    string          // counted in node.identities
	unproven    bool            // the peer may be anybody: unproven.go
	sas         set[ipsec.SAID] // installed for it
	rules       set[string]     // negotiations it has under way
	children    set[uint64]     // CHILD SAs that are up
	heir        *cell           // took over after a rekey of the IKE SA
	successor   *cell           // is to replace it: the ends authenticate anew
	takes       *reauth         // what it replaces
	redundant   bool            // another IKE SA does its work: it ends with its last CHILD SA
}

func (c *cell) post(ev ike.Event) { c.shard.inbox.post(item{cell: c, event: ev}) }

// set is a small set; the zero value is empty and takes no memory.
type set[T comparable] map[T]struct{}

func (s *set[T]) add(v T) {
	if *s == nil {
		*s = make(set[T])
	}
	(*s)[v] = struct{}{}
}
