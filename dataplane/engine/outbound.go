package engine

import (
	"net/netip"
	"sync"

	"github.com/testudo-ipsec/testudo/dataplane/esp"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/dataplane/spd"
	"github.com/testudo-ipsec/testudo/ipsec"
)

const (
	// sendBuffer holds the sealed packets of one batch: the largest train and
	// what sealing adds, and a few more.
	sendBuffer = 256 << 10
	// tunBatch is how many packets are taken from the TUN before they are sent.
	tunBatch = 32
	// flowSlots is the size of a worker's flow cache.
	flowSlots = 4096
	// burst is how many packets are sealed or opened under one reservation.
	burst = netio.MaxSegments
)

// route is what a worker remembers of a flow.
type route struct {
	verdict spd.Verdict
	why     packet.Why
	out     *outSA
	nested  bool // what out sends comes back through the TUN, for the SA around it
}

// carriesFragments reports whether fragments of the flow travel as they are.
func (r *route) carriesFragments(s *state) bool {
	if r.out != nil {
		return r.out.SA().Mode == ipsec.ModeTunnel
	}
	return s.table.Rules[r.verdict.Rule].Template.Mode == ipsec.ModeTunnel
}

// outWorker takes packets from one TUN queue to the sockets.
type outWorker struct {
	e       *Engine
	id      int  // of its TUN queue
	slot    int  // of the worker's sealer in every outSA
	relay   bool // it sends on what came in SAs: never in clear, even where policy permits it meanwhile
	mu      sync.Mutex
	cache   *spd.Cache[route]
	senders []netio.Sender
	clear   [2]netio.Sender
	tun     netio.TunWriter
	now     int64

	packets []netio.Packet // of the batch at hand

	buf   []byte
	used  int
	queue []sendQueue // by socket
	jobs  [burst]esp.SealJob
	head  [maxTrainHeader]byte

	header packet.Header // of the packet at hand
	icmp   [packet.TooBigLen]byte

	fragments reassembler
	whole     bool // the packet at hand was fragments, which its source has cut to the path
	counts    counts
}

// sendQueue is what will be sent on one socket. Packets of one path and equal
// length that lie next to each other in the buffer become a train.
type sendQueue struct {
	msgs  []netio.Message
	path  *path // of the last message, nil when it takes no more
	end   int   // where the last message ends in the buffer
	count int   // datagrams in the last message
	train bool  // the socket takes trains
}

func newOutWorker(e *Engine, id int, t netio.Tun) *outWorker {
	w := &outWorker{e: e, id: id, slot: id, cache: spd.NewCache[route](flowSlots), tun: t.Writer(), buf: make([]byte, sendBuffer)}
	w.fragments.counts = &w.counts
	for i := range e.cfg.Sockets {
		w.senders = append(w.senders, e.sender(i, id))
		w.queue = append(w.queue, sendQueue{train: e.cfg.Sockets[i].Port != 0})
	}
	w.queue = append(w.queue, sendQueue{}) // wholeQueue
	for i, c := range e.cfg.Clear {
		if c != nil {
			w.clear[i] = c.Sender()
		}
	}
	w.senders = append(w.senders, w.clear[0])
	return w
}

func (w *outWorker) loop(t netio.Tun) error {
	w.packets = make([]netio.Packet, tunBatch)
	for i := range w.packets {
		// Room after the largest packet lets a sealer borrow octets for its trailer.
		w.packets[i].Data = make([]byte, 0, netio.MaxPacket+256)
	}
	for {
		n, err := t.Read(w.packets)
		if err != nil {
			if gone(err) {
				return err
			}
			w.counts.add(packet.WhyRead, 1)
			if n == 0 {
				return err
			}
		}
		w.guarded(n)
	}
}

// begin starts a batch.
func (w *outWorker) begin() { w.now = w.e.cfg.Now().UnixNano() }

