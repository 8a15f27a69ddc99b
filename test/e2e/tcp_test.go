package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// noUDP has a router drop it.
const noUDP = "table inet noudp { chain forward { type filter hook forward priority filter; meta l4proto { udp, esp } drop; }; }\n"

// RFC 9329: a network that drops UDP and ESP. IKE and ESP travel in one TCP
// connection, of which Wireshark's dissector, a second opinion, reads the frames.
func TestNetworkWithoutUDP(t *testing.T) {
	s := lab.NewSites(t, lab.SitesOptions{})
	yaml := strings.Replace(gateways(gwA4, gwB4, ""), "spec: {rules:", "spec: {keyExchange: {tcp: fallback}, rules:", 1)
	b := newBench(t, s.Lab, yaml, fleet.Options{Hosts: []*lab.Node{s.GWA.Node, s.GWB.Node}}, s.WANB.Sniff())
	b.min = 1000
	s.WAN().Nft(noUDP)
	pcap := filepath.Join(s.WAN().Dir(), "tcp.pcap")
	dump := s.WAN().Start(lab.Command{Args: []string{"tcpdump", "-i", "toB", "-U", "-w", pcap, "tcp", "port", "4500"}})

	s.HostA.Node.WaitPing(s.HostB.V4.Addr(), limit)
	sa := b.onlyIKE("gwa", "gwb")
	if !sa.GetTcp() || !strings.HasSuffix(sa.GetRemote(), ":4500") {
		t.Errorf("IKE SA %v; want it over TCP to port 4500", sa)
	}
	exchange(t, s.HostA, s.HostB, traffic{small: true})
	exchange(t, s.HostA, s.HostB, traffic{v6: true, small: true})
	for _, end := range []struct{ node, peer string }{{"gwa", "gwb"}, {"gwb", "gwa"}} {
		old := b.onlyIKE(end.node, end.peer)
		b.RekeyChild(end.node, old.GetChildren()[0].GetId())
		b.RekeyIKE(end.node, old.GetLocalSpi())
		b.waitRekeyed(end.node, end.peer, func() error {
			if s := b.SAs(end.node); len(s) != 1 || s[0].GetLocalSpi() == old.GetLocalSpi() || s[0].GetState() != "established" {
				return fmt.Errorf("SAs %v; want another IKE SA than %v", s, old)
			}
			return nil
		})
	}
	s.HostA.Node.Ping(s.HostB.V4.Addr(), lab.PingOptions{Count: 3})

	// The connection is cut in the middle; the originator opens it again.
	s.GWA.Node.Run("ss", "--kill", "dport", "=", "4500")
	s.HostA.Node.WaitPing(s.HostB.V4.Addr(), limit)
	s.HostB.Node.Ping(s.HostA.V4.Addr(), lab.PingOptions{Count: 3})

	if err := dump.Stop(); err != nil {
		t.Log(err)
	}
	out, err := exec.Command("tshark", "-r", pcap, "-Y", "isakmp || esp", "-T", "fields", "-e", "_ws.col.Protocol").CombinedOutput()
	if err != nil {
		t.Fatalf("tshark: %v: %s", err, out)
	}
	if ike, esp := strings.Count(string(out), "ISAKMP"), strings.Count(string(out), "ESP"); ike < 8 || esp < 100 {
		t.Errorf("tshark reads %d IKE messages and %d ESP packets in TCP; want at least 8 and 100", ike, esp)
	}
	if n := b.wires[0].Count(lab.ESP); n != 0 {
		t.Errorf("%d ESP packets outside of TCP", n)
	}
}

// A policy without TCP accepts no connection.
func TestNobodyListensWithoutPolicy(t *testing.T) {
	_, b := newSites(t, lab.SitesOptions{}, gateways(gwA4, gwB4, ""))
	if out := b.hosts[0].Run("ss", "-Hltn", "sport", "=", "4500"); out != "" {
		t.Errorf("it listens: %s", out)
	}
	b.clearAllowed()
}
