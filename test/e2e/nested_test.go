package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// ahAroundESP protects all traffic of lab.NewPair with ESP, and its ESP with AH.
func ahAroundESP(inner ...string) string {
	return policy(hostA, hostB, both, fleetPSK,
		filters("esp", "{from: {node: a}, to: {node: b}, protocol: esp}"),
		action("encrypt", "action: secure"), action("authenticate", "action: secure, security: [{ah: {integrity: sha256}}]"),
		rules("p", "", append(inner, "{name: inner, filters: both, action: encrypt, authentication: psk}",
			"{name: outer, filters: esp, action: authenticate, authentication: psk}")...),
		assign("p", "a"), assign("p", "b"))
}

// RFC 4301 §4.3: two SAs, one inside the other, each negotiated, rekeyed and counted
// by itself; the wire shows AH and nothing else.
func TestAHAroundESP(t *testing.T) {
	b := newPair(t, ahAroundESP(), fleet.Options{})
	b.min = 1000
	b.A.Node.WaitPing(b.B.V4.Addr(), limit) // two negotiations, one after the other
	exchange(t, b.A, b.B, traffic{})
	b.A.Node.WaitPing(b.B.V6.Addr(), limit)
	exchange(t, b.A, b.B, traffic{v6: true, small: true})
	b.onlyInside(t)
	kinds := map[string]int{}
	for _, c := range b.Children("a") {
		kinds[ipsec.Protocol(c.GetProtocol()).String()]++
		b.RekeyChild("a", c.GetId())
	}
	if kinds["esp"] == 0 || kinds["ah"] == 0 {
		t.Errorf("CHILD SAs %v; want ESP and AH", kinds)
	}
	exchange(t, b.A, b.B, traffic{small: true})
	if fs := b.Failures(""); len(fs) != 0 {
		t.Errorf("failures: %v; want none", fs)
	}
}

// onlyInside asks that the wire has shown no ESP that is not in AH.
func (b *pairBench) onlyInside(t *testing.T) {
	t.Helper()
	if n := b.wire.Count(lab.ESP); n != 0 {
		t.Errorf("%d packets of ESP without AH around it", n)
	}
}

// inTunnel is the example of RFC 4301 Appendix E on lab.NewSites: gwA and hostB speak
// ESP in transport mode, and it goes through a tunnel from gwA to gwB; so does the IKE
// between them, for nobody on the way knows hostB's network.
func inTunnel() string {
	return policy(node("gwa", gwA4, ""), node("gwb", gwB4, "10.2.0.0/24"), node("hostb", "10.2.0.2", ""),
		filters("all", "{from: {node: gwa}, to: {node: hostb}}"),
		filters("ipsec", "{from: {node: gwa}, to: 10.2.0.0/24, protocol: esp}",
			"{from: {node: gwa}, to: 10.2.0.0/24, protocol: udp, fromPort: 500, toPort: 500}"),
		action("end-to-end", "action: secure"), action("tunnel", "action: secure, mode: tunnel"), fleetPSK,
		rules("remote", "", "{name: inner, filters: all, action: end-to-end, authentication: psk}",
			"{name: outer, filters: ipsec, action: tunnel, authentication: psk, tunnel: gwb}"),
		rules("server", "", "{name: inner, filters: all, action: end-to-end, authentication: psk}"),
		assign("remote", "gwa"), assign("remote", "gwb"), assign("server", "hostb"))
}

