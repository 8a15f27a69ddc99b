package engine

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// FuzzReassembly cuts one of four datagrams in any way, in any order: a whole one
// must be what was cut, and the table must stay within its bounds. Each fragment
// takes five octets of input: datagram and flags, offset in units of 8, length.
func FuzzReassembly(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 16, 0, 0, 2, 0, 5}, false)                 // two pieces
	f.Add([]byte{0, 0, 2, 0, 5, 1, 0, 0, 0, 16}, true)                  // the last one first
	f.Add([]byte{1, 0, 0, 0, 16, 1, 0, 1, 0, 16, 0, 0, 2, 0, 5}, false) // an overlap
	f.Add([]byte{0, 0x1f, 0xff, 0xff, 0xff}, false)                     // beyond the largest packet
	f.Add(bytes.Repeat([]byte{1, 0, 1, 0, 8}, 100), true)               // the same one again and again
	f.Fuzz(func(t *testing.T, script []byte, v6 bool) {
		var n counts
		r := reassembler{counts: &n}
		src, dst := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.2.0.1")
		if v6 {
			src, dst = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
		}
		for now := int64(1); len(script) >= 5; now += int64(reassemblyTimeout) / 50 {
			id, more := script[0]>>1&3, script[0]&1 != 0
			at, size := int(binary.BigEndian.Uint16(script[1:])&0x1fff)*8, int(binary.BigEndian.Uint16(script[3:]))
			script = script[5:]
			size = min(size, 65535-60)
			source := func(i int) byte { return byte(i*31) + id*7 } // what the datagram holds
			data := make([]byte, size)
			for i := range data {
				data[i] = source(at + i)
			}
			b := fragmentOf(src, dst, uint16(id)+1, at, more, data)
			h, why := packet.Parse(b)
			if why != packet.WhyOK {
				continue // the first fragment is too short for ports
			}
			if !h.Fragment() {
				continue
			}
			whole := r.add(0, b, &h, now)
			if whole == nil {
				continue
			}
			wh, why := packet.Parse(whole)
			if why != packet.WhyOK || wh.Fragment() || wh.Length != len(whole) {
				t.Fatalf("a whole packet of %d octets: %v, %+v", len(whole), why, wh)
			}
			for i, x := range whole[wh.Upper:] {
				if x != source(i) {
					t.Fatalf("octet %d of %d is not the one that was sent", i, len(whole))
				}
			}
		}
		for i := range r.pending {
			if d := &r.pending[i]; len(d.spans) > maxFragments || len(d.data) > 65535 {
				t.Fatalf("%d spans, %d octets kept of one datagram", len(d.spans), len(d.data))
			}
		}
	})
}

// fragmentOf makes a UDP fragment of either family.
func fragmentOf(src, dst netip.Addr, id uint16, at int, more bool, data []byte) []byte {
	b := ipHeader(src, dst, packet.ProtoUDP, 0)
	flags := uint16(at)
	if src.Is4() {
		flags /= 8
		if more {
			flags |= 0x2000
		}
		binary.BigEndian.PutUint16(b[4:], id)
		binary.BigEndian.PutUint16(b[6:], flags)
	} else {
		if more {
			flags |= 1
		}
		b = append(b[:40:40], packet.ProtoUDP, 0, byte(flags>>8), byte(flags), 0, 0, byte(id>>8), byte(id))
		b[6] = packet.ProtoFragment
	}
	b = append(b[:len(b):len(b)], data...)
	packet.SetLength(b, len(b))
	return b
}

// FuzzTun gives the outbound path any octets with any virtio header: what the
// kernel says of a train may be wrong, and must not lead out of the packet, to a
// panic, or to anything on the wire that the peer does not open.
func FuzzTun(f *testing.F) {
	src, dst := netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2")
	train := tcpTrain(src, dst, 1, 1000, pattern(3500))
	add := func(p netio.Packet) {
		o := p.Offload
		f.Add(p.Data, o.NeedsChecksum, o.ChecksumStart, o.ChecksumOffset, o.GSO, o.HeaderLen, o.Segment)
	}
	add(train)
	add(netio.Packet{Data: udp(src, dst, pattern(100))})
	for _, o := range []netio.Offload{
		{GSO: netio.GSOTCP6, Segment: 1}, {GSO: netio.GSOUDP, Segment: 65535}, {GSO: 9, Segment: 8}, {GSO: netio.GSOTCP4},
		{NeedsChecksum: true, ChecksumStart: 65535, ChecksumOffset: 65535}, {NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 8000},
	} {
		add(netio.Packet{Data: train.Data, Offload: o})
	}
	short := bytes.Clone(train.Data)
	short[20+12] = 2 << 4 // a TCP header of 8 octets
	add(netio.Packet{Data: short, Offload: netio.Offload{GSO: netio.GSOTCP4, Segment: 1}})
	w, c, in, _ := outAndIn(f, ipsec.ModeTunnel)
	tun := &swallowed{}
	in.gro.init(tun, &in.counts, true)
	local, remote := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), 4500), netip.MustParseAddrPort("192.0.2.1:4500")
	f.Fuzz(func(t *testing.T, d []byte, csum bool, start, offset uint16, gso uint8, head, segment uint16) {
		if len(d) > netio.MaxPacket {
			return
		}
		c.last = nil
		buf := append(make([]byte, 0, netio.MaxPacket+256), d...)
		w.begin()
		w.packet(buf, netio.Offload{NeedsChecksum: csum, ChecksumStart: start, ChecksumOffset: offset, GSO: gso, HeaderLen: head, Segment: segment})
		w.flush()
		failed := in.counts.n[packet.WhyAuth].Load() + in.counts.n[packet.WhyNoSA].Load() + in.counts.n[packet.WhyShort].Load()
		for _, m := range c.last {
			m.Local, m.Remote = local, remote
			m.Data = bytes.Clone(m.Data)
			in.batch([]netio.Message{m})
		}
		if now := in.counts.n[packet.WhyAuth].Load() + in.counts.n[packet.WhyNoSA].Load() + in.counts.n[packet.WhyShort].Load(); now != failed {
			t.Errorf("%d of the packets sent do not open", now-failed)
		}
	})
}
