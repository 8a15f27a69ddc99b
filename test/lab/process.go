package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// runLimit ends a command that was to be short.
const runLimit = 3 * time.Minute

// stopLimit is how long a process may take over SIGTERM. It is long: a loaded
// machine must not fail a test.
const stopLimit = 30 * time.Second

// outputLimit bounds the output kept of a process: its last octets.
const outputLimit = 4 << 20

// inNode wraps a program so that it runs in the node's namespace and sees the
// node's directory as /run. `ip netns exec` gives it a mount namespace of its
// own and replaces itself by the program, so the pid is the program's.
func (n *Node) inNode(args []string) []string {
	if n.machine != nil {
		return n.inMachine(args)
	}
	const bindRun = `mount --bind "$0" /run && exec "$@"`
	return append([]string{"ip", "netns", "exec", n.netns, "sh", "-c", bindRun, n.RunDir()}, args...)
}

// Try runs a command in the node to its end and returns all its output.
func (n *Node) Try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	argv := n.inNode(args)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = n.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %s: %w: %s", n.Name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), err
}

// Run is Try that fails the test when the command fails.
func (n *Node) Run(args ...string) string {
	n.lab.t.Helper()
	out, err := n.Try(args...)
	n.lab.must(err)
	return out
}

// Command says what to start: a program on the PATH or an absolute path. It runs in
// the node's Dir.
type Command struct {
	Args []string // program and arguments
	Env  []string // added to the environment of the test
}

// Process is a program running on a node. Its output goes to the test's log when
// the test fails. It is stopped when the test ends.
type Process struct {
	node *Node
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended; err is valid then
	err  error
	out  tail
}

// Start runs a program on the node until Stop, Kill or the end of the test.
func (n *Node) Start(c Command) *Process {
	t := n.lab.t
	t.Helper()
	if _, err := exec.LookPath(c.Args[0]); err != nil && n.machine == nil {
		t.Fatalf("lab: %v; `make deps` installs what the lab needs, `make build` our own programs", err)
	}
	argv := n.inNode(c.Args)
	p := &Process{node: n, name: n.Name + ": " + c.Args[0], done: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Dir = n.dir
	p.cmd.Env = append(os.Environ(), c.Env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	// Ctrl-C is for the test; the process is ended by it, in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A grandchild that keeps the output open must not keep Wait from returning.
	p.cmd.WaitDelay = time.Second
	n.lab.must(p.cmd.Start())
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.Stop() // how it ends after SIGTERM is for the test to ask, not for us
		if t.Failed() {
			t.Logf("output of %s (pid %d):\n%s", p.name, p.PID(), p.Output())
		}
	})
	return p
}

// PID is the process id of the program itself.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Output is what the program has printed so far, both streams.
func (p *Process) Output() string { return p.out.String() }

// Running is nil while the program runs, and how it ended after that. It is a
// condition for WaitFor to fail early on.
func (p *Process) Running() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %w", p.name, errors.Join(p.err, errEnded))
	default:
		return nil
	}
}

var errEnded = errors.New("not running")

// Signal sends a signal to the program.
func (p *Process) Signal(s syscall.Signal) {
	p.node.lab.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.node.lab.t.Errorf("lab: send %v to %s: %v", s, p.name, err)
	}
}

// Stop asks the program to end, insists at the limit, and returns how it ended. In a
// machine it takes its time.
func (p *Process) Stop() error {
	p.node.lab.t.Helper()
	p.Signal(syscall.SIGTERM)
	allowed := stopLimit
	if p.node.machine != nil && p != p.node.machine.Process {
		allowed = machineLimit
	}
	limit := time.NewTimer(allowed)
	defer limit.Stop()
	select {
	case <-p.done:
		return p.err
	case <-limit.C:
		p.node.lab.t.Errorf("lab: %s (pid %d) did not end within %v of SIGTERM; killing it", p.name, p.PID(), allowed)
		p.Kill()
		return p.err
	}
}

// Kill ends the program without warning, as a crash would.
func (p *Process) Kill() {
	p.node.lab.t.Helper()
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Wait waits for the program to end by itself; the test fails at the limit.
func (p *Process) Wait(limit time.Duration) error {
	p.node.lab.t.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.err
	case <-timer.C:
		p.node.lab.t.Fatalf("waited %v for %s (pid %d) to end", limit, p.name, p.PID())
		return nil
	}
}

// WaitOutput waits until the program has printed text; the test fails at the
// limit, or when the program ends first.
func (p *Process) WaitOutput(text string, limit time.Duration) {
	t := p.node.lab.t
	t.Helper()
	WaitFor(t, limit, fmt.Sprintf("%s to print %q", p.name, text), func() error {
		ended := p.Running()
		if strings.Contains(p.Output(), text) {
			return nil
		}
		if ended != nil {
			t.Fatalf("waiting for %q: %v", text, ended)
		}
		return errors.New("not printed yet")
	})
}

// tail keeps the last outputLimit octets written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (o *tail) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf = append(o.buf, b...)
	if len(o.buf) > 2*outputLimit {
		o.buf = append(o.buf[:0], o.buf[len(o.buf)-outputLimit:]...)
	}
	return len(b), nil
}

func (o *tail) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.buf[max(0, len(o.buf)-outputLimit):])
}
