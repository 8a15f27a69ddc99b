package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/push"
	"github.com/testudo-ipsec/testudo/keymgr/sadb"
	"github.com/testudo-ipsec/testudo/keymgr/store"
)

// Session is one attached worker.
type Session struct {
	node *node
	link push.Link
}

// Attach begins the session of a worker that said hello. A session of the same
// node that is still open is closed: the newest is the worker. Operations may
// come down the link before Attach returns. The caller has made sure that the
// worker may speak for the node.
func (e *Engine) Attach(hello push.Hello, link push.Link) (*Session, error) {
	if hello.Node == "" || hello.Incarnation == 0 {
		return nil, fmt.Errorf("hello of a worker: got node %q and incarnation %d, want both set", hello.Node, hello.Incarnation)
	}
	if e.isClosed() {
		return nil, ErrClosed
	}
	n := e.node(hello.Node)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.session != nil {
		n.lose(n.session, "the worker attached again")
	}
	now := time.Now()
	s := &Session{node: n, link: link}
	n.session, n.seen, n.since, n.nonce = s, true, now, 0
	n.software = hello.Software
	n.setAddresses(hello.Addresses)
	if why := n.sadb.Stale(hello.Inventory); why != "" {
		n.condemn(why)
	}
	if d := e.durable; d != nil {
		d.submit([]store.Change{{Key: keyNode(n.name), Value: binary.BigEndian.AppendUint64(nil, hello.Incarnation)}}, nil)
	}
	plan := n.sadb.Attach(now, hello.Incarnation, hello.Inventory)
	for _, op := range plan.Ops {
		x := &errand{}
		if in, ok := op.(push.Install); ok {
			x.mend = in.SA.ID
		}
		n.stage(push.Group[*errand]{Ops: []push.Op{op}, Owner: x})
	}
	waiting := n.waiting
	n.waiting = nil
	for _, x := range waiting {
		n.again(x)
	}
	// How far a lost SA got is not known for sure: replace it, but not all at once.
	lost := make(set[uint64])
	for _, id := range plan.Rekey {
		sa, _ := n.sadb.SA(id)
		if _, twice := lost[sa.Child]; twice {
			continue
		}
		lost.add(sa.Child)
		e.after(spread(e.cfg.Jitter), func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.rekeyChildOf(id)
		})
	}
	for _, id := range plan.Stuck {
		n.rekeyChildOf(id)
	}
	n.persist()
	n.replaceOrphans()
	e.watchers.publish(Event{Time: now, Kind: KindWorkerUp, Node: n.name,
		Detail: fmt.Sprintf("worker attached with %d SAs, %d to put right", len(hello.Inventory), len(plan.Ops))})
	n.flush()
	return s, nil
}

// again queues an Install effect that the last link did not see through.
func (n *node) again(x *errand) {
	now := time.Now()
	var ops []push.Op
	for _, id := range x.sas {
		op, err := n.sadb.Again(now, id)
		if err != nil {
			n.fail(x, err)
			return
		}
		ops = append(ops, op)
	}
	n.stage(push.Group[*errand]{Ops: ops, Owner: x})
}

// Close says that the worker's stream is gone. Its SAs stay desired.
func (s *Session) Close() {
	s.node.mu.Lock()
	defer s.node.mu.Unlock()
	s.node.lose(s, "the worker's stream ended")
}

// lose ends a session. What it left undone waits for the next one, a while.
func (n *node) lose(s *Session, why string) {
	if n.session != s {
		return
	}
	n.session, n.since = nil, time.Now()
	s.link.Close(why)
	for _, g := range n.queue.Reset() {
		if g.Owner.cell != nil {
			n.waiting = append(n.waiting, g.Owner)
		}
	}
	since := n.since
	n.e.after(n.e.cfg.Detached, func() { n.failWaiting(since, why) })
	n.e.watchers.publish(Event{Kind: KindWorkerDown, Node: n.name, Detail: why})
}

