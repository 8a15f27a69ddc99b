package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/services/internal/daemon"
)

// check runs `keymgrd config check` on a file.
func check(t *testing.T, file string) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keymgrd.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := (&daemon.Daemon{Name: "keymgrd", Config: defaults()}).Command()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs([]string{"config", "check", "--config", path})
	err := cmd.Execute()
	return out.String(), err
}

func TestConfigCheck(t *testing.T) {
	for name, file := range map[string]string{
		"empty":         "",
		"vault":         "secrets: {dir: ''}\nvault: {address: 'https://vault:8200', token-file: /run/token, max-stale: 36h}\n",
		"no state":      "state: {dir: ''}\n",
		"state key":     "state: {key: 'file:state.key'}\n",
		"vault approle": "vault: {address: 'https://vault:8200', approle: {role-id: r, secret-id-file: /run/id}}\n",
	} {
		if out, err := check(t, file); err != nil || !strings.Contains(out, "configuration ok") {
			t.Errorf("%s: got %q, %v", name, out, err)
		}
	}
}

func TestConfigCheckReportsEveryProblem(t *testing.T) {
	for _, tt := range []struct {
		file string
		want []string
	}{
		{"listen: [x]\npolicyd: y\nmetrics: z\nsecrets: {dir: ''}\nlog: {level: loud}\n", []string{
			`listen: got "x"`, `policyd: got "y"`, `metrics: got "z"`, "secrets.dir and vault.address: neither is set", `log.level: got "loud"`,
		}},
		{"vault: {address: 'https://vault:8200', max-stale: -1h, token-file: /t, approle: {role-id: r}}\n", []string{"vault: got 2 ways to log in", "vault.max-stale: got -1h0m0s"}},
		{"vault: {address: 'https://vault:8200'}\n", []string{"got 0 ways to log in"}},
		{"vault: {address: 'vault', token-file: /t}\n", []string{"vault"}},
		{"state: {key: 'secret'}\n", []string{"state.key: ", "not a reference"}},
		{"state: {dir: '', key: 'file:k'}\n", []string{"state.key: set, but state.dir is empty"}},
		{"crash-detection: {secret: 'vault:secret/k'}\n", []string{"crash-detection.secret: got a vault: reference"}},
		{"state: {key: 'vault:secret/k'}\n", []string{"vault.address is empty"}},
		{"vault: {max-stale: 24}\n", []string{"vault.max-stale", "unit"}},
		{"vault: {token: secret}\n", []string{"'vault' has invalid keys: token"}},
		{"policyd: host:7401\n", []string{"tls.ca: not set", "host:7401"}},
	} {
		_, err := check(t, tt.file)
		if err == nil {
			t.Errorf("%q was taken", tt.file)
			continue
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: no word of %q in: %v", tt.file, w, err)
			}
		}
	}
}
