package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

func TestPacketsAndTrainsArriveWhole(t *testing.T) {
	in4, in6 := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("2001:db8:1::/48")
	in4b, in6b := netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("2001:db8:2::/48")
	for _, mode := range []ipsec.Mode{ipsec.ModeTunnel, ipsec.ModeTransport} {
		for _, encap := range []bool{true, false} {
			for _, outer6 := range []bool{false, true} {
				for _, inner6 := range []bool{false, true} {
					for _, suite := range []string{"aes128gcm16", "chacha20poly1305", "aes256-sha256"} {
						if mode == ipsec.ModeTransport && inner6 != outer6 {
							continue
						}
						name := fmt.Sprintf("%s/encap=%t/outer6=%t/inner6=%t/%s", mode, encap, outer6, inner6, suite)
						t.Run(name, func(t *testing.T) {
							a, b := twoHosts(t, outer6)
							aNet, bNet := in4, in4b
							if inner6 {
								aNet, bNet = in6, in6b
							}
							from, to := aNet.Addr().Next(), bNet.Addr().Next()
							if mode == ipsec.ModeTransport {
								aNet, bNet, from, to = single(a.addr), single(b.addr), a.addr, b.addr
							}
							a.policy(t, mode, aNet, bNet)
							b.policy(t, mode, bNet, aNet)
							clear := pattern(40000)
							a.encap.Tamper = noneOf(t, clear[100:160])
							a.raw.Tamper = a.encap.Tamper
							if suite == "aes128gcm16" {
								// Trains of datagrams are their own way in; leave them whole.
								a.encap.Tamper, a.raw.Tamper = nil, nil
							}
							join(t, saSpec{mode: mode, encap: encap, suite: suite}, a, b, aNet, bNet)
							exchange(t, a, b, netip.AddrPortFrom(from, 40000), netip.AddrPortFrom(to, 443), clear)
						})
					}
				}
			}
		}
	}
}

// noneOf is a wire that fails the test when it carries the octets in clear.
func noneOf(t *testing.T, clear []byte) func([]byte) [][]byte {
	return func(d []byte) [][]byte {
		if bytes.Contains(d, clear) {
			t.Error("payload on the wire in clear")
		}
		return [][]byte{bytes.Clone(d)}
	}
}

func exchange(t *testing.T, a, b *host, src, dst netip.AddrPort, payload []byte) {
	t.Helper()
	one := udp(src, dst, payload[:1200])
	a.tun.ToEngine <- netio.Packet{Data: one}
	got, h := b.arrived(t)
	if h.Src(got.Data) != src.Addr() || h.Dst(got.Data) != dst.Addr() || !bytes.Equal(got.Data[h.Upper:], one[h.Upper:]) {
		t.Fatal("the UDP packet is not the one that was sent")
	}
	a.tun.ToEngine <- tcpTrain(src, dst, 1000, 1388, payload)
	var stream []byte
	writes := 0
	for len(stream) < len(payload) {
		p, h := b.arrived(t)
		seq := binary.BigEndian.Uint32(p.Data[h.Upper+4:])
		if seq != uint32(1000+len(stream)) {
			t.Fatalf("sequence number %d, want %d", seq, 1000+len(stream))
		}
		stream = append(stream, p.Data[h.Upper+20:]...)
		writes++
	}
	if !bytes.Equal(stream, payload) {
		t.Fatal("the stream is not the one that was sent")
	}
	t.Logf("%d segments in %d writes", (len(payload)+1387)/1388, writes)
	// The rule and the SA have counted the same packets; in tunnel mode, octets too.
	c := a.Counters()
	for _, sa := range c.SAs {
		if sa.ID != 1 {
			continue
		}
		if c.Rules[0].Packets != sa.Packets {
			t.Errorf("the rule counted %d packets, its SA %d", c.Rules[0].Packets, sa.Packets)
		}
		if a.outs[1].SA().Mode == ipsec.ModeTunnel && c.Rules[0].Bytes != sa.Bytes {
			t.Errorf("the rule counted %d octets, its SA %d", c.Rules[0].Bytes, sa.Bytes)
		}
	}
	// And back.
	back := udp(dst, src, payload[:64])
	b.tun.ToEngine <- netio.Packet{Data: back}
	got, h = a.arrived(t)
	if !bytes.Equal(got.Data[h.Upper:], back[h.Upper:]) {
		t.Fatal("the answer is not the one that was sent")
	}
}

