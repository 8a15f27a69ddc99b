package iketest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// Packet is a datagram under way.
type Packet struct {
	From, To *Host
	Src, Dst netip.AddrPort // as on the wire between the hosts, behind any NAT
	TCP      bool
	Data     []byte
	At       time.Time // of arrival
	Text     string    // what it says, for ladders
	order    int
}

// Net is a network with a clock of its own.
type Net struct {
	TB  testing.TB
	Now time.Time
	// Hook, when set, decides what becomes of a packet: none, itself, or several.
	Hook func(Packet) []Packet
	// AnswerDelay, when set, is how long the answer to an effect takes.
	AnswerDelay func() time.Duration
	// Step, when set, is called after every event.
	Step func()
	// Ladder holds what was sent, line by line.
	Ladder []string

	Rand    *rand.Rand
	hosts   []*Host
	flying  []Packet
	answers []answer
	order   int
}

type answer struct {
	host  *Host
	m     ike.Machine
	ev    ike.Event
	at    time.Time
	order int
}

const delay = 5 * time.Millisecond // of a packet, and of an answer

// New makes a network.
func New(tb testing.TB, seed uint64) *Net {
	return &Net{TB: tb, Now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), Rand: rand.New(rand.NewPCG(seed, 1))}
}

func (n *Net) next() int { n.order++; return n.order }

// Inject puts a datagram on the wire that no machine has sent.
func (n *Net) Inject(p Packet) {
	if p.At.IsZero() {
		p.At = n.Now.Add(delay)
	}
	p.order = n.next()
	n.flying = append(n.flying, p)
}

func (n *Net) send(p Packet) {
	p.At = n.Now.Add(delay)
	n.Ladder = append(n.Ladder, fmt.Sprintf("%s -> %s %s", p.From.Name, p.To.Name, p.Text))
	out := []Packet{p}
	if n.Hook != nil {
		out = n.Hook(p)
	}
	for _, q := range out {
		n.Inject(q)
	}
}

// Run lets a time pass.
func (n *Net) Run(d time.Duration) {
	end := n.Now.Add(d)
	for steps := 0; ; steps++ {
		if steps > 200000 {
			n.TB.Fatalf("the machines do not come to rest; the last messages:\n%s", n.LadderText(20))
		}
		at, do := n.nextEvent()
		if do == nil || at.After(end) {
			n.Now = end
			return
		}
		if at.After(n.Now) {
			n.Now = at
		}
		do()
		if n.Step != nil {
			n.Step()
		}
	}
}

// nextEvent is the earliest packet, answer or deadline, and what to do with it.
func (n *Net) nextEvent() (time.Time, func()) {
	var at time.Time
	var do func()
	order := 0
	better := func(t time.Time, o int) bool {
		return do == nil || t.Before(at) || t.Equal(at) && o < order
	}
	for i, p := range n.flying {
		if better(p.At, p.order) {
			at, order = p.At, p.order
			do = func() {
				n.flying = slices.Delete(n.flying, i, i+1)
				p.To.deliver(p)
			}
		}
	}
	for i, a := range n.answers {
		if better(a.at, a.order) {
			at, order = a.at, a.order
			do = func() {
				n.answers = slices.Delete(n.answers, i, i+1)
				a.host.handle(a.m, a.ev)
			}
		}
	}
	for _, h := range n.hosts {
		for _, m := range h.Machines {
			if d := m.Deadline(); !d.IsZero() && better(d, 1<<30) {
				at, order = d, 1<<30
				do = func() { h.handle(m, ike.Timer{}) }
			}
		}
	}
	return at, do
}

// LadderText is the last n lines of the ladder, all for n = 0.
func (n *Net) LadderText(last int) string {
	l := n.Ladder
	if last > 0 && len(l) > last {
		l = l[len(l)-last:]
	}
	return strings.Join(l, "\n") + "\n"
}
