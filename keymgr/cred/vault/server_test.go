package vault_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/testudo-ipsec/testudo/keymgr/cred/vault"
)

// server is a real Vault (test/vaultserver) and a root token for it, set up as
// an operator would: KV version 2 at secret/, AppRole, and a role "keymgrd"
// whose policy reads secret/testudo/psk/.
type server struct {
	addr string
	ca   string
	root *api.Client
	role vault.AppRole

	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
	args  []string
}

// binary finds the server, or skips the test and says how to build it.
func binary(t testing.TB) string {
	t.Helper()
	name := os.Getenv("TESTUDO_VAULT_BIN")
	if name == "" {
		name = filepath.Join("..", "..", "..", "out", "bin", "vaultserver")
	}
	if _, err := os.Stat(name); err != nil {
		t.Skipf("no Vault server to test against (%v): cd test/vaultserver && GOWORK=off go build -o ../../out/bin/vaultserver . (or set TESTUDO_VAULT_BIN)", err)
	}
	return name
}

// start starts a server and sets it up.
func start(t testing.TB, args ...string) *server {
	t.Helper()
	s := &server{args: args}
	s.launch(t)
	must(t, s.root.Sys().Mount("secret", &api.MountInput{Type: "kv", Options: map[string]string{"version": "2"}}))
	must(t, s.root.Sys().EnableAuthWithOptions("approle", &api.EnableAuthOptions{Type: "approle"}))
	s.policy(t, "keymgrd", "secret/data/testudo/psk/*", "secret/metadata/testudo/psk/*")
	s.role = s.appRole(t, "keymgrd", map[string]any{"token_policies": "keymgrd", "token_ttl": "1h"})
	return s
}

// launch starts the process, and waits until Vault serves.
func (s *server) launch(t testing.TB) {
	t.Helper()
	s.cmd = exec.Command(binary(t), s.args...)
	s.cmd.Stderr = os.Stderr
	var err error
	s.stdin, err = s.cmd.StdinPipe()
	must(t, err)
	stdout, err := s.cmd.StdoutPipe()
	must(t, err)
	must(t, s.cmd.Start())
	t.Cleanup(func() {
		_ = s.stdin.Close() // the server stops with its input
		_ = s.cmd.Wait()
	})
	s.lines = bufio.NewScanner(stdout)
	var ready struct{ Address, RootToken, CA string }
	s.read(t, &ready)
	s.addr, s.ca = ready.Address, ready.CA

	conf := api.DefaultConfig()
	must(t, conf.Error)
	conf.Address = s.addr
	conf.MaxRetries = 0
	if s.ca != "" {
		must(t, conf.ConfigureTLS(&api.TLSConfig{CACertBytes: []byte(s.ca)}))
	}
	s.root, err = api.NewClient(conf)
	must(t, err)
	s.root.SetToken(ready.RootToken)
}

func (s *server) read(t testing.TB, v any) {
	t.Helper()
	if !s.lines.Scan() {
		t.Fatalf("the Vault server ended: %v", s.lines.Err())
	}
	must(t, json.Unmarshal(s.lines.Bytes(), v))
}

// control sends seal, unseal or stop and waits until it is done.
func (s *server) control(t testing.TB, command string) {
	t.Helper()
	_, err := fmt.Fprintln(s.stdin, command)
	must(t, err)
	var answer struct{ State, Error string }
	s.read(t, &answer)
	if answer.Error != "" {
		t.Fatalf("%s: %s", command, answer.Error)
	}
	if command == "stop" {
		must(t, s.cmd.Wait())
	}
}

// policy lets the tokens of a policy read paths.
func (s *server) policy(t testing.TB, name string, paths ...string) {
	t.Helper()
	rules := ""
	for _, p := range paths {
		rules += fmt.Sprintf("path %q { capabilities = [\"read\"] }\n", p)
	}
	must(t, s.root.Sys().PutPolicy(name, rules))
}

// appRole makes a role and a SecretID for it.
func (s *server) appRole(t testing.TB, name string, params map[string]any) vault.AppRole {
	t.Helper()
	s.write(t, "auth/approle/role/"+name, params)
	id, err := s.root.Logical().Read("auth/approle/role/" + name + "/role-id")
	must(t, err)
	secret := s.write(t, "auth/approle/role/"+name+"/secret-id", nil)
	return vault.AppRole{
		RoleID:       id.Data["role_id"].(string),
		SecretIDFile: s.file(t, secret.Data["secret_id"].(string)+"\n"),
	}
}

func (s *server) write(t testing.TB, path string, data map[string]any) *api.Secret {
	t.Helper()
	secret, err := s.root.Logical().Write(path, data)
	must(t, err)
	return secret
}

func (s *server) file(t testing.TB, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(name, []byte(text), 0o600))
	return name
}

// put writes a new version of secret/testudo/psk/NAME.
func (s *server) put(t testing.TB, name, key string) {
	t.Helper()
	s.write(t, "secret/data/testudo/psk/"+name, map[string]any{"data": map[string]any{"psk": key}})
}

// config is what keymgrd would have for this server.
func (s *server) config(t testing.TB) vault.Config {
	t.Helper()
	conf := vault.Config{Address: s.addr, Auth: s.role, Timeout: 30 * time.Second, Log: quiet}
	if s.ca != "" {
		conf.CAFile = s.file(t, s.ca)
	}
	return conf
}

func newVault(t testing.TB, conf vault.Config) *vault.Vault {
	t.Helper()
	v, err := vault.New(conf)
	must(t, err)
	return v
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
