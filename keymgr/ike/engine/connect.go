package engine

import (
	"context"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// Connect makes an IKE SA with a peer of a node, without a CHILD SA (RFC 6023), and
// waits for it; one that is up already will do. A negotiation that came to nothing is
// a *FailedError.
func (e *Engine) Connect(ctx context.Context, node, peer string) error {
	n := e.knownNode(node)
	if n == nil {
		return peerRefusal(node, peer, whyNoPolicy)
	}
	done := make(chan outcome, 1)
	if up, err := n.connect(peer, done); up || err != nil {
		return err
	}
	select {
	case o := <-done:
		if o.failure != nil {
			return &FailedError{*o.failure}
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-e.closed:
		return ErrClosed
	}
}

func (n *node) connect(name string, done chan<- outcome) (up bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.policy == nil:
		return false, peerRefusal(n.name, name, whyNoPolicy)
	case n.profiles[name] == nil:
		return false, peerRefusal(n.name, name, whyNoPeerName)
	case n.session == nil:
		return false, peerRefusal(n.name, name, whyNoWorker)
	}
	p := n.peer(name)
	switch {
	case len(p.up) != 0:
		return true, nil
	case len(p.waiters) >= maxWaiting:
		return false, peerRefusal(n.name, name, whyTooMany)
	case p.connecting == nil:
		c, ok := n.dial(name)
		if !ok {
			return false, peerRefusal(n.name, name, whyNoAddress)
		}
		c.post(ike.Connect{})
	}
	p.waiters = append(p.waiters, done)
	return false, nil
}

func peerRefusal(node, peer, why string) error {
	return &FailedError{ike.Failure{Peer: peer, Role: "initiator", Why: why, Detail: "not started on node " + node, Advice: advice[why]}}
}
