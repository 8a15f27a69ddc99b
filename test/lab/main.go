package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// roleVar tells a re-executed test binary what it is there for.
const roleVar = "TESTUDO_LAB_ROLE"

const (
	roleJanitor  = "janitor"
	roleUserRoot = "user-namespace-root"
)

// ready is set by Main: New needs what Main prepares.
var ready bool

// Main is the TestMain of a package that uses the lab. Without root it runs the
// tests in a user namespace of their own, where they are root over their own
// network. It does not return. Each of after is called when the tests have run.
func Main(m *testing.M, after ...func()) {
	role := os.Getenv(roleVar)
	_ = os.Unsetenv(roleVar)
	if role == roleJanitor {
		sweepAtEOF(os.Stdin)
		os.Exit(0)
	}
	if os.Geteuid() != 0 {
		os.Exit(enterUserNamespace())
	}
	if err := prepareRun(); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(2)
	}
	ready = true
	code := m.Run()
	for _, f := range after {
		f()
	}
	os.Exit(code)
}

// enterUserNamespace runs this binary again as root of new user, mount and
// network namespaces, and returns its exit code.
func enterUserNamespace() int {
	// The death signal is sent when the thread that forked ends, so keep it.
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), roleVar+"="+roleUserRoot)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	}
	fmt.Fprintf(os.Stderr, "lab: cannot run in a user namespace: %v; run the tests as root, or allow user namespaces (sysctl user.max_user_namespaces)\n", err)
	return 2
}

// prepareRun makes /run writable, which `ip netns` needs: in a user namespace
// /run belongs to the real root, so a tmpfs goes over it.
func prepareRun() error {
	err := os.MkdirAll("/run/netns", 0o755)
	if err == nil {
		err = writable("/run/netns")
	}
	if err == nil || !inUserNamespace() {
		return err
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w; start with `unshare -Urnm`, so that the mount namespace is ours", err)
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs on /run: %w", err)
	}
	return os.MkdirAll("/run/netns", 0o755)
}

func writable(dir string) error {
	f, err := os.CreateTemp(dir, "tst")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// inUserNamespace reports whether root here is root of a user namespace only:
// the initial one maps all 2^32-1 ids.
func inUserNamespace() bool {
	m, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && !strings.Contains(string(m), "4294967295")
}
