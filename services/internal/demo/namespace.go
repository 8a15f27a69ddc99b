package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside marks the process that runs in the demo's own namespaces.
const inside = "TESTUDO_DEMO_INSIDE"

// enter runs this program again in a network and a mount namespace of its own,
// and as root of a user namespace when the caller is not root. What the demo
// makes vanishes with them, however it ends.
func enter(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return errors.New("the demo failed")
	}
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("namespaces: %w; run as root, or allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1)", err)
	}
	return err
}

// prepare gives the namespaces a /run of their own, where `ip netns` keeps names.
func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	return nil
}

// run runs a command and returns what it printed.
func run(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// hosts are the two ends. Each has a link to a bridge that only the demo's own
// namespace has: the wire, where it watches.
//
//	red 10.77.0.1 ── wire-red ┐ bridge ┌ wire-blue ── 10.77.0.2 blue
//	    fd77::1               └────────┘                  fd77::2
var hosts = []struct{ name, v4, v6 string }{
	{"red", "10.77.0.1", "fd77::1"},
	{"blue", "10.77.0.2", "fd77::2"},
}

func network(ctx context.Context) error {
	cmds := []string{
		"ip link set lo up",
		"ip link add wire type bridge",
		"ip link set wire up",
	}
	for _, h := range hosts {
		port := "wire-" + h.name
		cmds = append(cmds,
			"ip netns add "+h.name,
			"ip link add "+port+" type veth peer name eth0 netns "+h.name,
			"ip link set "+port+" master wire up",
			"ip -n "+h.name+" link set lo up",
			"ip -n "+h.name+" addr add "+h.v4+"/24 dev eth0",
			"ip -n "+h.name+" addr add "+h.v6+"/64 dev eth0 nodad",
			"ip -n "+h.name+" link set eth0 up",
		)
	}
	for _, c := range cmds {
		if _, err := run(ctx, strings.Fields(c)...); err != nil {
			return err
		}
	}
	return nil
}
