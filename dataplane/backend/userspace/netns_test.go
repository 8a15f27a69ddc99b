package userspace

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// lab is two namespaces joined by a veth pair. Each end has outer addresses on
// the link and inner ones (for tunnel mode) on its loopback.
type lab struct {
	t     testing.TB
	a, b  *node
	noESN bool // SAs have sequence numbers of 32 bits
}

type node struct {
	l        *lab
	ns       string
	v4, v6   netip.Addr // outer
	in4, in6 netip.Addr // inner
	worker   *child
}

// child is a process of this binary inside a namespace.
type child struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	log *bytes.Buffer
}

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces with ip netns")
	}
	for _, tool := range []string{"ip", "nft", "ping"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs the tool %s: %v", tool, err)
		}
	}
	l := &lab{t: t}
	id := rand.Uint32() // not the pid: what a killed run left may have had the same
	l.a = &node{l: l, ns: fmt.Sprintf("tst%08xa", id), v4: addr("192.0.2.1"), v6: addr("2001:db8::1"), in4: addr("10.1.0.1"), in6: addr("2001:db8:1::1")}
	l.b = &node{l: l, ns: fmt.Sprintf("tst%08xb", id), v4: addr("192.0.2.2"), v6: addr("2001:db8::2"), in4: addr("10.2.0.1"), in6: addr("2001:db8:2::1")}
	for _, n := range []*node{l.a, l.b} {
		run(t, "ip", "netns", "add", n.ns)
		t.Cleanup(func() { run(t, "ip", "netns", "del", n.ns) })
		// No duplicate address detection: addresses are usable at once.
		n.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.addr_gen_mode=1")
		n.run("ip", "link", "set", "lo", "up")
	}
	run(t, "ip", "link", "add", "eth0", "netns", l.a.ns, "type", "veth", "peer", "name", "eth0", "netns", l.b.ns)
	for _, n := range []*node{l.a, l.b} {
		n.run("ip", "addr", "add", n.v4.String()+"/24", "dev", "eth0")
		n.run("ip", "-6", "addr", "add", n.v6.String()+"/64", "dev", "eth0", "nodad")
		n.run("ip", "addr", "add", n.in4.String()+"/32", "dev", "lo")
		n.run("ip", "-6", "addr", "add", n.in6.String()+"/128", "dev", "lo", "nodad")
		n.run("ip", "link", "set", "eth0", "up")
		p := n.peer()
		n.run("ip", "route", "add", p.in4.String(), "via", p.v4.String(), "src", n.in4.String())
		n.run("ip", "-6", "route", "add", p.in6.String(), "via", p.v6.String(), "src", n.in6.String())
	}
	// The kernel adds this one once it has seen the link come up.
	for _, n := range []*node{l.a, l.b} {
		for end := time.Now().Add(30 * time.Second); !strings.Contains(n.run("ip", "-6", "route", "show", "table", "local"), "ff00::/8 dev eth0"); {
			if time.Now().After(end) {
				t.Fatal("the veth link did not come up within 30 s")
			}
		}
	}
	return l
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func (n *node) peer() *node {
	if n == n.l.a {
		return n.l.b
	}
	return n.l.a
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (n *node) run(args ...string) string {
	n.l.t.Helper()
	return run(n.l.t, "ip", append([]string{"netns", "exec", n.ns}, args...)...)
}

// try runs a command that may fail.
func (n *node) try(args ...string) (string, error) {
	out, err := exec.Command("ip", append([]string{"netns", "exec", n.ns}, args...)...).CombinedOutput()
	return string(out), err
}

// child starts this binary in a role.
func (n *node) child(role string, args ...string) *child {
	n.l.t.Helper()
	return startChild(n.l.t, role, []string{"ip", "netns", "exec", n.ns}, args...)
}

func startChild(t testing.TB, role string, prefix []string, args ...string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return startCommand(t, role, append(append(prefix, self), args...)...)
}

// startCommand starts any program that answers as a child does.
func startCommand(t testing.TB, role string, argv ...string) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command(argv[0], argv[1:]...), log: &bytes.Buffer{}}
	c.cmd.Env = append(os.Environ(), roleVariable+"="+role)
	c.cmd.Stderr = c.log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it does not outlive a test that is killed
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewScanner(out)
	c.out.Buffer(nil, 1<<24)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.cmd.ProcessState == nil {
			_ = c.cmd.Process.Kill()
			_ = c.cmd.Wait()
		}
		if t.Failed() && c.log.Len() > 0 {
			t.Logf("%s said:\n%s", role, c.log)
		}
	})
	return c
}

