package engine

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/push"
	"github.com/testudo-ipsec/testudo/keymgr/sadb"
)

// node is what the engine knows of one node. Everything below mu is guarded by
// it; it is held for short steps only, and links are called under it.
type node struct {
	e    *Engine
	name string
	env  ike.Env

	mu sync.Mutex

	// Policy, and its indexes.
	policy    *ipsec.NodePolicy
	rules     map[string]*ipsec.Rule
	profiles  map[string]*ipsec.Peer
	byRemote  map[netip.Addr][]string
	anyRemote []string
	mobile    bool // a profile has MOBIKE: its machines want to know the addresses

	// The worker, and what is on its way to it.
	session   *Session
	seen      bool // a worker has been here
	since     time.Time
	addresses []netip.Addr
	told      []netip.Addr // what machines know of them
	software  string
	lastNack  string
	sadb      *sadb.Node
	queue     push.Queue[*errand]
	nonce     uint64
	waiting   []*errand // installs that wait for a worker
	owners    map[ipsec.SAID]*cell
	held      map[ipsec.SAID]*errand // outbound installs that are held back a moment
	changing  int                    // groups that change or remove SAs and wait for the disk
	preparing bool                   // stage adds to prepared, and whoever prepares writes
	prepared  []func()

	// Machines and negotiations.
	cells map[*cell]bool
	peers map[string]*peer
	// Established IKE SAs by the peer's identity.
	identities map[string]int
	talks      map[string]*talk               // by rule
	retries    map[string]*backOff            // by rule
	children   map[string]map[uint64]childRef // by rule and CHILD SA number
	ruleOf     map[uint64]string              // of the CHILD SAs in children
}

// childRef is a CHILD SA that is up.
type childRef struct {
	cell  *cell
	child ike.Child
	since time.Time
}

// peer is what the engine knows of a peer profile of a node.
type peer struct {
	up         []*cell          // established, oldest first
	connecting *cell            // an initiator that is not established yet
	queued     []string         // negotiations, by rule, that wait for an IKE SA with room
	waiters    []chan<- outcome // operators that wait for the IKE SA alone
	backOff
}

// backOff counts failures in a row.
type backOff struct {
	failures int
	until    time.Time
	last     ike.Failure
}

func (b *backOff) fail(c *Config, f ike.Failure) {
	b.failures++
	b.until = time.Now().Add(c.backOff(b.failures))
	b.last = f
}

// tell answers those who wait for the IKE SA.
func (p *peer) tell(o outcome) {
	for _, w := range p.waiters {
		w <- o // has room for one
	}
	p.waiters = nil
}

func newNode(e *Engine, name string) *node {
	n := &node{
		e: e, name: name,
		sadb:       sadb.New(e.firstID),
		owners:     make(map[ipsec.SAID]*cell),
		held:       make(map[ipsec.SAID]*errand),
		cells:      make(map[*cell]bool),
		peers:      make(map[string]*peer),
		identities: make(map[string]int),
		talks:      make(map[string]*talk),
		retries:    make(map[string]*backOff),
		children:   make(map[string]map[uint64]childRef),
		ruleOf:     make(map[uint64]string),
	}
	n.env = e.env(n)
	return n
}

func (n *node) peer(name string) *peer {
	p := n.peers[name]
	if p == nil {
		p = &peer{}
		n.peers[name] = p
	}
	return p
}

// addCell takes in a responder that was made with a policy, when there is room for the
// request that it was made for. It hears of nothing else before.
func (n *node) addCell(c *cell, policy *ipsec.NodePolicy, path ike.Path, request []byte) (why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.e.stats.machines.Add(1)
	if why := c.datagram(path, request); why != "" {
		n.e.stats.machines.Add(-1)
		return why
	}
	n.cells[c] = true
	n.tellAddresses(c)
	if n.policy != policy {
		c.post(ike.PolicyChanged{Policy: n.policy}) // it changed meanwhile
	}
	return ""
}

func (n *node) heirOf(c *cell) *cell {
	n.mu.Lock()
	defer n.mu.Unlock()
	return c.heir
}

