package bench

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(flooderVar); what != "" {
		if err := floodFor(what); err != nil {
			fmt.Fprintln(os.Stderr, "flooder:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	lab.Main(m)
}

// contender is one way to protect traffic between two hosts.
type contender struct {
	name string
	a, b *lab.Node
	to   netip.Addr // b, as a reaches it through the contender
	rss  func() int // octets of memory of b's data path; nil when not measured
}

const policy = `apiVersion: testudo/v1
kind: Node
metadata: {name: a}
spec: {addresses: [192.0.2.1]}
---
kind: Node
metadata: {name: b}
spec: {addresses: [192.0.2.2]}
---
kind: FilterList
metadata: {name: pair}
spec:
  filters:
  - {from: {node: a}, to: {node: b}}
---
kind: FilterAction
metadata: {name: protect}
spec: {action: secure, mode: tunnel, security: [{esp: {encryption: aes128gcm16}}], forceEncap: %t}
---
kind: Authentication
metadata: {name: fleet}
spec: {methods: [{psk: {secret: "file:fleet.psk"}}]}
---
kind: Policy
metadata: {name: pair}
spec:
  rules:
  - {name: all, filters: pair, action: protect, authentication: fleet}
---
kind: Assignment
metadata: {name: a}
spec: {policy: pair, to: a}
---
kind: Assignment
metadata: {name: b}
spec: {policy: pair, to: b}
`

// ours is two of our workers with tunnel mode between them, in UDP or directly
// over IP. worker is the program, empty for the one that is shipped, with flags.
func ours(t *testing.T, name, worker string, udp bool, flags ...string) contender {
	p := lab.NewPair(t, lab.PairOptions{})
	f := fleet.New(t, p.Lab, fleet.Options{Hosts: []*lab.Node{p.A.Node, p.B.Node}, WorkerProgram: worker, Workerd: flags})
	f.Apply(fmt.Sprintf(policy, udp))
	f.WaitInSync()
	p.A.Node.WaitPing(p.B.V4.Addr(), 10*time.Second)
	pid := f.Worker("b").Process().PID()
	return contender{name, p.A.Node, p.B.Node, p.B.V4.Addr(), func() int { return residentSet(t, pid) }}
}

// wireguard is two wireguard-go processes.
func wireguard(t *testing.T, program string) contender {
	p := lab.NewPair(t, lab.PairOptions{})
	ends := []*lab.Interface{p.A, p.B}
	var private, public [2]string
	for i := range ends {
		private[i] = output(t, "", "wg", "genkey")
		public[i] = output(t, private[i], "wg", "pubkey")
	}
	var procs [2]*lab.Process
	for i, e := range ends {
		n, other := e.Node, ends[1-i]
		procs[i] = n.Start(lab.Command{Args: []string{program, "-f", "wg0"}, Env: []string{"LOG_LEVEL=error"}})
		lab.WaitFor(t, 10*time.Second, "wireguard-go's device", func() error {
			_, err := n.Try("ip", "link", "show", "wg0")
			return err
		})
		key := n.WriteFile("wg.key", private[i])
		var out string
		lab.WaitFor(t, 10*time.Second, "wireguard-go's socket", func() (err error) {
			out, err = n.Try("wg", "set", "wg0", "listen-port", "51820", "private-key", key, "peer", public[1-i],
				"allowed-ips", "10.99.0.0/24", "endpoint", other.V4.Addr().String()+":51820")
			return err
		})
		_ = out
		n.IP("addr", "add", fmt.Sprintf("10.99.0.%d/24", i+1), "dev", "wg0")
		n.IP("link", "set", "wg0", "up")
	}
	to := netip.MustParseAddr("10.99.0.2")
	p.A.Node.WaitPing(to, 10*time.Second)
	return contender{"wireguard-go", p.A.Node, p.B.Node, to, func() int { return residentSet(t, procs[1].PID()) }}
}

// libipsec is two strongSwan daemons whose plugin kernel-libipsec moves packets
// in user space.
func libipsec(t *testing.T) contender {
	p := lab.NewPair(t, lab.PairOptions{})
	inner := []netip.Prefix{netip.MustParsePrefix("10.98.0.1/32"), netip.MustParsePrefix("10.98.0.2/32")}
	ends := []*lab.Interface{p.A, p.B}
	psk := ipsec.NewSecret([]byte(strings.TrimSpace(fleet.RandomPSK())))
	var swan [2]*lab.StrongSwan
	for _, i := range []int{1, 0} {
		ends[i].Node.IP("addr", "add", inner[i].String(), "dev", "lo")
		swan[i] = ends[i].Node.StartStrongSwan(lab.SwanConn{
			Name: "bench", Local: ends[i].V4.Addr(), Remote: ends[1-i].V4.Addr(), LocalID: fmt.Sprintf("host-%d", i), RemoteID: fmt.Sprintf("host-%d", 1-i), PSK: psk,
			LocalTS: inner[i : i+1], RemoteTS: inner[1-i : 2-i], ESPProposals: []string{"aes128gcm16"},
		})
	}
	if err := swan[0].Initiate("bench"); err != nil {
		t.Fatal(err)
	}
	p.A.Node.WaitPing(inner[1].Addr(), 10*time.Second)
	return contender{"libipsec", p.A.Node, p.B.Node, inner[1].Addr(), nil}
}

// clearText is the same wire without protection.
func clearText(t *testing.T) contender {
	p := lab.NewPair(t, lab.PairOptions{})
	return contender{"clear", p.A.Node, p.B.Node, p.B.V4.Addr(), nil}
}

func output(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v; `make deps` installs it", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

// residentSet is the memory of a process in octets.
func residentSet(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "statm"))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize()
}
