package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// errand is what a group of operations is for: an Install effect to answer (cell
// set), or an SA to put in order, or neither.
type errand struct {
	cell  *cell
	id    uint64       // of the effect
	sas   []ipsec.SAID // of the effect
	known bool         // one of these was desired before
	mend  ipsec.SAID   // housekeeping: reinstalled or granted a lease
}

// allFresh reports one whose SAs the worker has never had.
func (x *errand) allFresh() bool { return x.cell != nil && !x.known }

func (x *errand) answer(err error) { x.cell.post(ike.Installed{ID: x.id, Err: err}) }

// settle is how long an outbound SA is held back that would take traffic over
// from SAs of another IKE SA or of an earlier key manager. A responder cannot
// know when the initiator has its inbound half in place (only a rekey's delete
// tells), and there is no hurry while the others work.
const settle = 500 * time.Millisecond

// changeSAs performs an Install, Remove or Move effect.
func (n *node) changeSAs(c *cell, f ike.Effect) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch f := f.(type) {
	case ike.Install:
		n.install(c, f)
	case ike.Remove:
		n.remove(f.SAs)
	case ike.Move:
		n.move(f)
	}
}

// install performs an Install effect.
func (n *node) install(c *cell, f ike.Install) {
	c.unproven = f.Unproven
	sas, x := f.SAs, &errand{cell: c, id: f.ID}
	if !n.takesOver(c, sas) {
		n.installNow(x, sas)
		return
	}
	for _, sa := range sas {
		n.held[sa.ID] = x
	}
	n.e.after(settle, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		var removed error
		for _, sa := range sas {
			if n.held[sa.ID] != x {
				removed = fmt.Errorf("%s was removed before it was installed", sa.ID)
				continue
			}
			delete(n.held, sa.ID)
		}
		if removed != nil {
			x.answer(removed)
			return
		}
		n.installNow(x, sas)
	})
}

// takesOver reports outbound SAs of a rule that others serve at present.
func (n *node) takesOver(c *cell, sas []ipsec.SA) bool {
	for _, sa := range sas {
		if sa.Direction != ipsec.Outbound {
			return false
		}
		if _, known := n.sadb.SA(sa.ID); known {
			return false
		}
	}
	for _, sa := range sas {
		if len(n.sadb.OrphansOf(sa.Rule)) != 0 {
			return true
		}
		for _, r := range n.children[sa.Rule] {
			if r.cell != c {
				return true
			}
		}
	}
	return false
}

func (n *node) installNow(x *errand, sas []ipsec.SA) {
	c, now := x.cell, time.Now()
	if !n.cells[c] {
		return // the machine is gone meanwhile
	}
	for _, sa := range sas {
		x.sas = append(x.sas, sa.ID)
	}
	if err := n.mayInstall(c, sas); err != nil {
		n.fail(x, err)
		return
	}
	if n.detached() {
		n.fail(x, fmt.Errorf("no worker is attached for node %q", n.name))
		return
	}
	ops := make([]push.Op, 0, len(sas))
	for _, sa := range sas {
		if _, ok := n.sadb.SA(sa.ID); ok {
			x.known = true
		}
		op, err := n.sadb.Put(now, sa)
		if err != nil {
			n.fail(x, err)
			return
		}
		n.own(c, sa.ID)
		ops = append(ops, op)
	}
	if len(ops) == 0 {
		x.answer(nil)
		return
	}
	n.stage(push.Group[*errand]{Ops: ops, Owner: x})
	n.flush()
}

// detached reports that the worker has been away for so long that no install waits for it.
func (n *node) detached() bool {
	return n.session == nil && time.Since(n.since) >= n.e.cfg.Detached
}

// fail undoes an Install effect and answers it: the machine does not remove what it was
// told is not there. An earlier link may have brought it to the worker.
func (n *node) fail(x *errand, err error) {
	n.remove(x.sas)
	x.answer(err)
}

// remove performs a Remove effect, and takes out what nobody looks after.
func (n *node) remove(ids []ipsec.SAID) {
	var ops []push.Op
	for _, id := range ids {
		delete(n.held, id)
		n.disown(id)
		if op, ok := n.sadb.Delete(id); ok {
			ops = append(ops, op)
		}
	}
	if len(ops) == 0 {
		n.persist()
		return
	}
	n.stage(push.Group[*errand]{Ops: ops, Owner: &errand{}})
	n.flush()
}

// flush sends the next batch when none is outstanding.
func (n *node) flush() {
	if n.session == nil {
		return
	}
	b, ok := n.queue.Next(n.nonce + 1)
	if !ok {
		return
	}
	n.nonce++
	if err := n.session.link.Apply(b); err != nil {
		n.lose(n.session, err.Error())
	}
}

func (n *node) ack(nonce uint64) {
	for _, g := range n.queue.Ack(nonce) {
		x := g.Owner
		switch {
		case x.cell != nil:
			for _, id := range x.sas {
				n.sadb.Settle(id, true)
			}
			n.e.stats.installs.Add(uint64(len(x.sas)))
			x.answer(nil)
		case x.mend != 0:
			if n.reinstalled(g, true) {
				n.e.stats.installs.Add(1)
			}
		}
	}
	n.persist()
	n.flush()
}

func (n *node) nack(nonce uint64, op int, why string) {
	bad := n.queue.Nack(nonce, op)
	if len(bad) == 0 {
		return
	}
	n.e.stats.nacks.Add(1)
	n.lastNack = fmt.Sprintf("operation %d of batch %d: %s", op, nonce, why)
	n.e.cfg.Log.Warn("worker refused an operation", "node", n.name, "why", why)
	for _, g := range bad {
		x := g.Owner
		switch {
		case x.cell != nil:
			n.fail(x, errors.New("the worker refused the SA: "+why))
		case x.mend != 0:
			n.reinstalled(g, false)
			n.rekeyChildOf(x.mend) // the worker cannot go on with this one
		}
	}
	n.flush()
}

// reinstalled takes the answer to a group of housekeeping that installs: false for a lease.
func (n *node) reinstalled(g push.Group[*errand], ok bool) bool {
	_, install := g.Ops[0].(push.Install)
	if install {
		n.sadb.Reinstalled(g.Owner.mend, ok)
	}
	return install
}

// rekeyChildOf asks for a new CHILD SA in place of the one an SA belongs to.
func (n *node) rekeyChildOf(id ipsec.SAID) {
	if sa, ok := n.sadb.SA(id); ok {
		if c := n.owners[id]; c != nil {
			c.post(ike.RekeyChild{Child: sa.Child})
		}
	}
}
