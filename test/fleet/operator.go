package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// TryCLI runs the testudo command on the control node and returns its standard
// output. What it printed on standard error is in the error.
func (f *Fleet) TryCLI(args ...string) ([]byte, error) { return f.tryCLI("", args...) }

func (f *Fleet) tryCLI(stdin string, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	// The addresses come first, so that args may name others.
	all := append([]string{"--policyd", f.socket("policyd"), "--keymgrd", f.socket("keymgrd")}, args...)
	cmd := exec.Command(Program(f.t, "testudo"), all...)
	cmd.Dir = f.Control.Dir()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	// Run forks on the calling thread, so the child is where that thread is.
	if err := f.Control.Do(cmd.Run); err != nil {
		return stdout.Bytes(), fmt.Errorf("testudo %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// CLI is TryCLI that fails the test when the command fails.
func (f *Fleet) CLI(args ...string) []byte {
	f.t.Helper()
	out, err := f.TryCLI(args...)
	f.must(err)
	return out
}

func (f *Fleet) query(m proto.Message, args ...string) {
	f.t.Helper()
	f.must(protojson.Unmarshal(f.CLI(append(args, "-o", "json")...), m))
}

// TryApply puts YAML documents in force, in place of all there were.
func (f *Fleet) TryApply(yaml string) error {
	out, err := f.tryCLI(yaml, "policy", "apply", "-f", "-", "--replace", "-o", "json")
	if err != nil {
		return err
	}
	var r struct {
		Version struct {
			Revision uint64 `json:"revision"`
		} `json:"version"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return err
	}
	f.applied = max(f.applied, r.Version.Revision)
	return nil
}

// Apply is TryApply that fails the test, once policyd answers.
func (f *Fleet) Apply(yaml string) {
	f.t.Helper()
	f.Policyd.WaitUp()
	f.must(f.TryApply(yaml))
}

// Status is what `testudo status` shows.
type Status struct {
	Revision uint64 `json:"revision"`
	Keymgrs  []struct {
		Name      string `json:"name"`
		Connected bool   `json:"connected"`
		InSync    bool   `json:"inSync"`
	} `json:"keyManagers"`
	Nodes    []NodeStatus `json:"nodes"`
	Problems []string     `json:"problems"`
}

// NodeStatus is one node in a Status.
type NodeStatus struct {
	Node        string `json:"node"`
	External    bool   `json:"external"`
	InSync      bool   `json:"policyInSync"`
	PolicyUp    bool   `json:"policyConnected"`
	KeymgrUp    bool   `json:"keymgrConnected"`
	Rules       int    `json:"rules"`
	IKESAs      int    `json:"ikeSas"`
	ChildSAs    int    `json:"childSas"`
	LastRefusal string `json:"lastRefusal"`
}

// Status asks the daemons.
func (f *Fleet) Status() Status {
	f.t.Helper()
	s, err := f.status()
	f.must(err)
	return s
}

func (f *Fleet) status() (s Status, err error) {
	out, err := f.TryCLI("status", "-o", "json")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(out, &s)
}

// WaitInSync waits until the key manager and every worker that runs are connected
// and have what was applied last in force.
func (f *Fleet) WaitInSync() {
	f.t.Helper()
	lab.WaitFor(f.t, settleLimit, "the fleet to be in sync", func() error {
		s, err := f.status()
		if err != nil {
			return err
		}
		return errors.Join(f.Keymgrd.Running(), f.Policyd.Running(), f.behind(s))
	})
}

func (f *Fleet) behind(s Status) error {
	if s.Revision < f.applied {
		return fmt.Errorf("policyd is at revision %d; want %d", s.Revision, f.applied)
	}
	in := false
	for _, k := range s.Keymgrs {
		in = in || k.Connected && k.InSync
	}
	if !in {
		return fmt.Errorf("no key manager is in sync: %+v", s.Keymgrs)
	}
	ready := map[string]bool{}
	for _, n := range s.Nodes {
		ready[n.Node] = n.InSync && n.PolicyUp && n.KeymgrUp
	}
	for _, w := range f.workers {
		if w.Running() == nil && !ready[Name(w.Node)] {
			return fmt.Errorf("node %s is not in sync: %+v %q", Name(w.Node), s.Nodes, s.Problems)
		}
	}
	return nil
}

// SAs are the IKE SAs of a node, with their CHILD SAs; of all nodes for "".
func (f *Fleet) SAs(node string) []*keymgrv1.IkeSa {
	f.t.Helper()
	var r keymgrv1.ListSasResponse
	f.query(&r, "sa", "list", "--node", node)
	return r.GetIkeSas()
}

// Children are the CHILD SAs of a node, of all its established IKE SAs.
func (f *Fleet) Children(node string) []*keymgrv1.ChildSa {
	f.t.Helper()
	var out []*keymgrv1.ChildSa
	for _, s := range f.SAs(node) {
		out = append(out, s.GetChildren()...)
	}
	return out
}

// Failures are the failed negotiations with a peer, newest first; with all for "".
func (f *Fleet) Failures(peer string) []*keymgrv1.Failure {
	f.t.Helper()
	args := []string{"ike", "explain"}
	if peer != "" {
		args = append(args, peer)
	}
	var r keymgrv1.ExplainFailuresResponse
	f.query(&r, args...)
	return r.GetFailures()
}

// TryInitiate negotiates for a rule now. Flags of the command may follow.
func (f *Fleet) TryInitiate(node, rule string, flags ...string) (*keymgrv1.ChildSa, error) {
	out, err := f.TryCLI(append([]string{"sa", "initiate", node, rule, "-o", "json"}, flags...)...)
	if err != nil {
		return nil, err
	}
	var r keymgrv1.InitiateResponse
	if err := protojson.Unmarshal(out, &r); err != nil {
		return nil, err
	}
	return r.GetChild(), nil
}

// Initiate is TryInitiate that fails the test.
func (f *Fleet) Initiate(node, rule string) *keymgrv1.ChildSa {
	f.t.Helper()
	c, err := f.TryInitiate(node, rule)
	f.must(err)
	return c
}

// RekeyChild replaces a CHILD SA of a node.
func (f *Fleet) RekeyChild(node string, child uint64) {
	f.t.Helper()
	f.CLI("sa", "rekey", node, "--child", strconv.FormatUint(child, 10))
}

// RekeyIKE replaces an IKE SA of a node, by the node's SPI.
func (f *Fleet) RekeyIKE(node string, spi uint64) {
	f.t.Helper()
	f.CLI("sa", "rekey", node, "--ike-spi", fmt.Sprintf("%016x", spi))
}

// Terminate closes all IKE SAs of a node with a peer.
func (f *Fleet) Terminate(node, peer string) {
	f.t.Helper()
	f.CLI("sa", "terminate", node, "--peer", peer)
}

// Rules are the names of the rules of a node that are compiled from a rule of
// policy: its name is a part of theirs.
func (f *Fleet) Rules(node, rule string) []string {
	f.t.Helper()
	var e struct {
		Rules []struct {
			Name string `json:"name"`
		} `json:"rules"`
	}
	f.must(json.Unmarshal(f.CLI("policy", "effective", node, "-o", "json"), &e))
	var out []string
	for _, r := range e.Rules {
		if strings.Contains(r.Name, "/"+rule+"#") {
			out = append(out, r.Name)
		}
	}
	return out
}

// Admin is the unix socket of a host's workerd.
func Admin(h *lab.Node) string { return filepath.Join(h.Dir(), "workerd.sock") }
