package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/test/lab"
)

func daemonOf(file string) string { return strings.TrimSuffix(filepath.Base(file), ".yaml") }

func TestConfigOneHost(t *testing.T) {
	for _, file := range glob(t, "deploy/config/one-host/*.yaml") {
		run(t, lab.Binary(t, daemonOf(file)), "config", "check", "--config", file)
	}
}

// The certificates are those that the comments of the files tell how to make; only
// their folder is another one here.
func TestConfigSeveralHosts(t *testing.T) {
	pki := filepath.Join(t.TempDir(), "pki")
	run(t, lab.Binary(t, "testudo"), "pki", "init", "--dir", pki, "--worker", "web-1")
	for _, file := range glob(t, "deploy/config/several-hosts/*.yaml") {
		text := read(t, file)
		moved := strings.ReplaceAll(text, "/etc/testudo/tls/", pki+"/")
		if moved == text {
			t.Errorf("%s names no file in /etc/testudo/tls; certificates belong there", file)
		}
		mine := filepath.Join(t.TempDir(), filepath.Base(file))
		if err := os.WriteFile(mine, []byte(moved), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, lab.Binary(t, daemonOf(file)), "config", "check", "--config", mine)
	}
}

// A check that says yes to everything would prove nothing above.
func TestConfigCheckRefuses(t *testing.T) {
	for _, tc := range []struct{ daemon, config, want string }{
		{"policyd", "listen: [0.0.0.0:7401]", "tls."},
		{"keymgrd", "secrets: {dir: ''}", "secrets.dir and vault.address"},
		{"workerd", "devise: tst0", "devise"},
	} {
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(tc.config), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), lab.Binary(t, tc.daemon), "config", "check", "--config", file).CombinedOutput()
		if err == nil || !strings.Contains(string(out), tc.want) {
			t.Errorf("%s with %q: got %v, %q; want an error that names %q", tc.daemon, tc.config, err, out, tc.want)
		}
	}
}
