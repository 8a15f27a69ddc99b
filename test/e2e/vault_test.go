package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// vaultServer is a real Vault on the loopback of a node (see test/vaultserver), with
// KV version 2 at secret/ and an AppRole that reads secret/testudo/.
type vaultServer struct {
	t       *testing.T
	node    *lab.Node
	stdin   io.WriteCloser
	lines   *bufio.Scanner
	address string
	token   string
}

func newVaultServer(t *testing.T, n *lab.Node) *vaultServer {
	t.Helper()
	path := os.Getenv("TESTUDO_VAULT_BIN")
	if path == "" {
		path = filepath.Join("..", "..", "out", "bin", "vaultserver")
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no Vault to test against (%v): cd test/vaultserver && GOWORK=off go build -o ../../out/bin/vaultserver . (or set TESTUDO_VAULT_BIN)", err)
	}
	s := &vaultServer{t: t, node: n}
	cmd := exec.Command(path)
	cmd.Stderr = os.Stderr
	var err error
	s.stdin, err = cmd.StdinPipe()
	s.must(err)
	out, err := cmd.StdoutPipe()
	s.must(err)
	// The child is forked on the thread that is in the node.
	s.must(n.Do(cmd.Start))
	t.Cleanup(func() {
		_ = s.stdin.Close() // it stops with its input
		_ = cmd.Wait()
	})
	s.lines = bufio.NewScanner(out)
	var ready struct{ Address, RootToken string }
	s.read(&ready)
	s.address, s.token = ready.Address, ready.RootToken
	s.call("POST", "sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]any{"version": "2"}})
	s.call("POST", "sys/auth/approle", map[string]any{"type": "approle"})
	s.call("PUT", "sys/policies/acl/keymgrd", map[string]any{
		"policy": `path "secret/data/testudo/*" { capabilities = ["read"] } path "secret/metadata/testudo/*" { capabilities = ["read"] }`})
	s.call("POST", "auth/approle/role/keymgrd", map[string]any{"token_policies": "keymgrd"})
	return s
}

func (s *vaultServer) must(err error) {
	if err != nil {
		s.t.Helper()
		s.t.Fatal("vault:", err)
	}
}

func (s *vaultServer) read(v any) {
	s.t.Helper()
	if !s.lines.Scan() {
		s.t.Fatalf("the Vault server ended: %v", s.lines.Err())
	}
	s.must(json.Unmarshal(s.lines.Bytes(), v))
}

// control sends seal or unseal and waits until it is done.
func (s *vaultServer) control(command string) {
	s.t.Helper()
	_, err := fmt.Fprintln(s.stdin, command)
	s.must(err)
	var answer struct{ State, Error string }
	s.read(&answer)
	if answer.Error != "" {
		s.t.Fatalf("vault: %s: %s", command, answer.Error)
	}
}

// call is one request of the root token; it returns "data" of the answer.
func (s *vaultServer) call(method, path string, body any) map[string]any {
	s.t.Helper()
	b, err := json.Marshal(body)
	s.must(err)
	req, err := http.NewRequest(method, s.address+"/v1/"+path, bytes.NewReader(b))
	s.must(err)
	req.Header.Set("X-Vault-Token", s.token)
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, addr string) (c net.Conn, err error) {
			err = s.node.Do(func() error {
				c, err = net.Dial(network, addr)
				return err
			})
			return c, err
		}}}
	r, err := client.Do(req)
	s.must(err)
	defer func() { _ = r.Body.Close() }()
	answer, err := io.ReadAll(r.Body)
	s.must(err)
	if r.StatusCode/100 != 2 {
		s.t.Fatalf("vault: %s %s: %s: %s", method, path, r.Status, answer)
	}
	var v struct{ Data map[string]any }
	if len(answer) > 0 {
		s.must(json.Unmarshal(answer, &v))
	}
	return v.Data
}

func (s *vaultServer) put(name, key string) {
	s.t.Helper()
	s.call("POST", "secret/data/testudo/"+name, map[string]any{"data": map[string]any{"psk": key}})
}

// flags are what keymgrd needs to log in.
func (s *vaultServer) flags() []string {
	s.t.Helper()
	id := s.call("GET", "auth/approle/role/keymgrd/role-id", nil)["role_id"].(string)
	secret := s.call("POST", "auth/approle/role/keymgrd/secret-id", nil)["secret_id"].(string)
	return []string{"--vault.address", s.address, "--vault.approle.role-id", id,
		"--vault.approle.secret-id-file", s.node.WriteFile("secret-id", secret+"\n")}
}