// failWaiting gives up installs that wait for a worker, when none has come since.
func (n *node) failWaiting(since time.Time, why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.session != nil || n.since != since {
		return
	}
	for _, x := range n.waiting {
		n.fail(x, fmt.Errorf("the worker of node %q went away: %s", n.name, why))
	}
	n.waiting = nil
}

// Handle takes one report of the worker, in the order in which they came. It
// does not block. One goroutine calls it.
func (s *Session) Handle(r push.Report) {
	n := s.node
	if d, ok := r.(push.Datagram); ok {
		if !n.e.isClosed() {
			n.datagram(d.Path, d.Data)
		}
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.session != s || n.e.isClosed() {
		return
	}
	switch r := r.(type) {
	case push.Ack:
		n.ack(r.Nonce)
	case push.Nack:
		n.nack(r.Nonce, r.Op, r.Why)
	case push.Acquire:
		n.acquire(s, r.ID, r.Rule, r.Flow)
	case push.Addresses:
		n.setAddresses(r.Local)
	case push.PeerMoved:
		if c := n.owners[r.ID]; c != nil {
			c.post(ike.PeerMoved{Path: n.plain(r.Path)})
		}
	case push.Expire:
		n.expire(r.Expiry)
	case push.Counters:
		n.count(r.SAs)
	case push.LeaseRequest:
		n.lease(r.ID, r.Used)
	}
}

func (n *node) expire(x ipsec.Expiry) {
	sa, ok := n.sadb.SA(x.ID)
	if c := n.owners[x.ID]; ok && c != nil {
		c.post(ike.ChildExpired{Child: sa.Child, Hard: x.Hard, Cause: x.Cause})
		return
	}
	switch rule, orphan := n.sadb.OrphanRule(x.ID); {
	case orphan && x.Hard:
		n.remove([]ipsec.SAID{x.ID})
		fallthrough
	case orphan:
		n.negotiate(rule, nil, false) // sooner than planned
	}
}

// count takes counters in and tells machines of signs of life: at most one
// event per machine and report.
func (n *node) count(reports []ipsec.SACounters) {
	now := time.Now()
	heard := make(map[*cell]time.Time)
	for _, r := range reports {
		if _, received := n.sadb.Report(now, r); received {
			if c := n.owners[r.ID]; c != nil && r.Used.After(heard[c]) {
				heard[c] = r.Used
			}
		}
	}
	n.persist() // how far they got, now and then
	for c, at := range heard {
		if at.After(now) {
			at = now // the worker's clock is ahead
		}
		c.post(ike.ChildActivity{Received: at})
	}
}

// lease answers a worker that runs low on sequence numbers: with more, or with
// a rekey when there are no more to be had.
func (n *node) lease(id ipsec.SAID, used uint64) {
	op, err := n.sadb.Grant(id, used)
	switch {
	case err == nil:
		n.e.stats.grants.Add(1)
		n.stage(push.Group[*errand]{Ops: []push.Op{op}, Owner: &errand{mend: id}})
		n.flush()
	case errors.Is(err, sadb.ErrExhausted), errors.Is(err, sadb.ErrJump), errors.Is(err, sadb.ErrUnknown): // the last may be an orphan
		n.e.stats.leasesRefused.Add(1)
		n.expire(ipsec.Expiry{ID: id, Cause: "lease"})
	}
}

// Workers returns all workers seen, sorted by node.
func (e *Engine) Workers() []Worker {
	var out []Worker
	for _, n := range e.allNodes() {
		n.mu.Lock()
		if n.seen {
			out = append(out, Worker{Node: n.name, Attached: n.session != nil, Since: n.since,
				Addresses: append([]netip.Addr(nil), n.addresses...), Software: n.software,
				Desired: n.sadb.Desired(), Installed: n.sadb.Installed(), Orphans: n.sadb.Orphans(), LastNack: n.lastNack})
		}
		n.mu.Unlock()
	}
	return sortWorkers(out)
}
