package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A janitor outlives the test binary by a moment. It reads what the labs make,
// one "add" or "del" line each, and when its input ends, which happens however
// the test binary ends, it removes what was added and not deleted.
var janitor struct {
	sync.Mutex
	pipe io.WriteCloser
}

// tell writes one line to the janitor, starting it first when there is none.
func tell(verb, kind, name string) error {
	janitor.Lock()
	defer janitor.Unlock()
	if janitor.pipe == nil {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), roleVar+"="+roleJanitor)
		// A session of its own: Ctrl-C on the terminal must not end it early.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		pipe, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("start the janitor: %w", err)
		}
		janitor.pipe = pipe
	}
	_, err := fmt.Fprintln(janitor.pipe, verb, kind, name)
	return err
}

// entering is how long a process that was started may take to enter its namespace.
const entering = 500 * time.Millisecond

// sweepAtEOF is the janitor's whole life.
func sweepAtEOF(r io.Reader) {
	left := map[string]bool{}
	for in := bufio.NewScanner(r); in.Scan(); {
		verb, what, _ := strings.Cut(in.Text(), " ")
		if verb == "add" {
			left[what] = true
		} else {
			delete(left, what)
		}
	}
	for what := range left {
		if kind, name, _ := strings.Cut(what, " "); kind == "netns" {
			_ = killIn(name)
		}
	}
	<-time.After(entering)
	for what := range left {
		if kind, name, _ := strings.Cut(what, " "); kind == "netns" {
			_ = removeNamespace(name)
		}
	}
	for what := range left {
		if kind, name, _ := strings.Cut(what, " "); kind == "dir" {
			_ = removeDir(name)
		}
	}
}

// removeNamespace kills every process in a namespace that this package made and
// deletes it; the interfaces inside go with it.
func removeNamespace(name string) error {
	if !strings.HasPrefix(name, namePrefix) {
		return fmt.Errorf("namespace %q was not made by the lab", name)
	}
	if err := killIn(name); err != nil {
		return err
	}
	return command("ip", "netns", "del", name)
}

// killIn ends the processes of a namespace.
func killIn(name string) error {
	out, err := exec.Command("ip", "netns", "pids", name).Output()
	if err != nil {
		return fmt.Errorf("list the processes of %s: %w", name, err)
	}
	for _, f := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 1 && pid != os.Getpid() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return nil
}

func removeDir(dir string) error {
	if !strings.HasPrefix(filepath.Base(dir), namePrefix) {
		return fmt.Errorf("directory %q was not made by the lab", dir)
	}
	return os.RemoveAll(dir)
}

// command runs a program to its end; its output is in the error.
func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s is not installed; `make deps` installs what the lab needs", name)
	}
	return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
}
