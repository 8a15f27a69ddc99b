package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/archive"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/store"
)

// restore takes up what an earlier process wrote: before the shards run, before any
// worker attaches and any policy comes. A record that cannot be read costs its own IKE
// SA, whose CHILD SAs then go on as orphans.
func (e *Engine) restore() error {
	machines, sas := make(map[string][]byte), make(map[string][]byte)
	incarnations := make(map[string]uint64)
	var known epoch
	err := e.durable.store.Load(func(key string, b []byte) error {
		kind, rest, _ := strings.Cut(key, "/")
		switch kind {
		case keyEpoch:
			var err error
			known, err = parseEpoch(b)
			return err
		case "m":
			machines[rest] = b
		case "s":
			sas[rest] = b
		case "n":
			if len(b) == 8 {
				incarnations[rest] = binary.BigEndian.Uint64(b)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("engine: stored state: %w", err)
	}
	if known.first != 0 {
		e.firstID = known.first
		e.ids.Store(max(e.ids.Load(), uint64(known.reserved)))
	}
	for name, v := range incarnations {
		e.node(name).sadb.Resume(v, known.last)
	}
	broken := make(map[*node]bool)
	var failed, other int // other: of another version of this program
	e.lost = make(map[uint64]*node)
	warn := func(what, key string, err error) {
		failed++
		if errors.Is(err, archive.ErrVersion) {
			other++ // all of them are
			return
		}
		e.cfg.Log.Warn(what, "record", key, "error", err)
	}
	var unreadable set[ipsec.SAID]
	for key, b := range sas {
		id, n, err := e.parseKey(key)
		if err == nil {
			err = n.sadb.Restore(ipsec.SAID(id), b)
		}
		if err != nil {
			unreadable.add(ipsec.SAID(id))
			warn("an SA of the stored state cannot be restored", key, err)
		}
		clear(b)
	}
	for key, b := range machines {
		spi, n, err := e.parseKey(key)
		if err == nil {
			err = e.restoreMachine(n, b, unreadable)
		}
		if err != nil {
			warn("an IKE SA of the stored state cannot be restored; its CHILD SAs will be replaced", key, err)
			if n != nil {
				broken[n], e.lost[spi] = true, n
				e.durable.submit([]store.Change{{Key: keyMachine(spi, n.name)}}, nil)
			}
		}
		clear(b)
	}
	for _, n := range e.allNodes() {
		n.settleRestored(broken[n])
	}
	if other != 0 {
		e.cfg.Log.Warn("the stored state is of another version of keymgrd: what cannot be read is negotiated anew", "records", other)
	}
	if len(machines) != 0 || failed != 0 {
		e.cfg.Log.Info("state restored", "ike_sas", e.stats.restored.Load(), "sas", len(sas), "failed", failed)
	}
	return nil
}

func (e *Engine) parseKey(key string) (uint64, *node, error) {
	number, name, ok := strings.Cut(key, "/")
	v, err := strconv.ParseUint(number, 16, 64)
	if !ok || err != nil || name == "" {
		return 0, nil, fmt.Errorf("%q is not the key of a record", key)
	}
	return v, e.node(name), nil
}

func (e *Engine) restoreMachine(n *node, b []byte, unreadable set[ipsec.SAID]) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the machine failed inside: %v", p)
		}
	}()
	m, err := e.cfg.Machines.Restore(n.env, b)
	if err != nil {
		return err
	}
	info := m.Info()
	c := &cell{shard: e.pickShard(), node: n, initiator: info.Initiator, remote: info.Path.Remote.Addr(), began: time.Since(e.started), slot: -1,
		machine: m, spi: info.LocalSPI, peer: info.Peer, established: true, unproven: info.Unproven(), restored: true, saved: true}
	if c.spi == 0 || e.index.find(c.spi) != nil {
		return fmt.Errorf("IKE SPI %016x is there twice", c.spi)
	}
	for _, ch := range info.Children {
		for _, id := range []ipsec.SAID{ch.In, ch.Out} {
			if _, gone := unreadable[id]; gone {
				return fmt.Errorf("the record of %s, of its CHILD SA %d, cannot be read", id, ch.ID)
			}
		}
	}
	e.index.add(c.spi, c)
	c.shard.setDeadline(c, m.Deadline())
	n.cells[c] = true
	n.knows(c, info.RemoteID)
	if info.State == "established" || info.State == "rekeying" {
		p := n.peer(c.peer)
		p.up = append(p.up, c)
	}
	for _, ch := range info.Children {
		both := 0
		for _, id := range []ipsec.SAID{ch.In, ch.Out} {
			if _, ok := n.sadb.SA(id); ok {
				n.own(c, id)
				both++
			}
		}
		if both == 2 {
			if n.children[ch.Rule] == nil {
				n.children[ch.Rule] = make(map[uint64]childRef)
			}
			n.children[ch.Rule][ch.ID] = childRef{c, ch, ch.Since}
			n.ruleOf[ch.ID] = ch.Rule
			c.children.add(ch.ID)
		}
	}
	for _, id := range info.Draining {
		if _, ok := n.sadb.SA(id); ok {
			n.own(c, id)
		}
	}
	c.post(ike.Restored{})
	e.stats.machines.Add(1)
	e.stats.restored.Add(1)
	return nil
}

// settleRestored deals with SAs that no machine looks after: their removal was
// written for the machine and not yet for them, so they go, or, when a machine of
// the node could not be restored, they may be its own and become orphans.
func (n *node) settleRestored(broken bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.since = time.Now()
	for _, id := range n.sadb.IDs() {
		switch {
		case n.owners[id] != nil:
		case broken:
			n.sadb.Abandon(id)
		default:
			n.sadb.Delete(id)
		}
	}
	n.persist()
	for rule, refs := range n.children {
		if len(refs) > 1 {
			n.e.after(n.e.cfg.Drain, func() { n.dropDuplicates(rule) })
		}
	}
	since := n.since
	n.e.after(n.e.cfg.Detached, func() { n.failWaiting(since, "it did not come back after a restart of the key manager") })
}

// condemn ends what was restored of a node, without a word to its peers: the worker
// knows of more than the stored state does, so that is an old copy. Message IDs and
// leases in it were used since. The SAs that the worker has go on until fresh ones
// replace them.
func (n *node) condemn(why string) {
	n.e.cfg.Log.Error("the stored state is older than what the worker knows: its IKE SAs are dropped and negotiated anew", "node", n.name, "why", why)
	n.e.stats.tooOld.Add(1)
	n.sadb.Distrust()
	for c := range n.cells {
		if !c.restored {
			continue
		}
		c.barred = true
		for id := range c.sas {
			delete(n.owners, id)
			n.sadb.Abandon(id)
		}
		c.sas = nil
		c.shard.inbox.post(item{fn: func() { c.shard.retire(c, whyTooOld) }})
	}
	n.persist()
}
