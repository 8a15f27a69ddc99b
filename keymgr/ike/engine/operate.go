package engine

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// visitChunk is how many machines a shard looks at for an operator before it
// does other work.
const visitChunk = 256

// visit calls fn on the shards' goroutines, one call at a time, for each machine
// that matches.
func (e *Engine) visit(ctx context.Context, f Filter, fn func(s *shard, c *cell, info ike.Info)) error {
	cells := make(map[*shard][]*cell)
	for _, n := range e.allNodes() {
		if f.Node != "" && f.Node != n.name {
			continue
		}
		n.mu.Lock()
		for c := range n.cells {
			if f.Peer == "" || f.Peer == c.peer {
				cells[c.shard] = append(cells[c.shard], c)
			}
		}
		n.mu.Unlock()
	}
	for s, all := range cells {
		for chunk := range slices.Chunk(all, visitChunk) {
			done := make(chan struct{})
			s.inbox.post(item{fn: func() {
				defer close(done)
				if ctx.Err() != nil {
					return
				}
				for _, c := range chunk {
					if info, ok := s.info(c); ok && f.matches(info) {
						fn(s, c, info)
					}
				}
			}})
			select {
			case <-done:
			case <-ctx.Done():
				return ctx.Err()
			case <-e.closed:
				return ErrClosed
			}
		}
	}
	return nil
}

func (f Filter) matches(i ike.Info) bool {
	if f.Peer != "" && f.Peer != i.Peer || f.SPI != 0 && f.SPI != i.LocalSPI {
		return false
	}
	return f.Rule == "" && f.Child == 0 || slices.ContainsFunc(i.Children, f.matchesChild)
}

func (f Filter) matchesChild(c ike.Child) bool {
	return (f.Rule == "" || f.Rule == c.Rule) && (f.Child == 0 || f.Child == c.ID)
}

// List returns the IKE SAs that match, sorted by node, peer and age.
func (e *Engine) List(ctx context.Context, f Filter) ([]IKESA, error) {
	var out []IKESA
	var nodes []*node
	found := make(chan struct{}, 1) // orders the appends, should ctx end in the middle
	found <- struct{}{}
	err := e.visit(ctx, f, func(_ *shard, c *cell, info ike.Info) {
		if info.State == ike.StateRefused {
			return
		}
		<-found
		out = append(out, IKESA{Info: info})
		nodes = append(nodes, c.node)
		found <- struct{}{}
	})
	if err != nil {
		return nil, err
	}
	for i := range out {
		nodes[i].addTraffic(&out[i])
	}
	slices.SortFunc(out, func(a, b IKESA) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.Peer, b.Peer), a.Since.Compare(b.Since), cmp.Compare(a.LocalSPI, b.LocalSPI))
	})
	return out, nil
}

func (n *node) addTraffic(sa *IKESA) {
	n.mu.Lock()
	defer n.mu.Unlock()
	sa.Node = n.name
	for _, ch := range sa.Children {
		var t Traffic
		t.In, t.InRate = n.sadb.Traffic(ch.In)
		t.Out, t.OutRate = n.sadb.Traffic(ch.Out)
		sa.Traffic = append(sa.Traffic, t)
	}
}

// Initiate negotiates for a rule and waits for its CHILD SA; one that is up
// already is returned at once. Back-off does not hold it back. A negotiation
// that came to nothing is a *FailedError.
func (e *Engine) Initiate(ctx context.Context, node, rule string) (ike.Child, error) {
	n := e.knownNode(node)
	if n == nil {
		return ike.Child{}, refusal(node, rule, whyNoPolicy)
	}
	done := make(chan outcome, 1)
	if child, up, err := n.initiate(rule, done); up || err != nil {
		return child, err
	}
	select {
	case o := <-done:
		if o.failure != nil {
			return ike.Child{}, &FailedError{*o.failure}
		}
		return o.child, nil
	case <-ctx.Done():
		return ike.Child{}, ctx.Err()
	case <-e.closed:
		return ike.Child{}, ErrClosed
	}
}

func (n *node) initiate(rule string, done chan<- outcome) (child ike.Child, up bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	newest := childRef{}
	for _, r := range n.children[rule] {
		if r.child.Resource == 0 && r.since.After(newest.since) {
			newest = r
		}
	}
	if newest.cell != nil {
		return newest.child, true, nil
	}
	t, why := n.negotiate(rule, nil, true)
	if t == nil {
		return ike.Child{}, false, refusal(n.name, rule, why)
	}
	if len(t.waiters) >= maxWaiting {
		return ike.Child{}, false, refusal(n.name, rule, whyTooMany)
	}
	t.waiters = append(t.waiters, done)
	return ike.Child{}, false, nil
}

var advice = map[string]string{
	whyNoPolicy:   "the node has no policy here: check its name, and that policyd serves it",
	whyNoRule:     "check the rule's name with the node's effective policy",
	whyNotSecure:  "only rules whose action is secure have SAs",
	whyNoPeerName: "the node's policy does not have this peer: check the name with its effective policy",
	whyNoAddress:  "the peer needs a remote address, of a family that the node's worker has too",
	whyNoWorker:   "start the node's worker, or look at why it cannot reach the key manager",
	whyTooMany:    "enough callers wait for this negotiation already",
}

func refusal(node, rule, why string) error {
	return &FailedError{ike.Failure{Rule: rule, Role: "initiator", Why: why, Detail: "not started on node " + node, Advice: advice[why]}}
}

var errBroad = errors.New("the filter selects everything; want a node, peer, rule, SPI or CHILD SA number")

// Rekey replaces the CHILD SA f.Child, else the CHILD SAs of f.Rule, else the
// IKE SAs that match. It returns how many were asked to; 0 is no error.
func (e *Engine) Rekey(ctx context.Context, f Filter) (int, error) {
	return e.command(ctx, f, ike.RekeyIKE{}, func(id uint64) ike.Event { return ike.RekeyChild{Child: id} })
}

// Terminate closes what f selects, as Rekey selects.
func (e *Engine) Terminate(ctx context.Context, f Filter, why string) (int, error) {
	return e.command(ctx, f, ike.Terminate{Why: why}, func(id uint64) ike.Event { return ike.DeleteChild{Child: id} })
}

func (e *Engine) command(ctx context.Context, f Filter, whole ike.Event, child func(uint64) ike.Event) (int, error) {
	if f == (Filter{}) {
		return 0, errBroad
	}
	count := make(chan int, 1)
	count <- 0
	err := e.visit(ctx, f, func(s *shard, c *cell, info ike.Info) {
		n := 0
		if f.Rule == "" && f.Child == 0 {
			s.handle(c, whole)
			n = 1
		} else {
			for _, ch := range info.Children {
				if f.matchesChild(ch) {
					s.handle(c, child(ch.ID))
					n++
				}
			}
		}
		count <- <-count + n
	})
	return <-count, err
}
