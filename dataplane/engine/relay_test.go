package engine

import (
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
