package engine

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// faulty stands for a mistake: what it is called for panics, the first time.
type faulty struct {
	netio.TunWriter
	netio.Sender
	done atomic.Bool
}

func (f *faulty) Write(o netio.Offload, parts [][]byte) error {
	if !f.done.Swap(true) {
		panic("a mistake on the way in")
	}
	return f.TunWriter.Write(o, parts)
}

func (f *faulty) Send(ms []netio.Message) (int, error) {
	if !f.done.Swap(true) {
		panic("a mistake on the way out")
	}
	return f.Sender.Send(ms)
}

// A panic costs the batch it happens in, is counted and told, and traffic goes on,
// in both directions and on the same SA.
func TestAPanicCostsABatch(t *testing.T) {
	aNet, bNet := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	src, dst := netip.AddrPortFrom(aNet.Addr().Next(), 40000), netip.AddrPortFrom(bNet.Addr().Next(), 443)
	for _, way := range []string{"out", "in"} {
		a, b := twoHosts(t, false)
		a.policy(t, ipsec.ModeTunnel, aNet, bNet)
		b.policy(t, ipsec.ModeTunnel, bNet, aNet)
		join(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, a, b, aNet, bNet)
		h, f := a, &faulty{}
		if way == "out" {
			f.Sender = a.outw[0].senders[0]
			a.outw[0].senders[0] = f
		} else {
			h = b
			f.TunWriter = b.inw[0].gro.tun
			b.inw[0].gro.tun = f
		}
		a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, []byte("lost"))}
		for end := time.Now().Add(30 * time.Second); count(h, packet.WhyPanic) == 0; {
			if time.Now().After(end) {
				t.Fatalf("%s: no panic was counted", way)
			}
			<-time.After(time.Millisecond)
		}
		for _, text := range []string{"first", "second"} {
			a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, []byte(text))}
			got, hd := b.arrived(t)
			if string(got.Data[hd.Upper+8:]) != text {
				t.Errorf("%s: got %q, want %q", way, got.Data[hd.Upper+8:], text)
			}
		}
		told := 0
		for len(h.events) > 0 {
			if _, ok := (<-h.events).(backend.Panic); ok {
				told++
			}
		}
		if told != 1 || count(h, packet.WhyPanic) != 1 {
			t.Errorf("%s: told %d times, counted %d times; want once", way, told, count(h, packet.WhyPanic))
		}
	}
}

// So does one in what has waited for an SA, which the control side sends.
func TestAPanicCostsWhatHasWaited(t *testing.T) {
	a, b := twoHosts(t, false)
	for _, h := range []*host{a, b} {
		h.policy(t, ipsec.ModeTransport, single(h.addr), single(map[*host]*host{a: b, b: a}[h].addr))
	}
	src, dst := netip.AddrPortFrom(a.addr, 1), netip.AddrPortFrom(b.addr, 2)
	a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, []byte("lost"))}
	waitFor(t, func() bool { return a.why(packet.WhyAcquiring) == 1 })
	a.ctl.senders[0] = &faulty{Sender: a.ctl.senders[0]}
	a.ctl.whole = true // as while a packet made of fragments is sealed
	join(t, saSpec{mode: ipsec.ModeTransport, encap: true, suite: "aes128gcm16"}, a, b, single(a.addr), single(b.addr))
	if count(a, packet.WhyPanic) != 1 || a.ctl.whole {
		t.Errorf("%d panics counted, what comes after is whole: %v; want one, and no", count(a, packet.WhyPanic), a.ctl.whole)
	}
	a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, []byte("first"))}
	if got, h := b.arrived(t); string(got.Data[h.Upper+8:]) != "first" {
		t.Errorf("got %q, want %q", got.Data[h.Upper+8:], "first")
	}
}

func count(h *host, why packet.Why) uint64 {
	for _, w := range h.Counters().Whys {
		if w.Why == why.String() {
			return w.Packets
		}
	}
	return 0
}
