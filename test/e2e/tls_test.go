package e2e

import (
	"crypto/tls"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

func TestMutualTLSAdmitsOnlyWhoIsMeant(t *testing.T) {
	t.Parallel()
	b := newPair(t, protectPair(""), fleet.Options{MutualTLS: true})
	exchange(t, b.A, b.B, traffic{})
	worker := b.Worker("a")
	worker.Stop()
	certificate := func(dir, name string) []string {
		return []string{"--tls.ca", filepath.Join(dir, "ca.pem"), "--tls.cert", filepath.Join(dir, name+".pem"), "--tls.key", filepath.Join(dir, name+"-key.pem")}
	}
	for _, tc := range []struct {
		name  string
		flags []string
		says  []string // in the worker's log
	}{
		{"another worker's certificate", certificate(b.PKI(), "worker-b"),
			[]string{"worker/b may not attach as node", `worker/b may not subscribe as worker \"a\"`}},
		{"the operator's certificate", certificate(b.PKI(), "operator"),
			[]string{"operator/operator may not call /testudo.keymgr.v1.WorkerLink/Attach", "operator/operator may not call /testudo.policy.v1.PolicyFeed/Subscribe"}},
		{"the key manager's certificate", certificate(b.PKI(), "keymgrd"),
			[]string{"keymgrd/keymgrd may not call /testudo.keymgr.v1.WorkerLink/Attach"}},
	} {
		worker.Start(tc.flags...)
		for _, text := range tc.says {
			worker.Process().WaitOutput(text, limit)
		}
		for _, n := range b.Status().Nodes {
			if n.Node == "a" && (n.KeymgrUp || n.PolicyUp) {
				t.Errorf("with %s worker a is connected: %+v", tc.name, n)
			}
		}
		if !strings.Contains(worker.Process().Output(), "level=WARN") {
			t.Errorf("with %s worker a does not warn", tc.name)
		}
		worker.Stop()
	}

	// With a certificate of another authority, or without one, there is no connection.
	stranger := filepath.Join(b.Control.Dir(), "stranger")
	b.CLI("pki", "init", "--dir", stranger, "--worker", "a")
	pair, err := tls.LoadX509KeyPair(filepath.Join(stranger, "worker-a.pem"), filepath.Join(stranger, "worker-a-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"7401", "7402"} {
		for want, certs := range map[string][]tls.Certificate{"certificate required": nil, "unknown certificate authority": {pair}} {
			err := b.A.Node.Do(func() error { return greet("10.255.0.1:"+port, certs) })
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("port %s: %v; want the alert %q", port, err, want)
			}
		}
	}

	// A worker is not an operator, and an operator is one over TCP too.
	as := func(name string) []string {
		return []string{"--policyd", "10.255.0.1:7401", "--keymgrd", "10.255.0.1:7402", "--ca", filepath.Join(b.PKI(), "ca.pem"),
			"--cert", filepath.Join(b.PKI(), name+".pem"), "--key", filepath.Join(b.PKI(), name+"-key.pem")}
	}
	if _, err := b.TryCLI(append(as("worker-a"), "sa", "list")...); err == nil || !strings.Contains(err.Error(), "worker/a may not call /testudo.keymgr.v1.KeyManagerService/ListSas") {
		t.Errorf("sa list with a worker's certificate: %v; want a refusal that names it", err)
	}
	b.CLI(append(as("operator"), "status")...)

	worker.Start()
	b.WaitInSync()
	b.A.Node.WaitPing(b.B.V4.Addr(), limit)
	b.B.Node.Ping(b.A.V4.Addr(), lab.PingOptions{})
}

// greet makes a TLS connection to a daemon and returns what it says against it.
func greet(address string, certs []tls.Certificate) error {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if len(certs) == 0 {
				return &tls.Certificate{}, nil
			}
			return &certs[0], nil
		}})
	if err := tc.Handshake(); err != nil {
		return err
	}
	_, err = io.ReadAll(tc) // TLS 1.3 tells a client after its handshake
	return err
}
