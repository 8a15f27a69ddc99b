package engine

import (
	"fmt"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/natt"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// The outer header of tunnel mode (RFC 4301 §5.1.2) is written by the kernel's
// sockets, which segment fastest, as far as they can follow policy: DSCP and ECN by
// message, DF set on what fits the path. To copy or to clear DF is up to each
// packet, which no socket offers: then the header is written here, and the packet
// leaves by the socket for whole packets, one at a time.

// headerOf is what policy says of the outer headers of a rule's SAs. The caller
// holds mu.
func (e *Engine) headerOf(rule string) ipsec.OuterHeader {
	if e.policy != nil {
		if i, ok := e.number[rule]; ok && e.policy.Rules[i].Template != nil {
			return e.policy.Rules[i].Template.Outer
		}
	}
	return ipsec.OuterHeader{}
}

// dress prepares the outer header of a path.
func (e *Engine) dress(p *path, protocol ipsec.Protocol, mode ipsec.Mode, h ipsec.OuterHeader) error {
	p.header, p.room = h, 0
	if protocol == ipsec.ProtocolESP && (mode != ipsec.ModeTunnel || h == ipsec.OuterHeader{}) {
		return nil
	}
	c := packet.OuterConfig{
		Local: p.local.Addr(), Remote: p.remote.Addr(), Protocol: packet.ProtoESP,
		FixedDSCP: h.FixedDSCP, DSCP: h.DSCP,
	}
	switch h.DF {
	case ipsec.DFSet:
		c.DF = packet.DFSet
	case ipsec.DFClear:
		c.DF = packet.DFClear
	}
	switch {
	case protocol == ipsec.ProtocolAH:
		c.Protocol = packet.ProtoAH
	case p.encap != nil:
		c.Protocol = packet.ProtoUDP
	}
	outer, err := packet.NewOuter(c)
	if err != nil {
		return fmt.Errorf("%w: %w", backend.ErrNotUsable, err)
	}
	p.outer = &outer
	if protocol != ipsec.ProtocolESP || !p.local.Addr().Is4() || h.DF != ipsec.DFCopy && h.DF != ipsec.DFClear {
		return nil
	}
	if p.encap != nil && p.encap.TCP { // a stream has no DF of ours
		return nil
	}
	if e.cfg.Clear[0] == nil {
		return fmt.Errorf("%w: the rule copies or clears DF, and there is no socket for whole packets", backend.ErrNotUsable)
	}
	p.room = uint8(outer.Len())
	if p.encap != nil {
		p.room += natt.UDPLen
	}
	return nil
}

// redress follows a new policy. What ICMP said of a path is kept. The caller holds mu.
func (e *Engine) redress() error {
	for _, o := range e.outs {
		old := o.path.Load()
		h := e.headerOf(o.SA().Rule)
		if h == old.header {
			continue
		}
		p := &path{socket: old.socket, local: old.local, remote: old.remote, encap: old.encap}
		p.learnt.Store(old.learnt.Load())
		if err := e.dress(p, o.SA().Protocol, o.SA().Mode, h); err != nil {
			return err
		}
		o.path.Store(p)
	}
	return nil
}

// flowLabel is the outer IPv6 flow label for an inner packet; 0 leaves it to the kernel,
// which hashes the outer addresses and ports.
func (p *path) flowLabel(inner []byte) uint32 {
	if !p.header.CopyLabel || p.remote.Addr().Is4() {
		return 0
	}
	return packet.FlowLabel(inner)
}

// tooBigFor says whether a packet is larger than a path is known to carry, and may
// not be cut on the way.
func (p *path) tooBigFor(size, mtu int, df bool) bool {
	return mtu != 0 && size > mtu && p.header.DF != ipsec.DFClear && (df || p.header.DF == ipsec.DFSet)
}

// wholeQueue is the queue of the socket for whole IPv4 packets.
func (w *outWorker) wholeQueue() int { return len(w.queue) - 1 }

// putOuter writes the headers in front of n octets of ESP that were sealed at the
// end of the buffer, and returns how many there are now.
func (w *outWorker) putOuter(p *path, inner []byte, n int) (int, packet.Why) {
	b := w.buf[w.used : w.used+int(p.room)+n]
	if p.encap != nil {
		if why := natt.PutUDP(b[p.outer.Len():], p.encap.LocalPort, p.encap.RemotePort); why != packet.WhyOK {
			return 0, why
		}
	}
	return len(b), p.outer.Put(b, packet.TOS(inner), packet.DF(inner), w.ident())
}

// wholeMessage is the message of a packet that has its headers.
func wholeMessage(p *path) netio.Message { return netio.Message{Remote: p.remote} }
