package feed

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Subscription is one subscriber's place in the feed. Next is for one goroutine
// at a time; Ack, Nack and Close may be called from any.
type Subscription struct {
	hub   *Hub
	id    string
	node  string
	since time.Time
	wake  chan struct{} // holds one token when Next has a reason to look again

	// Guarded by hub.mu.
	known   map[string]state // what the subscriber has, by node
	dirty   map[string]bool  // nodes that may differ from known
	refused map[string]bool  // nodes whose newest state the subscriber refused
	fresh   bool             // nothing was sent yet
	nonce   uint64
	sent    *outstanding
	acked   ipsec.Version
	nack    *Nack
	ended   error
}

// outstanding is the delta that waits for its answer.
type outstanding struct {
	nonce   uint64
	version ipsec.Version
	nodes   map[string]state // what known becomes
}

// maxDelta is the number of resources after which a delta takes no further
// node, so that a message stays near one megabyte.
const maxDelta = 2000

// maxWhy bounds what is kept of a refusal, in octets.
const maxWhy = 512

func (s *Subscription) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Next waits for a difference and returns it. After a delta it waits for the
// answer to that one first. The first delta comes as soon as there is a policy,
// even if it says that nothing differs.
func (s *Subscription) Next(ctx context.Context) (Delta, error) {
	for {
		if err := ctx.Err(); err != nil {
			return Delta{}, err
		}
		d, ok, err := s.take()
		if ok || err != nil {
			return d, err
		}
		select {
		case <-ctx.Done():
			return Delta{}, ctx.Err()
		case <-s.wake:
		}
	}
}

func (s *Subscription) take() (Delta, bool, error) {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.ended != nil {
		return Delta{}, false, s.ended
	}
	if !h.published || s.sent != nil {
		return Delta{}, false, nil
	}
	if s.fresh {
		s.everything()
	}
	d := Delta{Version: h.version}
	next := map[string]state{}
	for _, n := range slices.Sorted(maps.Keys(s.dirty)) {
		if len(d.Upserts)+len(d.Removed) >= maxDelta {
			d.More = true
			break
		}
		delete(s.dirty, n)
		next[n] = h.nodes[n]
		s.known[n].diff(h.nodes[n], &d)
	}
	if len(d.Upserts)+len(d.Removed) == 0 && !s.fresh {
		return Delta{}, false, nil
	}
	s.fresh = false
	s.nonce++
	d.Nonce = s.nonce
	s.sent = &outstanding{d.Nonce, d.Version, next}
	return d, true, nil
}

// everything marks all that a new subscriber may lack or have too much.
func (s *Subscription) everything() {
	if s.node != "" {
		s.dirty[s.node] = true
		return
	}
	for n := range s.hub.nodes {
		s.dirty[n] = true
	}
	for n := range s.known {
		s.dirty[n] = true
	}
}

// Ack says that a delta is in force at the subscriber.
func (s *Subscription) Ack(nonce uint64) error {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	sent, err := s.answered(nonce)
	if err != nil {
		return err
	}
	for n, st := range sent.nodes {
		if len(st) == 0 {
			delete(s.known, n)
		} else {
			s.known[n] = st
		}
	}
	s.acked = sent.version
	if len(s.refused) == 0 {
		s.nack = nil
	}
	return nil
}

// Nack says that a delta was refused as a whole, because of one resource. The
// node of that resource is not sent again until it changes; the other nodes of
// the delta are, at once.
func (s *Subscription) Nack(nonce uint64, resource ID, why string) error {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	sent, err := s.answered(nonce)
	if err != nil {
		return err
	}
	if len(why) > maxWhy {
		why = why[:maxWhy]
	}
	s.nack = &Nack{Version: sent.version, Resource: resource, Why: why, Time: time.Now()}
	_, named := sent.nodes[resource.Node]
	for n, st := range sent.nodes {
		switch {
		case s.dirty[n]: // changed since: that will be sent
		case !named || n == resource.Node:
			s.refused[n] = true
		case !st.equal(s.known[n]):
			s.dirty[n] = true
		}
	}
	return nil
}

// answered takes the outstanding delta when nonce is its.
func (s *Subscription) answered(nonce uint64) (*outstanding, error) {
	if s.ended != nil {
		return nil, s.ended
	}
	if s.sent == nil || s.sent.nonce != nonce {
		return nil, fmt.Errorf("policy feed: subscriber %q answered nonce %d, which is not outstanding; the last sent was %d", s.id, nonce, s.nonce)
	}
	sent := s.sent
	s.sent = nil
	s.signal()
	return sent, nil
}

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.end(ErrClosed)
}

func (s *Subscription) end(why error) {
	if s.ended != nil {
		return
	}
	s.ended = why
	h := s.hub
	gone := s.status()
	gone.Connected, gone.InSync, gone.Since = false, false, time.Now()
	delete(h.subs, s.id)
	delete(h.byNode[s.node], s)
	if len(h.byNode[s.node]) == 0 {
		delete(h.byNode, s.node)
	}
	h.remember(gone)
	s.signal()
}

func (s *Subscription) status() Status {
	return Status{
		Subscriber: s.id, Node: s.node, Connected: true, Since: s.since, Acked: s.acked, Nack: s.nack,
		InSync: s.hub.published && !s.fresh && s.sent == nil && len(s.dirty) == 0 && len(s.refused) == 0,
	}
}
