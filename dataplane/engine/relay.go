package engine

import (
	"net/netip"
	"slices"

	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/dataplane/spd"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// A hub relays: what came in an SA of one peer, and a rule secures with another one,
// goes on in the SA of that rule. It is opened and sealed by one goroutine and is never
// on the host, so it cannot leave in clear. All else goes to the host, whose rules drop
// what a secure rule covers: what would go back to the peer it came from, and what is
// for a peer that this node cannot ask.

// relays is what a policy says of relaying; nil where no peer can send to another one.
type relays struct {
	workers []*outWorker // one for each TUN queue
	asks    []bool       // by rule number: whether its peer can be asked for an SA
}

// relaying works it out. A peer's packets can be for another one where what is local
// in one rule is remote in another. The caller holds mu.
func (e *Engine) relaying(p *ipsec.NodePolicy) *relays {
	type end struct{ first, last netip.Addr }
	var locals []end
	tunnels := func(r *ipsec.Rule) bool {
		return r.Action == ipsec.ActionSecure && r.Template.Mode == ipsec.ModeTunnel
	}
	for i := range p.Rules {
		if s := p.Rules[i].Selector.Local; tunnels(&p.Rules[i]) {
			locals = append(locals, end{s.First.Unmap(), s.Last.Unmap()})
		}
	}
	slices.SortFunc(locals, func(a, b end) int { return a.first.Compare(b.first) })
	for i := 1; i < len(locals); i++ { // the highest end so far: a look-up needs one place only
		if last := locals[i-1].last; locals[i].last.Less(last) {
			locals[i].last = last
		}
	}
	found := false
	for i := range p.Rules {
		if s := p.Rules[i].Selector.Remote; tunnels(&p.Rules[i]) {
			n, _ := slices.BinarySearchFunc(locals, s.Last.Unmap(), func(x end, a netip.Addr) int {
				if x.first.Compare(a) <= 0 {
					return -1
				}
				return 1
			})
			found = found || n > 0 && !locals[n-1].last.Less(s.First.Unmap())
		}
	}
	if !found {
		return nil
	}
	for i := len(e.relayw); i < len(e.cfg.Tun); i++ {
		w := newOutWorker(e, i, e.cfg.Tun[i])
		w.slot = len(e.outw) + 1 + i
		w.relay = true
		e.relayw = append(e.relayw, w)
	}
	r := &relays{workers: e.relayw, asks: make([]bool, len(p.Rules))}
	for i := range p.Rules {
		peer := p.PeerNamed(p.Rules[i].Peer)
		r.asks[i] = peer != nil && len(peer.Remote) > 0
	}
	return r
}

// relayed sends on a packet that came in an SA, and reports whether it has taken it.
func (w *inWorker) relayed(s *state, in *inSA, p *arrival) bool {
	if w.relaying == nil {
		w.relaying = s.relays.workers[w.sock.Queue%len(s.relays.workers)]
	}
	w.holdRelay()
	r := w.relaying
	// What was made whole on the way cannot be cut by its source (see fragment.go).
	r.whole = p.h.Version == 6 && p.h.Length > int(w.e.mtu.Load())
	return r.take(s, in.SA().Peer, p)
}

// holdRelay takes the worker that relays, which the sockets of one queue share, until
// the burst ends. No other SA is locked meanwhile: another socket may have it, and wait
// here.
func (w *inWorker) holdRelay() {
	if !w.holding {
		w.relaying.mu.Lock()
		w.holding = true
		w.relaying.begin()
	}
}

func (w *inWorker) releaseRelay() {
	if w.holding {
		w.holding = false
		w.relaying.whole = false
		w.relaying.mu.Unlock()
	}
}

// endRelay sends what was relayed in a batch.
func (w *inWorker) endRelay() {
	if w.relaying != nil {
		w.holdRelay()
		w.relaying.flush()
		w.releaseRelay()
		w.relaying = nil
	}
}

// take relays a packet from a peer, unless it is the host's.
func (w *outWorker) take(s *state, from string, p *arrival) bool {
	b := p.head
	if !p.h.Src(b).IsGlobalUnicast() || !p.h.Dst(b).IsGlobalUnicast() { // no router forwards it, or only the host knows
		return false
	}
	k := spd.PacketKey(&p.h, b, ipsec.Outbound)
	r := w.decide(s, &k)
	if r.verdict.Action != ipsec.ActionSecure || r.why != packet.WhyOK {
		return false
	}
	rule := &s.table.Rules[r.verdict.Rule]
	if rule.Template.Mode != ipsec.ModeTunnel || rule.Peer == from || r.out == nil && !s.relays.asks[r.verdict.Rule] {
		return false
	}
	if why := packet.DecTTL(b); why != packet.WhyOK { // RFC 4301 §5.1.2.1: it is forwarded
		w.counts.add(why, 1)
		return true
	}
	w.packet(b, netio.Offload{})
	return true
}