// RFC 4303 §3.4.3: each packet is delivered at most once, and late ones inside
// the window are delivered.
func TestDuplicatesAndReorderedPackets(t *testing.T) {
	a, b := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	a.policy(t, ipsec.ModeTunnel, an, bn)
	b.policy(t, ipsec.ModeTunnel, bn, an)
	join(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, a, b, an, bn)
	const n = 100
	var held [][]byte
	a.encap.Tamper = func(d []byte) [][]byte { // keeps ten, then sends them backwards and twice
		if held = append(held, bytes.Clone(d)); len(held) < 10 {
			return nil
		}
		var out [][]byte
		for i := range held {
			d := held[len(held)-1-i]
			out = append(out, d, bytes.Clone(d))
		}
		held = nil
		return out
	}
	for i := range n {
		a.tun.ToEngine <- netio.Packet{Data: udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), []byte{byte(i), 1, 2, 3})}
	}
	seen := map[byte]int{}
	for range n {
		p, h := b.arrived(t)
		if p.Offload.GSO != netio.GSONone {
			for off := int(h.Upper) + 8; off < len(p.Data); off += int(p.Offload.Segment) {
				seen[p.Data[off]]++
			}
		} else {
			seen[p.Data[h.Upper+8]]++
		}
		if len(seen) == n {
			break
		}
	}
	for i := range n {
		if seen[byte(i)] != 1 {
			t.Errorf("packet %d arrived %d times, want once", i, seen[byte(i)])
		}
	}
	if got := b.why(packet.WhyReplay); got != n {
		t.Errorf("%d packets counted as replayed, want %d", got, n)
	}
}

func TestAPacketWaitsForItsSA(t *testing.T) {
	a, b := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	a.policy(t, ipsec.ModeTunnel, an, bn)
	b.policy(t, ipsec.ModeTunnel, bn, an)
	src, dst := netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2")
	for i := range 3 {
		a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, []byte{byte(i)})}
	}
	acq, ok := (<-a.events).(backend.Acquire)
	if !ok || acq.Rule != "r" || acq.Peer != "p" || acq.Flow.Remote != dst.Addr() || acq.Flow.RemotePort != 2 {
		t.Fatalf("got %+v, want an acquire for the flow", acq)
	}
	join(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, a, b, an, bn)
	got := 0
	for got < 3 {
		p, h := b.arrived(t)
		n, _ := sizes(p.Data, &h, &p.Offload)
		got += n
	}
	select {
	case e := <-a.events:
		t.Fatalf("a second event %+v, want one acquire for three packets", e)
	default:
	}
}

func TestAFailedAcquireDropsAndHoldsDown(t *testing.T) {
	a, _ := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	a.policy(t, ipsec.ModeTunnel, an, bn)
	p := netio.Packet{Data: udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), []byte{1})}
	a.tun.ToEngine <- p
	acq := (<-a.events).(backend.Acquire)
	a.AcquireFailed(acq.ID+1, "an unknown one is ignored")
	if got := a.why(packet.WhyAcquireFail); got != 0 {
		t.Fatalf("%d packets dropped for an unknown acquire", got)
	}
	waitFor(t, func() bool { return a.why(packet.WhyAcquiring) == 1 })
	a.AcquireFailed(acq.ID, "NO_PROPOSAL_CHOSEN")
	a.tun.ToEngine <- p
	waitFor(t, func() bool { return a.why(packet.WhyAcquireFail) == 2 })
	if len(a.events) != 0 {
		t.Error("a packet right after a failure raised another acquire")
	}
}

