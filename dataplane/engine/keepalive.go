package engine

import (
	"net/netip"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/natt"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
)

const (
	// keepaliveAfter is how long a UDP path may be silent before a NAT on it
	// needs a sign of life (RFC 3948 §4).
	keepaliveAfter = 20 * time.Second
	// keepaliveEvery is how often paths are looked at.
	keepaliveEvery = 5 * time.Second
)

// keepalives keeps the mappings of NATs alive. It sends whether there is a NAT
// or not: one octet in 20 s of silence costs less than knowing.
type keepalives struct {
	due  time.Time
	sent map[udpPath]int64 // Unix nanoseconds
}

// udpPath is what a NAT has one mapping for.
type udpPath struct {
	socket        int
	local, remote netip.AddrPort
}

// keepalive sends what is due.
func (e *Engine) keepalive(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	k := &e.keepalives
	if e.closed || now.Before(k.due) {
		return
	}
	k.due = now.Add(keepaliveEvery)
	last := map[udpPath]int64{}
	for _, o := range e.outs {
		p := o.path.Load()
		if p.encap == nil || p.encap.TCP || o.Usable(now.UnixNano()) != packet.WhyOK {
			continue
		}
		u := udpPath{int(p.socket), p.local, p.remote}
		at, known := k.sent[u]
		if !known {
			at = now.UnixNano() // an SA that was just installed
		}
		if used := o.Counters().Used; !used.IsZero() {
			at = max(at, used.UnixNano())
		}
		last[u] = max(last[u], at)
	}
	for u, at := range last {
		if now.UnixNano()-at < int64(keepaliveAfter) {
			continue
		}
		m := netio.Message{Data: natt.AppendKeepalive(nil), Local: u.local, Remote: u.remote}
		if _, err := e.ctl.senders[u.socket].Send([]netio.Message{m}); err == nil {
			e.ctl.counts.add(packet.WhyKeepaliveSent, 1)
		}
		last[u] = now.UnixNano()
	}
	k.sent = last
}
