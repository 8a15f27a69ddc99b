package engine

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/testudo-ipsec/testudo/dataplane/ah"
	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/esp"
	"github.com/testudo-ipsec/testudo/dataplane/natt"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/dataplane/spd"
	"github.com/testudo-ipsec/testudo/ipsec"
)

const (
	// recvBatch is how many messages one receive takes where each may be a train.
	// From a raw socket, which knows no trains, it takes a burst.
	recvBatch = 16
	// spiSlots is the size of a worker's memory of inbound SAs.
	spiSlots = 256
	// peek is how much of a transport-mode payload is copied behind its
	// rebuilt IP header: it holds the upper-layer header with options.
	peek = 128
)

// inWorker takes packets from one socket to the TUN.
type inWorker struct {
	e    *Engine
	sock *Socket
	now  int64
	msgs []netio.Message
	spis [spiSlots]spiSlot

	in    *inSA // whose packets are in jobs
	from  [burst]*netio.Message
	jobs  [burst]esp.OpenJob
	n     int
	heads [burst][40 + peek]byte
	ah    []ah.OpenJob // instead of jobs, for a socket of AH; nil otherwise
	gro   coalescer

	fragments reassembler
	pieces    fragmenter
	relaying  *outWorker // has what was relayed in the batch at hand
	holding   bool       // its lock

	counts counts
}

type spiSlot struct {
	spi   ipsec.SPI
	stamp uint64
	in    *inSA
}

func newInWorker(e *Engine, s *Socket, t netio.Tun) *inWorker {
	w := &inWorker{e: e, sock: s, msgs: make([]netio.Message, recvBatch)}
	if s.Port == 0 {
		w.msgs = make([]netio.Message, burst)
	}
	for i := range w.msgs {
		w.msgs[i].Data = make([]byte, 0, netio.MaxPacket)
	}
	if s.AH {
		w.ah = make([]ah.OpenJob, burst)
	}
	w.gro.init(t.Writer(), &w.counts, e.cfg.TrainUDP)
	w.fragments.counts = &w.counts
	return w
}

func (w *inWorker) loop() error {
	for {
		n, err := w.sock.Conn.Recv(w.msgs)
		if err != nil {
			if !gone(err) {
				w.counts.add(packet.WhyRead, 1)
			}
			return err
		}
		w.guarded(n)
	}
}

// batch handles what one receive brought. Nothing of it is kept.
func (w *inWorker) batch(ms []netio.Message) {
	w.now = w.e.cfg.Now().UnixNano()
	for i := range ms {
		m := &ms[i]
		for data := m.Data; ; {
			d := data
			if m.Segment != 0 && len(d) > m.Segment {
				d = d[:m.Segment]
			}
			w.datagram(m, d)
			if data = data[len(d):]; len(data) == 0 {
				break
			}
		}
	}
	w.open()
	w.gro.flush()
	w.endRelay()
}

// datagram sorts one datagram: IKE goes up, ESP waits for the burst to fill.
func (w *inWorker) datagram(m *netio.Message, d []byte) {
	switch {
	case w.ah != nil:
		w.authentic(d)
	case w.sock.Port == 0:
		w.esp(m, d)
	case !w.sock.Encap:
		w.ike(m, d)
	default:
		switch kind, inside := natt.Demux(d); kind {
		case natt.ESP:
			w.esp(m, inside)
		case natt.IKE:
			w.ike(m, inside)
		case natt.Keepalive:
			w.counts.add(packet.WhyKeepalive, 1)
		default:
			w.counts.add(packet.WhyDatagram, 1)
		}
	}
}

// minIKE is the length of an IKE header (RFC 7296 §3.1).
const minIKE = 28

func (w *inWorker) ike(m *netio.Message, d []byte) {
	if len(d) < minIKE {
		w.counts.add(packet.WhyDatagram, 1)
		return
	}
	w.e.cfg.Emit(backend.IKE{Path: backend.Path{Local: m.Local, Remote: m.Remote, TCP: w.sock.TCP}, Data: bytes.Clone(d)})
}

