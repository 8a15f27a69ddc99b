package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	machineNICs    = 2
	machineAddress = "169.254.7.2" // of the interface by which it is told what to run
	machineHost    = "169.254.7.1"
	machinePort    = "7"

	// machineLimit is for a boot by an emulated processor, on a loaded machine.
	machineLimit = 6 * time.Minute
)

// machine is a virtual machine with a kernel of its own: Debian's, which has ESP and
// AH, whatever this host's has. It has a part of this host's programs (imagePrograms),
// and no disk. Its processor is emulated, ten times slower: a KVM that is there need not
// work.
type machine struct {
	*Process
	guest string // program that runs others in it
	nics  int    // those that have a link
}

// Machine adds a host that is a virtual machine. What runs on other nodes runs on it:
// programs, WriteFile, IP, Link. It has a namespace too, where qemu and the
// interface to command it by are.
func (l *Lab) Machine(name string) *Node {
	t := l.t
	t.Helper()
	if os.Getenv("TESTUDO_MACHINES") == "" {
		t.Skip("lab: an emulated processor wants the machine to itself; make interop-vm runs this")
	}
	boot, err := machineParts(repository(t))
	l.must(err)

	n := l.namespace(name)
	taps := append(make([]string, 0, 1+machineNICs), "control")
	for i := range machineNICs {
		taps = append(taps, tap(i))
	}
	// A busy host has the kernel think that its timer does not work: no_timer_check.
	args := []string{"qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "384",
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", boot.kernel, "-initrd", boot.image,
		"-append", "console=ttyS0 quiet panic=-1 no_timer_check random.trust_cpu=on mitigations=off net.ifnames=0 guest=" + machineAddress + " port=" + machinePort}
	for i, tap := range taps {
		n.IP("tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr")
		args = append(args, "-netdev", fmt.Sprintf("tap,id=n%d,ifname=%s,script=no,downscript=no", i, tap),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=n%d,romfile=,mac=52:54:00:%02x:%02x:%02x", i, len(l.nodes), i, i))
	}
	n.IP("addr", "add", machineHost+"/30", "dev", taps[0])
	n.IP("link", "set", "dev", taps[0], "up")
	qemu := n.Start(Command{Args: args})
	n.machine = &machine{Process: qemu, guest: boot.guest}
	WaitFor(t, machineLimit, name+" to boot", func() error {
		if err := qemu.Running(); err != nil {
			t.Fatal("lab:", err)
		}
		_, err := n.Try("ip", "link", "set", "lo", "up")
		return err
	})
	n.quiet()
	return n
}

func tap(i int) string { return fmt.Sprintf("tap%d", i) }

// bootParts are files that are the same for all machines.
type bootParts struct{ kernel, guest, image string }

// machineParts makes them once in a test binary's life, in the folder where `make
// interop-vm` has unpacked the kernel.
func machineParts(root string) (bootParts, error) {
	parts.Lock()
	defer parts.Unlock()
	if parts.made.image != "" {
		return parts.made, nil
	}
	dir := filepath.Join(root, "out", "vm")
	p := bootParts{kernel: filepath.Join(dir, "kernel"), guest: filepath.Join(dir, "guest"), image: filepath.Join(dir, "image")}
	if _, err := os.Stat(p.kernel); err != nil {
		return p, fmt.Errorf("no kernel for virtual machines: %w; want the one that `scripts/deps machines` unpacks", err)
	}
	build := exec.Command("go", "build", "-trimpath", "-o", p.guest, "./test/lab/guest")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return p, fmt.Errorf("build guest: %w: %s", err, out)
	}
	image, err := makeImage(p.guest, dir)
	if err != nil {
		return p, err
	}
	// Another test binary may be at it: each file is there whole or not at all.
	whole, err := os.CreateTemp(dir, "image-")
	if err != nil {
		return p, err
	}
	_, err = whole.Write(image)
	if err := errors.Join(err, whole.Close(), os.Rename(whole.Name(), p.image)); err != nil {
		return p, err
	}
	parts.made = p
	return p, nil
}

var parts struct {
	sync.Mutex
	made bootParts
}

// inMachine wraps a program so that it runs in the machine.
func (n *Node) inMachine(args []string) []string {
	return append([]string{"ip", "netns", "exec", n.netns, n.machine.guest, machineAddress + ":" + machinePort}, args...)
}

// plug makes the next interface of the machine one end of a link: the other
// end is the host's side of it, in the namespace of the other node.
func (n *Node) plug(at End, other End, mtu string) {
	l := n.lab
	l.t.Helper()
	if n.machine.nics == machineNICs {
		l.t.Fatalf("lab: %s has %d interfaces already", n.Name, machineNICs)
	}
	i := n.machine.nics
	n.machine.nics++
	l.must(command("ip", "-n", n.netns, "link", "set", "dev", tap(i), "mtu", mtu))
	l.must(command("ip", "-n", n.netns, "link", "set", "dev", tap(i), "netns", other.Node.netns, "name", other.Name))
	n.IP("link", "set", "dev", fmt.Sprintf("nic%d", i), "mtu", mtu, "name", at.Name)
}

// send writes a file in the machine, with permissions by a umask.
func (n *Node) send(path, content, umask string) error {
	argv := n.inMachine([]string{"sh", "-c", `mkdir -p "${0%/*}" && umask "$1" && cat >"$0"`, path, umask})
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("write %s on %s: %w: %s", path, n.Name, err, out)
	}
	return nil
}
