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

var (
	company = netip.MustParsePrefix("10.0.0.0/8")
	head    = netip.MustParsePrefix("10.0.0.0/16")
	north   = netip.MustParsePrefix("10.1.0.0/16")
	south   = netip.MustParsePrefix("10.2.0.0/16")
	west    = netip.MustParsePrefix("10.3.0.0/16")
)

// newHub makes a hub and, in one engine, its branches: their SAs end at one address.
// The SA from north and the one to south are there.
func newHub(t *testing.T) (branches, hub *host) {
	t.Helper()
	branches, hub = twoHosts(t, false)
	branches.policy(t, ipsec.ModeTunnel, north, company)
	rule := func(remote netip.Prefix, peer string) ipsec.Rule {
		return ipsec.Rule{
			Name: peer, Weight: uint64(remote.Bits()), Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: peer,
			Selector: ipsec.Selector{Local: ipsec.PrefixSelector(company), Remote: ipsec.PrefixSelector(remote)},
			Template: &ipsec.Template{Mode: ipsec.ModeTunnel},
		}
	}
	own := rule(head, "")
	own.Name, own.Action, own.Template = "own", ipsec.ActionPermit, nil
	at := []netip.Addr{branches.addr}
	if err := hub.SetPolicy(context.Background(), &ipsec.NodePolicy{
		Node: "hub", Default: ipsec.ActionPermit, Rules: []ipsec.Rule{own, rule(north, "north"), rule(south, "south"), rule(west, "west"), rule(company, "any")},
		Peers: []ipsec.Peer{{Name: "any"}, {Name: "north", Remote: at}, {Name: "south", Remote: at}, {Name: "west", Remote: at}},
	}); err != nil {
		t.Fatal(err)
	}
	spec := saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}
	out, in := simplex(t, spec, 1, branches, hub, north, company)
	in.SA.Rule, in.SA.Peer = "north", "north"
	on, at2 := simplex(t, spec, 2, hub, branches, company, south)
	on.SA.Rule, on.SA.Peer = "south", "south"
	back, at1 := simplex(t, spec, 3, hub, branches, company, north)
	back.SA.Rule, back.SA.Peer = "north", "north"
	for _, x := range []struct {
		*host
		op backend.Op
	}{{branches, at1}, {branches, at2}, {hub, in}, {hub, on}, {hub, back}, {branches, out}} {
		if err := x.Apply([]backend.Op{x.op}); err != nil {
			t.Fatal(err)
		}
	}
	return branches, hub
}

func toward(dst string, n int) []byte {
	return udp(netip.MustParseAddrPort("10.1.0.1:7"), netip.AddrPortFrom(netip.MustParseAddr(dst), 9), pattern(n))
}

// What one peer sends for another one goes from SA to SA, a hop further on, and is
// never on the hub's host.
func TestAHubRelays(t *testing.T) {
	branches, hub := newHub(t)
	const n = 200
	go func() {
		for range n {
			branches.tun.ToEngine <- netio.Packet{Data: toward("10.2.0.1", 500)}
		}
	}()
	for got := 0; got < n; {
		p, h := branches.arrived(t)
		if h.Dst(p.Data) != netip.MustParseAddr("10.2.0.1") || packet.TTL(p.Data) != 63 {
			t.Fatalf("to %s with TTL %d; want 10.2.0.1 and 63", h.Dst(p.Data), packet.TTL(p.Data))
		}
		got += max(1, (len(p.Data)-28)/500)
	}
	if len(hub.tun.FromEngine) != 0 {
		t.Error("a relayed packet went to the hub's host")
	}
	// It is south's SA that has carried them.
	for _, sa := range hub.Counters().SAs {
		if want := map[ipsec.SAID]uint64{1: n, 2: n}[sa.ID]; sa.Packets != want {
			t.Errorf("%s has carried %d packets, want %d", sa.ID, sa.Packets, want)
		}
	}
}

// What is the hub's own, what would go back, and what is for nobody who can be asked,
// goes to the host, whose rules know what of it may leave.
func TestAHubLeavesTheRestToTheHost(t *testing.T) {
	branches, hub := newHub(t)
	for _, dst := range []string{"10.0.0.5", "10.1.0.77", "10.99.0.1"} {
		branches.tun.ToEngine <- netio.Packet{Data: toward(dst, 100)}
		if p, h := hub.arrived(t); h.Dst(p.Data) != netip.MustParseAddr(dst) || packet.TTL(p.Data) != 64 {
			t.Errorf("to %s with TTL %d; want %s, untouched", h.Dst(p.Data), packet.TTL(p.Data), dst)
		}
	}
	if len(branches.tun.FromEngine) != 0 {
		t.Error("the hub has sent something on")
	}
}

