package engine

import (
	"net/netip"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// cell is the engine's side of one machine. A stranger can make us keep very many, so
// it is small.
type cell struct {
	shard  *shard
	node   *node
	remote netip.Addr    // of the first path: the key of fairness
	began  time.Duration // since the engine's start

	// Owned by the shard's goroutine.
	initKey   initKey                     // responder: its place among the half-open ones, 0 when it has none
	make      func() (ike.Machine, error) // until the first event
	machine   ike.Machine
	rest      []byte        // the machine, while it rests
	spi       uint64        // as registered in the index
	trace     uint64        // of what is remembered of it; its heir has the same
	sum       uint64        // a hash of what the store has of it
	at        time.Duration // its deadline, since the engine's start
	slot      int32         // in the shard's timers, -1 when not there
	pending   int32         // groups of effects that wait for the disk
	initiator bool
	gone      bool
	saved     bool // the store has it

	// Guarded by node.mu.
	restored    bool // by an earlier process
	barred      bool // it must not send any more: condemn
	established bool
	unproven    bool // the peer may be anybody: unproven.go
	redundant   bool // another IKE SA does its work: it ends with its last CHILD SA
	peer        string
	remoteID    string          // counted in node.identities
	anew        set[string]     // rules to negotiate when it is gone
	sas         set[ipsec.SAID] // installed for it
	rules       set[string]     // negotiations it has under way
	children    set[uint64]     // CHILD SAs that are up
	heir        *cell           // took over after a rekey of the IKE SA
	successor   *cell           // is to replace it: the ends authenticate anew
	takes       *reauth         // what it replaces
}

func (c *cell) source() source { return source{c.node.name, c.remote} }

func (c *cell) post(ev ike.Event) { c.shard.inbox.post(item{cell: c, event: ev}) }

// set is a small set; the zero value is empty and takes no memory.
type set[T comparable] map[T]struct{}

func (s *set[T]) add(v T) {
	if *s == nil {
		*s = make(set[T])
	}
	(*s)[v] = struct{}{}
}
