package e2e

import (
	"encoding/binary"
	"encoding/hex"
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
// connection, which tshark puts together again.
func TestNetworkWithoutUDP(t *testing.T) {
	s := lab.NewSites(t, lab.SitesOptions{})
	yaml := strings.Replace(gateways(gwA4, gwB4, ""), "spec: {rules:", "spec: {keyExchange: {tcp: fallback}, rules:", 1)
	b := newBench(t, s.Lab, yaml, fleet.Options{Hosts: []*lab.Node{s.GWA.Node, s.GWB.Node}}, s.WANB.Sniff())
	b.min = 1000
	s.WAN().Nft(noUDP)

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
	pcap := filepath.Join(s.WAN().Dir(), "tcp.pcap")
	dump := s.WAN().Start(lab.Command{Args: []string{"tcpdump", "-Z", "root", "-i", "toB", "-U", "--immediate-mode", "-w", pcap, "tcp", "port", "4500"}})
	dump.WaitOutput("listening on", limit)
	s.WAN().Nft("table inet cut { chain forward { type filter hook forward priority filter; tcp dport 4500 reject with tcp reset; tcp sport 4500 reject with tcp reset; }; }\n")
	if s.HostA.Node.TryPing(s.HostB.V4.Addr(), lab.PingOptions{}) == nil {
		t.Error("a ping went through a wire that is cut")
	}
	s.WAN().Nft("delete table inet cut\n")
	s.HostA.Node.WaitPing(s.HostB.V4.Addr(), limit)
	s.HostB.Node.Ping(s.HostA.V4.Addr(), lab.PingOptions{Count: 3})
	sa = b.onlyIKE("gwa", "gwb")
	b.RekeyChild("gwa", sa.GetChildren()[0].GetId())
	b.waitRekeyed("gwa", "gwb", func() error {
		if c := b.onlyIKE("gwa", "gwb").GetChildren()[0]; c.GetId() == sa.GetChildren()[0].GetId() {
			return fmt.Errorf("CHILD SA %v; want another", c)
		}
		return nil
	})
	if err := dump.Stop(); err != nil {
		t.Error(err)
	}
	there, back := followed(t, pcap)
	if !strings.HasPrefix(there, "IKETCP") {
		t.Fatalf("the stream begins with %q; want IKETCP (RFC 9329 §4)", there[:min(6, len(there))])
	}
	for _, x := range []struct{ way, stream string }{{"there", there[6:]}, {"back", back}} {
		ike, esp := framesOf(t, x.stream)
		t.Logf("%s: %d IKE messages, %d ESP packets", x.way, ike, esp)
		if ike < 2 || esp < 4 {
			t.Errorf("%s: %d IKE messages and %d ESP packets; want at least 2 and 4", x.way, ike, esp)
		}
	}
	if n := b.wires[0].Count(lab.ESP); n != 0 {
		t.Errorf("%d ESP packets outside of TCP", n)
	}
}

// followed is what the last connection of a capture carried, put together by tshark.
func followed(t *testing.T, pcap string) (there, back string) {
	t.Helper()
	run := func(args ...string) string {
		out, err := exec.Command("tshark", append([]string{"-r", pcap}, args...)...).Output()
		if err != nil {
			t.Fatalf("tshark %q: %v", args, err)
		}
		return string(out)
	}
	syns := strings.Fields(run("-Y", "tcp.flags.syn == 1 && tcp.flags.ack == 0", "-T", "fields", "-e", "tcp.stream"))
	if len(syns) == 0 {
		t.Fatal("nobody has connected")
	}
	for line := range strings.Lines(run("-q", "-z", "follow,tcp,raw,"+syns[len(syns)-1])) {
		b, err := hex.DecodeString(strings.TrimSpace(line))
		switch {
		case err != nil: // not data
		case strings.HasPrefix(line, "\t"):
			back += string(b)
		default:
			there += string(b)
		}
	}
	return there, back
}

// framesOf reads frames as RFC 9329 §3 has them.
func framesOf(t *testing.T, stream string) (ike, esp int) {
	t.Helper()
	for b := []byte(stream); len(b) >= 2; {
		n := int(binary.BigEndian.Uint16(b))
		if n < 2 || n > len(b) {
			t.Fatalf("a frame of %d octets, %d are left", n, len(b))
		}
		f := b[2:n]
		b = b[n:]
		switch {
		case len(f) >= 8 && binary.BigEndian.Uint32(f) != 0:
			esp++
		case len(f) >= 32 && int(binary.BigEndian.Uint32(f[28:])) == len(f)-4: // the header's Length (RFC 7296 §3.1)
			ike++
		default:
			t.Errorf("a frame that is neither IKE nor ESP: %x", f)
		}
	}
	return ike, esp
}

// A policy without TCP accepts no connection.
func TestNobodyListensWithoutPolicy(t *testing.T) {
	_, b := newSites(t, lab.SitesOptions{}, gateways(gwA4, gwB4, ""))
	if out := b.hosts[0].Run("ss", "-Hltn", "sport", "=", "4500"); out != "" {
		t.Errorf("it listens: %s", out)
	}
	b.clearAllowed()
}

// Between two hosts all of whose traffic is secured: what belongs to the connection
// itself passes, and nothing else does.
func TestHostsInTCP(t *testing.T) {
	b := newPair(t, pairPolicy("", "keyExchange: {tcp: always}"), fleet.Options{})
	b.min = 1000
	exchange(t, b.A, b.B, traffic{})
	exchange(t, b.A, b.B, traffic{v6: true})
	if sa := b.onlyIKE("a", "b"); !sa.GetTcp() {
		t.Errorf("IKE SA %v; want it over TCP", sa)
	}
	if n := b.wires[0].Count(lab.ESP) + b.wires[0].Count(lab.IKE) + b.wires[0].Count(lab.IKEFragment); n != 0 {
		t.Errorf("%d packets of ESP and IKE outside of TCP", n)
	}
}