func TestPSKFromVault(t *testing.T) {
	t.Parallel()
	b := newPair(t, "", fleet.Options{})
	v := newVaultServer(t, b.Control)
	v.put("pair", fleet.RandomPSK())
	b.Keymgrd.Kill9()
	b.Keymgrd.Start(v.flags()...)
	b.Apply(policy(hostA, hostB, both, psk("psk", "vault:secret/testudo/pair"), action("require", "action: secure"),
		rules("p", "", "{name: all, filters: both, action: require, authentication: psk}"), assign("p", "a"), assign("p", "b")))
	b.WaitInSync()
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{Count: 3})

	// Rotation: the SAs that are there go on, and new ones come up.
	probe := b.A.Node.StartProbe(b.B, false, pace)
	v.put("pair", fleet.RandomPSK())
	again := func() {
		t.Helper()
		old := b.onlyIKE("a", "b").GetLocalSpi()
		b.Terminate("a", "b")
		lab.WaitFor(t, limit, "a new IKE SA", func() error {
			if s := b.SAs("a"); len(s) != 1 || s[0].GetLocalSpi() == old || s[0].GetState() != "established" || len(s[0].GetChildren()) == 0 {
				return fmt.Errorf("SAs %v", s)
			}
			return nil
		})
		moving(t, probe)
	}
	again()

	// Sealed: traffic goes on, SAs are rekeyed, and the cached key makes new ones.
	v.control("seal")
	moving(t, probe)
	b.RekeyChild("a", b.onlyIKE("a", "b").GetChildren()[0].GetId())
	moving(t, probe)
	again()
	if fs := b.Failures(""); len(fs) != 0 {
		t.Errorf("failures with a sealed Vault: %v; want none", fs)
	}
	v.control("unseal")
	again()
	t.Logf("a rotation and a sealed Vault, an IKE SA closed by hand 3 times: %v", probe.Stop())

	// A secret that is not there is said to be not there.
	b.Apply(policy(hostA, hostB, both, psk("psk", "vault:secret/testudo/nothing"), action("require", "action: secure"),
		rules("p", "", "{name: all, filters: both, action: require, authentication: psk}"), assign("p", "a"), assign("p", "b")))
	b.WaitInSync()
	b.Terminate("a", "b")
	b.waitNoSAs("a")
	if err := b.A.Node.TryPing(b.B.V4.Addr(), lab.PingOptions{}); err == nil {
		t.Error("a ping passes without a secret")
	}
	lab.WaitFor(t, limit, "a failure that says why", func() error {
		for _, f := range b.Failures("") {
			t.Logf("%s %s: %s; %s", f.GetNode(), f.GetWhy(), f.GetDetail(), f.GetAdvice())
			if f.GetWhy() == "NO_CREDENTIAL" && f.GetAdvice() != "" {
				return nil
			}
		}
		return errors.New("no NO_CREDENTIAL")
	})
}

// The key of the stored state is in Vault. While Vault is sealed keymgrd waits and
// traffic goes on; when it has the key it goes on with the SAs it had.
func TestStateKeyFromVault(t *testing.T) {
	b := newPair(t, "", fleet.Options{})
	v := newVaultServer(t, b.Control)
	v.put("state", fleet.RandomPSK())
	flags := append(v.flags(), "--state.key", "vault:secret/testudo/state")
	b.Keymgrd.Kill9()
	if err := os.RemoveAll(b.State()); err != nil { // it is sealed with another key
		t.Fatal(err)
	}
	b.Keymgrd.Start(flags...)
	b.Apply(protectPair(""))
	b.WaitInSync()
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
	before := b.spis()
	probe := b.A.Node.StartProbe(b.B, false, pace)
	moving(t, probe)

	v.control("seal")
	b.Keymgrd.Kill9()
	b.Keymgrd.Start(flags...)
	b.Keymgrd.Process().WaitOutput("a secret that keymgrd needs to start cannot be had; waiting", limit)
	moving(t, probe)
	v.control("unseal")
	b.Keymgrd.WaitUp()
	b.WaitInSync()
	if got := b.spis(); !slices.Equal(got, before) {
		t.Errorf("CHILD SAs %v, want those of before the restart, %v", got, before)
	}
	if got := metric(b.Keymgrd, "testudo_keymgr_state_restored_total"); got < 2 {
		t.Errorf("%v IKE SAs restored, want 2, one of each end", got)
	}
	moving(t, probe)
	if r := probe.Stop(); r.Lost != 0 {
		t.Errorf("%v; want none lost", r)
	}
}
