package etcd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/store"
	"github.com/testudo-ipsec/testudo/policyd/store/etcd"
)

// A real etcd that listens with mutual TLS: the way in of a policyd that has a
// cluster. Without the client certificate there is none.
func TestClusterWithTLS(t *testing.T) {
	dir := t.TempDir()
	selfSigned(t, dir)
	file := func(name string) string { return filepath.Join(dir, name) }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	client := url.URL{Scheme: "https", Host: l.Addr().String()}
	_ = l.Close()
	cfg := embed.NewConfig()
	cfg.Dir = file("data")
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	self := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = nil, []url.URL{self}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ClientTLSInfo = transport.TLSInfo{CertFile: file("cert.pem"), KeyFile: file("key.pem"), TrustedCAFile: file("cert.pem"), ClientCertAuth: true}
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	<-server.Server.ReadyNotify()

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := etcd.Dial(etcd.Cluster{Endpoints: []string{client.String()}, CA: file("cert.pem"), Cert: file("cert.pem"), Key: file("key.pem")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := etcd.Open(ctx, c, "/testudo")
	if err != nil {
		t.Fatal(err)
	}
	head, err := s.Get(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	doc := store.Document{Key: store.Key{Kind: "Node", Name: "a"}, Text: []byte("x")}
	v, err := s.Put(ctx, store.Change{Base: head.Version, Put: []store.Document{doc}})
	if err != nil || v == (ipsec.Version{}) {
		t.Fatalf("put: %v, %v", v, err)
	}
	if got, err := s.Get(ctx, 0); err != nil || len(got.Documents) != 1 {
		t.Errorf("get: %+v, %v; want the document", got, err)
	}

	stranger, err := etcd.Dial(etcd.Cluster{Endpoints: []string{client.String()}, CA: file("cert.pem")})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	short, stop := context.WithTimeout(ctx, 2*time.Second)
	defer stop()
	if _, err := etcd.Open(short, stranger, "/testudo"); err == nil {
		t.Error("the store opened without a client certificate")
	}
	if _, err := etcd.Dial(etcd.Cluster{Endpoints: []string{client.String()}, CA: file("key.pem")}); err == nil {
		t.Error("a CA file without a certificate was accepted")
	}
}

// selfSigned writes cert.pem and key.pem for 127.0.0.1, for both ends and as its
// own authority.
func selfSigned(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	kd, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: kd}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
