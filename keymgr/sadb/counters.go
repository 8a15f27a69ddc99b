package sadb

import (
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// counters sums what workers report of one SA; a worker counts from zero each
// time it installs the SA.
type counters struct {
	before ipsec.SACounters // of earlier installations
	last   ipsec.SACounters
	at     time.Time
	rate   float64 // octets per second between the last two reports
}

func (c *counters) restart() {
	c.before.Bytes += c.last.Bytes
	c.before.Packets += c.last.Packets
	c.before.Errors += c.last.Errors
	c.last = ipsec.SACounters{First: c.last.First, Used: c.last.Used}
}

func (c *counters) report(now time.Time, r ipsec.SACounters) {
	if r.Packets < c.last.Packets || r.Bytes < c.last.Bytes {
		c.restart()
	}
	if d := now.Sub(c.at).Seconds(); d > 0 && !c.at.IsZero() {
		c.rate = float64(r.Bytes-c.last.Bytes) / d
	}
	if r.Used.Before(c.last.Used) {
		r.Used = c.last.Used
	}
	if !c.last.First.IsZero() {
		r.First = c.last.First // of the first installation that carried anything
	}
	c.last, c.at = r, now
}

func (c *counters) total() ipsec.SACounters {
	t := c.last
	t.Bytes += c.before.Bytes
	t.Packets += c.before.Packets
	t.Errors += c.before.Errors
	return t
}

// Report takes a worker's counters of an SA. It returns the CHILD SA's number
// and whether the SA received packets since the last report.
func (n *Node) Report(now time.Time, r ipsec.SACounters) (child uint64, received bool) {
	e := n.sas[r.ID]
	if e == nil {
		return 0, false
	}
	if e.sa.Direction == ipsec.Inbound {
		e.top = max(e.top, r.Top)
		received = r.Used.After(e.count.last.Used)
	} else {
		e.use(r.Top)
	}
	e.count.report(now, r)
	if now.Sub(e.saved) >= topAge {
		e.saved = now
		n.change(r.ID)
	}
	return e.sa.Child, received
}

// Traffic returns the totals of an SA over all installations and the rate of
// the last report interval, in octets per second.
func (n *Node) Traffic(id ipsec.SAID) (ipsec.SACounters, float64) {
	e := n.sas[id]
	if e == nil {
		return ipsec.SACounters{ID: id}, 0
	}
	t := e.count.total()
	t.ID = id
	t.Top = max(e.top, e.used)
	return t, e.count.rate
}
