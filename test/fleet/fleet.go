package fleet

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// settleLimit is how long the daemons may take to come to what was asked. It is
// long: a loaded machine must not fail a test.
const settleLimit = 30 * time.Second

// PSK is the preshared key that every fleet has: a policy names it "file:fleet.psk".
const PSK = "fleet.psk"

// Options of a fleet.
type Options struct {
	Hosts   []*lab.Node // each gets a workerd
	Control string      // name of the control node, "" for control: for two fleets in one lab

	// Secrets are files of keymgrd's secrets directory: name to content. PSK is
	// random unless it is here.
	Secrets map[string]string

	// MutualTLS links each host to the control node, and has the daemons talk over
	// TCP with certificates that `testudo pki init` made. The link is called ctl; it
	// is 10.255.<n>.0/30, n counting hosts from 0.
	MutualTLS bool

	// Further flags.
	Policyd, Keymgrd, Workerd []string

	// WorkerProgram is the path of another workerd than ours, such as one built
	// with other tags; empty for ours.
	WorkerProgram string
}

// Fleet is the daemons of one test. It is used by the test's goroutine.
type Fleet struct {
	Control *lab.Node
	Policyd *Daemon
	Keymgrd *Daemon

	t       testing.TB
	mtls    bool
	workers []*Daemon
	applied uint64 // the last revision that Apply made
}

// New starts a fleet. It ends with the test.
func New(t testing.TB, l *lab.Lab, o Options) *Fleet {
	t.Helper()
	f := &Fleet{t: t, mtls: o.MutualTLS, Control: l.Node(cmp.Or(o.Control, "control"))}
	f.Secret(PSK, RandomPSK())
	for name, content := range o.Secrets {
		f.Secret(name, content)
	}

	policyd, keymgrd := []string{f.socket("policyd")}, []string{f.socket("keymgrd")}
	if f.mtls {
		f.certificates(o.Hosts)
		for i, h := range o.Hosts {
			control := f.link(l, i, h)
			policyd = append(policyd, control+":7401")
			keymgrd = append(keymgrd, control+":7402")
		}
	}
	f.Policyd = f.daemon(f.Control, "policyd", "127.0.0.1:7411", append(f.tls("policyd"),
		"--listen", strings.Join(policyd, ","), "--data", filepath.Join(f.Control.Dir(), "etcd")), o.Policyd)
	f.Keymgrd = f.daemon(f.Control, "keymgrd", "127.0.0.1:7412", append(f.tls("keymgrd"),
		"--listen", strings.Join(keymgrd, ","), "--policyd", f.socket("policyd"), "--secrets.dir", f.secrets(), "--state.dir", f.State()), o.Keymgrd)
	f.Policyd.Start()
	f.Keymgrd.Start()
	for i, h := range o.Hosts {
		args := append(f.tls("worker-"+Name(h)), "--node", Name(h), "--admin", "unix://"+Admin(h),
			"--state", State(h))
		if f.mtls {
			args = append(args, "--policyd", controlAddr(i)+":7401", "--keymgrd", controlAddr(i)+":7402")
		} else {
			args = append(args, "--policyd", f.socket("policyd"), "--keymgrd", f.socket("keymgrd"))
		}
		w := f.daemon(h, "workerd", "127.0.0.1:7413", args, o.Workerd)
		if o.WorkerProgram != "" {
			w.args[0] = o.WorkerProgram
		}
		f.workers = append(f.workers, w)
		w.Start()
	}
	return f
}

// Name is what a host is called in policy.
func Name(h *lab.Node) string { return strings.ToLower(h.Name) }

// State is where a host's worker keeps its policy.
func State(h *lab.Node) string { return filepath.Join(h.Dir(), "state") }

// Worker is the workerd of a host, by the host's name in policy.
func (f *Fleet) Worker(host string) *Daemon {
	f.t.Helper()
	for _, w := range f.workers {
		if Name(w.Node) == host {
			return w
		}
	}
	f.t.Fatalf("fleet: no worker on a host %q", host)
	return nil
}

// Secret puts a file into keymgrd's secrets directory, or changes it.
func (f *Fleet) Secret(name, content string) {
	f.t.Helper()
	f.must(os.MkdirAll(f.secrets(), 0o700))
	f.must(os.WriteFile(filepath.Join(f.secrets(), name), []byte(content), 0o600))
}

// RandomPSK is a preshared key in the form that a secret file has.
func RandomPSK() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:]) + "\n"
}

// State is keymgrd's folder of what outlives it.
func (f *Fleet) State() string { return filepath.Join(f.Control.Dir(), "keymgrd") }

func (f *Fleet) secrets() string { return filepath.Join(f.Control.Dir(), "secrets") }

func (f *Fleet) socket(daemon string) string {
	return "unix://" + filepath.Join(f.Control.Dir(), daemon+".sock")
}

// link joins a host to the control node and returns the control node's address.
func (f *Fleet) link(l *lab.Lab, i int, h *lab.Node) string {
	host := netip.MustParseAddr(controlAddr(i)).Next()
	l.Link(lab.End{Node: f.Control, Name: fmt.Sprintf("ctl%d", i), V4: netip.MustParsePrefix(controlAddr(i) + "/30")},
		lab.End{Node: h, Name: "ctl", V4: netip.PrefixFrom(host, 30)}, 0)
	return controlAddr(i)
}

func controlAddr(i int) string { return fmt.Sprintf("10.255.%d.1", i) }

func (f *Fleet) certificates(hosts []*lab.Node) {
	f.t.Helper()
	args := []string{"pki", "init", "--dir", f.PKI()}
	for _, h := range hosts {
		args = append(args, "--worker", Name(h))
	}
	f.CLI(args...)
}

// PKI is the folder with the certificates, when there are any.
func (f *Fleet) PKI() string { return filepath.Join(f.Control.Dir(), "pki") }

// tls is the flags that give a daemon a certificate of the folder.
func (f *Fleet) tls(certificate string) []string {
	if !f.mtls {
		return nil
	}
	return []string{"--tls.ca", filepath.Join(f.PKI(), "ca.pem"),
		"--tls.cert", filepath.Join(f.PKI(), certificate+".pem"), "--tls.key", filepath.Join(f.PKI(), certificate+"-key.pem")}
}

func (f *Fleet) must(err error) {
	if err != nil {
		f.t.Helper()
		f.t.Fatal("fleet:", err)
	}
}

// programs are built once in a test binary's life.
var programs struct {
	sync.Mutex
	path map[string]string
}

// Program is the path of one of our programs.
func Program(t testing.TB, name string) string {
	t.Helper()
	programs.Lock()
	defer programs.Unlock()
	if programs.path[name] == "" {
		path := lab.Binary(t, name)
		if programs.path == nil {
			programs.path = map[string]string{}
		}
		programs.path[name] = path
	}
	return programs.path[name]
}
