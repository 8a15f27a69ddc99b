package lab

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// namePrefix starts the name of everything the lab leaves in the file system.
const namePrefix = "tst"

// Lab is one test's network: nodes (namespaces) and links (veth pairs). It is
// used by one goroutine, the test's.
type Lab struct {
	t     testing.TB
	name  string
	dir   string
	nodes []*Node
}

// New makes an empty lab that is removed when the test ends.
func New(t testing.TB) *Lab {
	t.Helper()
	if !ready {
		t.Fatal("lab: add `func TestMain(m *testing.M) { lab.Main(m) }` to this package")
	}
	var id [4]byte
	_, _ = rand.Read(id[:])
	l := &Lab{t: t, name: namePrefix + hex.EncodeToString(id[:])}
	// Not t.TempDir: a unix socket's path has at most 107 octets.
	l.dir = filepath.Join(os.TempDir(), l.name)
	l.must(tell("add", "dir", l.dir))
	l.must(os.Mkdir(l.dir, 0o755))
	t.Cleanup(l.remove)
	return l
}

func (l *Lab) remove() {
	for _, n := range l.nodes {
		_ = unix.Close(n.ns)
		if err := removeNamespace(n.netns); err != nil {
			l.t.Error("lab:", err)
			continue
		}
		_ = tell("del", "netns", n.netns)
	}
	if err := removeDir(l.dir); err != nil {
		l.t.Error("lab:", err)
		return
	}
	_ = tell("del", "dir", l.dir)
}

func (l *Lab) must(err error) {
	if err != nil {
		l.t.Helper()
		l.t.Fatal("lab:", err)
	}
}

// Node adds a host. It forwards nothing until Forward is called.
func (l *Lab) Node(name string) *Node {
	l.t.Helper()
	n := l.namespace(name)
	n.quiet()
	return n
}

// namespace adds a node with all but its settings.
func (l *Lab) namespace(name string) *Node {
	l.t.Helper()
	n := &Node{Name: name, lab: l, netns: l.name + "-" + name, dir: filepath.Join(l.dir, name), ns: -1}
	l.must(os.MkdirAll(n.RunDir(), 0o755))
	l.must(tell("add", "netns", n.netns))
	l.must(command("ip", "netns", "add", n.netns))
	var err error
	n.ns, err = unix.Open(filepath.Join("/run/netns", n.netns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	l.must(err)
	l.nodes = append(l.nodes, n)
	n.IP("link", "set", "lo", "up")
	return n
}

// quiet settles what a node does by itself.
func (n *Node) quiet() {
	n.lab.t.Helper()
	// Addresses are usable at once, and nothing but the tests' own frames is on
	// the wire: no duplicate address detection, no router solicitations.
	for _, scope := range []string{"all", "default"} {
		n.Sysctl("net/ipv6/conf/"+scope+"/accept_dad", "0")
		n.Sysctl("net/ipv6/conf/"+scope+"/accept_ra", "0")
		n.Sysctl("net/ipv6/conf/"+scope+"/dad_transmits", "0")
		n.Sysctl("net/ipv6/conf/"+scope+"/router_solicitations", "0")
		n.Sysctl("net/ipv4/conf/"+scope+"/rp_filter", "0")
		n.Sysctl("net/ipv4/conf/"+scope+"/send_redirects", "0")
	}
}

// End is one side of a link before it exists: where it goes, what the interface
// is called there, and its addresses.
type End struct {
	Node *Node
	Name string
	V4   netip.Prefix // zero for none
	V6   netip.Prefix
}

// Interface is one side of a link.
type Interface struct {
	End
	peer *Interface
}

// Link joins two nodes by a veth pair of the given MTU (0 for 1500), or by a TAP
// device when one of them is a machine.
func (l *Lab) Link(a, b End, mtu int) (*Interface, *Interface) {
	l.t.Helper()
	if mtu == 0 {
		mtu = 1500
	}
	switch m := fmt.Sprint(mtu); {
	case a.Node.machine != nil && b.Node.machine != nil:
		l.t.Fatalf("lab: link of %s and %s: both are machines", a.Node.Name, b.Node.Name)
	case a.Node.machine != nil:
		a.Node.plug(a, b, m)
	case b.Node.machine != nil:
		b.Node.plug(b, a, m)
	default:
		l.must(command("ip", "-n", a.Node.netns, "link", "add", "name", a.Name, "mtu", m, "type", "veth",
			"peer", "name", b.Name, "netns", b.Node.netns, "mtu", m))
	}
	ia, ib := &Interface{End: a}, &Interface{End: b}
	ia.peer, ib.peer = ib, ia
	for _, i := range []*Interface{ia, ib} {
		for _, p := range []netip.Prefix{i.V4, i.V6} {
			if !p.IsValid() {
				continue
			}
			args := []string{"addr", "add", p.String(), "dev", i.Name}
			if p.Addr().Is6() {
				args = append(args, "nodad")
			}
			i.Node.IP(args...)
		}
	}
	for _, i := range []*Interface{ia, ib} {
		i.Node.IP("link", "set", "dev", i.Name, "up")
	}
	return ia, ib
}

// Cut makes the link lose everything, both ways, until Mend. Neither end is told:
// interfaces, addresses and routes stay.
func (i *Interface) Cut() {
	i.Node.lab.t.Helper()
	for _, end := range []*Interface{i, i.peer} {
		end.Node.Nft(fmt.Sprintf(`table netdev cut-%[1]s {
	chain ingress {
		type filter hook ingress device %[1]q priority -500; policy drop;
	}
}
`, end.Name))
	}
}

// Mend ends a Cut.
func (i *Interface) Mend() {
	i.Node.lab.t.Helper()
	for _, end := range []*Interface{i, i.peer} {
		end.Node.Run("nft", "delete", "table", "netdev", "cut-"+end.Name)
	}
}

// Sniff records the frames on this interface, both ways.
func (i *Interface) Sniff() *Sniffer {
	i.Node.lab.t.Helper()
	return i.Node.Sniff(i.Name)
}
