package engine

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// RFC 4303 §2.7: all packets up to a length are of one length on the wire, and arrive as
// they were, single ones and trains. Longer ones go as they are.
func TestPaddedPacketsAreOfOneLength(t *testing.T) {
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	src, dst := netip.MustParseAddrPort("10.1.0.1:1000"), netip.MustParseAddrPort("10.2.0.1:2000")
	for _, suite := range []string{"aes128gcm16", "aes256-sha256"} {
		for _, padTo := range []uint16{1000, ipsec.PadToMTU} {
			a, b := twoHosts(t, false)
			a.policy(t, ipsec.ModeTunnel, an, bn)
			b.policy(t, ipsec.ModeTunnel, bn, an)
			a.SetMTU(1300)
			out, in := simplex(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: suite}, 1, a, b, an, bn)
			out.SA.PadTo = padTo
			if err := b.Apply([]backend.Op{in}); err != nil {
				t.Fatal(err)
			}
			if err := a.Apply([]backend.Op{out}); err != nil {
				t.Fatal(err)
			}
			lengths := make(chan int, 1000)
			a.encap.Tamper = func(d []byte) [][]byte { lengths <- len(d); return [][]byte{bytes.Clone(d)} }
			taken := func() (out []int) {
				for len(lengths) > 0 {
					out = append(out, <-lengths)
				}
				return out
			}
			for _, n := range []int{0, 1, 100, 500, 972} {
				p := udp(src, dst, pattern(n))
				a.tun.ToEngine <- netio.Packet{Data: p}
				if got, h := b.arrived(t); !bytes.Equal(got.Data[h.Upper:], p[h.Upper:]) {
					t.Errorf("%d octets of payload did not arrive as they were", n)
				}
			}
			same := taken()
			if len(same) != 5 || slices.Min(same) != slices.Max(same) || same[0] < min(int(padTo), 1300) || same[0] > min(int(padTo), 1300)+80 {
				t.Errorf("%s to %s: lengths %v on the wire, want one", suite, ipsec.PadName(padTo), same)
			}
			clear := pattern(9000)
			a.tun.ToEngine <- tcpTrain(src, dst, 1000, 700, clear)
			var stream []byte
			for len(stream) < len(clear) {
				p, h := b.arrived(t)
				stream = append(stream, p.Data[h.Upper+20:]...)
			}
			if train := taken(); !bytes.Equal(stream, clear) || len(train) != 13 || slices.Min(train) != same[0] || slices.Max(train) != same[0] {
				t.Errorf("%s to %s: a train of lengths %v, want 13 of %d", suite, ipsec.PadName(padTo), train, same[0])
			}
			a.outs[1].path.Load().learn(900, a.cfg.Now().UnixNano())
			a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, pattern(100))}
			b.arrived(t)
			a.outs[1].path.Load().learnt.Store(0)
			if narrow := taken(); len(narrow) != 1 || narrow[0] > 900-28 || narrow[0] < 900-28-20 {
				t.Errorf("%s to %s: lengths %v on a path of 900, want what fills it", suite, ipsec.PadName(padTo), narrow)
			}
			if c := a.Counters().SAs[0]; c.Bytes < 9000 || c.Bytes > 12000 { // without padding
				t.Errorf("%d octets counted", c.Bytes)
			}
			a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, pattern(1270))}
			b.arrived(t)
			if long := taken(); padTo == 1000 && (len(long) != 1 || long[0] <= same[0]) {
				t.Errorf("a longer packet has %v octets, the others %d", long, same[0])
			}
		}
	}
}
