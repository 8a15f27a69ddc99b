package sad

import (
	"fmt"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// SAD holds the SAs of one worker. The zero value is not ready: use New.
type SAD struct {
	mu        sync.Mutex
	in        map[ipsec.SAID]*Inbound
	out       map[ipsec.SAID]*Outbound
	deadlines deadlines

	events events
}

// New makes an empty SAD.
func New() *SAD {
	return &SAD{
		in:     map[ipsec.SAID]*Inbound{},
		out:    map[ipsec.SAID]*Outbound{},
		events: events{wake: make(chan struct{}, 1)},
	}
}

// Batch is a change that Apply makes whole or not at all.
type Batch struct {
	Install []*ipsec.SA
	Remove  []ipsec.SAID
}

// Apply installs and removes SAs. Removals come first, so an SPI may pass from a
// removed SA to an installed one. On an error nothing has changed; the error
// names the SA. The caller may wipe its keys afterwards. That no two inbound SAs
// have one protocol and SPI is the caller's to see to, who finds SAs by them.
func (d *SAD) Apply(now time.Time, b Batch) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	removed, err := d.removable(b.Remove)
	if err != nil {
		return err
	}
	plan, err := d.plan(now, b.Install, removed)
	if err != nil {
		return err
	}
	for id := range removed {
		d.remove(id)
	}
	for _, in := range plan.in {
		d.in[in.sa.ID] = in
		d.deadlines.add(&in.common)
	}
	for _, out := range plan.out {
		d.out[out.sa.ID] = out
		d.deadlines.add(&out.common)
	}
	return nil
}

// removable checks that every SA named is there.
func (d *SAD) removable(ids []ipsec.SAID) (map[ipsec.SAID]bool, error) {
	removed := make(map[ipsec.SAID]bool, len(ids))
	for _, id := range ids {
		if d.in[id] == nil && d.out[id] == nil {
			return nil, fmt.Errorf("sad: cannot remove %s: it is not installed", id)
		}
		removed[id] = true
	}
	return removed, nil
}

type plan struct {
	in  []*Inbound
	out []*Outbound
}

// plan makes the SAs of a batch and checks that none is there already.
func (d *SAD) plan(now time.Time, install []*ipsec.SA, removed map[ipsec.SAID]bool) (plan, error) {
	var p plan
	ids := make(map[ipsec.SAID]bool, len(install))
	for _, sa := range install {
		if ids[sa.ID] || !removed[sa.ID] && (d.in[sa.ID] != nil || d.out[sa.ID] != nil) {
			return plan{}, fmt.Errorf("sad: %s is installed already; remove it in the same batch to replace it", sa.ID)
		}
		ids[sa.ID] = true
		if sa.Direction == ipsec.Outbound {
			out, err := newOutbound(sa, now, &d.events)
			if err != nil {
				return plan{}, err
			}
			p.out = append(p.out, out)
			continue
		}
		in, err := newInbound(sa, now, &d.events)
		if err != nil {
			return plan{}, err
		}
		p.in = append(p.in, in)
	}
	return p, nil
}

func (d *SAD) remove(id ipsec.SAID) {
	if in := d.in[id]; in != nil {
		in.die(packet.WhyRemoved)
		d.deadlines.remove(&in.common)
		delete(d.in, id)
		return
	}
	out := d.out[id]
	out.die(packet.WhyRemoved)
	d.deadlines.remove(&out.common)
	delete(d.out, id)
}

// Inbound finds an inbound SA by its name, or nil. The packet path finds it by SPI,
// elsewhere.
func (d *SAD) Inbound(id ipsec.SAID) *Inbound {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.in[id]
}

// Outbound finds an outbound SA by its name, or nil. The packet path keeps the
// pointer with the policy entry and does not come here.
func (d *SAD) Outbound(id ipsec.SAID) *Outbound {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.out[id]
}

// Len is the number of inbound and outbound SAs.
func (d *SAD) Len() (in, out int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.in), len(d.out)
}

// AppendCounters appends what every SA has counted, in no particular order.
func (d *SAD) AppendCounters(dst []ipsec.SACounters) []ipsec.SACounters {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, in := range d.in {
		dst = append(dst, in.Counters())
	}
	for _, out := range d.out {
		dst = append(dst, out.Counters())
	}
	return dst
}

// Deadline is when Advance has something to do next. The first packet of an SA may
// bring it forward.
func (d *SAD) Deadline() (time.Time, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deadlines.begin(d.events.takeBegun())
	return d.deadlines.next()
}

// Advance raises the time limits that are met at now.
func (d *SAD) Advance(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deadlines.begin(d.events.takeBegun())
	d.deadlines.advance(now)
}

// Wake receives when Expiries has something new to report.
func (d *SAD) Wake() <-chan struct{} { return d.events.wake }

// Expiries takes the limits that were met since the last call. Each limit of an
// SA is reported once; cause "lease", of an outbound SA that will soon run out of
// sequence numbers, once per lease.
func (d *SAD) Expiries() []ipsec.Expiry { return d.events.take() }
