package engine

import (
	"encoding/binary"

	"github.com/testudo-ipsec/testudo/dataplane/ah"
	"github.com/testudo-ipsec/testudo/dataplane/esp"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// AH covers the IP header in front of it (RFC 4302 §3.3.3), so what ESP leaves to
// the socket is done here: the outer header of tunnel mode, and the one of transport
// mode kept as it is.

// authenticate puts AH into a packet or the segments of a train.
func (w *outWorker) authenticate(r *route, b []byte, h *packet.Header, off *netio.Offload) {
	o := r.out
	p := o.path.Load()
	s := o.sealer(w.slot).ah
	t, why := newTrain(b, h, off, w.head[:])
	if why == packet.WhyOK && o.SA().Mode == ipsec.ModeTransport {
		why = t.forTransport()
	}
	if why != packet.WhyOK {
		w.counts.add(why, uint64(max(t.count, 1)))
		return
	}
	m := netio.Message{Local: p.local, Remote: p.remote, TOS: packet.TOS(b)}
	add := s.HeaderLen(h.Version)
	uncounted := t.skip // what a lifetime does not count: the headers of transport mode
	if o.SA().Mode == ipsec.ModeTransport {
		m.TTL, m.FlowLabel = packet.TTL(b), packet.FlowLabel(b)
		t.skip = 0 // segments with their IP header
	} else {
		m.FlowLabel = p.flowLabel(b)
		add = p.outer.Len() + s.HeaderLen(outerVersion(p))
	}
	if known := w.outerMTU(r, p); known != 0 && p.tooBigFor(t.largest(), known-add, packet.DF(b) && !w.whole) {
		w.tooBig(b, h, known-add)
		return
	}
	for t.next < t.count {
		w.authenticateSome(o, p, s, &t, &m, add, uncounted)
	}
}

func outerVersion(p *path) uint8 {
	if p.remote.Addr().Is6() {
		return 6
	}
	return 4
}

// authenticateSome seals up to a burst of segments, as many as the buffer holds.
// add is by how much each grows.
func (w *outWorker) authenticateSome(o *outSA, p *path, s *ah.Sealer, t *train, m *netio.Message, add, uncounted int) {
	size := t.largest() + add
	if w.used+size > len(w.buf) {
		w.flush()
	}
	n := min(burst, t.count-t.next, (len(w.buf)-w.used)/size)
	if n == 0 { // cannot be: the buffer holds the largest packet
		w.counts.add(packet.WhyNoRoom, uint64(t.count-t.next))
		t.next = t.count
		return
	}
	// Numbers and lifetime do not depend on the protocol.
	jobs := w.jobs[:n]
	for i := range jobs {
		jobs[i] = esp.SealJob{Size: t.size(t.next+i) - uncounted}
	}
	o.Reserve(w.now, jobs)
	for i := range jobs {
		b, next := t.segment()
		if jobs[i].Why != packet.WhyOK {
			w.counts.add(jobs[i].Why, 1)
			continue
		}
		var got int
		var why packet.Why
		if o.SA().Mode == ipsec.ModeTunnel {
			got, why = w.tunnelAH(p, s, b, next, add, jobs[i].Seq)
		} else {
			w.identify(b)
			got, why = s.SealFrom(w.buf[w.used:], b, jobs[i].Seq)
		}
		if why != packet.WhyOK {
			w.counts.add(why, 1)
			continue
		}
		w.enqueue(p, m, got)
	}
}

// tunnelAH makes a tunnel-mode packet at the end of the buffer.
func (w *outWorker) tunnelAH(p *path, s *ah.Sealer, inner []byte, next uint8, add int, seq uint64) (int, packet.Why) {
	dst := w.buf[w.used:]
	if len(dst) < add+len(inner) {
		return 0, packet.WhyNoRoom
	}
	if why := p.outer.Put(dst[:add+len(inner)], packet.TOS(inner), packet.DF(inner), w.ident()); why != packet.WhyOK {
		return 0, why
	}
	copy(dst[add:], inner)
	return s.Seal(dst, p.outer.Len(), len(inner), next, seq)
}

// identify gives an IPv4 packet an identification if it has none: the kernel would
// give it one, and AH covers it.
func (w *outWorker) identify(b []byte) {
	if b[0]>>4 != 4 || b[4]|b[5] != 0 {
		return
	}
	binary.BigEndian.PutUint16(b[4:], w.ident())
	packet.SetChecksum4(b)
}

// ident is the next IPv4 identification, which is never 0.
func (w *outWorker) ident() uint16 {
	for {
		if id := uint16(w.e.ident.Add(1)); id != 0 {
			return id
		}
	}
}

// authentic takes an IP packet with AH into the burst.
func (w *inWorker) authentic(d []byte) {
	h, why := packet.Parse(d)
	if why != packet.WhyOK {
		w.counts.add(why, 1)
		return
	}
	if h.Protocol != packet.ProtoAH || h.Fragment() {
		w.counts.add(packet.WhyNextHead, 1)
		return
	}
	spi, _, ok := ah.Peek(d[h.Upper:])
	if !ok {
		w.counts.add(packet.WhyShort, 1)
		return
	}
	if w.take(spi) {
		w.ah[w.n] = ah.OpenJob{Packet: d, At: int(h.Upper)}
		w.n++
	}
}

// openAH is open for a burst of AH.
func (w *inWorker) openAH() {
	in, jobs := w.in, w.ah[:w.n]
	in.mu.Lock()
	defer in.mu.Unlock()
	in.OpenAHBurst(w.now, jobs)
	for i := range jobs {
		j := &jobs[i]
		why := j.Why
		p := arrival{head: j.Payload}
		if why == packet.WhyOK && in.SA().Mode == ipsec.ModeTransport {
			// From end to end the ICV does more than the checksum inside.
			p.trusted = true
			p.head, why = ah.Strip(j.Packet, j.At)
		}
		if why == packet.WhyOK {
			why = w.deliver(in, &p, packet.TOS(j.Packet))
		}
		if why != packet.WhyOK {
			w.counts.add(why, 1)
		}
	}
}
