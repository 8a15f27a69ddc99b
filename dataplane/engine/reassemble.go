package engine

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Bounds of reassembly, for each worker.
const (
	maxReassembly     = 16
	reassemblyTimeout = 5 * time.Second
	maxFragments      = 64 // of one datagram
)

// reassembler makes whole packets of fragments, so that their rule can be found.
// Of those from the TUN it takes what SAs cannot carry: transport mode (RFC 4303
// §3.1.1) and selectors with ports (RFC 4301 §7). Of those from the network it takes
// what arrives in an SA whose selectors have ports, which only the whole packet can
// be compared with (RFC 4301 §7.3). Fragments that overlap end the datagram
// (RFC 5722 §4; the same is done for IPv4).
type reassembler struct {
	counts  *counts
	pending [maxReassembly]datagram
}

type fragmentKey struct {
	sa       ipsec.SAID // that brought it: no SA adds to what another one carries
	src, dst netip.Addr
	proto    uint8
	id       uint32
}

type datagram struct {
	key   fragmentKey
	since int64
	used  bool
	head  []byte // headers of the first fragment; nil until it is there
	data  []byte
	have  int // octets that have arrived
	total int // known from the last fragment; -1 before
	spans []fragmentSpan
}

type fragmentSpan struct{ first, end int }

// add takes a fragment and returns the whole packet with the last one. The
// packet is good until the next call.
func (r *reassembler) add(sa ipsec.SAID, b []byte, h *packet.Header, now int64) []byte {
	hlen := int(h.Fixed)
	k := fragmentKey{sa: sa, src: h.Src(b), dst: h.Dst(b), proto: h.Protocol}
	if h.Version == 4 {
		k.id = uint32(binary.BigEndian.Uint16(b[4:]))
	} else {
		// The fragment header is the only extension header that is understood here.
		if h.Insert != 48 || h.InsertNext != 40 {
			r.counts.add(packet.WhyFragment, 1)
			return nil
		}
		k.id, k.proto = binary.BigEndian.Uint32(b[44:]), b[40]
		hlen = 48
	}
	d := r.find(k, now)
	data := b[hlen:h.Length]
	at := int(h.FragmentOffset)
	if why := d.place(at, len(data), h.MoreFragments); why != packet.WhyOK {
		r.drop(d, why)
		r.counts.add(why, 1)
		return nil
	}
	if at+len(data) > len(d.data) {
		d.data = append(d.data, make([]byte, at+len(data)-len(d.data))...)
	}
	copy(d.data[at:], data)
	if at == 0 {
		d.head = append(d.head[:0], b[:h.Fixed]...)
		if h.Version == 6 {
			d.head[6] = b[40]
		}
	}
	if len(d.head) == 0 || d.total != d.have {
		return nil
	}
	whole := append(append(make([]byte, 0, len(d.head)+d.total+64), d.head...), d.data[:d.total]...)
	d.used = false
	if packet.SetLength(whole, len(whole)) != packet.WhyOK {
		r.counts.add(packet.WhyFragment, 1)
		return nil
	}
	if h.Version == 4 {
		whole[6], whole[7] = 0, 0
		packet.SetChecksum4(whole)
	}
	return whole
}

// place records where a fragment lies, if it may lie there.
func (d *datagram) place(at, n int, more bool) packet.Why {
	end := at + n
	switch {
	case n == 0, end > 65535, more && n%8 != 0:
		return packet.WhyFragment
	case len(d.spans) == maxFragments:
		return packet.WhyFragmentFlood
	case d.total >= 0 && (end > d.total || !more), !more && len(d.data) > end:
		return packet.WhyFragmentOverlap
	}
	for _, s := range d.spans {
		if at < s.end && s.first < end {
			return packet.WhyFragmentOverlap
		}
	}
	d.spans = append(d.spans, fragmentSpan{at, end})
	d.have += n
	if !more {
		d.total = end
	}
	return packet.WhyOK
}

// find is the datagram of a key, a fresh one if need be.
func (r *reassembler) find(k fragmentKey, now int64) *datagram {
	oldest := &r.pending[0]
	for i := range r.pending {
		d := &r.pending[i]
		if d.used && now-d.since > int64(reassemblyTimeout) {
			r.drop(d, packet.WhyFragmentTimeout)
		}
		if d.used && d.key == k {
			return d
		}
		if !d.used || oldest.used && d.since < oldest.since {
			oldest = d
		}
	}
	if oldest.used {
		r.drop(oldest, packet.WhyFragmentFlood)
	}
	*oldest = datagram{
		key: k, since: now, used: true, total: -1,
		head: oldest.head[:0], data: oldest.data[:0], spans: oldest.spans[:0],
	}
	return oldest
}

// drop gives a datagram up, and counts its fragments.
func (r *reassembler) drop(d *datagram, why packet.Why) {
	r.counts.add(why, uint64(len(d.spans)))
	d.used = false
}
