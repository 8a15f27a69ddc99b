package engine

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// captured is a sender that keeps the last batch, and swallowed a TUN that
// throws everything away: what they cost is next to nothing.
type captured struct{ last []netio.Message }

func (c *captured) Send(ms []netio.Message) (int, error) { c.last = ms; return len(ms), nil }

type swallowed struct{ packets, octets int }

func (s *swallowed) Write(o netio.Offload, parts [][]byte) error {
	s.packets++
	for _, p := range parts {
		s.octets += len(p)
	}
	return nil
}

// outAndIn makes an outbound and an inbound worker that a benchmark calls
// directly: no goroutines, no channels.
func outAndIn(b testing.TB, mode ipsec.Mode) (*outWorker, *captured, *inWorker, *host) {
	x, y := twoHosts(b, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	if mode == ipsec.ModeTransport {
		an, bn = single(x.addr), single(y.addr)
	}
	x.policy(b, mode, an, bn)
	y.policy(b, mode, bn, an)
	out, in := simplex(b, saSpec{mode: mode, encap: true, suite: "aes128gcm16"}, 1, x, y, an, bn)
	in.SA.ReplayWindow = 0 // the same packets are opened again and again
	for h, op := range map[*host]backend.Op{x: out, y: in} {
		if err := h.Apply([]backend.Op{op}); err != nil {
			b.Fatal(err)
		}
	}
	ow, c := x.ctl, &captured{}
	ow.senders[0] = c
	iw := y.inw[0]
	iw.gro.init(&swallowed{}, &iw.counts, true)
	return ow, c, iw, x
}

// BenchmarkSingle is one packet for each TUN read, 32 reads to a batch.
func BenchmarkSingle(b *testing.B) {
	for _, size := range []int{64, 1400} {
		b.Run(fmt.Sprintf("out/%d", size), func(b *testing.B) {
			w, _, _, _ := outAndIn(b, ipsec.ModeTunnel)
			p := append(make([]byte, 0, 2048), udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), make([]byte, size-28))...)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for i := range b.N {
				if i%tunBatch == 0 {
					w.begin()
				}
				w.packet(p, netio.Offload{})
				if i%tunBatch == tunBatch-1 {
					w.flush()
				}
			}
		})
		b.Run(fmt.Sprintf("in/%d", size), func(b *testing.B) {
			w, c, in, _ := outAndIn(b, ipsec.ModeTunnel)
			p := append(make([]byte, 0, 2048), udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), make([]byte, size-28))...)
			w.begin()
			for range tunBatch {
				w.packet(p, netio.Offload{})
			}
			w.flush()
			bench(b, in, c, tunBatch, size)
		})
	}
}

// BenchmarkTrain is a TCP train of 45 segments: one TUN read, one send; one
// receive, one TUN write. Figures are for one segment.
func BenchmarkTrain(b *testing.B) {
	for _, mode := range []ipsec.Mode{ipsec.ModeTunnel, ipsec.ModeTransport} {
		src, dst := netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2")
		if mode == ipsec.ModeTransport {
			src, dst = netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2")
		}
		const segments = 45
		train := tcpTrain(src, dst, 1, 1388, make([]byte, segments*1388))
		b.Run("out/"+mode.String(), func(b *testing.B) {
			w, _, _, _ := outAndIn(b, mode)
			buf := make([]byte, len(train.Data), netio.MaxPacket+256)
			b.SetBytes(1428)
			b.ReportAllocs()
			for i := 0; i < b.N; i += segments {
				copy(buf, train.Data[:64]) // headers; the payload does not matter
				binary.BigEndian.PutUint16(buf[2:], uint16(len(buf)))
				w.begin()
				w.packet(buf, train.Offload)
				w.flush()
			}
		})
		b.Run("in/"+mode.String(), func(b *testing.B) {
			w, c, in, _ := outAndIn(b, mode)
			w.begin()
			w.packet(append(make([]byte, 0, netio.MaxPacket+256), train.Data...), train.Offload)
			w.flush()
			bench(b, in, c, segments, 1428)
		})
	}
}

func TestThePacketPathDoesNotAllocate(t *testing.T) {
	w, c, in, _ := outAndIn(t, ipsec.ModeTunnel)
	p := append(make([]byte, 0, 2048), udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), make([]byte, 1000))...)
	var sealed []byte
	m := netio.Message{Data: make([]byte, 0, netio.MaxPacket), Local: netip.MustParseAddrPort("192.0.2.2:4500"), Remote: netip.MustParseAddrPort("192.0.2.1:4500")}
	ms := []netio.Message{m}
	once := func() {
		w.begin()
		w.packet(p, netio.Offload{})
		w.flush()
		sealed = c.last[0].Data
		ms[0].Data = append(m.Data[:0], sealed...)
		in.batch(ms)
	}
	once() // fills caches
	if n := testing.AllocsPerRun(100, once); n != 0 {
		t.Errorf("%v allocations for one packet out and in, want none", n)
	}
	if in.gro.tun.(*swallowed).packets == 0 {
		t.Error("no packet arrived")
	}
}

// bench opens what was sealed, again and again; figures are for one packet.
func bench(b *testing.B, in *inWorker, c *captured, packets, size int) {
	b.Helper()
	sealed := append([]byte(nil), c.last[0].Data...)
	m := c.last[0]
	m.Local, m.Remote = m.Remote, m.Local
	m.Data = make([]byte, len(sealed), netio.MaxPacket)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += packets {
		copy(m.Data, sealed) // opened in place; the copy is part of the figure
		in.batch([]netio.Message{m})
	}
	b.StopTimer()
	for i := range in.counts.n {
		if n := in.counts.n[i].Load(); n != 0 {
			b.Fatalf("%d packets dropped: %s", n, packet.Why(i))
		}
	}
}

// FuzzDatagram throws anything at the socket side: nothing but a packet sealed
// by the peer may reach the TUN, and nothing may panic.
func FuzzDatagram(f *testing.F) {
	w, c, in, _ := outAndIn(f, ipsec.ModeTunnel)
	p := udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), pattern(100))
	w.begin()
	w.packet(p, netio.Offload{})
	w.flush()
	sealed := append([]byte(nil), c.last[0].Data...)
	f.Add(sealed, 0)
	f.Add(append(append([]byte(nil), sealed...), sealed...), len(sealed))
	f.Add([]byte{0, 0, 0, 0, 1, 2, 3}, 0)
	f.Add([]byte{0xff}, 0)
	f.Add([]byte{}, 0)
	tun := &swallowed{}
	in.gro.init(tun, &in.counts, true)
	local, remote := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), 4500), netip.MustParseAddrPort("192.0.2.1:4500")
	f.Fuzz(func(t *testing.T, d []byte, segment int) {
		if len(d) > netio.MaxPacket {
			return
		}
		if segment < 0 || segment >= len(d) {
			segment = 0
		}
		want := 0
		if segment == 0 && string(d) == string(sealed) {
			want = 1
		}
		before := *tun
		in.batch([]netio.Message{{Data: append([]byte(nil), d...), Segment: segment, Local: local, Remote: remote}})
		got := tun.packets - before.packets
		if want == 1 && tun.octets-before.octets != len(p) {
			t.Errorf("%d octets reached the TUN, want %d", tun.octets-before.octets, len(p))
		}
		if got != want && segment == 0 {
			t.Errorf("%d packets reached the TUN, want %d", got, want)
		}
	})
}
