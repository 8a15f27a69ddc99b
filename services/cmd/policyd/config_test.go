package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/services/internal/daemon"
)

// check runs `policyd config check` on a file.
func check(t *testing.T, file string) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policyd.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := (&daemon.Daemon{Name: "policyd", Config: defaults()}).Command()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs([]string{"config", "check", "--config", path})
	err := cmd.Execute()
	return out.String(), err
}

func TestConfigCheck(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"ca.pem", "cert.pem", "key.pem"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, file := range map[string]string{
		"empty":   "",
		"cluster": "data: ''\netcd: {endpoints: ['https://etcd:2379'], cert: " + dir + "/cert.pem, key: " + dir + "/key.pem}\n",
		"network": "listen: ['unix:///run/p.sock', ':7401']\nmetrics: ''\ntls: {ca: " + dir + "/ca.pem, cert: " + dir + "/cert.pem, key: " + dir + "/key.pem}\nlog: {level: debug, format: json}\n",
	} {
		if out, err := check(t, file); err != nil || !strings.Contains(out, "configuration ok") {
			t.Errorf("%s: got %q, %v", name, out, err)
		}
	}
}

func TestConfigCheckReportsEveryProblem(t *testing.T) {
	_, err := check(t, `
listen: ["run/policyd.sock", "host:7401"]
metrics: unix:///run/m
data: ""
etcd: {prefix: testudo, cert: /nowhere/cert.pem}
log: {level: loud, format: xml}
`)
	if err == nil {
		t.Fatal("taken")
	}
	for _, want := range []string{
		`listen: got "run/policyd.sock"`, "host:7401 is reached over the network", "tls.ca: not set", "tls.cert: not set", "tls.key: not set", `metrics: got "unix:///run/m"`,
		"data and etcd.endpoints: neither is set", `etcd.prefix: got "testudo"`, "etcd.cert: stat /nowhere/cert.pem",
		"etcd.cert and etcd.key: one is set without the other", `log.level: got "loud"`, `log.format: got "xml"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %q in:\n%v", want, err)
		}
	}
	if _, err := check(t, "etcd: {endpoint: [x]}\n"); err == nil || !strings.Contains(err.Error(), "'etcd' has invalid keys: endpoint") {
		t.Errorf("an unknown key: got %v", err)
	}
	if _, err := check(t, "listen: []\n"); err == nil || !strings.Contains(err.Error(), "listen: got no address") {
		t.Errorf("no address: got %v", err)
	}
}