func TestTheQueueOfWaitingPacketsIsBounded(t *testing.T) {
	a, _ := twoHosts(t, false)
	a.policy(t, ipsec.ModeTunnel, netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16"))
	for i := range 100 {
		a.tun.ToEngine <- netio.Packet{Data: udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), []byte{byte(i)})}
	}
	waitFor(t, func() bool { return a.why(packet.WhyAcquiring) == 100 })
	if got := a.why(packet.WhyQueueFull); got != 100-maxWaitEach {
		t.Errorf("%d packets dropped by a full queue, want %d", got, 100-maxWaitEach)
	}
	for i := range 3000 {
		dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), 9)
		a.tun.ToEngine <- netio.Packet{Data: udp(netip.MustParseAddrPort("10.1.0.1:1"), dst, []byte{1})}
	}
	waitFor(t, func() bool { return a.why(packet.WhyAcquiring)+a.why(packet.WhyQueueFull) >= 3000 })
	a.acquires.mu.Lock()
	defer a.acquires.mu.Unlock()
	if len(a.acquires.byKey) > maxAcquires || a.acquires.queued > maxWaitAll || len(a.acquires.oldest) != len(a.acquires.byKey) {
		t.Errorf("%d acquires (%d in order), %d packets: more than the bounds", len(a.acquires.byKey), len(a.acquires.oldest), a.acquires.queued)
	}
}

func TestAWaitingPacketExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := twoHosts(t, false)
		a.policy(t, ipsec.ModeTunnel, netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16"))
		p := netio.Packet{Data: udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), []byte{1})}
		a.tun.ToEngine <- p
		first := (<-a.events).(backend.Acquire)
		time.Sleep(acquireTimeout + time.Second) // the bubble's clock
		synctest.Wait()
		if got := a.why(packet.WhyQueueExpired); got != 1 {
			t.Fatalf("%d packets expired, want 1", got)
		}
		a.tun.ToEngine <- p
		if second := (<-a.events).(backend.Acquire); second.ID == first.ID {
			t.Error("the next packet did not raise a new acquire")
		}
	})
}