func TestTransportInsideTunnel(t *testing.T) {
	s := lab.NewSites(t, lab.SitesOptions{})
	wan, lan := s.WANB.Sniff(), s.LANB.Sniff()
	b := newBench(t, s.Lab, inTunnel(), fleet.Options{Hosts: []*lab.Node{s.GWA.Node, s.GWB.Node, s.HostB.Node}}, wan, lan)
	b.min = 1000
	s.GWA.Node.WaitPing(s.HostB.V4.Addr(), limit) // four negotiations, one after the other
	exchange(t, s.GWA, s.HostB, traffic{tries: 4})
	for _, sa := range wan.SAs() {
		if sa.Dst != s.GWA.V4.Addr() && sa.Dst != s.GWB.V4.Addr() {
			t.Errorf("SA %08x to %s on the WAN; want tunnels between the gateways only", sa.SPI, sa.Dst)
		}
	}
	for _, sa := range lan.SAs() {
		if sa.Dst != s.GWA.V4.Addr() && sa.Dst != s.HostB.V4.Addr() {
			t.Errorf("SA %08x to %s on the LAN; want that of both hosts only", sa.SPI, sa.Dst)
		}
	}
	// Both are replaced, and outlive their daemons.
	for _, c := range b.Children("gwa") {
		b.RekeyChild("gwa", c.GetId())
	}
	s.GWA.Node.Ping(s.HostB.V4.Addr(), lab.PingOptions{Count: 3})
	for _, host := range []string{"gwb", "gwa", "hostb"} {
		b.Worker(host).Restart()
		b.WaitInSync()
		s.GWA.Node.WaitPing(s.HostB.V4.Addr(), limit)
	}
	b.Keymgrd.Restart()
	b.WaitInSync()
	s.HostB.Node.WaitPing(s.GWA.V4.Addr(), limit)
	exchange(t, s.GWA, s.HostB, traffic{small: true})

	// The gateway carries what it cannot read: without its SAs nothing passes.
	around := explainAround(t, b, "gwa", s.GWA.V4.Addr().String(), s.HostB.V4.Addr().String())
	if len(around) != 2 || !strings.Contains(around[0], "/inner#") || !strings.Contains(around[1], "/outer#1") {
		t.Errorf("explain: %q; want the SA of inner, and that of outer around it", around)
	}
}

// explainAround is the rules whose SAs carry a packet, the innermost first, as
// `testudo explain` and `testudo worker explain` tell alike.
func explainAround(t *testing.T, b *bench, host, src, dst string) []string {
	t.Helper()
	type sa struct{ SPIOut string }
	var top struct {
		Rule   struct{ Name string }
		SA     sa
		Around json.RawMessage
	}
	var rules, spis []string
	for text := b.CLI("explain", "--node", host, src, dst, "icmp", "-o", "json"); len(text) > 0; text = top.Around {
		top.Around = nil
		if err := json.Unmarshal(text, &top); err != nil {
			t.Fatal(err)
		}
		rules, spis = append(rules, top.Rule.Name), append(spis, top.SA.SPIOut)
	}
	var now struct {
		Rule, SPIOut string
		Around       json.RawMessage
	}
	i := 0
	for text := b.CLI("worker", "explain", src, dst, "icmp", "--admin", "unix://"+fleet.Admin(b.Worker(host).Node), "-o", "json"); len(text) > 0; text = now.Around {
		now.Around = nil
		if err := json.Unmarshal(text, &now); err != nil {
			t.Fatal(err)
		}
		if i >= len(rules) || now.Rule != rules[i] || now.SPIOut != spis[i] {
			t.Errorf("the worker says %q with SPI %q; policyd and keymgrd %q with %q", now.Rule, now.SPIOut, rules, spis)
			break
		}
		i++
	}
	return rules
}

// What lacks the SA that policy wants around it is dropped and counted, whichever
// side leaves it out.
func TestESPWithoutTheAHAroundItIsDropped(t *testing.T) {
	b := newPair(t, ahAroundESP(), fleet.Options{})
	b.A.Node.WaitPing(b.B.V4.Addr(), limit)
	b.onlyInside(t)
	around := explainAround(t, b.bench, "a", b.A.V4.Addr().String(), b.B.V4.Addr().String())
	if len(around) != 2 || !strings.Contains(around[0], "/inner#") || !strings.Contains(around[1], "/outer#") {
		t.Errorf("explain: %q; want the SA of inner, and that of outer around it", around)
	}
	// b's host does not nest: what the worker sends goes out at once.
	b.clearAllowed()
	b.B.Node.Nft("insert rule inet testudo_tst0 output meta mark & 0x20000000 != 0 accept")
	if err := b.B.Node.TryPing(b.A.V4.Addr(), lab.PingOptions{Count: 3}); err == nil {
		t.Error("ESP without AH was answered")
	}
	if n := b.wire.Count(lab.ESP); n == 0 {
		t.Error("no ESP without AH on the wire; the test proves nothing")
	}
	lab.WaitFor(t, limit, "a to count what it has dropped", func() error {
		if n := packets(b.Worker("a"), "clear-not-allowed"); n < 3 {
			return fmt.Errorf("%v packets; want 3", n)
		}
		return nil
	})
}
