package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// RFC 4555: gateway A loses its address and gets another one, which the policy lists
// or does not. The same SAs go on at the new address.
func TestGatewayMovesToAnotherAddress(t *testing.T) {
	const other = "198.51.100.77"
	for _, tc := range []struct {
		name, addresses string
	}{
		{"listed", gwA4 + ", " + other},
		{"roaming", gwA4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, b := newSites(t, lab.SitesOptions{}, gateways(tc.addresses, gwB4, ""))
			b.min = 1000
			s.HostA.Node.Ping(s.HostB.V4.Addr(), lab.PingOptions{})
			before := b.onlyIKE("gwa", "gwb")
			probe := s.HostA.Node.StartProbe(s.HostB, false, 2*time.Millisecond)
			moving(t, probe)
			readdress(s, gwA4, other)
			for _, end := range []struct{ node, peer string }{{"gwa", "gwb"}, {"gwb", "gwa"}} {
				lab.WaitFor(t, limit, end.node+" to have moved", func() error {
					sa := b.onlyIKE(end.node, end.peer)
					if at := sa.GetLocal() + sa.GetRemote(); !strings.Contains(at, other) {
						return fmt.Errorf("the IKE SA goes %s ... %s", sa.GetLocal(), sa.GetRemote())
					}
					return nil
				})
			}
			moving(t, probe)
			r := probe.Stop()
			t.Logf("%v", r) // lost are those under way when the address goes, and until the new one is announced
			after := b.onlyIKE("gwa", "gwb")
			if after.GetLocalSpi() != before.GetLocalSpi() || after.GetChildren()[0].GetSpiIn() != before.GetChildren()[0].GetSpiIn() {
				t.Errorf("SAs %v, before %v; want the same at another address", after, before)
			}
			s.HostA.Node.Transfer(s.HostB, false, megabyte)
			s.HostB.Node.Transfer(s.HostA, false, megabyte)
			if fs := b.Failures(""); len(fs) != 0 {
				t.Errorf("failures: %v; want none", fs)
			}
			readdress(s, other, gwA4) // as it was
		})
	}
}

// readdress gives gateway A another address.
func readdress(s *lab.Sites, old, other string) {
	gw := s.GWA.Node
	gw.IP("address", "del", old+"/24", "dev", "eth0")
	gw.IP("address", "add", other+"/24", "dev", "eth0")
	gw.Route(netip.MustParsePrefix("0.0.0.0/0"), s.WANA.V4.Addr())
}

// The path between two addresses dies and nobody is told: gateway A finds out by its
// liveness check and takes its other address.
func TestDeadPathIsLeft(t *testing.T) {
	const other = "198.51.100.77"
	s := lab.NewSites(t, lab.SitesOptions{})
	s.GWA.Node.IP("address", "add", other+"/24", "dev", "eth0")
	yaml := strings.Replace(gateways(gwA4+", "+other, gwB4, ""), "spec: {rules:", "spec: {keyExchange: {dpd: 2s}, rules:", 1)
	b := newBench(t, s.Lab, yaml, fleet.Options{Hosts: []*lab.Node{s.GWA.Node, s.GWB.Node}}, s.WANB.Sniff())
	b.min = 4
	s.HostA.Node.Ping(s.HostB.V4.Addr(), lab.PingOptions{})
	before := b.onlyIKE("gwa", "gwb")
	if !strings.Contains(before.GetLocal(), gwA4) {
		t.Fatalf("the IKE SA begins at %s, want %s", before.GetLocal(), gwA4)
	}
	s.WAN().Nft("table inet dead { chain forward { type filter hook forward priority filter; ip saddr " + gwA4 + " drop; ip daddr " + gwA4 + " drop; }; }\n")
	s.HostA.Node.WaitPing(netip.MustParseAddr("10.2.0.2"), limit)
	if after := b.onlyIKE("gwa", "gwb"); after.GetLocalSpi() != before.GetLocalSpi() || !strings.Contains(after.GetLocal(), other) {
		t.Errorf("IKE SA %v; want that of before at %s", after, other)
	}
}