// adopt registers the machine that replaces c's.
func (n *node) adopt(c, h *cell, info ike.Info) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cells[h] = true
	if n.policy != nil {
		h.post(ike.PolicyChanged{Policy: n.policy}) // it may have changed when only c could hear of it
	}
	n.tellAddresses(h)
	p := n.peer(info.Peer)
	h.peer, c.heir = info.Peer, h
	h.inheritReauth(c)
	if !c.established { // it starts over: what c was to negotiate is now to be had from h
		if p.connecting == c {
			p.connecting = h
		}
		for rule := range c.rules {
			n.talks[rule].assign(h, rule)
		}
		c.rules = nil
		return
	}
	h.established, h.unproven = true, c.unproven
	n.knows(h, info.RemoteID)
	p.up = append(p.up, h)
	n.inherit(c, h, info.Children)
}

// inherit moves CHILD SAs from one IKE SA to another.
func (n *node) inherit(c, h *cell, children []ike.Child) {
	for _, ch := range children {
		for _, id := range []ipsec.SAID{ch.In, ch.Out} {
			if n.owners[id] == c {
				n.own(h, id)
			}
		}
		if r, ok := n.children[ch.Rule][ch.ID]; ok && r.cell == c {
			delete(c.children, ch.ID)
			h.children.add(ch.ID)
			r.cell = h
			n.children[ch.Rule][ch.ID] = r
		}
	}
}

// established takes an IKE SA into use: negotiations that waited for it start.
func (n *node) established(c *cell, info ike.Info) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.established {
		return
	}
	c.established, c.unproven = true, info.Unproven()
	c.peer = info.Peer
	p := n.peer(c.peer)
	n.knows(c, info.RemoteID)
	n.keepProven(c)
	p.up = append(p.up, c)
	p.backOff = backOff{}
	p.tell(outcome{})
	if p.connecting == c {
		p.connecting = nil
	}
	n.feed(p) // an IKE SA that the peer started serves as well as one of ours
	if !n.e.watchers.idle() {
		n.e.watchers.publish(Event{Kind: KindIKEUp, Node: n.name, Peer: c.peer, SPI: info.LocalSPI,
			Detail: "IKE SA with " + info.RemoteID + " at " + info.Path.Remote.String() + " is up, " + info.Suite.String()})
	}
}

// retire forgets an IKE SA. left are CHILD SAs that its heir took over.
func (n *node) retire(c *cell, why string, left []ike.Child) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cells, c)
	n.knowsNot(c)
	if c.heir != nil {
		n.inherit(c, c.heir, left)
	}
	if c.takes != nil {
		c.takes.old.successor = nil
	}
	f := c.failure(why, "the IKE SA ended")
	if p := n.peers[c.peer]; p != nil {
		if i := slices.Index(p.up, c); i >= 0 {
			p.up = slices.Delete(p.up, i, i+1)
		}
		if p.connecting == c {
			p.connecting = nil
			p.fail(&n.e.cfg, f)
			p.tell(outcome{failure: &f})
		}
		if len(p.up) == 0 && p.connecting == nil {
			n.endQueued(p, f)
		}
	}
	n.endTalks(c, f)
	if c.anew != nil {
		defer n.negotiateAnew(c.anew)
	}
	// A machine takes down what it set up before it ends; this catches the rest.
	for id := range c.children {
		n.forgetChild(id)
	}
	n.remove(slices.Sorted(maps.Keys(c.sas)))
	if c.established {
		n.e.watchers.publish(Event{Kind: KindIKEDown, Node: n.name, Peer: c.peer, SPI: c.spi, Detail: "IKE SA ended: " + why})
	}
}

// rulesOf are the rules that an IKE SA's CHILD SAs serve.
func (n *node) rulesOf(c *cell) (rules set[string]) {
	for id := range c.children {
		rules.add(n.ruleOf[id])
	}
	return rules
}

// negotiateAnew does not wait for a packet: the peer has lost what served the rules.
func (n *node) negotiateAnew(rules set[string]) {
	for _, rule := range slices.Sorted(maps.Keys(rules)) {
		n.negotiate(rule, nil, false)
	}
}

// abandon keeps the SAs of a machine that failed inside: they work until fresh
// ones for the same rules are up.
func (n *node) abandon(c *cell) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(c.sas) == 0 {
		return
	}
	for id := range c.sas {
		delete(n.owners, id)
		n.sadb.Abandon(id)
	}
	c.sas = nil
	n.replaceOrphans()
}

// own gives an SA to a machine.
func (n *node) own(c *cell, id ipsec.SAID) {
	n.disown(id)
	n.owners[id] = c
	c.sas.add(id)
}

func (n *node) disown(id ipsec.SAID) {
	if c := n.owners[id]; c != nil {
		delete(c.sas, id)
		delete(n.owners, id)
	}
}