// packet sends one packet or train on its way.
func (w *outWorker) packet(b []byte, o netio.Offload) {
	parsed, why := packet.Parse(b)
	if why != packet.WhyOK {
		w.counts.add(why, 1)
		return
	}
	w.header = parsed // a local one would escape to the heap
	h := &w.header
	b = b[:h.Length]
	k := spd.PacketKey(h, b, ipsec.Outbound)
	s := w.e.state.Load()
	r := w.decide(s, &k)
	if h.Fragment() && (r.why == packet.WhyFragment || r.verdict.Action == ipsec.ActionSecure && !r.carriesFragments(s)) {
		if whole := w.fragments.add(0, b, h, w.now); whole != nil {
			w.whole = true
			w.packet(whole, netio.Offload{})
			w.whole = false
		}
		return
	}
	if r.verdict.Rule >= 0 {
		hit := &s.hits[r.verdict.Rule]
		packets, octets := sizes(b, h, &o)
		hit.packets.Add(uint64(packets))
		hit.bytes.Add(uint64(octets))
	}
	switch {
	case r.out != nil:
		w.protect(r, b, h, &o)
	case r.why != packet.WhyOK:
		w.counts.add(r.why, 1)
	case r.verdict.Action == ipsec.ActionPermit:
		w.inClear(b, h, &o)
	default:
		w.acquire(s, r, b, h, o)
	}
}

// sizes is how many packets a packet or train stands for, and how many octets
// they have together: each repeats the headers.
func sizes(b []byte, h *packet.Header, o *netio.Offload) (packets, octets int) {
	head := int(h.Upper) + 8
	if h.Protocol == packet.ProtoTCP && len(b) > int(h.Upper)+12 {
		head = int(h.Upper) + int(b[h.Upper+12]>>4)*4
	}
	if o.GSO == netio.GSONone || o.Segment == 0 || head >= len(b) {
		return 1, len(b)
	}
	packets = (len(b) - head + int(o.Segment) - 1) / int(o.Segment)
	return packets, len(b) + (packets-1)*head
}

// decide is what is to be done with a flow, from memory if it is there.
func (w *outWorker) decide(s *state, k *spd.Key) *route {
	r := w.cache.Find(k, s.stamp)
	if r == nil {
		r = w.cache.Put(k, s.stamp, w.route(s, k))
	}
	return r
}

// route decides about a flow: the verdict, and for secure the SA that carries it.
func (w *outWorker) route(s *state, k *spd.Key) route {
	v := s.table.Lookup(k)
	r := route{verdict: v, why: v.Why}
	if v.Action != ipsec.ActionSecure {
		return r
	}
	if r.out = w.carrier(s, v.Rule, k); r.out != nil && s.table.Nests {
		if r.nested, r.why = w.nests(s, r.out); r.why != packet.WhyOK {
			r.out = nil
		}
	}
	return r
}

// unsuited is above all that suits returns.
const unsuited = 6

// suits is lower for an SA that a worker should rather send on: one for its queue
// alone, then the fallback SA, then one of another queue (RFC 9611), which is slower
// but no less right. An SA without numbers comes after all others: it drops, counted
// as no-lease, while more are on the way; a new negotiation would not help.
func (w *outWorker) suits(o *outSA) int {
	n := 2
	switch o.SA().Resource {
	case uint32(w.id + 1):
		n = 0
	case 0:
		n = 1
	}
	if o.LeaseLeft() == 0 {
		n += 3
	}
	return n
}

// acquire lets a packet wait for an SA.
func (w *outWorker) acquire(s *state, r *route, b []byte, h *packet.Header, o netio.Offload) {
	why, stale := w.e.acquires.add(s.stamp, &s.table.Rules[r.verdict.Rule], h.Flow(b, ipsec.Outbound), waiter{netio.Packet{Data: b, Offload: o}, w.relay})
	switch {
	case stale:
		w.packet(b, o)
	case why == packet.WhyOK:
		w.inClear(b, h, &o)
	case why != packet.WhyAcquiring:
		w.counts.add(why, 1)
	}
}