// read is the child's next answer.
func (c *child) read() (string, error) {
	if !c.out.Scan() {
		return "", fmt.Errorf("the child went away: %w", errors.Join(c.out.Err(), io.EOF))
	}
	verb, rest, _ := strings.Cut(c.out.Text(), " ")
	if verb != "ok" {
		return "", errors.New(rest)
	}
	return rest, nil
}

// must is read for an answer that has to be good.
func (c *child) must() string {
	c.t.Helper()
	s, err := c.read()
	if err != nil {
		c.t.Fatalf("%v\n%s", err, c.log)
	}
	return s
}

// ask sends a command and waits for the answer.
func (c *child) ask(verb string, arg any) (string, error) {
	c.t.Helper()
	text, err := json.Marshal(arg)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c.in, "%s %s\n", verb, text); err != nil {
		return "", err
	}
	return c.read()
}

func (c *child) do(verb string, arg any) string {
	c.t.Helper()
	s, err := c.ask(verb, arg)
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", verb, err, c.log)
	}
	return s
}

// wantWhy waits until as many packets are counted under a why: a worker may come to
// them after the one who sent them has given up.
func (c *child) wantWhy(why packet.Why, want uint64) {
	c.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; {
		got := c.why(why)
		if got >= want || time.Now().After(end) {
			if got != want {
				c.t.Errorf("%d packets counted as %s, want %d", got, why, want)
			}
			return
		}
	}
}

func (c *child) why(why packet.Why) uint64 {
	c.t.Helper()
	var k backend.Counters
	if err := json.Unmarshal([]byte(c.do("counters", nil)), &k); err != nil {
		c.t.Fatal(err)
	}
	for _, w := range k.Whys {
		if w.Why == why.String() {
			return w.Packets
		}
	}
	return 0
}

// startWorker starts a backend on the node.
func (n *node) startWorker(cfg Config) {
	n.l.t.Helper()
	n.worker = n.child("worker")
	n.worker.do("start", cfg)
}

// secureRule covers everything between two addresses.
func secureRule(mode ipsec.Mode, local, remote netip.Addr) ipsec.Rule {
	p, err := ipsec.ParseProposal(ipsec.ProtocolESP, "aes128gcm16")
	if err != nil {
		panic(err)
	}
	return ipsec.Rule{
		Name: "secure", Policy: "test", Weight: 50, Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: "peer",
		Selector: ipsec.Selector{Local: ipsec.AddrSelector(local), Remote: ipsec.AddrSelector(remote)},
		Template: &ipsec.Template{Mode: mode, Proposals: []ipsec.Proposal{p}},
	}
}

func (n *node) policy(fallback ipsec.Action, rules ...ipsec.Rule) *ipsec.NodePolicy {
	return &ipsec.NodePolicy{
		Node: n.ns, Version: ipsec.Version{Cluster: "t", Epoch: 1, Revision: 1},
		Addresses: []netip.Addr{n.v4, n.v6, n.in4, n.in6}, Rules: rules, Default: fallback,
		Peers: []ipsec.Peer{{Name: "peer", Local: []netip.Addr{n.v4, n.v6}, Remote: []netip.Addr{n.peer().v4, n.peer().v6}}},
	}
}