func (w *inWorker) esp(m *netio.Message, d []byte) {
	spi, _, ok := esp.Peek(d)
	if !ok {
		w.counts.add(packet.WhyShort, 1)
		return
	}
	if w.take(spi) {
		w.jobs[w.n] = esp.OpenJob{Packet: d}
		w.from[w.n] = m
		w.n++
	}
}

// take makes room in the burst for a packet of an SPI; false if there is no SA.
func (w *inWorker) take(spi ipsec.SPI) bool {
	in := w.in
	if in == nil || in.SA().SPI != spi {
		if in = w.lookup(spi); in == nil {
			w.counts.add(packet.WhyNoSA, 1)
			return false
		}
	}
	if in != w.in || w.n == burst {
		w.open()
		w.in = in
	}
	return true
}

// lookup finds the inbound SA of an SPI, from this worker's memory if it can.
func (w *inWorker) lookup(spi ipsec.SPI) *inSA {
	stamp := w.e.state.Load().stamp
	slot := &w.spis[uint32(spi)*0x9e3779b1>>24]
	if slot.spi == spi && slot.stamp == stamp {
		return slot.in
	}
	in := w.e.table(w.protocol()).lookup(spi)
	if in != nil {
		*slot = spiSlot{spi, stamp, in}
	}
	return in
}

func (w *inWorker) protocol() ipsec.Protocol {
	if w.ah != nil {
		return ipsec.ProtocolAH
	}
	return ipsec.ProtocolESP
}

// open opens the gathered burst and hands on what is good.
func (w *inWorker) open() {
	if w.n == 0 {
		return
	}
	if w.ah != nil {
		w.openAH()
	} else {
		w.openESP()
	}
	// What the coalescer holds lies in heads and jobs.
	w.gro.flush()
	w.releaseRelay()
	w.in, w.n = nil, 0
}

func (w *inWorker) openESP() {
	in, jobs := w.in, w.jobs[:w.n]
	in.mu.Lock()
	defer in.mu.Unlock()
	in.OpenBurst(w.now, jobs)
	for i := range jobs {
		if jobs[i].Why != packet.WhyOK {
			w.counts.add(jobs[i].Why, 1)
			continue
		}
		in.reportMove(w.e, jobs[i].Seq, w.from[i].Local, w.from[i].Remote, w.now)
		if why := w.inner(in, i); why != packet.WhyOK {
			w.counts.add(why, 1)
		}
	}
}

// inner checks an opened packet against its SA and delivers it.
func (w *inWorker) inner(in *inSA, i int) packet.Why {
	j, m := &w.jobs[i], w.from[i]
	p := arrival{head: j.Payload}
	if in.SA().Mode != ipsec.ModeTunnel {
		var why packet.Why
		if p, why = w.rebuild(in, i); why != packet.WhyOK {
			return why
		}
	}
	return w.deliver(in, &p, m.TOS)
}

// deliver checks a packet against its SA and gives it to the TUN. tos is that of
// the outer header.
func (w *inWorker) deliver(in *inSA, p *arrival, tos uint8) (why packet.Why) {
	if p.h, why = packet.Parse(p.head); why != packet.WhyOK {
		return why
	}
	k := spd.PacketKey(&p.h, p.head, ipsec.Inbound)
	switch why := in.sel.Check(&k); {
	case why == packet.WhyFragment && in.SA().Mode == ipsec.ModeTunnel:
		// The SA has ports and a fragment has none: the whole packet decides.
		whole := w.fragments.add(in.SA().ID, p.head, &p.h, w.now)
		if whole == nil {
			return packet.WhyOK // it waits, or was counted
		}
		return w.deliver(in, &arrival{head: whole}, tos)
	case why == packet.WhyInner:
		in.reportBad(w.e, &p.h, p.head, w.now)
		return why
	case why != packet.WhyOK:
		return why
	}
	s := w.e.state.Load()
	if s.table.Nests && s.misplaced(in, &p.h, p.head) {
		return packet.WhyInner
	}
	if in.SA().Mode == ipsec.ModeTunnel {
		if why := packet.DecapECN(p.head, tos); why != packet.WhyOK {
			return why
		}
		// From the peer itself: the ICV covers it from end to end, which is
		// more than its checksum does. What the peer forwards is checked.
		p.trusted = p.h.Src(p.head) == in.path.Load().remote.Addr()
		p.head = p.head[:p.h.Length]
		if s.relays != nil && w.relayed(s, in, p) {
			return packet.WhyOK
		}
		if p.h.Version == 6 && p.h.Length > int(w.e.mtu.Load()) && !p.h.Fragment() {
			return w.cutUp(p)
		}
	} else if why := p.finish(in.path.Load().encap != nil); why != packet.WhyOK {
		return why
	}
	w.gro.add(p, &k)
	return packet.WhyOK
}

