package feed

import (
	"cmp"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/compile"
)

// Kind of a resource, in the order in which they are sent.
type Kind string

const (
	KindSettings Kind = "settings" // Value is a compile.Settings
	KindPeer     Kind = "peer"     // Value is an ipsec.Peer
	KindRule     Kind = "rule"     // Value is an ipsec.Rule
)

var kindOrder = map[Kind]int{KindSettings: 0, KindPeer: 1, KindRule: 2}

// ID names a resource.
type ID struct {
	Kind Kind
	Node string
	Name string // of the rule or peer; "" for settings
}

func (i ID) String() string { return string(i.Kind) + " " + i.Node + " " + i.Name }

func (i ID) compare(o ID) int {
	return cmp.Or(cmp.Compare(i.Node, o.Node), cmp.Compare(kindOrder[i.Kind], kindOrder[o.Kind]), cmp.Compare(i.Name, o.Name))
}

// Resource is one rule, one peer or the settings of one node. Values are
// shared and must not be changed.
type Resource struct {
	ID
	Version string // equal for equal content, in every process
	Value   any
}

// Delta is what a subscriber needs to go from what it acknowledged to the
// newest state. Upserts and Removed are sorted by node, then settings, peers,
// rules; a node's resources are never split over two deltas.
type Delta struct {
	Nonce   uint64 // to be answered with
	Version ipsec.Version
	Upserts []Resource
	Removed []ID
	More    bool // the rest of this version follows after the answer
}

// state is everything of one node, sorted by ID. It is never changed.
type state []Resource

// stateOf takes a node policy apart.
func stateOf(p ipsec.NodePolicy) state {
	out := make(state, 0, 1+len(p.Peers)+len(p.Rules))
	settings := compile.SettingsOf(p)
	out = append(out, Resource{ID{KindSettings, p.Node, ""}, compile.SettingsVersion(settings), settings})
	for i := range p.Peers {
		out = append(out, Resource{ID{KindPeer, p.Node, p.Peers[i].Name}, compile.PeerVersion(&p.Peers[i]), p.Peers[i]})
	}
	for i := range p.Rules {
		out = append(out, Resource{ID{KindRule, p.Node, p.Rules[i].Name}, compile.RuleVersion(&p.Rules[i]), p.Rules[i]})
	}
	out.sort()
	return out
}

func (s state) sort() { slices.SortFunc(s, func(a, b Resource) int { return a.ID.compare(b.ID) }) }

func (s state) equal(o state) bool {
	return slices.EqualFunc(s, o, func(a, b Resource) bool { return a.ID == b.ID && a.Version == b.Version })
}

// diff appends what leads from s to next.
func (s state) diff(next state, d *Delta) {
	i, j := 0, 0
	for i < len(s) || j < len(next) {
		order := 0
		switch {
		case i == len(s):
			order = 1
		case j == len(next):
			order = -1
		default:
			order = s[i].ID.compare(next[j].ID)
		}
		switch {
		case order < 0:
			d.Removed = append(d.Removed, s[i].ID)
			i++
		case order > 0:
			d.Upserts = append(d.Upserts, next[j])
			j++
		default:
			if s[i].Version != next[j].Version {
				d.Upserts = append(d.Upserts, next[j])
			}
			i, j = i+1, j+1
		}
	}
}