// pair says how both nodes protect the traffic between them.
type pair struct {
	mode   ipsec.Mode
	encap  bool
	outer6 bool
	inner6 bool
	suite  string
}

func (p pair) String() string {
	return fmt.Sprintf("%s,encap=%t,outer6=%t,inner6=%t,%s", p.mode, p.encap, p.outer6, p.inner6, p.suite)
}

// ends are the addresses of a node as the pair uses them.
func (p pair) ends(n *node) (outer, inner netip.Addr) {
	outer = n.v4
	if p.outer6 {
		outer = n.v6
	}
	switch {
	case p.mode == ipsec.ModeTransport:
		return outer, outer
	case p.inner6:
		return outer, n.in6
	}
	return outer, n.in4
}

// protect gives both workers policy and SAs.
func (l *lab) protect(p pair) {
	l.t.Helper()
	for _, n := range []*node{l.a, l.b} {
		_, local := p.ends(n)
		_, remote := p.ends(n.peer())
		n.worker.do("policy", n.policy(ipsec.ActionPermit, secureRule(p.mode, local, remote)))
		n.worker.do("install", p.specs(n))
	}
}

// specs are the two SAs of a node. SPI 0x101 is from a to b, 0x102 back.
func (p pair) specs(n *node) []saSpec {
	outer, local := p.ends(n)
	peer, remote := p.ends(n.peer())
	s := saSpec{
		ID: 1, Direction: ipsec.Outbound, SPI: 0x101, Mode: p.mode, Local: outer, Remote: peer, Encap: p.encap, Suite: p.suite, NoESN: n.l.noESN,
		Selector: ipsec.Selector{Local: ipsec.AddrSelector(local), Remote: ipsec.AddrSelector(remote)},
	}
	in := s
	in.ID, in.Direction, in.SPI = 2, ipsec.Inbound, 0x102
	if n == n.l.b {
		s.SPI, in.SPI = in.SPI, s.SPI
	}
	return []saSpec{in, s}
}

// sniff watches the wire until the function it returns is called.
func (n *node) sniff() func() map[string]int {
	n.l.t.Helper()
	c := n.child("sniff", "eth0")
	c.must()
	return func() map[string]int {
		n.l.t.Helper()
		if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			n.l.t.Fatal(err)
		}
		var seen map[string]int
		if err := json.Unmarshal([]byte(c.must()), &seen); err != nil {
			n.l.t.Fatal(err)
		}
		return seen
	}
}

// swap exchanges TCP data between the inner addresses.
func (l *lab) swap(p pair) {
	l.t.Helper()
	_, from := p.ends(l.a)
	_, to := p.ends(l.b)
	at := netip.AddrPortFrom(to, 5001).String()
	s := l.b.child("serve", at)
	s.must()
	d := l.a.child("dial", at, from.String())
	d.must()
	s.must()
}

// hostState is what a backend may leave behind: sorted lines.
func (n *node) hostState() []string {
	n.l.t.Helper()
	var s strings.Builder
	for _, c := range [][]string{
		{"ip", "rule"}, {"ip", "-6", "rule"}, {"ip", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"},
		{"nft", "list", "ruleset"}, {"ip", "-br", "link"}, // without -br it looks for names in all namespaces
	} {
		s.WriteString(n.run(c...))
	}
	lines := strings.Split(s.String(), "\n")
	slices.Sort(lines)
	return slices.Compact(lines)
}

// sameState fails the test when the host has changed.
func (n *node) sameState(before []string) {
	n.l.t.Helper()
	after := n.hostState()
	for _, x := range after {
		if !slices.Contains(before, x) {
			n.l.t.Errorf("left on the host: %s", x)
		}
	}
	for _, x := range before {
		if !slices.Contains(after, x) {
			n.l.t.Errorf("gone from the host: %s", x)
		}
	}
}

func subnet(s string) ipsec.TrafficSelector { return ipsec.PrefixSelector(netip.MustParsePrefix(s)) }