// arrival is an opened packet: head holds all of its headers, tail the rest.
type arrival struct {
	head, tail []byte
	h          packet.Header
	trusted    bool // the upper-layer checksum need not be verified
	partial    bool // it holds the sum of the pseudo header: see finish
}

// rebuild puts the IP header of a transport-mode packet back, from what the
// socket said of it. The header is followed by the first octets of the payload
// only, and its length says so until finish.
func (w *inWorker) rebuild(in *inSA, i int) (arrival, packet.Why) {
	j, m := &w.jobs[i], w.from[i]
	src, dst := m.Remote.Addr(), m.Local.Addr()
	if src.Is4() != dst.Is4() || !dst.IsValid() {
		return arrival{}, packet.WhyFamily
	}
	b := w.heads[i][:]
	ip := putIP(b, src, dst, j.Next, m.TOS)
	if ip+len(j.Payload) > 65535 {
		return arrival{}, packet.WhyTooBig
	}
	n := copy(b[ip:ip+peek], j.Payload)
	packet.SetLength(b, ip+n)
	return arrival{head: b[:ip+n], tail: j.Payload[n:], trusted: true}, packet.WhyOK
}

// putIP writes an IP header without its length and returns its size. The TTL
// has done its work: the packet has arrived.
func putIP(b []byte, src, dst netip.Addr, proto, tos uint8) int {
	if src.Is4() {
		clear(b[:20])
		b[0], b[1] = 0x45, tos
		b[6] = 0x40 // DF: the identification may then be 0 (RFC 6864 §4.1)
		b[8], b[9] = 64, proto
		s, d := src.As4(), dst.As4()
		copy(b[12:], s[:])
		copy(b[16:], d[:])
		packet.SetChecksum4(b)
		return 20
	}
	binary.BigEndian.PutUint32(b, 6<<28|uint32(tos)<<20)
	b[6], b[7] = proto, 64
	s, d := src.As16(), dst.As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	return 40
}

// finish completes a rebuilt packet. Behind a NAT the addresses are not those
// that the sender's TCP or UDP checksum covers; the packet is authentic, so the
// checksum is left to be made anew (RFC 3948 §3.1.2): it becomes the sum of the
// pseudo header, which the kernel understands.
func (p *arrival) finish(natted bool) packet.Why {
	n := len(p.head) + len(p.tail)
	packet.SetLength(p.head, n)
	p.h.Length = n
	if !natted || p.h.Fragment() {
		return packet.WhyOK
	}
	at := 16
	switch p.h.Protocol {
	case packet.ProtoTCP:
	case packet.ProtoUDP:
		at = 6
	default:
		return packet.WhyOK
	}
	up := p.head[p.h.Upper:]
	if len(up) < at+2 {
		return packet.WhyTruncated
	}
	if at == 6 && up[6]|up[7] == 0 {
		return packet.WhyOK // UDP without a checksum
	}
	sum := packet.PseudoSum(p.h.Src(p.head), p.h.Dst(p.head), p.h.Protocol, n-int(p.h.Upper))
	binary.BigEndian.PutUint16(up[at:], sum)
	p.partial = true
	return packet.WhyOK
}
