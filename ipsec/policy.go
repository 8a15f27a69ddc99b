package ipsec

import (
	"fmt"
	"iter"
	"net/netip"
	"time"
)

// Action is what a rule does with a packet that matches it: PROTECT, BYPASS and
// DISCARD in RFC 4301 §4.4.1.
type Action uint8

const (
	ActionPermit Action = 1
	ActionBlock  Action = 2
	ActionSecure Action = 3
)

func (a Action) String() string {
	switch a {
	case ActionPermit:
		return "permit"
	case ActionBlock:
		return "block"
	case ActionSecure:
		return "secure"
	}
	return fmt.Sprintf("action-%d", uint8(a))
}

// ParseAction reads "permit", "block" or "secure".
func ParseAction(s string) (Action, error) {
	switch s {
	case "permit":
		return ActionPermit, nil
	case "block":
		return ActionBlock, nil
	case "secure":
		return ActionSecure, nil
	}
	return 0, fmt.Errorf("action %q: want permit, block or secure", s)
}

// Rule is one entry of a node's SPD, made by the compiler from one filter.
// Rules are looked up by falling Weight; two of equal weight never overlap with
// different actions.
type Rule struct {
	Name      string // unique on the node: policy/rule#filter
	Policy    string // the policy document it came from
	Weight    uint64
	Direction Direction
	Selector  Selector
	Action    Action
	Template  *Template // ActionSecure only
	Peer      string    // ActionSecure only: the Peer to negotiate with
}

// Template says how a secure rule protects.
type Template struct {
	Mode          Mode
	Proposals     []Proposal // ESP or AH, in order of preference
	PFS           uint16     // key exchange of CREATE_CHILD_SA; KENone for none
	Lifetime      Lifetime
	ReplayWindow  uint32
	ForceEncap    bool   // UDP encapsulation even without a NAT
	AcceptClear   bool   // inbound clear packets pass
	FallbackClear bool   // outbound packets go in clear when the peer never answers IKE
	PadTo         uint16 // as SA.PadTo, where the peer can take it
	Resources     uint32 // CHILD SAs beside the first, one for each of so many queues (RFC 9611)
	Outer         OuterHeader
}

// OuterHeader says how tunnel mode fills the outer header (RFC 4301 §4.4.1.2, §5.1.2).
type OuterHeader struct {
	DF        DF
	FixedDSCP bool // DSCP instead of the inner packet's
	CopyLabel bool // the inner packet's IPv6 flow label, as far as it has one
	DSCP      uint8
}

// DF is what becomes of the outer IPv4 header's DF bit (RFC 4301 §8.1).
type DF uint8

const (
	DFAuto  DF = iota // set while the packet fits the path, else the packet is cut before it is sent
	DFCopy            // the inner packet's; that of IPv6 counts as set
	DFSet             // what does not fit the path is dropped
	DFClear           // routers on the way may cut
)

var dfNames = [...]string{DFAuto: "auto", DFCopy: "copy", DFSet: "set", DFClear: "clear"}

func (d DF) String() string {
	if int(d) < len(dfNames) {
		return dfNames[d]
	}
	return fmt.Sprintf("df-%d", uint8(d))
}

// ParseDF reads "auto", "copy", "set" or "clear".
func ParseDF(s string) (DF, error) {
	for i, n := range dfNames {
		if n == s {
			return DF(i), nil
		}
	}
	return 0, fmt.Errorf("DF %q: want auto, copy, set or clear", s)
}

// AuthMethod is one way to authenticate, tried in order. Exactly one of PSK,
// Certificate and Null is set.
type AuthMethod struct {
	PSK         string // a secret reference, such as file:web-db.psk or vault:secret/path
	Certificate *CertificateAuth
	Null        bool // NULL authentication (RFC 7619): only where a policy asks for it by name
	Side        AuthSide
}

// Peer is how to reach and authenticate one IKE peer of a node.
type Peer struct {
	Name       string
	Local      []netip.Addr // this node's addresses, in order of preference
	Remote     []netip.Addr // the peer's; empty: any, as responder only
	LocalID    Identity
	RemoteID   Identity
	Auth       []AuthMethod
	PPK        *PPK          // nil for none
	Proposals  []Proposal    // IKE, in order of preference
	Lifetime   time.Duration // of the IKE SA
	Reauth     time.Duration // authenticate anew after so long; 0 for never
	DPD        time.Duration // liveness check when idle this long; 0 for never
	ForceEncap bool
	Mobike     bool // RFC 4555, when the peer has it too
	TCP        TCPUse
}

// Version orders states of a policy store. A feed's versions are comparable
// only within one Cluster and Epoch; otherwise the reader resynchronises.
type Version struct {
	Cluster  string
	Epoch    uint64
	Revision uint64
}

func (v Version) String() string { return fmt.Sprintf("%s/%d/%d", v.Cluster, v.Epoch, v.Revision) }

// NodePolicy is all that policy says for one node: its SPD and its peers.
type NodePolicy struct {
	Node      string
	Version   Version
	Addresses []netip.Addr
	Rules     []Rule // by falling Weight
	Peers     []Peer // by Name
	Default   Action // for a packet that no rule matches: permit or block

	// FailClosed: while no worker runs, also before it starts and after a clean
	// stop, what the rules secure stays blocked.
	FailClosed bool

	// KeepMSS: TCP connections through the TUN keep the MSS that their ends name, and
	// find out by path MTU discovery what SAs carry.
	KeepMSS bool

	byPeer map[string][]int // rules by peer, made by Index
	byName map[string]int   // peers by name, made by Index
}

// Index makes RulesOf and PeerNamed fast: without it they look at everything. It
// is called before others have the policy, and the policy does not change after.
func (p *NodePolicy) Index() {
	p.byPeer, p.byName = make(map[string][]int), make(map[string]int, len(p.Peers))
	for i := range p.Rules {
		if r := &p.Rules[i]; r.Action == ActionSecure {
			p.byPeer[r.Peer] = append(p.byPeer[r.Peer], i)
		}
	}
	for i := range p.Peers {
		p.byName[p.Peers[i].Name] = i
	}
}

// RulesOf are the secure rules that negotiate with a peer, in their order.
func (p *NodePolicy) RulesOf(peer string) iter.Seq[*Rule] {
	return func(yield func(*Rule) bool) {
		if p.byPeer != nil {
			for _, i := range p.byPeer[peer] {
				if !yield(&p.Rules[i]) {
					return
				}
			}
			return
		}
		for i := range p.Rules {
			if r := &p.Rules[i]; r.Action == ActionSecure && r.Peer == peer && !yield(r) {
				return
			}
		}
	}
}

// PeerNamed finds a peer, nil when there is none of this name.
func (p *NodePolicy) PeerNamed(name string) *Peer {
	if p.byName != nil {
		if i, ok := p.byName[name]; ok {
			return &p.Peers[i]
		}
		return nil
	}
	for i := range p.Peers {
		if p.Peers[i].Name == name {
			return &p.Peers[i]
		}
	}
	return nil
}
