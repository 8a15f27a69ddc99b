package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	// namespace is where programs run. The host's connections are outside of it, so
	// that no daemon takes their interface for one of its own.
	namespace = "node"

	path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
)

// soon is when to stop reading what a program has printed before it ended.
func soon() time.Time { return time.Now().Add(time.Second) }

// mounts are what programs expect to be there.
var mounts = []struct{ kind, at string }{
	{"proc", "/proc"},
	{"sysfs", "/sys"},
	{"devtmpfs", "/dev"},
	{"tmpfs", "/run"},
	{"tmpfs", "/tmp"},
}

// boot is the life of process 1: interface 0 is the host's, the others go into the
// namespace as nic0 and so on.
func boot() error {
	if err := os.Setenv("PATH", strings.TrimPrefix(path, "PATH=")); err != nil {
		return err
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	address := os.Getenv("guest") // from the kernel's command line
	script := fmt.Sprintf(`set -e
modprobe -a virtio_pci virtio_net
ip link set lo up
ip addr add %s/30 dev eth0
ip link set eth0 up
ip netns add %[2]s
n=0
while ip link show "eth$((n+1))" >/dev/null 2>&1; do
	ip link set "eth$((n+1))" netns %[2]s name "nic$n"
	n=$((n+1))
done`, address, namespace)
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(address, os.Getenv("port")))
	if err != nil {
		return err
	}
	return serve(l)
}
