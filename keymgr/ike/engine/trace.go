package engine

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// traceSteps is how many steps each shard remembers: some hundreds of
// negotiations, in about a megabyte.
const traceSteps = 8192

// Trace is what is remembered of one IKE SA and those that replaced it, oldest
// step first.
type Trace struct {
	ID     uint64
	Node   string
	Peer   string // profile; empty while unknown
	Remote netip.AddrPort
	Steps  []TraceStep
}

// TraceStep is one step. It holds no key material and nothing that was encrypted.
type TraceStep struct {
	Time   time.Time
	SPI    uint64 // this side's IKE SPI
	Way    string // received, sent, or event
	What   string // the message, as in "IKE_AUTH request 1", or what happened
	Octets int    // of the message
	Detail string
}

// Ways of a step.
const (
	WayReceived = "received"
	WaySent     = "sent"
	WayEvent    = "event"
)

// step is a TraceStep as it is kept: made for each message, so nothing is
// formatted before someone asks.
type step struct {
	trace, spi uint64
	node       *node
	peer       string
	remote     netip.AddrPort
	at         time.Time
	way        string
	what       string      // when it is no message
	header     wire.Header // when it is one
	octets     int
	detail     string
}

// traces is a ring of the latest steps of one shard.
type traces struct {
	mu   sync.Mutex
	ring []step
	next int
}

func (r *traces) add(s step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ring) < traceSteps {
		r.ring = append(r.ring, s)
		return
	}
	r.ring[r.next] = s
	r.next = (r.next + 1) % traceSteps
}

// trace keeps an event of a machine and the effects it had.
func (s *shard) trace(c *cell, now time.Time, ev ike.Event, effects []ike.Effect) {
	if c.trace == 0 {
		c.trace = s.e.traceIDs.Add(1)
	}
	add := func(x step) {
		x.trace, x.spi, x.node, x.peer, x.at = c.trace, c.spi, c.node, c.peer, now
		s.traces.add(x)
	}
	if d, ok := ev.(ike.Datagram); ok {
		h, _ := wire.ParseHeader(d.Data) // it was looked at before it came here
		add(step{way: WayReceived, header: h, octets: len(d.Data), remote: d.Path.Remote})
	} else if what, detail := eventText(ev); what != "" {
		add(step{way: WayEvent, what: what, detail: detail})
	}
	for _, f := range effects {
		if d, ok := f.(ike.Send); ok {
			h, _ := wire.ParseHeader(d.Data)
			add(step{way: WaySent, header: h, octets: len(d.Data), remote: d.Path.Remote})
		} else if what, detail := effectText(f); what != "" {
			add(step{way: WayEvent, what: what, detail: detail})
		}
	}
}

func eventText(ev ike.Event) (what, detail string) {
	switch ev := ev.(type) {
	case ike.Timer, ike.ChildActivity:
		return "", "" // what it leads to is a step of its own
	case ike.CreateChild:
		return "CHILD SA is asked for", ev.Rule
	case ike.Terminate:
		return "close", ev.Why
	case ike.ChildExpired:
		return "CHILD SA meets a limit", ev.Cause
	case ike.PSKs:
		return "preshared key is there", errorText(ev.Err)
	case ike.KeyExchanged:
		return "key exchange is done", errorText(ev.Err)
	case ike.Installed:
		return "worker has the SAs", errorText(ev.Err)
	}
	return typeText(ev), ""
}

func effectText(f ike.Effect) (what, detail string) {
	switch f := f.(type) {
	case ike.Install:
		return "worker is given SAs", ""
	case ike.Remove:
		return "worker drops SAs", ""
	case ike.NeedPSK:
		return "preshared key is looked up", ""
	case ike.NeedKE:
		return "key exchange off the loop", ""
	case ike.Established:
		return "IKE SA is up", ""
	case ike.ChildUp:
		return "CHILD SA is up", f.Child.Rule
	case ike.ChildDown:
		return "CHILD SA is gone", f.Why
	case ike.Dropped:
		return "message ignored", f.Why
	case ike.Failed:
		return "failed", f.Failure.Why
	case ike.Spawn:
		return "another IKE SA takes over", ""
	case ike.Done:
		return "IKE SA is gone", f.Why
	}
	return typeText(f), ""
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// typeText names what has no text of its own, as in RekeyChild.
func typeText(v any) string {
	_, name, _ := strings.Cut(fmt.Sprintf("%T", v), ".")
	return name
}

// Traces returns what is remembered of the IKE SAs of a node (empty for all)
// with a peer, which is named by its profile, its address, its address and port,
// or by this side's SPI in hexadecimal; empty for all. The one that did something
// last comes last.
func (e *Engine) Traces(node, peer string) []Trace {
	var all []step
	for _, s := range e.shards {
		s.traces.mu.Lock()
		all = append(append(all, s.traces.ring[s.traces.next:]...), s.traces.ring[:s.traces.next]...)
		s.traces.mu.Unlock()
	}
	spi, err := strconv.ParseUint(strings.TrimPrefix(peer, "0x"), 16, 64)
	isSPI := err == nil && peer != ""
	wanted := make(map[uint64]*Trace)
	for _, s := range all {
		if node != "" && node != s.node.name || wanted[s.trace] != nil {
			continue
		}
		// The profile is not known at first, nor the SPI: one step that fits will do.
		if peer == "" || peer == s.peer || isSPI && spi == s.spi ||
			s.remote.IsValid() && (peer == s.remote.String() || peer == s.remote.Addr().String()) {
			wanted[s.trace] = &Trace{ID: s.trace, Node: s.node.name}
		}
	}
	for _, s := range all {
		t := wanted[s.trace]
		if t == nil {
			continue
		}
		if s.peer != "" {
			t.Peer = s.peer
		}
		if s.remote.IsValid() {
			t.Remote = s.remote
		}
		x := TraceStep{Time: s.at, SPI: s.spi, Way: s.way, What: s.what, Octets: s.octets, Detail: s.detail}
		if s.way != WayEvent {
			kind := "request"
			if s.header.Response() {
				kind = "response"
			}
			x.What = fmt.Sprintf("%s %s %d", s.header.Exchange, kind, s.header.MessageID)
		}
		t.Steps = append(t.Steps, x)
	}
	out := make([]Trace, 0, len(wanted))
	for _, t := range wanted {
		out = append(out, *t)
	}
	last := func(t Trace) time.Time { return t.Steps[len(t.Steps)-1].Time }
	slices.SortFunc(out, func(a, b Trace) int { return cmp.Or(last(a).Compare(last(b)), cmp.Compare(a.ID, b.ID)) })
	return out
}
