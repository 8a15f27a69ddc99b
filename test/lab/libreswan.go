package lab

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Libreswan is Debian's pluto on a machine, whose kernel does its ESP.
type Libreswan struct {
	*Process
	node *Node
}

// PlutoConn is the one connection of a pluto. It starts when told to.
type PlutoConn struct {
	Mode              string // tunnel or transport
	Local, Remote     netip.Addr
	LocalID, RemoteID string
	LocalTS, RemoteTS netip.Prefix
	PSK               string // empty for certificates:
	Cert              Cert
	CA                *CA
	Settings          []string // of the connection, as in ipsec.conf(5)
}

const (
	plutoConn = "lab"
	libexec   = "/usr/libexec/ipsec/"
)

// StartLibreswan runs pluto on a machine.
func (n *Node) StartLibreswan(c PlutoConn) *Libreswan {
	n.lab.t.Helper()
	if n.machine == nil {
		n.lab.t.Fatalf("lab: Libreswan on %s: it wants a kernel with ESP, so a machine", n.Name)
	}
	auth := []string{"authby=secret"}
	if c.PSK == "" {
		auth = []string{"leftcert=local", "leftsendcert=always", "sendca=all"}
	}
	for name, content := range n.nss(c) {
		n.WriteFile("nss/"+name, content)
	}
	n.WriteFile("ipsec.secrets", fmt.Sprintf("@%s @%s : PSK %q\n", c.LocalID, c.RemoteID, c.PSK))
	conf := n.WriteFile("ipsec.conf", fmt.Sprintf(`config setup
	nssdir=%[1]s/nss
	dnssec-enable=no
conn %[2]s
	auto=add
	type=%[3]s
	left=%[4]s
	leftid=@%[5]s
	leftsubnet=%[6]s
	right=%[7]s
	rightid=@%[8]s
	rightsubnet=%[9]s
	leftupdown=%%disabled
	keyingtries=1
	%[10]s
`, n.dir, plutoConn, c.Mode, c.Local, c.LocalID, c.LocalTS, c.Remote, c.RemoteID, c.RemoteTS, strings.Join(append(auth, c.Settings...), "\n\t")))
	n.Run("mkdir", "-p", "/run/pluto")
	l := &Libreswan{node: n, Process: n.Start(Command{Args: []string{libexec + "pluto", "--nofork", "--stderrlog",
		"--config", conf, "--secretsfile", filepath.Join(n.dir, "ipsec.secrets")}})}
	WaitFor(n.lab.t, machineLimit, "pluto to have loaded its connection", func() error {
		if err := l.Running(); err != nil {
			n.lab.t.Fatal("lab:", err)
		}
		out, err := l.whack("--status")
		if err == nil && !strings.Contains(out, `"`+plutoConn+`"`) {
			err = fmt.Errorf("it has %s", out)
		}
		return err
	})
	return l
}

// nss is pluto's database of certificates and keys, made on this host.
func (n *Node) nss(c PlutoConn) map[string]string {
	n.lab.t.Helper()
	dir := n.lab.t.TempDir()
	db := "sql:" + dir
	run := func(program string, args ...string) {
		n.lab.t.Helper()
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			n.lab.t.Fatalf("lab: %s %s: %v: %s", program, strings.Join(args, " "), err, out)
		}
	}
	file := func(name, content string) string {
		path := filepath.Join(n.lab.t.TempDir(), name)
		n.lab.must(os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	run("certutil", "-N", "-d", db, "--empty-password")
	if c.PSK == "" {
		const password = "nss takes none without"
		p12 := file("local.p12", "")
		run("openssl", "pkcs12", "-export", "-in", file("chain", c.Cert.Chain), "-inkey", file("key", c.Cert.Key), "-name", "local", "-out", p12, "-passout", "pass:"+password)
		run("pk12util", "-d", db, "-i", p12, "-W", password)
		run("certutil", "-A", "-d", db, "-n", "ca", "-t", "CT,,", "-i", file("ca", c.CA.PEM()))
	}
	out := map[string]string{}
	for _, name := range []string{"cert9.db", "key4.db", "pkcs11.txt"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		n.lab.must(err)
		// It names the folder that it was made in.
		out[name] = strings.ReplaceAll(string(b), dir, n.dir+"/nss")
	}
	return out
}

// Initiate negotiates the connection; an error says what pluto said of it.
func (l *Libreswan) Initiate() error {
	_, err := l.whack("--name", plutoConn, "--initiate")
	return err
}

// RekeyIKE and RekeyChild replace an SA.
func (l *Libreswan) RekeyIKE() error {
	_, err := l.whack("--name", plutoConn, "--rekey-ike")
	return err
}

// RekeyChild replaces the CHILD SA.
func (l *Libreswan) RekeyChild() error {
	_, err := l.whack("--name", plutoConn, "--rekey-ipsec")
	return err
}

// Terminate deletes the IKE SA, and the CHILD SA with it.
func (l *Libreswan) Terminate() error {
	_, err := l.whack("--name", plutoConn, "--terminate")
	return err
}

// Status is what pluto knows of its connection, and its SAs.
func (l *Libreswan) Status() string {
	l.node.lab.t.Helper()
	out, err := l.whack("--status")
	l.node.lab.must(err)
	return out
}

func (l *Libreswan) whack(args ...string) (string, error) {
	return l.node.Try(append([]string{libexec + "whack"}, args...)...)
}
