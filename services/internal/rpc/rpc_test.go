package rpc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
	workerv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/worker/v1"
	"github.com/testudo-ipsec/testudo/services/internal/config"
	"github.com/testudo-ipsec/testudo/services/internal/pki"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var discard = slog.New(slog.DiscardHandler)

// authority is a folder of certificates as `testudo pki` makes them.
type authority struct {
	t   *testing.T
	dir string
	ca  *pki.CA
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	var err error
	if a.ca, _, err = pki.Open(a.dir); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) files(name string) config.TLS {
	return config.TLS{CA: filepath.Join(a.dir, "ca.pem"), Cert: filepath.Join(a.dir, name+".pem"), Key: filepath.Join(a.dir, name+"-key.pem")}
}

func (a *authority) issue(role rpc.Role, name string) config.TLS {
	a.t.Helper()
	file := string(role) + "-" + name
	if err := a.ca.Issue(file, rpc.Caller{Role: role, Name: name}); err != nil {
		a.t.Fatal(err)
	}
	return a.files(file)
}

// sign makes a certificate that pki does not make.
func (a *authority) sign(file string, change func(*x509.Certificate)) config.TLS {
	a.t.Helper()
	issuer, err := tls.LoadX509KeyPair(filepath.Join(a.dir, "ca.pem"), filepath.Join(a.dir, "ca-key.pem"))
	if err != nil {
		a.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: file},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs: []*url.URL{{Scheme: "testudo", Host: "operator", Path: "/" + file}},
	}
	change(c)
	der, err := x509.CreateCertificate(rand.Reader, c, issuer.Leaf, key.Public(), issuer.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	kd, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	files := a.files(file)
	for path, block := range map[string]*pem.Block{files.Cert: {Type: "CERTIFICATE", Bytes: der}, files.Key: {Type: "PRIVATE KEY", Bytes: kd}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return files
}

// api answers PolicyService as far as the tests of the chassis call it.
type api struct {
	policyv1.UnimplementedPolicyServiceServer
	policyv1.UnimplementedPolicyFeedServer
}

func (api) Get(ctx context.Context, r *policyv1.GetRequest) (*policyv1.GetResponse, error) {
	if r.GetName() == "panic" {
		panic("the handler is broken: " + r.GetName())
	}
	c, err := rpc.CallerOf(ctx)
	if err != nil {
		return nil, err
	}
	return &policyv1.GetResponse{Documents: []*policyv1.Document{{Name: c.String()}}}, nil
}

func (api) Subscribe(policyv1.PolicyFeed_SubscribeServer) error { panic("the stream is broken") }

func register(r grpc.ServiceRegistrar) {
	policyv1.RegisterPolicyServiceServer(r, api{})
	policyv1.RegisterPolicyFeedServer(r, api{})
}

// serve runs a server until the test ends and returns its address.
func serve(t *testing.T, address string, files config.TLS) string {
	t.Helper()
	return serveAndLog(t, discard, address, files)
}

func serveAndLog(t *testing.T, log *slog.Logger, address string, files config.TLS) string {
	t.Helper()
	s, err := rpc.Listen(log, []string{address}, files, rpc.PolicydAllow, register)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s.Addresses()[0]
}

func dial(t *testing.T, address string, want rpc.Role, files config.TLS) *grpc.ClientConn {
	t.Helper()
	c, err := rpc.Dial(address, want, files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// who calls Get and returns the name by which the server knows the caller.
func who(t *testing.T, c *grpc.ClientConn) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := policyv1.NewPolicyServiceClient(c).Get(ctx, &policyv1.GetRequest{})
	if err != nil {
		return "", err
	}
	return r.GetDocuments()[0].GetName(), nil
}

func refused(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Fatalf("got %v, want code %s", err, code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func TestTheRoleInTheCertificateDecides(t *testing.T) {
	a := newAuthority(t)
	address := serve(t, "127.0.0.1:0", a.issue(rpc.RolePolicyd, "policyd"))

	if got, err := who(t, dial(t, address, rpc.RolePolicyd, a.issue(rpc.RoleOperator, "eve"))); err != nil || got != "operator/eve" {
		t.Fatalf("an operator: got %q, %v", got, err)
	}
	for _, role := range []rpc.Role{rpc.RoleWorker, rpc.RoleKeymgrd, rpc.RolePolicyd} {
		_, err := who(t, dial(t, address, rpc.RolePolicyd, a.issue(role, "x")))
		refused(t, err, codes.PermissionDenied, string(role)+"/x", "PolicyService/Get")
	}
	// The stream interceptor is another one.
	st, err := policyv1.NewPolicyFeedClient(dial(t, address, rpc.RolePolicyd, a.files("operator-eve"))).Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.Recv()
	refused(t, err, codes.PermissionDenied, "operator/eve", "Subscribe")
}

func TestCertificatesThatAreRefused(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	address := serve(t, "127.0.0.1:0", a.issue(rpc.RolePolicyd, "policyd"))
	foreign := other.issue(rpc.RoleOperator, "eve")
	foreign.CA = a.files("").CA
	for _, tt := range []struct {
		name  string
		files config.TLS
		code  codes.Code
		words string
	}{
		{"of another authority", foreign, codes.Unavailable, ""},
		{"expired", a.sign("late", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), codes.Unavailable, "late.pem expired on"},
		{"not yet valid", a.sign("early", func(c *x509.Certificate) {
			c.NotBefore = time.Now().Add(time.Hour)
			c.NotAfter = time.Now().Add(2 * time.Hour)
		}), codes.Unavailable, ""},
		{"for servers only", a.sign("server", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), codes.Unavailable, ""},
		{"without a role", a.sign("nobody", func(c *x509.Certificate) { c.URIs = nil }), codes.Unauthenticated, "testudo://<role>/<name>"},
		{"with a role that only sockets give", a.sign("local", func(c *x509.Certificate) { c.URIs[0].Host = "local" }), codes.Unauthenticated, "URI SAN"},
		{"of another scheme", a.sign("https", func(c *x509.Certificate) { c.URIs[0].Scheme = "https" }), codes.Unauthenticated, "URI SAN"},
		{"without a name", a.sign("noname", func(c *x509.Certificate) { c.URIs[0].Path = "/" }), codes.Unauthenticated, "URI SAN"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := who(t, dial(t, address, rpc.RolePolicyd, tt.files))
			refused(t, err, tt.code, tt.words)
		})
	}

	t.Run("TLS 1.2", func(t *testing.T) {
		pair, err := tls.LoadX509KeyPair(a.issue(rpc.RoleOperator, "old").Cert, a.files("operator-old").Key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.Dial("tcp", address, &tls.Config{MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}})
		if err == nil {
			c.Close()
			t.Fatal("a TLS 1.2 client was let in")
		}
	})
}

// lines collects a log.
type lines struct{ ch chan string }

func (l lines) Write(b []byte) (int, error) {
	l.ch <- string(b)
	return len(b), nil
}

// With TLS 1.3 a client that is refused may see no more than a closed
// connection, so the server's log says why.
func TestTheLogSaysWhoWasRefusedAndWhy(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	server := a.issue(rpc.RolePolicyd, "policyd")
	foreign := other.issue(rpc.RoleOperator, "eve")
	for _, tt := range []struct {
		name, words string
		certs       []config.TLS
	}{
		{"no certificate", "didn't provide a certificate", nil},
		{"another authority", "unknown authority", []config.TLS{foreign}},
		{"expired", "expired", []config.TLS{a.sign("late", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := lines{make(chan string, 100)}
			address := serveAndLog(t, slog.New(slog.NewTextHandler(log, nil)), "127.0.0.1:0", server)
			conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
			for _, f := range tt.certs {
				pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
				if err != nil {
					t.Fatal(err)
				}
				conf.Certificates = append(conf.Certificates, pair)
			}
			c, err := tls.Dial("tcp", address, conf)
			if err == nil {
				defer c.Close()
				if _, err = c.Read(make([]byte, 1)); err == nil {
					t.Fatal("the server answers")
				}
			}
			if got := <-log.ch; !strings.Contains(got, "connection refused") || !strings.Contains(got, tt.words) || !strings.Contains(got, "remote=127.0.0.1:") {
				t.Errorf("got log %q, want %q", got, tt.words)
			}
		})
	}
}

func TestAClientWantsTheRightServer(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	operator := a.issue(rpc.RoleOperator, "eve")
	foreign := other.issue(rpc.RolePolicyd, "policyd")
	foreign.CA = a.files("").CA // it accepts our clients; do they accept it?
	for _, tt := range []struct {
		name   string
		server config.TLS
		words  string
	}{
		{"a keymgrd", a.issue(rpc.RoleKeymgrd, "k"), "the server is keymgrd/k, want a policyd"},
		{"a worker", a.issue(rpc.RoleWorker, "w"), "the server is worker/w, want a policyd"},
		{"another authority", foreign, "unknown authority"},
		{"expired", a.sign("late", func(c *x509.Certificate) {
			c.URIs[0].Host, c.NotAfter = "policyd", time.Now().Add(-time.Minute)
		}), "expired"},
		{"for clients only", a.sign("client", func(c *x509.Certificate) {
			c.URIs[0].Host, c.ExtKeyUsage = "policyd", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}), "incompatible key usage"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := who(t, dial(t, serve(t, "127.0.0.1:0", tt.server), rpc.RolePolicyd, operator))
			refused(t, err, codes.Unavailable, tt.words)
		})
	}
}

func TestRenewedCertificatesAreUsedWithoutARestart(t *testing.T) {
	a := newAuthority(t)
	server := a.sign("policyd", func(c *x509.Certificate) { c.URIs[0].Host = "policyd"; c.NotAfter = time.Now().Add(-time.Minute) })
	client := a.sign("eve", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	address := serve(t, "127.0.0.1:0", server)
	conn := dial(t, address, rpc.RolePolicyd, client)
	_, err := who(t, conn)
	refused(t, err, codes.Unavailable, "expired")

	if err := a.ca.Issue("policyd", rpc.Caller{Role: rpc.RolePolicyd, Name: "policyd"}); err != nil {
		t.Fatal(err)
	}
	conn.ResetConnectBackoff()
	eventually(t, func() bool {
		_, err = who(t, conn)
		return err != nil && strings.Contains(err.Error(), "our certificate") // the server's is good now
	}, "the server uses its new certificate")
	if err := a.ca.Issue("eve", rpc.Caller{Role: rpc.RoleOperator, Name: "eve"}); err != nil {
		t.Fatal(err)
	}
	conn.ResetConnectBackoff()
	eventually(t, func() bool { _, err = who(t, conn); return err == nil }, "the client uses its new certificate")

	// Half a renewal: the pair does not match, so the last good one stays.
	if err := os.WriteFile(client.Key, []byte("half written"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(server.Cert, []byte("half written"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := dial(t, address, rpc.RolePolicyd, a.issue(rpc.RoleOperator, "adam"))
	if _, err := who(t, before); err != nil {
		t.Fatalf("while a renewal is under way: %v", err)
	}
}

// eventually asks again, at most for ten seconds.
func eventually(t *testing.T, ok func() bool, what string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(30 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("did not happen within 30 s: %s", what)
		}
	}
}

func TestAPanicEndsTheCallNotTheProcess(t *testing.T) {
	address := serve(t, "unix://"+filepath.Join(t.TempDir(), "s"), config.TLS{})
	conn := dial(t, address, rpc.RolePolicyd, config.TLS{})
	_, err := policyv1.NewPolicyServiceClient(conn).Get(t.Context(), &policyv1.GetRequest{Name: "panic"})
	refused(t, err, codes.Internal)
	if strings.Contains(err.Error(), "broken") {
		t.Errorf("the caller is told what the panic said: %v", err)
	}
	st, err := policyv1.NewPolicyFeedClient(conn).Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.Recv()
	refused(t, err, codes.Internal)
	if _, err := who(t, conn); err != nil {
		t.Fatalf("after the panics: %v", err)
	}
}

func TestHealthAndReflectionAnswerEveryRole(t *testing.T) {
	a := newAuthority(t)
	address := serve(t, "127.0.0.1:0", a.issue(rpc.RolePolicyd, "policyd"))
	conn := dial(t, address, rpc.RolePolicyd, a.issue(rpc.RoleWorker, "w"))
	eventually(t, func() bool {
		h, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		return err == nil && h.GetStatus() == healthpb.HealthCheckResponse_SERVING
	}, "health is SERVING")
	st, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	r, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range r.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	if got := strings.Join(names, " "); !strings.Contains(got, "testudo.policy.v1.PolicyService") {
		t.Fatalf("reflection lists %s", got)
	}
}

// Whoever adds a method has to say who may call it.
func TestEveryMethodIsInATable(t *testing.T) {
	for _, x := range []struct {
		allow    rpc.Allow
		services []grpc.ServiceDesc
	}{
		{rpc.PolicydAllow, []grpc.ServiceDesc{policyv1.PolicyFeed_ServiceDesc, policyv1.PolicyService_ServiceDesc}},
		{rpc.KeymgrdAllow, []grpc.ServiceDesc{keymgrv1.WorkerLink_ServiceDesc, keymgrv1.KeyManagerService_ServiceDesc}},
	} {
		left := map[string]bool{}
		for m, roles := range x.allow {
			left[m] = true
			if len(roles) == 0 {
				t.Errorf("%s is in the table without a role", m)
			}
		}
		for _, s := range x.services {
			for _, m := range s.Methods {
				name := "/" + s.ServiceName + "/" + m.MethodName
				if !left[name] {
					t.Errorf("%s is in no table: only local processes could call it", name)
				}
				delete(left, name)
			}
			for _, m := range s.Streams {
				name := "/" + s.ServiceName + "/" + m.StreamName
				if !left[name] {
					t.Errorf("%s is in no table: only local processes could call it", name)
				}
				delete(left, name)
			}
		}
		for m := range left {
			t.Errorf("the table has %s, which no service has", m)
		}
	}
	// A worker's socket is for processes of its host only, on purpose.
	if n := len(workerv1.WorkerService_ServiceDesc.Methods) + len(workerv1.WorkerService_ServiceDesc.Streams); n == 0 || len(rpc.WorkerAllow) != 0 {
		t.Errorf("workerd: %d methods, %d allowed over the network; want none", n, len(rpc.WorkerAllow))
	}
}

func TestOverASocketTheKernelSaysWhoCalls(t *testing.T) {
	address := serve(t, "unix://"+filepath.Join(t.TempDir(), "sub", "s"), config.TLS{})
	if got, err := who(t, dial(t, address, rpc.RolePolicyd, config.TLS{})); err != nil || !strings.HasPrefix(got, "local/uid-") {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestASocketLeftBehindIsReplacedALiveOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false) // as after a kill
	dead.Close()
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the test needs the dead socket's file: %v", err)
	}
	address := serve(t, "unix://"+path, config.TLS{})
	conn := dial(t, address, rpc.RolePolicyd, config.TLS{})
	if _, err := who(t, conn); err != nil {
		t.Fatal(err)
	}
	_, err = rpc.Listen(discard, []string{"unix://" + path}, config.TLS{}, rpc.PolicydAllow, register)
	if err == nil || !strings.Contains(err.Error(), "another process serves "+path) {
		t.Fatalf("a second server: got %v", err)
	}
	if _, err := who(t, dial(t, address, rpc.RolePolicyd, config.TLS{})); err != nil {
		t.Fatalf("the refused server took the socket of the first one along: %v", err)
	}
}

func TestAFileIsNotTakenForASocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := rpc.Listen(discard, []string{"unix://" + path}, config.TLS{}, rpc.PolicydAllow, register)
	if err == nil || !strings.Contains(err.Error(), "is a file, want a socket") {
		t.Errorf("got %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "data" {
		t.Errorf("the file is gone: %q, %v", b, err)
	}
}

func TestListenOpensAllOrNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	_, err := rpc.Listen(discard, []string{"unix://" + path, "127.0.0.1:0"}, config.TLS{CA: "/nowhere", Cert: "/nowhere", Key: "/nowhere"}, rpc.PolicydAllow, register)
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:0") || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("got %v, want the address and the file named", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is still there")
	}
}
