package sadb

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/archive"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// The record can be kept, so that it outlives the key manager: Changes tells what is
// to be written, and the operations that came of the changes must not leave before
// that is durable. Then a lease that was ever used is one that is written.

const savedVersion = 2

// topAge is how old the written top of a replay window, and the written counters, may
// be. It bounds what is written of an SA that is busy, and what can be replayed after
// the worker and the key manager have both died.
const topAge = time.Minute

// Kinds of records.
const (
	savedSA     = 1
	savedOrphan = 2 // an SA of a machine that failed: the worker keeps it, until it is replaced
)

// Saved is one record: an SA as it is now, nil when it is gone.
type Saved struct {
	ID     ipsec.SAID
	Octets []byte // hold keys
}

// Changes returns what has changed since the last call.
func (n *Node) Changes() []Saved {
	if len(n.changed) == 0 {
		return nil
	}
	out := make([]Saved, 0, len(n.changed))
	for id := range n.changed {
		out = append(out, Saved{id, n.save(id)})
	}
	if len(out) > 64 { // a map stays as large as it was, and to walk it takes as long
		n.changed = nil
	}
	clear(n.changed)
	return out
}

func (n *Node) change(id ipsec.SAID) {
	if n.changed == nil {
		n.changed = make(map[ipsec.SAID]struct{})
	}
	n.changed[id] = struct{}{}
}

func (n *Node) save(id ipsec.SAID) []byte {
	c := archive.Writer(n.buf[:0])
	defer func() {
		n.buf = c.Octets()[:0]
		clear(n.buf[:cap(n.buf)])
	}()
	c.Version(savedVersion)
	kind := uint8(savedSA)
	e := n.sas[id]
	switch {
	case e != nil:
		archive.Num(c, &kind)
		e.archive(c)
	case n.abandoned[id]:
		kind = savedOrphan
		archive.Num(c, &kind)
	default:
		return nil
	}
	if c.Err() != nil {
		return nil // more selectors than any peer needs: it will not be resumed
	}
	return bytes.Clone(c.Octets())
}

func (e *entry) archive(c *archive.Coder) {
	archive.SA(c, &e.sa)
	c.Time(&e.since)
	c.Bool(&e.installed)
	archive.Num(c, &e.next)
	archive.Num(c, &e.from)
	archive.Num(c, &e.used)
	archive.Num(c, &e.top)
	c.Bool(&e.unsure)
	total := e.count.total()
	for _, v := range []*uint64{&total.Bytes, &total.Packets, &total.Errors} {
		archive.Num(c, v)
	}
	c.Time(&e.count.last.First)
	if c.Reading() {
		e.count.before = total
	}
}

// Resume says that records of an earlier process follow, which last saw that
// incarnation of the worker, and used no SA ID above high.
func (n *Node) Resume(incarnation uint64, high ipsec.SAID) {
	n.incarnation, n.high, n.resumed = incarnation, high, true
}

// Restore takes up one record. The SA of one that cannot be read is an orphan if the
// worker has it.
func (n *Node) Restore(id ipsec.SAID, b []byte) error {
	err := n.restore(id, b)
	if err != nil {
		n.abandon(id)
	}
	return err
}

func (n *Node) restore(id ipsec.SAID, b []byte) error {
	c := archive.Reader(b)
	c.Version(savedVersion)
	var kind uint8
	archive.Num(c, &kind)
	switch {
	case c.Err() == nil && kind == savedOrphan:
		if err := c.Done(); err != nil {
			return err
		}
		n.abandon(id)
		return nil
	case c.Err() == nil && kind != savedSA:
		return fmt.Errorf("a record of kind %d, want %d or %d", kind, savedSA, savedOrphan)
	}
	e := &entry{}
	e.archive(c)
	if err := c.Done(); err != nil {
		return err
	}
	_, twice := n.spis[e.sa.SPI]
	switch {
	case e.sa.ID != id || n.sas[id] != nil:
		return fmt.Errorf("the record of %s holds %s", id, e.sa.ID)
	case e.sa.Direction == ipsec.Inbound && twice:
		return fmt.Errorf("inbound SPI %s of %s is in use", e.sa.SPI, id)
	case e.sa.Direction == ipsec.Inbound:
		n.spis[e.sa.SPI] = id
	}
	n.sas[id] = e
	e.restored = true
	if e.installed {
		n.installed++
	}
	return nil
}

// IDs lists the desired SAs.
func (n *Node) IDs() []ipsec.SAID { return slices.Sorted(maps.Keys(n.sas)) }

// Stale says what in the first inventory after Restore proves that what was restored
// is an old copy; "" when nothing does. A worker never has a lease, or an outbound SA,
// that was not written before.
func (n *Node) Stale(inventory []push.Held) string {
	if !n.resumed {
		return ""
	}
	for _, h := range inventory {
		if h.Direction != ipsec.Outbound {
			continue
		}
		switch e := n.sas[h.ID]; {
		case e != nil && h.LeaseLast > e.next:
			return fmt.Sprintf("%s has a lease up to %d, and the state knows of %d", h.ID, h.LeaseLast, e.next)
		case e == nil && h.ID >= n.base && h.ID > n.high:
			return fmt.Sprintf("%s was made after the last number that the state knows, %s", h.ID, n.high)
		}
	}
	return ""
}

// Distrust makes whatever a worker has at the next Attach, and is not desired, an
// orphan.
func (n *Node) Distrust() { n.distrusted = true }

func (n *Node) abandon(id ipsec.SAID) {
	if n.abandoned == nil {
		n.abandoned = make(map[ipsec.SAID]bool)
	}
	n.abandoned[id] = true
	n.change(id)
}
