package sad

import (
	"fmt"
	"sync/atomic"
	"time"

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

// common is what inbound and outbound SAs share.
type common struct {
	sa     ipsec.SA // without keys
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
	heapAt int                    // index in deadlines plus 1; 0 when not there
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
	c.sa = *sa
	c.sa.EncrKey, c.sa.IntegKey = ipsec.Secret{}, ipsec.Secret{}
	c.events = e
	c.setAt(softTime, now.UnixNano(), sa.Lifetime.TimeSoft)
	c.hardAt = c.setAt(hardTime, now.UnixNano(), sa.Lifetime.TimeHard)
	return nil
}

// carried notes that the SA carried a packet at now.
func (c *common) carried(now int64) {
	c.used.Store(now)
	if c.first.Load() == 0 && c.first.CompareAndSwap(0, now) && (c.sa.Lifetime.UseSoft != 0 || c.sa.Lifetime.UseHard != 0) {
		c.events.begin(c)
	}
}

// SA is the SA's description, without keys. It must not be changed.
func (c *common) SA() *ipsec.SA { return &c.sa }

// usable says whether the SA may be used at now, and why not.
func (c *common) usable(now int64) packet.Why {
	if why := packet.Why(c.dead.Load()); why != packet.WhyOK {
		return why
	}
	if c.hardAt != 0 && now >= c.hardAt {
		c.meet(hardTime)
		return packet.WhyHardTime
	}
	if d := c.sa.Lifetime.UseHard; d != 0 {
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
	l := &c.sa.Lifetime
	if l.Bytes.Soft != 0 && bytes >= l.Bytes.Soft {
		c.meet(softBytes)
	}
	if l.Packets.Soft != 0 && packets >= l.Packets.Soft {
		c.meet(softPackets)
	}
	if l.Bytes.Hard != 0 && bytes >= l.Bytes.Hard {
		c.meet(hardBytes)
	}
	if l.Packets.Hard != 0 && packets >= l.Packets.Hard {
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

// Permits reports whether a packet may travel on this SA (RFC 4301 §5.2). A
// packet without ports (a later fragment, or a protocol that has none) matches
// only selectors whose ports are ANY or OPAQUE (RFC 4301 §4.4.1.1, §7).
func (c *common) Permits(h *packet.Header, f ipsec.Flow) bool {
	for i := range c.sa.Selectors {
		s := &c.sa.Selectors[i]
		if h.HasPorts && !s.Local.Opaque() && !s.Remote.Opaque() {
			if s.Matches(f) {
				return true
			}
			continue
		}
		if permitsPorts(h, &s.Local, f.Protocol, f.LocalPort) && permitsPorts(h, &s.Remote, f.Protocol, f.RemotePort) &&
			s.Local.ContainsAddr(f.Local) && s.Remote.ContainsAddr(f.Remote) {
			return true
		}
	}
	return false
}

// permitsPorts looks at protocol and port of one side. OPAQUE means that the
// port is not to be had: it matches only packets without ports.
func permitsPorts(h *packet.Header, t *ipsec.TrafficSelector, proto uint8, port uint16) bool {
	if t.Protocol != 0 && t.Protocol != proto {
		return false
	}
	if h.HasPorts {
		return !t.Opaque() && port >= t.PortFirst && port <= t.PortLast
	}
	return t.AnyPort() || t.Opaque()
}