// RFC 4301 §5.2: an SA for one flow must not carry another.
func TestTheInnerCheckDropsWhatTheSAIsNotFor(t *testing.T) {
	a, b := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	a.policy(t, ipsec.ModeTunnel, an, bn)
	b.policy(t, ipsec.ModeTunnel, bn, an)
	out, in := simplex(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, 1, a, b, an, bn)
	in.SA.Selectors[0].Remote = ipsec.PrefixSelector(netip.MustParsePrefix("10.1.7.0/24"))
	if err := a.Apply([]backend.Op{out}); err != nil {
		t.Fatal(err)
	}
	if err := b.Apply([]backend.Op{in}); err != nil {
		t.Fatal(err)
	}
	dst := netip.MustParseAddrPort("10.2.0.1:2")
	a.tun.ToEngine <- netio.Packet{Data: udp(netip.MustParseAddrPort("10.1.0.1:1"), dst, []byte{1})}
	bad, ok := (<-b.events).(backend.BadSelectors)
	if !ok || bad.ID != 1 || bad.Flow.Remote != netip.MustParseAddr("10.1.0.1") {
		t.Fatalf("got %+v, want BadSelectors of SA 1", bad)
	}
	a.tun.ToEngine <- netio.Packet{Data: udp(netip.MustParseAddrPort("10.1.7.1:1"), dst, []byte{2})}
	if p, h := b.arrived(t); p.Data[h.Upper+8] != 2 {
		t.Error("the packet outside the selectors was delivered")
	}
	if got := b.why(packet.WhyInner); got != 1 {
		t.Errorf("%d packets dropped by the inner check, want 1", got)
	}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	a, b := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	spec := saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}
	op := func(id ipsec.SAID) backend.Op { o, _ := simplex(t, spec, id, a, b, an, bn); return o }
	inOp := func(id ipsec.SAID) backend.Op { _, i := simplex(t, spec, id, b, a, bn, an); return i }
	if err := a.Apply([]backend.Op{op(1), inOp(2)}); err != nil {
		t.Fatal(err)
	}
	change := func(o backend.Op, f func(*ipsec.SA)) backend.Op { f(o.SA); return o }
	for _, c := range []struct {
		name  string
		ops   []backend.Op
		index int
		want  error
	}{
		{"same ID", []backend.Op{op(5), op(1)}, 1, backend.ErrExists},
		{"same ID twice in the batch", []backend.Op{op(5), op(5)}, 1, backend.ErrExists},
		{"same inbound SPI", []backend.Op{change(inOp(6), func(s *ipsec.SA) { s.SPI = 0x1002 })}, 0, backend.ErrExists},
		{"same inbound SPI twice in the batch", []backend.Op{inOp(7), change(inOp(8), func(s *ipsec.SA) { s.SPI = 0x1007 })}, 1, backend.ErrExists},
		{"AH with the keys of ESP", []backend.Op{op(5), change(op(6), func(s *ipsec.SA) { s.Protocol = ipsec.ProtocolAH })}, 1, backend.ErrNotUsable},
		{"short key", []backend.Op{op(5), change(op(6), func(s *ipsec.SA) { s.EncrKey = ipsec.CopySecret([]byte{1}) })}, 1, backend.ErrNotUsable},
		{"no socket", []backend.Op{op(5), change(op(6), func(s *ipsec.SA) { s.Encap.LocalPort = 9 })}, 1, backend.ErrNotUsable},
		{"overlapping lease", []backend.Op{op(5), {Kind: backend.OpLease, ID: 1, Lease: ipsec.Lease{First: 9, Last: 1 << 50}}}, 1, backend.ErrOverlap},
		{"lease of an inbound SA", []backend.Op{{Kind: backend.OpLease, ID: 2, Lease: ipsec.Lease{First: 1 << 40, Last: 1 << 41}}}, 0, backend.ErrNotFound},
		{"replace what is not there", []backend.Op{op(5), {Kind: backend.OpReplace, SA: op(9).SA}}, 1, backend.ErrNotFound},
		{"replace what the batch removes", []backend.Op{{Kind: backend.OpRemove, ID: 1}, {Kind: backend.OpReplace, SA: op(1).SA}}, 1, backend.ErrNotFound},
	} {
		var oe *backend.OpError
		err := a.Apply(c.ops)
		if !errors.As(err, &oe) || oe.Index != c.index || oe.SA != c.ops[c.index].Target() || !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want operation %d and %v", c.name, err, c.index, c.want)
		}
		if inv := a.Inventory(); len(inv) != 2 || inv[0].ID != 1 || inv[1].ID != 2 {
			t.Errorf("%s: the inventory changed to %+v", c.name, inv)
		}
	}
	// What may be done, in one batch: swap an inbound SPI to another SA, move a
	// peer, and remove something unknown.
	moved := op(1)
	moved.SA.Remote = netip.MustParseAddr("192.0.2.77")
	moved.Kind = backend.OpReplace
	err := a.Apply([]backend.Op{
		{Kind: backend.OpRemove, ID: 2}, change(inOp(6), func(s *ipsec.SA) { s.SPI = 0x1002 }),
		moved, {Kind: backend.OpRemove, ID: 99}, {Kind: backend.OpLease, ID: 1, Lease: ipsec.Lease{First: 1 << 40, Last: 1 << 41}},
	})
	if err != nil {
		t.Fatal(err)
	}
	inv := a.Inventory()
	if len(inv) != 2 || inv[0].Remote != moved.SA.Remote || inv[0].Lease.Last != 1<<41 || inv[1].ID != 6 {
		t.Errorf("inventory %+v", inv)
	}
	if s := op(7).SA.EncrKey; s.Len() != 20 {
		t.Fatal("test keys are not as expected")
	}
}

