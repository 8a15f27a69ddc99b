package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Node is a host: a network namespace with a /run of its own.
type Node struct {
	Name string

	lab   *Lab
	netns string
	dir   string
	ns    int // descriptor of the namespace

	machine *machine // nil for a node that is a namespace only
}

// Namespace is the name that `ip netns exec` takes, for a look by hand.
func (n *Node) Namespace() string { return n.netns }

// Dir is a directory of the node's own for configuration and sockets, with a path
// short enough for a unix socket. It is removed with the lab.
func (n *Node) Dir() string { return n.dir }

// RunDir is what processes on the node see as /run.
func (n *Node) RunDir() string { return filepath.Join(n.dir, "run") }

// WriteFile puts a file into Dir, or a folder below, and returns its path.
func (n *Node) WriteFile(name, content string) string {
	n.lab.t.Helper()
	path := filepath.Join(n.dir, name)
	if n.machine != nil {
		n.lab.must(n.send(path, content, "077"))
		return path
	}
	n.lab.must(os.MkdirAll(filepath.Dir(path), 0o755))
	n.lab.must(os.WriteFile(path, []byte(content), 0o600))
	return path
}

// IP runs ip(8) in the node, as in n.IP("route", "add", ...).
func (n *Node) IP(args ...string) {
	n.lab.t.Helper()
	if n.machine != nil {
		n.Run(append([]string{"ip"}, args...)...)
		return
	}
	n.lab.must(command("ip", append([]string{"-n", n.netns}, args...)...))
}

// Route sends a prefix to a next hop.
func (n *Node) Route(to netip.Prefix, via netip.Addr) {
	n.lab.t.Helper()
	n.IP("route", "add", to.String(), "via", via.String())
}

// Forward makes the node a router.
func (n *Node) Forward() {
	n.lab.t.Helper()
	n.Sysctl("net/ipv4/ip_forward", "1")
	n.Sysctl("net/ipv6/conf/all/forwarding", "1")
}

// Sysctl sets a value below /proc/sys, such as net/ipv4/ip_forward.
func (n *Node) Sysctl(key, value string) {
	n.lab.t.Helper()
	if n.machine != nil {
		n.Run("sysctl", "-q", key+"="+value)
		return
	}
	n.lab.must(n.Do(func() error {
		// /proc/sys/net shows the namespace of the thread that opens it.
		return os.WriteFile("/proc/sys/"+key, []byte(value), 0)
	}))
}

// Lose drops about so many per cent of the packets that the node forwards; 0
// stops the loss.
func (n *Node) Lose(percent int) {
	n.lab.t.Helper()
	rules := "table inet lose {}\ndelete table inet lose\n"
	if percent > 0 {
		rules += fmt.Sprintf(`table inet lose {
	chain forward {
		type filter hook forward priority filter
		numgen random mod 100 <= %d counter drop
	}
}
`, percent-1)
	}
	n.Nft(rules)
}

// Masquerade hides what leaves by an interface behind the interface's own
// addresses, as a NAT router does.
func (n *Node) Masquerade(out string) {
	n.lab.t.Helper()
	n.Nft(fmt.Sprintf(`table inet nat {
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname %q masquerade
	}
}
`, out))
}

// Nft loads nftables rules into the node.
func (n *Node) Nft(rules string) {
	n.lab.t.Helper()
	n.Run("nft", "--file", n.WriteFile("rules.nft", rules))
}

// Do runs f on a thread inside the namespace. Sockets that f opens stay there.
// A goroutine that f starts does not run there.
func (n *Node) Do(f func() error) error {
	if n.machine != nil {
		return fmt.Errorf("%s is a machine: only programs run in it", n.Name)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open the thread's namespace: %w", err)
			return
		}
		defer func() { _ = unix.Close(home) }()
		if err := unix.Setns(n.ns, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter %s: %w", n.netns, err)
			return
		}
		err = f()
		// A thread that cannot go home stays locked, and ends with the goroutine.
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
