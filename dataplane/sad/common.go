package sad

import (
	"fmt"
	"sync/atomic"
	"time"
	"unique"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// limit is one bound of an SA's lifetime, as a bit of common.raised.
type limit uint32

const (
	softBytes limit = 1 << iota
	softPackets
	softTime
	softUse
	hardBytes
	hardPackets
	hardTime
	hardUse
)

var limitCauses = map[limit]string{
	softBytes: "bytes", softPackets: "packets", softTime: "time", softUse: "use",
	hardBytes: "bytes", hardPackets: "packets", hardTime: "time", hardUse: "use",
}

// SA is what the worker has to remember of an ipsec.SA, of which there may be very
// many: not its keys, and not where it leads and what may travel in it, which the
// packet path keeps in its own form.
type SA struct {
	ID        ipsec.SAID
	Child     uint64
	SPI       ipsec.SPI
	Resource  uint32
	Direction ipsec.Direction
	Protocol  ipsec.Protocol
	Mode      ipsec.Mode
	PadTo     uint16
	Rule      string
	Peer      string
	suite     unique.Handle[ipsec.Suite] // few, and large
}

// Suite is the SA's suite.
func (s *SA) Suite() ipsec.Suite { return s.suite.Value() }

// limits is an ipsec.Lifetime without the limits in time since installation, which are
// among the deadlines.
type limits struct {
	bytes, packets   ipsec.Limit
	useSoft, useHard time.Duration
}

// common is what inbound and outbound SAs share.
type common struct {
	sa     SA
	limits limits
	events *events

	dead   atomic.Uint32 // a packet.Why: 0 while the SA may be used
	raised atomic.Uint32 // limits reported already

	bytes   atomic.Uint64
	packets atomic.Uint64
	errors  atomic.Uint64
	first   atomic.Int64 // Unix nanoseconds of the first packet; 0 for none
	used    atomic.Int64 // and of the last

	hardAt int64 // Unix nanoseconds; 0 for none

	// SAD.mu guards these.
	at     [len(timeLimits)]int64 // when each of timeLimits is met, in Unix nanoseconds; 0 for none, and once it is
	heapAt int32                  // index in deadlines plus 1; 0 when not there
}

func (c *common) init(sa *ipsec.SA, now time.Time, e *events) error {
	if !sa.Local.IsValid() || !sa.Remote.IsValid() || sa.Local.Is4() != sa.Remote.Is4() {
		return fmt.Errorf("sad: %s has outer addresses %s and %s; want two of one family", sa.ID, sa.Local, sa.Remote)
	}
	if sa.Mode != ipsec.ModeTunnel && sa.Mode != ipsec.ModeTransport {
		return fmt.Errorf("sad: %s has mode %s, want tunnel or transport", sa.ID, sa.Mode)
	}
	if len(sa.Selectors) == 0 {
		return fmt.Errorf("sad: %s has no selectors, so nothing could pass the inner check (RFC 4301 §5.2)", sa.ID)
	}
	for _, s := range sa.Selectors {
		for _, t := range []ipsec.TrafficSelector{s.Local, s.Remote} {
			if err := t.Valid(); err != nil {
				return fmt.Errorf("sad: %s: selector %s: %w", sa.ID, s, err)
			}
		}
	}
	if l := sa.Lifetime; l.TimeSoft < 0 || l.TimeHard < 0 || l.UseSoft < 0 || l.UseHard < 0 {
		return fmt.Errorf("sad: %s has a negative lifetime (soft %s, hard %s, in use soft %s, hard %s)", sa.ID, l.TimeSoft, l.TimeHard, l.UseSoft, l.UseHard)
	}
	c.sa = SA{
		ID: sa.ID, Child: sa.Child, SPI: sa.SPI, Resource: sa.Resource, Direction: sa.Direction, Protocol: sa.Protocol, Mode: sa.Mode, PadTo: sa.PadTo,
		Rule: sa.Rule, Peer: sa.Peer, suite: unique.Make(sa.Suite),
	}
	c.limits = limits{sa.Lifetime.Bytes, sa.Lifetime.Packets, sa.Lifetime.UseSoft, sa.Lifetime.UseHard}
	c.events = e
	c.setAt(softTime, now.UnixNano(), sa.Lifetime.TimeSoft)
	c.hardAt = c.setAt(hardTime, now.UnixNano(), sa.Lifetime.TimeHard)
	return nil
}

// carried notes that the SA carried a packet at now.
func (c *common) carried(now int64) {
	c.used.Store(now)
	if c.first.Load() == 0 && c.first.CompareAndSwap(0, now) && (c.limits.useSoft != 0 || c.limits.useHard != 0) {
		c.events.begin(c)
	}
}

// SA is what is remembered of the SA. It must not be changed.
func (c *common) SA() *SA { return &c.sa }

// usable says whether the SA may be used at now, and why not.
func (c *common) usable(now int64) packet.Why {
	if why := packet.Why(c.dead.Load()); why != packet.WhyOK {
		return why
	}
	if c.hardAt != 0 && now >= c.hardAt {
		c.meet(hardTime)
		return packet.WhyHardTime
	}
	if d := c.limits.useHard; d != 0 {
		if first := c.first.Load(); first != 0 && now-first >= int64(d) {
			c.meet(hardUse)
			return packet.WhyHardUse
		}
	}
	return packet.WhyOK
}

// die ends the SA's use for good. The first reason stays.
func (c *common) die(why packet.Why) { c.dead.CompareAndSwap(0, uint32(why)) }

// meet reports a limit, once, and ends the SA when it is a hard one.
func (c *common) meet(l limit) {
	switch l {
	case hardBytes:
		c.die(packet.WhyHardBytes)
	case hardPackets:
		c.die(packet.WhyHardPackets)
	case hardTime:
		c.die(packet.WhyHardTime)
	case hardUse:
		c.die(packet.WhyHardUse)
	}
	if c.raised.Or(uint32(l))&uint32(l) == 0 {
		c.events.push(ipsec.Expiry{ID: c.sa.ID, Hard: l >= hardBytes, Cause: limitCauses[l]})
	}
}

// counted raises the limits that the totals have reached.
func (c *common) counted(bytes, packets uint64) {
	l := &c.limits
	if l.bytes.Soft != 0 && bytes >= l.bytes.Soft {
		c.meet(softBytes)
	}
	if l.packets.Soft != 0 && packets >= l.packets.Soft {
		c.meet(softPackets)
	}
	if l.bytes.Hard != 0 && bytes >= l.bytes.Hard {
		c.meet(hardBytes)
	}
	if l.packets.Hard != 0 && packets >= l.packets.Hard {
		c.meet(hardPackets)
	}
}

func (c *common) counters(top uint64) ipsec.SACounters {
	r := ipsec.SACounters{
		ID:      c.sa.ID,
		Bytes:   c.bytes.Load(),
		Packets: c.packets.Load(),
		Top:     top,
		Errors:  c.errors.Load(),
	}
	if t := c.first.Load(); t != 0 {
		r.First = time.Unix(0, t)
	}
	if t := c.used.Load(); t != 0 {
		r.Used = time.Unix(0, t)
	}
	return r
}