// Rekey: new inbound, new outbound, old ones removed, with traffic all along.
func TestARekeyLosesNothing(t *testing.T) {
	a, b := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	a.policy(t, ipsec.ModeTunnel, an, bn)
	b.policy(t, ipsec.ModeTunnel, bn, an)
	spec := saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}
	out, in := simplex(t, spec, 1, a, b, an, bn)
	for h, op := range map[*host]backend.Op{b: in, a: out} {
		if err := h.Apply([]backend.Op{op}); err != nil {
			t.Fatal(err)
		}
	}
	const n = 2000
	done := make(chan map[uint16]bool)
	go func() {
		seen := map[uint16]bool{}
		for len(seen) < n {
			p := <-b.tun.FromEngine
			h, _ := packet.Parse(p.Data)
			step := len(p.Data)
			if p.Offload.GSO != netio.GSONone {
				step = int(p.Offload.Segment)
			}
			for off := int(h.Upper) + 8; off < len(p.Data); off += step {
				seen[binary.BigEndian.Uint16(p.Data[off:])] = true
			}
		}
		done <- seen
	}()
	last := ipsec.SAID(1)
	for i := range n {
		payload := binary.BigEndian.AppendUint16(nil, uint16(i))
		a.tun.ToEngine <- netio.Packet{Data: udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), payload)}
		if i%100 != 99 {
			continue
		}
		// Rekey while packets are on the way, once the newest SA is in use.
		waitFor(t, func() bool {
			for _, c := range a.Counters().SAs {
				if c.ID == last {
					return c.Packets > 0
				}
			}
			return false
		})
		out, in := simplex(t, spec, last+1, a, b, an, bn)
		if err := b.Apply([]backend.Op{in}); err != nil {
			t.Fatal(err)
		}
		if err := a.Apply([]backend.Op{out}); err != nil {
			t.Fatal(err)
		}
		last++
	}
	<-done
	var sum uint64
	for _, c := range a.Counters().SAs {
		sum += c.Packets
	}
	if sum != n {
		t.Errorf("%d packets on all SAs, want %d", sum, n)
	}
}