func TestARelayedPacketAsksForItsSA(t *testing.T) {
	branches, hub := newHub(t)
	branches.tun.ToEngine <- netio.Packet{Data: toward("10.3.0.1", 100)}
	for e := range hub.events {
		if a, ok := e.(backend.Acquire); ok {
			if a.Rule != "west" || a.Flow.Local != netip.MustParseAddr("10.1.0.1") {
				t.Errorf("acquire %+v; want one for west", a)
			}
			break
		}
	}
	on, in := simplex(t, saSpec{mode: ipsec.ModeTunnel, suite: "aes128gcm16"}, 4, hub, branches, company, west)
	on.SA.Rule, on.SA.Peer = "west", "west"
	if err := branches.Apply([]backend.Op{in}); err != nil {
		t.Fatal(err)
	}
	if err := hub.Apply([]backend.Op{on}); err != nil {
		t.Fatal(err)
	}
	if p, h := branches.arrived(t); h.Dst(p.Data) != netip.MustParseAddr("10.3.0.1") || packet.TTL(p.Data) != 63 {
		t.Errorf("to %s with TTL %d; want 10.3.0.1 and 63", h.Dst(p.Data), packet.TTL(p.Data))
	}
}

// A packet that goes round ends, and one that does not fit is answered through the SA
// that it came in.
func TestARelayedPacketThatGoesNoFurther(t *testing.T) {
	branches, hub := newHub(t)
	last := toward("10.2.0.1", 100)
	packet.SetTTL(last, 1)
	branches.tun.ToEngine <- netio.Packet{Data: last}
	waitFor(t, func() bool { return hub.why(packet.WhyTTL) == 1 })

	hub.outs[2].path.Load().learn(800, hub.cfg.Now().UnixNano())
	branches.tun.ToEngine <- netio.Packet{Data: toward("10.2.0.1", 1000)}
	p, h := branches.arrived(t)
	if h.Protocol != packet.ProtoICMP || h.SrcPort != 3<<8|4 || h.Dst(p.Data) != netip.MustParseAddr("10.1.0.1") {
		t.Errorf("got %+v, want ICMP fragmentation needed to 10.1.0.1", h)
	}
	if len(hub.tun.FromEngine) != 0 {
		t.Error("something went to the hub's host")
	}
}

// A gateway whose peers have nothing to say to each other does not look.
func TestAGatewayWithoutPeersForEachOtherDoesNotRelay(t *testing.T) {
	a, _ := twoHosts(t, false)
	a.policy(t, ipsec.ModeTunnel, north, south)
	if a.state.Load().relays != nil {
		t.Error("it looks whether to relay what came in SAs")
	}
	a.policy(t, ipsec.ModeTunnel, north, company)
	if a.state.Load().relays == nil {
		t.Error("local and remote overlap, and it does not look")
	}
}

// sealedFor is a packet as north sends it to the hub, taken off the wire.
func sealedFor(t *testing.T, branches *host, p []byte) netio.Message {
	t.Helper()
	wire := make(chan []byte, 1)
	branches.encap.Tamper = func(d []byte) [][]byte { wire <- bytes.Clone(d); return nil }
	branches.tun.ToEngine <- netio.Packet{Data: p}
	return netio.Message{Data: <-wire, Local: netip.MustParseAddrPort("192.0.2.2:4500"), Remote: netip.MustParseAddrPort("192.0.2.1:4500")}
}

// Who relays waits for no SA: another socket may hold it, and wait to relay.
func TestARelayingSocketWaitsForNoSA(t *testing.T) {
	branches, hub := newHub(t)
	ms := []netio.Message{sealedFor(t, branches, toward("10.2.0.1", 100))}
	out, in := simplex(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, 5, branches, hub, north, company)
	in.SA.Rule, in.SA.Peer = "north", "north"
	for h, op := range map[*host]backend.Op{hub: in, branches: out} {
		if err := h.Apply([]backend.Op{op}); err != nil {
			t.Fatal(err)
		}
	}
	ms = append(ms, sealedFor(t, branches, toward("10.2.0.2", 100)))
	held := &hub.ins[5].mu
	held.Lock() // as the other socket does
	done := make(chan struct{})
	go func() { hub.inw[0].batch(ms); close(done) }()
	waitFor(t, func() bool { return hub.outs[2].Counters().Packets == 1 })
	waitFor(t, hub.relayw[0].mu.TryLock)
	hub.relayw[0].mu.Unlock()
	held.Unlock()
	<-done
	for range ms {
		branches.arrived(t)
	}
}

// A panic while a batch is sent on costs that batch.
func TestAPanicWhileRelayingCostsABatch(t *testing.T) {
	branches, hub := newHub(t)
	hub.relayw[0].senders[0] = &faulty{Sender: hub.relayw[0].senders[0]}
	branches.tun.ToEngine <- netio.Packet{Data: toward("10.2.0.1", 100)}
	waitFor(t, func() bool { return hub.why(packet.WhyPanic) == 1 })
	branches.tun.ToEngine <- netio.Packet{Data: toward("10.2.0.2", 100)}
	if _, h := branches.arrived(t); h.Protocol != packet.ProtoUDP {
		t.Errorf("protocol %d arrived, want UDP", h.Protocol)
	}
}