// protect seals a packet or the segments of a train.
func (w *outWorker) protect(r *route, b []byte, h *packet.Header, off *netio.Offload) {
	o := r.out
	if o.SA().Protocol == ipsec.ProtocolAH {
		w.authenticate(r, b, h, off)
		return
	}
	p := o.path.Load()
	s := o.sealer(w.slot).esp
	t, why := newTrain(b, h, off, w.head[:])
	if why == packet.WhyOK && o.SA().Mode == ipsec.ModeTransport {
		why = t.forTransport()
	}
	if why != packet.WhyOK {
		w.counts.add(why, uint64(max(t.count, 1)))
		return
	}
	mtu := o.innerMTU(p, s, o.SA().Mode, w.outerMTU(r, p))
	if p.tooBigFor(t.largest(), mtu, packet.DF(b) && !w.whole) {
		w.tooBig(b, h, mtu)
		return
	}
	m := netio.Message{Local: p.local, Remote: p.remote, TOS: packet.TOS(b)}
	if t.skip != 0 {
		m.TTL, m.FlowLabel = packet.TTL(b), packet.FlowLabel(b) // transport mode keeps the packet's own header
	} else if p.outer != nil {
		m.TOS, m.FlowLabel = p.outer.TOS(m.TOS), p.flowLabel(b)
	}
	if p.room != 0 {
		m = wholeMessage(p)
	}
	total := 0
	if o.SA().PadTo != 0 {
		total = w.padded(o, s, mtu)
	}
	for t.next < t.count {
		w.sealSome(o, p, s, &t, &m, total)
	}
}

// padded is the length of the ESP packet that shorter ones are padded to: no more than
// the path carries, as far as that is known.
func (w *outWorker) padded(o *outSA, s *esp.Sealer, mtu int) int {
	n := min(int(o.SA().PadTo), int(w.e.mtu.Load()))
	if mtu != 0 {
		n = min(n, mtu)
	}
	return s.SealedLen(n)
}

// pad is SealFrom with traffic flow confidentiality padding; what is longer stays so.
func pad(s *esp.Sealer, dst, src []byte, next uint8, seq uint64, total int) (int, packet.Why) {
	if s.SealedLen(len(src)) >= total {
		return s.SealFrom(dst, src, next, seq)
	}
	copy(dst[s.HeaderLen():], src)
	return s.SealPadded(dst, len(src), total, next, seq)
}

// sealSome seals up to a burst of segments, as many as the buffer holds. ESP packets
// shorter than total are padded to it.
func (w *outWorker) sealSome(o *outSA, p *path, s *esp.Sealer, t *train, m *netio.Message, total int) {
	size := int(p.room) + max(s.SealedLen(t.largest()-t.skip), total)
	if w.used+size > len(w.buf) {
		w.flush()
	}
	n := min(burst, t.count-t.next, (len(w.buf)-w.used)/size)
	if n == 0 { // cannot be: the buffer holds the largest packet
		w.counts.add(packet.WhyNoRoom, uint64(t.count-t.next))
		t.next = t.count
		return
	}
	jobs := w.jobs[:n]
	for i := range jobs {
		jobs[i] = esp.SealJob{Size: t.size(t.next+i) - t.skip}
	}
	o.Reserve(w.now, jobs)
	for i := range jobs {
		inner, next := t.segment()
		if jobs[i].Why != packet.WhyOK {
			w.counts.add(jobs[i].Why, 1)
			continue
		}
		dst := w.buf[w.used+int(p.room):]
		var got int
		var why packet.Why
		if total == 0 {
			got, why = s.SealFrom(dst, inner, next, jobs[i].Seq)
		} else {
			got, why = pad(s, dst, inner, next, jobs[i].Seq, total)
		}
		if p.room != 0 && why == packet.WhyOK {
			got, why = w.putOuter(p, inner, got)
		}
		if why != packet.WhyOK {
			w.counts.add(why, 1)
			continue
		}
		w.enqueue(p, m, got)
	}
}

