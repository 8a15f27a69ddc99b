package deploy

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestGettingStarted does what the document says, with its own commands, in the
// namespaces of its own unshare command: whatever fails, they take all processes,
// devices and mounts with them.
func TestGettingStarted(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts a whole fleet")
	}
	if uids := read(t, "/proc/self/uid_map"); !strings.Contains(uids, "4294967295") {
		t.Skip("not root: tcpdump drops its privileges, which a user namespace with one user does not let it")
	}
	for _, tool := range []string{"unshare", "ip", "ping", "tcpdump"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	const path = root + "/docs/getting-started.md"
	parts := map[string]string{}
	for _, b := range blocks(t, path) {
		parts[b.info] += b.text
	}
	for _, part := range []string{"bash build", "bash enter", "bash", "bash cleanup"} {
		if parts[part] == "" {
			t.Fatalf("%s has no block %q", path, part)
		}
	}
	// Its own folders, so that nobody's programs are replaced. Short: a unix socket's
	// path has at most 107 octets.
	tmp, err := os.MkdirTemp("", "tst")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	bin := filepath.Join(tmp, "bin")
	for part, text := range parts {
		parts[part] = strings.ReplaceAll(strings.ReplaceAll(text, "$PWD/out/bin", bin), "out/bin", bin)
	}
	bash := func(limit time.Duration, script string, command ...string) string {
		t.Helper()
		file := filepath.Join(tmp, "script")
		write(t, file, script, 0o600)
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		cmd := exec.CommandContext(ctx, command[0], append(command[1:], "-e", file)...)
		cmd.Dir = absolute(t, ".")
		cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
		cmd.WaitDelay = 5 * time.Second
		out, err := cmd.CombinedOutput()
		if err != nil {
			logs, _ := exec.Command("sh", "-c", "tail -n 20 "+tmp+"/tmp.*/*.log").Output()
			t.Fatalf("%v\n%s\n%s", err, out, logs)
		}
		return string(out)
	}
	bash(10*time.Minute, parts["bash build"], "bash")

	// What runs in the background must be gone, and nothing be left behind.
	const clean = `
test -z "$(jobs -r)"
test -z "$(ip netns list)"
test ! -e $LAB
`
	out := bash(3*time.Minute, parts["bash"]+"set +e\n"+parts["bash cleanup"]+"set -e\n"+clean+"echo walked\n", strings.Fields(parts["bash enter"])...)
	if !strings.Contains(out, "ESP(spi=") || !strings.HasSuffix(out, "walked\n") {
		t.Errorf("no ESP was seen, or the walk was cut short:\n%s", out)
	}
	t.Log(out)
}
