package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// victimVar makes TestJanitorSweepsAfterAKill the process that is killed.
const victimVar = "TESTUDO_LAB_VICTIM"

// A test binary that is killed cannot clean up; its janitor does.
func TestJanitorSweepsAfterAKill(t *testing.T) {
	if os.Getenv(victimVar) != "" {
		p := NewPair(t, PairOptions{})
		child := p.A.Node.Start(Command{Args: []string{"sleep", "600"}})
		fmt.Println("VICTIM", p.A.Node.Namespace(), p.dir, child.PID())
		select {}
	}
	t.Parallel()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), victimVar+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var netns, dir string
	var pid int
	for in := bufio.NewScanner(out); in.Scan(); {
		if n, _ := fmt.Sscanf(in.Text(), "VICTIM %s %s %d", &netns, &dir, &pid); n == 3 {
			break
		}
	}
	if err := syscall.Kill(pid, 0); pid == 0 || err != nil {
		t.Fatalf("the victim's process %d: %v; want it to run", pid, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	WaitFor(t, 30*time.Second, "the janitor", func() error {
		var left []error
		for _, path := range []string{"/run/netns/" + netns, dir} {
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				left = append(left, fmt.Errorf("%s is still there", path))
			}
		}
		// A zombie that init has not reaped yet is dead enough.
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(stat), ") Z ") {
			left = append(left, fmt.Errorf("process %d still runs", pid))
		}
		return errors.Join(left...)
	})
}

// Anybody may run the lab: Main makes a user namespace.
func TestLabWorksWithoutRoot(t *testing.T) {
	t.Parallel()
	if inUserNamespace() {
		t.Skip("this run is already without root, in a user namespace: the other tests prove it")
	}
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=^(TestPairCarriesPingAndTCP|TestSitesNATHidesGatewayA|TestProcessOutputAndEnd)$")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "--- PASS") != 3 {
		t.Fatalf("as nobody: %v\n%s", err, out)
	}
}
