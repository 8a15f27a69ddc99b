// Package lab makes small networks for tests out of Linux network namespaces,
// and puts real daemons, real traffic and a wire sniffer into them.
//
// A test asks for a topology (NewPair, NewSites), starts processes on its nodes,
// moves traffic, and asks the sniffer what was on the wire:
//
//	func TestMain(m *testing.M) { lab.Main(m) }
//
//	func TestPing(t *testing.T) {
//		p := lab.NewPair(t, lab.PairOptions{})
//		wire := p.A.Node.Sniff(p.A.Name)
//		p.A.Node.Ping(p.B.V4.Addr(), lab.PingOptions{})
//		if wire.Count(lab.Cleartext) == 0 { ... }
//	}
//
// # Names and clean-up
//
// Every namespace is called tst<random>-<node>, so labs run in parallel and
// several at a time. A lab goes away when its test ends. When the test binary dies
// without running clean-ups (a signal, a time-out, a panic), a janitor process,
// which only waits for that death, removes what is left. Processes are ended by
// their id, and only those inside namespaces this lab made.
//
// # Privilege
//
// The package works as root, and for anybody else in a user namespace that Main
// enters by itself. It works inside `unshare -Urnm` too. No packet leaves the
// namespaces: no interface is made in the one the test was started in.
//
// # Machines
//
// A node may be a virtual machine (Lab.Machine) with Debian's kernel, which has ESP and
// AH whatever the host's has. `make interop-vm` unpacks that kernel into out/vm, and
// Libreswan, which cannot be installed beside strongSwan. Programs run in the machine,
// through program guest; the test's own sockets do not (Node.Do, Node.Transfer).
//
// # Limitations
//
// There is no netem here: loss is made by nftables (Node.Lose), delay is not.
// Addresses are the same in each lab; labs cannot see each other. Without real root
// the sniffer's buffer is small, and a fast transfer makes it miss frames; it says so
// and the test fails.
package lab
