package lab

import (
	"strings"
	"testing"
)

// The kernel of a machine has what this host's may lack, and its links are those of
// any node.
func TestMachine(t *testing.T) {
	p := NewPair(t, PairOptions{Machine: true})
	p.A.Node.Ping(p.B.V4.Addr(), PingOptions{Count: 2})
	p.B.Node.Ping(p.A.V6.Addr(), PingOptions{Count: 2})
	p.B.Node.IP("xfrm", "state", "add", "src", "192.0.2.1", "dst", "192.0.2.2", "proto", "ah", "spi", "0x100",
		"mode", "transport", "auth", "hmac(sha256)", "0x"+strings.Repeat("11", 32))
	if out := p.B.Node.Run("ip", "xfrm", "state"); !strings.Contains(out, "proto ah spi 0x00000100") {
		t.Errorf("the machine has %q; want the SA", out)
	}
	path := p.B.Node.WriteFile("sub/file", "some text\n")
	if out := p.B.Node.Run("cat", path); out != "some text\n" {
		t.Errorf("file %s reads %q", path, out)
	}
	if out, err := p.B.Node.Try("sh", "-c", "echo no; exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3") || out != "no\n" {
		t.Errorf("a program that fails: %q, %v; want its output and exit status 3", out, err)
	}
	sleeper := p.B.Node.Start(Command{Args: []string{"sh", "-c", "trap 'echo bye; exit 0' TERM; echo here; while :; do :; done"}})
	sleeper.WaitOutput("here", machineLimit)
	if err := sleeper.Stop(); err != nil || !strings.Contains(sleeper.Output(), "bye") {
		t.Errorf("a program that is stopped: %v, %q; want it to end by its own will", err, sleeper.Output())
	}
}
