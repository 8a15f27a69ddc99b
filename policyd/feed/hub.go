package feed

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Hub holds the newest compiled policy and its subscribers. The zero value is
// ready to use. It starts no goroutine.
type Hub struct {
	publishing sync.Mutex // one Publish at a time, so that versions do not mix

	mu        sync.Mutex // guards everything below and every Subscription
	version   ipsec.Version
	published bool
	closed    bool
	nodes     map[string]state
	subs      map[string]*Subscription          // by subscriber ID
	byNode    map[string]map[*Subscription]bool // those of one node; "" those of all nodes
	gone      map[string]Status                 // subscribers that left, newest state
}

// maxGone bounds how many subscribers that left are remembered for Status.
const maxGone = 16384

var (
	// ErrClosed is a hub or a subscription that was closed.
	ErrClosed = errors.New("policy feed: closed")
	// ErrReplaced is a subscription whose subscriber has subscribed again.
	ErrReplaced = errors.New("policy feed: replaced by a newer subscription of the same subscriber")
)

// Publish makes these the policies of all nodes. Nodes that are not in the map
// have none any more. Only subscribers of nodes that changed are woken.
func (h *Hub) Publish(v ipsec.Version, policies map[string]ipsec.NodePolicy) {
	h.publishing.Lock()
	defer h.publishing.Unlock()
	h.mu.Lock()
	var removed []string
	for n := range h.nodes {
		if _, ok := policies[n]; !ok {
			removed = append(removed, n)
		}
	}
	h.mu.Unlock()
	h.update(v, policies, removed)
}

// Update changes the policies of some nodes and leaves the others as they are.
func (h *Hub) Update(v ipsec.Version, changed map[string]ipsec.NodePolicy, removed []string) {
	h.publishing.Lock()
	defer h.publishing.Unlock()
	h.update(v, changed, removed)
}

func (h *Hub) update(v ipsec.Version, changed map[string]ipsec.NodePolicy, removed []string) {
	next := make(map[string]state, len(changed))
	for n, p := range changed {
		p.Node = n
		next[n] = stateOf(p) // the expensive part, outside the lock
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.init()
	first := !h.published
	h.version, h.published = v, true
	for n, s := range next {
		if old, ok := h.nodes[n]; !ok || !old.equal(s) {
			h.nodes[n] = s
			h.touch(n)
		}
	}
	for _, n := range removed {
		if _, ok := h.nodes[n]; ok {
			delete(h.nodes, n)
			h.touch(n)
		}
	}
	if first {
		for _, s := range h.subs {
			s.signal()
		}
	}
}

func (h *Hub) init() {
	if h.nodes == nil {
		h.nodes, h.subs = map[string]state{}, map[string]*Subscription{}
		h.byNode, h.gone = map[string]map[*Subscription]bool{}, map[string]Status{}
	}
}

// touch tells the subscribers of a node that it changed.
func (h *Hub) touch(node string) {
	for _, group := range []string{node, ""} {
		for s := range h.byNode[group] {
			s.dirty[node] = true
			delete(s.refused, node)
			s.signal()
		}
	}
}

// Version is the newest version, and whether there is one yet.
func (h *Hub) Version() (ipsec.Version, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.version, h.published
}

// Close ends every subscription.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, s := range h.subs {
		s.end(ErrClosed)
	}
}

// Request says who subscribes, to what, and what it has already.
type Request struct {
	Subscriber string        // unique per subscriber, the same after a reconnect
	Node       string        // "" for all nodes
	Versions   map[ID]string // what it holds from before, by version
}

// Subscribe starts a subscription. A subscriber that subscribes again ends its
// older subscription.
func (h *Hub) Subscribe(r Request) (*Subscription, error) {
	if r.Subscriber == "" {
		return nil, errors.New("policy feed: the subscriber has no name")
	}
	known := map[string]state{}
	for id, v := range r.Versions {
		if r.Node != "" && id.Node != r.Node {
			return nil, fmt.Errorf("policy feed: subscriber %q of node %q says that it holds %s, of another node", r.Subscriber, r.Node, id)
		}
		if _, ok := kindOrder[id.Kind]; !ok {
			return nil, fmt.Errorf("policy feed: subscriber %q says that it holds %s, of an unknown kind", r.Subscriber, id)
		}
		known[id.Node] = append(known[id.Node], Resource{ID: id, Version: v})
	}
	for _, s := range known {
		s.sort()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, ErrClosed
	}
	h.init()
	if old := h.subs[r.Subscriber]; old != nil {
		old.end(ErrReplaced)
	}
	delete(h.gone, r.Subscriber)
	s := &Subscription{
		hub: h, id: r.Subscriber, node: r.Node, since: time.Now(), fresh: true,
		known: known, dirty: map[string]bool{}, refused: map[string]bool{}, wake: make(chan struct{}, 1),
	}
	h.subs[s.id] = s
	if h.byNode[s.node] == nil {
		h.byNode[s.node] = map[*Subscription]bool{}
	}
	h.byNode[s.node][s] = true
	return s, nil
}

// Status is one subscriber as an operator sees it.
type Status struct {
	Subscriber string
	Node       string // "" for all nodes
	Connected  bool
	Since      time.Time     // of this connection, or of its end
	Acked      ipsec.Version // of the last delta it acknowledged
	InSync     bool          // connected, and has all there is for it
	Nack       *Nack         // the last refusal; nil when there was none since
}

// Nack is a refusal.
type Nack struct {
	Version  ipsec.Version
	Resource ID
	Why      string
	Time     time.Time
}

// Status lists the subscribers by name: those connected and those that left.
func (h *Hub) Status() []Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := slices.Collect(maps.Values(h.gone))
	for _, s := range h.subs {
		out = append(out, s.status())
	}
	slices.SortFunc(out, func(a, b Status) int { return cmp.Compare(a.Subscriber, b.Subscriber) })
	return out
}

// remember keeps the state of a subscriber that leaves.
func (h *Hub) remember(s Status) {
	if len(h.gone) >= maxGone {
		oldest := ""
		for id, g := range h.gone {
			if oldest == "" || g.Since.Before(h.gone[oldest].Since) {
				oldest = id
			}
		}
		delete(h.gone, oldest)
	}
	h.gone[s.Subscriber] = s
}