func TestWhatPolicyDropsIsCounted(t *testing.T) {
	a, _ := twoHosts(t, false)
	err := a.SetPolicy(context.Background(), &ipsec.NodePolicy{Default: ipsec.ActionBlock, Rules: []ipsec.Rule{{
		Name: "no", Weight: 1, Direction: ipsec.Both, Action: ipsec.ActionBlock,
		Selector: ipsec.Selector{Local: ipsec.PrefixSelector(netip.MustParsePrefix("10.1.0.0/16")), Remote: ipsec.PrefixSelector(netip.MustParsePrefix("10.2.0.0/16"))},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	a.tun.ToEngine <- netio.Packet{Data: udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), []byte{1})}
	a.tun.ToEngine <- netio.Packet{Data: udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.3.0.1:2"), []byte{1})}
	waitFor(t, func() bool { return a.why(packet.WhyBlocked) == 1 && a.why(packet.WhyNoRule) == 1 })
	if r := a.Counters().Rules; len(r) != 1 || r[0].Rule != "no" || r[0].Packets != 1 || r[0].Bytes != 29 {
		t.Errorf("rule counters %+v, want one packet of 29 octets for rule no", r)
	}
}

// RFC 4301 §8.2.1: what does not fit is answered with the size that does.
func TestATooBigPacketIsAnswered(t *testing.T) {
	a, b := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	a.policy(t, ipsec.ModeTunnel, an, bn)
	join(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, a, b, an, bn)
	a.PathMTU(b.addr, 1000)
	a.PathMTU(b.addr, 1400) // does not raise it
	src, dst := netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2")
	fits := 1000 - 20 - 8 - 16 - 16 - 2 // a multiple of four with the two octets of trailer
	for _, size := range []int{fits, fits + 1} {
		a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, make([]byte, size-28))}
	}
	b.arrived(t)
	p, h := a.arrived(t)
	if h.Protocol != packet.ProtoICMP || h.SrcPort != 3<<8|4 || h.Dst(p.Data) != src.Addr() {
		t.Fatalf("got protocol %d type %#x to %s, want fragmentation needed to the sender", h.Protocol, h.SrcPort, h.Dst(p.Data))
	}
	if mtu := int(binary.BigEndian.Uint16(p.Data[26:])); mtu != fits {
		t.Errorf("it says %d fit, want %d", mtu, fits)
	}
}

func TestIKEGoesUpWithoutItsMarker(t *testing.T) {
	a, b := twoHosts(t, false)
	msg := pattern(60)
	path := backend.Path{Local: netip.AddrPortFrom(a.addr, 4500), Remote: netip.AddrPortFrom(b.addr, 4500)}
	if err := a.SendIKE(path, msg); err != nil {
		t.Fatal(err)
	}
	ike, ok := (<-b.events).(backend.IKE)
	if !ok || !bytes.Equal(ike.Data, msg) || ike.Path != (backend.Path{Local: path.Remote, Remote: path.Local}) {
		t.Fatalf("got %+v, want the message and the path as the receiver sees it", ike)
	}
	if err := a.SendIKE(backend.Path{Local: netip.AddrPortFrom(a.addr, 9), Remote: path.Remote}, msg); err == nil {
		t.Error("sent from a port without a socket")
	}
}

// RFC 7296 §2.23: neither a forged packet nor one that is late or repeated moves a peer.
func TestAPeerThatMovesIsReported(t *testing.T) {
	a, b := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	a.policy(t, ipsec.ModeTunnel, an, bn)
	b.policy(t, ipsec.ModeTunnel, bn, an)
	join(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, a, b, an, bn)
	local, nat := netip.AddrPortFrom(b.addr, 4500), netip.MustParseAddrPort("203.0.113.9:61000")
	sent := make(chan []byte, 10)
	a.encap.Tamper = func(d []byte) [][]byte { sent <- bytes.Clone(d); return nil }
	var packets [][]byte
	for range 3 {
		a.tun.ToEngine <- netio.Packet{Data: udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), []byte{1})}
		packets = append(packets, <-sent)
	}
	forged := bytes.Clone(packets[2])
	forged[len(forged)-1] ^= 1
	stranger := netip.MustParseAddrPort("198.51.100.1:1")
	b.encap.Inject(netio.Message{Data: packets[1], Local: local, Remote: netip.AddrPortFrom(a.addr, 4500)})
	b.arrived(t)
	b.encap.Inject(netio.Message{Data: packets[0], Local: local, Remote: stranger}) // late
	b.arrived(t)
	b.encap.Inject(netio.Message{Data: packets[1], Local: local, Remote: stranger}) // again
	b.encap.Inject(netio.Message{Data: forged, Local: local, Remote: stranger})
	b.encap.Inject(netio.Message{Data: packets[2], Local: local, Remote: nat})
	b.arrived(t)
	if moved, ok := (<-b.events).(backend.PeerMoved); !ok || moved.Path.Remote != nat || moved.Path.Local != local {
		t.Fatalf("got %+v, want PeerMoved to %s", moved, nat)
	}
	if len(b.events) != 0 {
		t.Errorf("%d more events, want one report of one move", len(b.events))
	}
}

func TestASpentLeaseStopsTheSAAndANewOneStartsIt(t *testing.T) {
	a, b := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	a.policy(t, ipsec.ModeTunnel, an, bn)
	b.policy(t, ipsec.ModeTunnel, bn, an)
	out, in := simplex(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, 1, a, b, an, bn)
	out.SA.Lease = ipsec.Lease{First: 1, Last: 9}
	if err := errors.Join(b.Apply([]backend.Op{in}), a.Apply([]backend.Op{out})); err != nil {
		t.Fatal(err)
	}
	send := func() {
		a.tun.ToEngine <- netio.Packet{Data: udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), []byte{1})}
	}
	for range 10 {
		send()
	}
	if need, ok := (<-a.events).(backend.NeedLease); !ok || need.ID != 1 {
		t.Fatalf("got %+v, want NeedLease", need)
	}
	waitFor(t, func() bool { return a.why(packet.WhyNoLease) == 2 })
	if err := a.Apply([]backend.Op{{Kind: backend.OpLease, ID: 1, Lease: ipsec.Lease{First: 100, Last: 200}}}); err != nil {
		t.Fatal(err)
	}
	send()
	waitFor(t, func() bool {
		c := a.Counters().SAs
		return c[0].Packets == 9 && c[0].Top == 100
	})
}
