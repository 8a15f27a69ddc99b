package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var execStart = regexp.MustCompile(`(?m)^ExecStart=(\S+)(?: block)? --config (\S+)$`)

// systemd-analyze is given a root folder, so that it looks for the programs there
// and not on this machine.
func TestSystemdUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed (Debian: systemd)")
	}
	for _, unit := range glob(t, "deploy/systemd/*.service") {
		text := read(t, unit)
		m := execStart.FindStringSubmatch(text)
		if m == nil {
			t.Errorf("%s: no ExecStart=PROGRAM --config FILE", unit)
			continue
		}
		daemon := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(unit), "testudo-"), ".service")
		if daemon == "block" { // a command of the worker
			daemon = "workerd"
		}
		if want := "/usr/local/bin/" + daemon; m[1] != want {
			t.Errorf("%s starts %s, want %s", unit, m[1], want)
		}
		if want := "/etc/testudo/" + daemon + ".yaml"; m[2] != want {
			t.Errorf("%s reads %s, want %s", unit, m[2], want)
		}
		// The program exists under another name: verify looks for a file that can be
		// executed, and nothing is started.
		program := filepath.Join(t.TempDir(), daemon)
		write(t, program, "#!/bin/sh\n", 0o755)
		here := filepath.Join(t.TempDir(), filepath.Base(unit))
		write(t, here, strings.Replace(text, m[1], program, 1), 0o644)
		if out := run(t, analyze, "verify", "--man=no", here); strings.TrimSpace(out) != "" {
			t.Errorf("%s:\n%s", unit, out)
		}
		write(t, here, strings.Replace(text, m[1], program, 1)+"\n[Service]\nNoNewPrivilege=yes\n", 0o644)
		if out, _ := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", here).CombinedOutput(); !strings.Contains(string(out), "NoNewPrivilege") {
			t.Errorf("systemd-analyze verify says nothing about an unknown key: %q", out)
		}
	}
}

// Only the worker touches the network, and none runs as root or gains privileges.
func TestSystemdPrivileges(t *testing.T) {
	want := map[string]string{
		"testudo-policyd.service": "",
		"testudo-keymgrd.service": "",
		"testudo-workerd.service": "CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE",
		"testudo-block.service":   "CAP_NET_ADMIN",
	}
	for _, unit := range glob(t, "deploy/systemd/*.service") {
		keys := map[string]string{}
		for line := range strings.Lines(read(t, unit)) {
			if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(k, "#") {
				keys[k] = v
			}
		}
		caps, known := want[filepath.Base(unit)]
		if !known {
			t.Errorf("%s: this test does not say which capabilities it may have", unit)
			continue
		}
		for k, v := range map[string]string{
			"AmbientCapabilities": caps, "CapabilityBoundingSet": caps,
			"User": "testudo", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "Restart": "always",
			"RuntimeDirectory": "testudo", "RuntimeDirectoryPreserve": "yes",
		} {
			if keys["Type"] == "oneshot" && (k == "Restart" || strings.HasPrefix(k, "Runtime")) {
				continue // it is done before any of these is there
			}
			if got, ok := keys[k]; !ok || got != v {
				t.Errorf("%s: %s=%s, want %q", unit, k, got, v)
			}
		}
	}
}

func TestSysusersAndTmpfiles(t *testing.T) {
	for _, tc := range []struct{ tool, file, made string }{
		{"systemd-sysusers", "testudo.sysusers.conf", "etc/passwd"},
		{"systemd-tmpfiles", "testudo.tmpfiles.conf", "etc/testudo/secrets"},
	} {
		tool, err := exec.LookPath(tc.tool)
		if err != nil {
			t.Logf("not checked: %s is not installed (Debian: systemd)", tc.tool)
			continue
		}
		image := t.TempDir()
		if err := os.MkdirAll(filepath.Join(image, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		args := []string{"--root=" + image, absolute(t, "deploy/systemd/"+tc.file)}
		if tc.tool == "systemd-tmpfiles" { // it looks the owner up in the image
			args = append(args, "--create")
			write(t, filepath.Join(image, "etc/passwd"), "root:x:0:0::/:/bin/sh\ntestudo:x:0:0::/:/bin/sh\n", 0o644)
			write(t, filepath.Join(image, "etc/group"), "root:x:0:\ntestudo:x:0:\n", 0o644)
		}
		run(t, tool, args...)
		made, err := os.Stat(filepath.Join(image, tc.made))
		if err != nil {
			t.Errorf("%s: %v", tc.file, err)
			continue
		}
		if made.IsDir() && made.Mode().Perm() != 0o700 {
			t.Errorf("%s makes %s with mode %o, want 700", tc.file, tc.made, made.Mode().Perm())
		}
		if !made.IsDir() && !strings.Contains(read(t, filepath.Join(image, tc.made)), "testudo:") {
			t.Errorf("%s makes no user testudo", tc.file)
		}
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}
