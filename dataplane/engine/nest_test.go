package engine

import (
	"bytes"
	"context"
	"net/netip"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// nests gives a host a rule for all traffic with another one, and a rule for each of
// the protocols of IPsec: what its own SAs send.
func (h *host) nests(t *testing.T, other *host, protocols ...uint8) {
	t.Helper()
	rule := func(name string, weight uint64, proto uint8) ipsec.Rule {
		s := ipsec.Selector{Local: ipsec.AddrSelector(h.addr), Remote: ipsec.AddrSelector(other.addr)}
		s.Local.Protocol, s.Remote.Protocol = proto, proto
		return ipsec.Rule{Name: name, Weight: weight, Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: "p", Selector: s, Template: &ipsec.Template{Mode: ipsec.ModeTransport}}
	}
	var rules []ipsec.Rule
	for _, p := range protocols {
		rules = append(rules, rule(ipsec.ProtocolName(p), 2, p))
	}
	if err := h.SetPolicy(context.Background(), &ipsec.NodePolicy{Node: "n", Default: ipsec.ActionBlock, Rules: append(rules, rule("r", 1, 0))}); err != nil {
		t.Fatal(err)
	}
}

// connect installs an SA from a to b under a rule on both.
func connect(t *testing.T, s saSpec, id ipsec.SAID, rule string, a, b *host) {
	t.Helper()
	out, in := simplex(t, s, id, a, b, single(a.addr), single(b.addr))
	out.SA.Rule, in.SA.Rule = rule, rule
	for _, x := range []struct {
		*host
		op backend.Op
	}{{b, in}, {a, out}} {
		if err := x.Apply([]backend.Op{x.op}); err != nil {
			t.Fatal(err)
		}
	}
}

var (
	espSpec = saSpec{mode: ipsec.ModeTransport, suite: "aes128gcm16"}
	ahSpec  = saSpec{mode: ipsec.ModeTransport, suite: "sha256", ah: true}
)

// onWire takes what a wire carries in place of its other end.
func onWire(h *host) (esp chan []byte) {
	esp = make(chan []byte, 16)
	h.raw.Tamper = func(d []byte) [][]byte {
		esp <- bytes.Clone(d)
		return nil
	}
	return esp
}

// looped is an ESP packet as the host leads it back into the TUN.
func looped(a, b *host, d []byte) netio.Packet {
	p := ipHeader(a.addr, b.addr, packet.ProtoESP, len(d))
	copy(p[20:], d)
	return netio.Packet{Data: p}
}

// AH around ESP: each SA does its part, and the ESP that arrives goes to the host.
func TestESPGoesThroughTheSAAroundIt(t *testing.T) {
	a, b := twoHosts(t, false)
	a.nests(t, b, packet.ProtoESP)
	b.nests(t, a, packet.ProtoESP)
	esp := onWire(a)
	connect(t, espSpec, 1, "r", a, b)
	connect(t, ahSpec, 2, "esp", a, b)
	src, dst := netip.AddrPortFrom(a.addr, 1), netip.AddrPortFrom(b.addr, 2)
	a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, pattern(100))}
	sealed := looped(a, b, <-esp)
	a.tun.ToEngine <- sealed
	got, h := b.arrived(t)
	if h.Protocol != packet.ProtoESP || !bytes.Equal(got.Data[20:], sealed.Data[20:]) {
		t.Errorf("got protocol %d of %d octets, want the ESP packet of %d", h.Protocol, len(got.Data), len(sealed.Data))
	}
	// And explain tells both.
	x := a.Explain(ipsec.Flow{Local: a.addr, Remote: b.addr, Protocol: 6, RemotePort: 80}, ipsec.Outbound)
	if x.SA != 1 || x.Around == nil || x.Around.SA != 2 || x.Around.Around != nil {
		t.Errorf("explain: %+v; want SA 1 and around it SA 2", x)
	}
}

// What fits into the SA around is known to the one inside, which tells the senders.
func TestTheSAInsideLearnsWhatFits(t *testing.T) {
	a, b := twoHosts(t, false)
	a.nests(t, b, packet.ProtoESP)
	esp := onWire(a)
	connect(t, espSpec, 1, "r", a, b)
	connect(t, ahSpec, 2, "esp", a, b)
	a.SetMTU(1400)
	src, dst := netip.AddrPortFrom(a.addr, 1), netip.AddrPortFrom(b.addr, 2)
	tooBig := func(n int) bool {
		before := a.why(packet.WhyTooBig)
		a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, pattern(n-28))}
		waitFor(t, func() bool { return a.why(packet.WhyTooBig) > before || len(esp) > 0 })
		if len(esp) == 0 {
			return true
		}
		<-esp
		return false
	}
	// ESP adds 8 octets, an IV of 8, padding to 4 with 2 more, and an ICV of 16.
	if tooBig(1364) || !tooBig(1368) {
		t.Error("the limit is not what makes 1400 octets of ESP")
	}
	<-a.tun.FromEngine // ICMP
	// The path becomes narrower for AH, which finds ESP of 1280 octets too big.
	a.outs[2].path.Load().learn(1280, a.cfg.Now().UnixNano())
	a.tun.ToEngine <- looped(a, b, append([]byte{0, 0, 0x10, 1}, pattern(1256)...))
	waitFor(t, func() bool { return a.why(packet.WhyTooBig) == 2 })
	if len(a.tun.FromEngine) != 0 {
		t.Error("ICMP went to the host about a packet of ours")
	}
	// AH of 28 octets leaves 1252, and ESP of those 1216.
	if tooBig(1216) || !tooBig(1220) {
		t.Error("the SA inside has not learnt that 1252 octets fit")
	}
}

