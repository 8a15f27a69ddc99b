package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/services/internal/daemon"
)

// check runs `workerd config check` on a file.
func check(t *testing.T, file string) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "workerd.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := (&daemon.Daemon{Name: "workerd", Config: defaults("host")}).Command()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs([]string{"config", "check", "--config", path})
	err := cmd.Execute()
	return out.String(), err
}

func TestConfigCheck(t *testing.T) {
	for name, file := range map[string]string{
		"empty": "",
		"all":   "node: web-1\nmtu: 1400\nqueues: 4\ndevice: ts1\nreport: 500ms\nfail-closed: true\nmetrics: ''\n",
	} {
		if out, err := check(t, file); err != nil || !strings.Contains(out, "configuration ok") {
			t.Errorf("%s: got %q, %v", name, out, err)
		}
	}
}

func TestConfigCheckReportsEveryProblem(t *testing.T) {
	_, err := check(t, `
node: ""
policyd: x
keymgrd: host:7402
admin: host:1
state: ""
metrics: y
device: Eth0
report: 1ms
queues: 256
mtu: 100
log: {format: xml}
`)
	if err == nil {
		t.Fatal("taken")
	}
	for _, want := range []string{
		"node: not set", `policyd: got "x"`, "tls.ca: not set, but host:7402", `admin: got "host:1"`, "state: not set", `metrics: got "y"`, `device: got "Eth0"`,
		"report: got 1ms", "queues: got 256", "mtu: got 100", `log.format: got "xml"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %q in:\n%v", want, err)
		}
	}
	for file, want := range map[string]string{
		"report: 5\n": "'report'", "fail_closed: true\n": "invalid keys: fail_closed", "fail-closed: maybe\n": "'fail-closed'", "tls: {cacert: x}\n": "'tls' has invalid keys: cacert",
	} {
		if _, err := check(t, file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", file, err, want)
		}
	}
}
