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
	esp, ah table // inbound

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
// names the SA. Keys are not kept in the ipsec.SA that Inbound and Outbound
// report, and the caller may wipe its own afterwards.
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
		d.table(in.sa.Protocol).put(uint32(in.sa.SPI), in)
		d.deadlines.add(&in.common)
	}
	for _, out := range plan.out {
		d.out[out.sa.ID] = out
		d.deadlines.add(&out.common)
	}
	return nil
}

// table is where the inbound SAs of a protocol are: those of ESP and of AH may
// have the same SPI (RFC 4301 §4.1).
func (d *SAD) table(p ipsec.Protocol) *table {
	if p == ipsec.ProtocolAH {
		return &d.ah
	}
	return &d.esp
}

// name is what a packet from a unicast peer carries of its SA (RFC 4301 §4.1).
type name struct {
	protocol ipsec.Protocol
	spi      ipsec.SPI
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

// plan makes the SAs of a batch and checks that none collides.
func (d *SAD) plan(now time.Time, install []*ipsec.SA, removed map[ipsec.SAID]bool) (plan, error) {
	var p plan
	ids := make(map[ipsec.SAID]bool, len(install))
	names := make(map[name]ipsec.SAID)
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
		n := name{sa.Protocol, sa.SPI}
		if other, ok := names[n]; ok {
			return plan{}, fmt.Errorf("sad: %s and %s of one batch share the inbound %s SPI %s", other, sa.ID, sa.Protocol, sa.SPI)
		}
		if other := d.table(sa.Protocol).lookup(uint32(sa.SPI)); other != nil && !removed[other.sa.ID] {
			return plan{}, fmt.Errorf("sad: the inbound %s SPI %s of %s belongs to %s", sa.Protocol, sa.SPI, sa.ID, other.sa.ID)
		}
		names[n] = sa.ID
		p.in = append(p.in, in)
	}
	return p, nil
}

func (d *SAD) remove(id ipsec.SAID) {
	if in := d.in[id]; in != nil {
		in.die(packet.WhyRemoved)
		d.table(in.sa.Protocol).remove(uint32(in.sa.SPI))
		d.deadlines.remove(&in.common)
		delete(d.in, id)
		return
	}
	out := d.out[id]
	out.die(packet.WhyRemoved)
	d.deadlines.remove(&out.common)
	delete(d.out, id)
}

// Lookup finds the inbound ESP SA of an SPI, or nil. It takes no lock. For unicast
// protocol and SPI name the SA; the destination address need not (RFC 4301 §4.1).
func (d *SAD) Lookup(spi ipsec.SPI) *Inbound { return d.esp.lookup(uint32(spi)) }

// LookupAH is Lookup for AH.
func (d *SAD) LookupAH(spi ipsec.SPI) *Inbound { return d.ah.lookup(uint32(spi)) }

// Inbound finds an inbound SA by its name, or nil.
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

// AppendSAs appends the descriptions of every SA, without keys.
func (d *SAD) AppendSAs(dst []ipsec.SA) []ipsec.SA {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, in := range d.in {
		dst = append(dst, in.sa)
	}
	for _, out := range d.out {
		dst = append(dst, out.sa)
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