// Rules that lead in a circle, and ESP that a rule misses because it travels in UDP,
// carry nothing.
func TestWhatCannotBeNestedIsDropped(t *testing.T) {
	for name, c := range map[string]struct {
		protocols []uint8
		inner     saSpec
		ah        string // rule of an SA of AH
		esp       string // rule of a second SA of ESP
	}{
		"in UDP": {[]uint8{packet.ProtoESP}, saSpec{mode: ipsec.ModeTransport, suite: "aes128gcm16", encap: true}, "esp", ""},
		"circle": {[]uint8{packet.ProtoESP, packet.ProtoAH}, espSpec, "esp", "ah"},
		"itself": {[]uint8{packet.ProtoESP}, espSpec, "", "esp"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := twoHosts(t, false)
			a.nests(t, b, c.protocols...)
			connect(t, c.inner, 1, "r", a, b)
			if c.ah != "" {
				connect(t, ahSpec, 2, c.ah, a, b)
			}
			if c.esp != "" {
				connect(t, espSpec, 3, c.esp, a, b)
			}
			a.tun.ToEngine <- netio.Packet{Data: udp(netip.AddrPortFrom(a.addr, 1), netip.AddrPortFrom(b.addr, 2), pattern(100))}
			waitFor(t, func() bool { return a.why(packet.WhyNesting) == 1 })
		})
	}
}

// ESP that came in another SA than policy wants around it is not taken for what came
// in that one.
func TestESPInTheWrongSAIsDropped(t *testing.T) {
	a, b := twoHosts(t, false)
	a.nests(t, b, packet.ProtoESP)
	b.nests(t, a, packet.ProtoESP)
	connect(t, ahSpec, 1, "esp", a, b)
	a.tun.ToEngine <- looped(a, b, pattern(100))
	b.arrived(t)
	out, in := simplex(t, ahSpec, 2, a, b, single(a.addr), single(b.addr)) // at b of rule r
	out.SA.Rule = "esp"
	for h, op := range map[*host]backend.Op{a: out, b: in} {
		if err := h.Apply([]backend.Op{op}); err != nil {
			t.Fatal(err)
		}
	}
	a.tun.ToEngine <- looped(a, b, pattern(100))
	waitFor(t, func() bool { return b.why(packet.WhyInner) == 1 })
}

// ESP in UDP is misplaced from whatever port it comes: those of a peer behind a NAT may
// be any.
func TestESPInUDPOfAnyPortIsMisplaced(t *testing.T) {
	a, b := twoHosts(t, false)
	b.nests(t, a, packet.ProtoESP)
	_, in := simplex(t, ahSpec, 1, a, b, single(a.addr), single(b.addr))
	if err := b.Apply([]backend.Op{in}); err != nil { // of rule r, not of the one for ESP
		t.Fatal(err)
	}
	for _, port := range []uint16{4500, 4501} {
		p := udp(netip.AddrPortFrom(a.addr, port), netip.AddrPortFrom(b.addr, 4500), pattern(60))
		h, _ := packet.Parse(p)
		if !b.state.Load().misplaced(b.ins[1], &h, p) {
			t.Errorf("ESP in UDP from port %d passes", port)
		}
	}
	// The first fragment may hold no more than the header.
	p := udp(netip.AddrPortFrom(a.addr, 4501), netip.AddrPortFrom(b.addr, 4500), nil)
	p[6] = 0x20
	packet.SetChecksum4(p)
	if h, _ := packet.Parse(p); !b.state.Load().misplaced(b.ins[1], &h, p) {
		t.Error("a fragment without ESP in it passes")
	}
	ike := udp(netip.AddrPortFrom(a.addr, 4501), netip.AddrPortFrom(b.addr, 4500), append(make([]byte, 4), pattern(60)...))
	if h, _ := packet.Parse(ike); b.state.Load().misplaced(b.ins[1], &h, ike) {
		t.Error("IKE is taken for ESP")
	}
}

// What is another host's ESP tells this host's SA nothing, whatever its SPI.
func TestOnlyAnSAsOwnPacketsTellItWhatFits(t *testing.T) {
	a, b := twoHosts(t, false)
	a.nests(t, b, packet.ProtoESP)
	connect(t, espSpec, 1, "r", a, b)
	spi := []byte{0, 0, 0x10, 1}
	for src, want := range map[string]bool{"10.1.0.1": false, a.addr.String(): true} {
		p := ipHeader(netip.MustParseAddr(src), b.addr, packet.ProtoESP, 100)
		copy(p[20:], spi)
		h, _ := packet.Parse(p)
		if got := a.outw[0].tellInner(p, &h, 1000); got != want {
			t.Errorf("ESP of %s has told the SA: %v, want %v", src, got, want)
		}
	}
}