// sent notes what is sent.
type sent struct {
	netio.Sender
	packets chan []byte
}

func (s *sent) Send(ms []netio.Message) (int, error) {
	for _, m := range ms {
		s.packets <- bytes.Clone(m.Data)
	}
	return len(ms), nil
}

// What was relayed and waits for an SA does not leave in clear either: not where its rule
// falls back to clear, nor under a policy that has come to permit it.
func TestWhatWaitsToBeRelayedDoesNotLeaveInClear(t *testing.T) {
	for _, how := range []string{"fallback", "policy"} {
		branches, hub := newHub(t)
		clear := &sent{packets: make(chan []byte, 8)}
		hub.ctl.clear[0] = clear
		p := *hub.Engine.policy
		p.Rules = append([]ipsec.Rule(nil), p.Rules...)
		for i := range p.Rules {
			if p.Rules[i].Name == "west" {
				p.Rules[i].Template = &ipsec.Template{Mode: ipsec.ModeTunnel, FallbackClear: how == "fallback"}
			}
		}
		if err := hub.SetPolicy(context.Background(), &p); err != nil {
			t.Fatal(err)
		}
		branches.tun.ToEngine <- netio.Packet{Data: toward("10.3.0.1", 100)}
		ask := (<-hub.events).(backend.Acquire)
		waitFor(t, func() bool { return hub.why(packet.WhyAcquiring) == 1 })
		if how == "fallback" {
			hub.AcquireFailed(ask.ID, "no answer")
		} else {
			next := p
			next.Rules = append([]ipsec.Rule(nil), p.Rules[:4]...)
			elsewhere := netip.MustParsePrefix("10.3.9.0/24")
			for i := range next.Rules {
				if next.Rules[i].Name == "west" {
					next.Rules[i].Selector.Remote = ipsec.PrefixSelector(elsewhere)
				}
			}
			if err := hub.SetPolicy(context.Background(), &next); err != nil {
				t.Fatal(err)
			}
			on, _ := simplex(t, saSpec{mode: ipsec.ModeTunnel, suite: "aes128gcm16"}, 4, hub, branches, company, elsewhere)
			on.SA.Rule, on.SA.Peer = "west", "west"
			if err := hub.Apply([]backend.Op{on}); err != nil {
				t.Fatal(err)
			}
		}
		if len(clear.packets) != 0 || hub.why(packet.WhyUnsupported) != 1 {
			t.Errorf("%s: %d packets in clear, %d dropped; want it dropped", how, len(clear.packets), hub.why(packet.WhyUnsupported))
		}
	}
}

// What no router forwards, a hub does not relay, though a rule for all addresses covers
// it: it is for the host.
func TestAHubDoesNotRelayWhatNoRouterForwards(t *testing.T) {
	branches, hub := newHub(t)
	all := netip.MustParsePrefix("0.0.0.0/0")
	branches.policy(t, ipsec.ModeTunnel, all, all)
	p := *hub.Engine.policy
	p.Rules = append([]ipsec.Rule(nil), p.Rules...)
	for i := range p.Rules {
		if n := p.Rules[i].Name; n == "south" {
			p.Rules[i].Selector = ipsec.Selector{Local: ipsec.PrefixSelector(all), Remote: ipsec.PrefixSelector(all)}
			p.Rules = []ipsec.Rule{p.Rules[i]}
			break
		}
	}
	if err := hub.SetPolicy(context.Background(), &p); err != nil {
		t.Fatal(err)
	}
	spec := saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}
	out, in := simplex(t, spec, 6, branches, hub, all, all)
	in.SA.Rule, in.SA.Peer = "north", "north"
	on, at := simplex(t, spec, 7, hub, branches, all, all)
	on.SA.Rule, on.SA.Peer = "south", "south"
	for _, x := range []struct {
		*host
		op backend.Op
	}{{hub, in}, {branches, at}, {hub, on}, {branches, out}} {
		if err := x.Apply([]backend.Op{x.op}); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range [][2]string{
		{"10.1.0.1", "224.0.0.5"}, {"10.1.0.1", "255.255.255.255"}, {"10.1.0.1", "127.0.0.1"},
		{"10.1.0.1", "169.254.1.1"}, {"169.254.1.1", "10.2.0.1"}, {"0.0.0.0", "10.2.0.1"}, {"127.0.0.1", "10.2.0.1"},
	} {
		src, dst := netip.AddrPortFrom(netip.MustParseAddr(x[0]), 7), netip.AddrPortFrom(netip.MustParseAddr(x[1]), 9)
		branches.tun.ToEngine <- netio.Packet{Data: udp(src, dst, pattern(10))}
		select {
		case <-hub.tun.FromEngine:
		case <-branches.tun.FromEngine:
			t.Errorf("from %s to %s was relayed", x[0], x[1])
		}
	}
	branches.tun.ToEngine <- netio.Packet{Data: toward("10.2.0.1", 10)}
	branches.arrived(t)
}