// enqueue adds the n octets at the end of the buffer to what will be sent.
func (w *outWorker) enqueue(p *path, m *netio.Message, n int) {
	q := &w.queue[p.socket]
	if p.room != 0 {
		q = &w.queue[w.wholeQueue()]
	}
	start := w.used
	w.used += n
	if last := len(q.msgs) - 1; q.path == p && q.end == start && q.msgs[last].TOS == m.TOS && q.msgs[last].TTL == m.TTL && q.msgs[last].FlowLabel == m.FlowLabel {
		l := &q.msgs[last]
		full := max(l.Segment, len(l.Data)/q.count)
		if n <= full && q.count < netio.MaxSegments && len(l.Data)+n <= netio.MaxTrainBytes {
			l.Segment = full
			l.Data = w.buf[start-len(l.Data) : w.used]
			q.count++
			q.end = w.used
			if n < full { // the short one is the last of a train
				q.path = nil
			}
			return
		}
	}
	m.Data = w.buf[start:w.used:w.used]
	q.msgs = append(q.msgs, *m)
	q.path, q.end, q.count = p, w.used, 1
	if !q.train {
		q.path = nil
	}
}

// flush sends what was sealed.
func (w *outWorker) flush() {
	for i := range w.queue {
		q := &w.queue[i]
		if len(q.msgs) == 0 {
			continue
		}
		if n, err := w.senders[i].Send(q.msgs); err != nil {
			w.counts.add(packet.WhyWrite, uint64(len(q.msgs)-n))
		}
		q.msgs = q.msgs[:0]
		q.path = nil
	}
	w.used = 0
}

// outerMTU is the largest packet that may leave on a path, 0 when no limit is known
// beyond the TUN's own.
func (w *outWorker) outerMTU(r *route, p *path) int {
	m := p.known(w.now)
	if r.nested {
		if tun := int(w.e.mtu.Load()); m == 0 || tun < m {
			return tun
		}
	}
	return m
}

// tooBig tells the sender of a packet how much fits (RFC 4301 §8.2).
func (w *outWorker) tooBig(b []byte, h *packet.Header, mtu int) {
	w.counts.add(packet.WhyTooBig, 1)
	if w.tellInner(b, h, mtu) {
		return
	}
	// The packet's own destination is the one address that is sure to be
	// routable from the sender and to pass its checks.
	n, why := packet.PutTooBig(w.icmp[:], b, h, h.Dst(b), mtu)
	if why != packet.WhyOK {
		return
	}
	if w.relay { // the sender is behind a peer
		w.packet(w.icmp[:n], netio.Offload{})
		return
	}
	if err := w.tun.Write(netio.Offload{}, [][]byte{w.icmp[:n]}); err != nil {
		w.counts.add(packet.WhyWrite, 1)
	}
}

// inClear sends a packet as it is, past the policy.
func (w *outWorker) inClear(b []byte, h *packet.Header, o *netio.Offload) {
	i := 0
	if h.Version == 6 {
		i = 1
	}
	t, why := newTrain(b, h, o, w.head[:])
	if why == packet.WhyOK && (w.clear[i] == nil || w.relay) {
		why = packet.WhyUnsupported
	}
	if why != packet.WhyOK {
		w.counts.add(why, uint64(max(t.count, 1)))
		return
	}
	to := netip.AddrPortFrom(h.Dst(b), 0)
	for t.next < t.count {
		inner, _ := t.segment()
		if _, err := w.clear[i].Send([]netio.Message{{Data: inner, Remote: to}}); err != nil {
			w.counts.add(packet.WhyWrite, 1)
		}
	}
}

// explain decides about a flow without the cache, which is not its to touch.
func (w *outWorker) explain(s *state, f ipsec.Flow, d ipsec.Direction) route {
	k := spd.FlowKey(f, d)
	if d == ipsec.Outbound {
		at := outWorker{e: w.e, id: -1, now: w.e.cfg.Now().UnixNano()} // of no queue
		return at.route(s, &k)
	}
	r := route{verdict: s.table.Lookup(&k)}
	r.why = r.verdict.Why
	if r.verdict.Action == ipsec.ActionSecure && !s.table.Rules[r.verdict.Rule].Template.AcceptClear {
		r.why = packet.WhyClear
	}
	return r
}
