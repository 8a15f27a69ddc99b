package rpc

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/testudo-ipsec/testudo/services/internal/config"
)

// identity holds a certificate that is read again when its file changes, so
// that a renewed certificate is used without a restart.
type identity struct {
	files config.TLS

	mu    sync.Mutex
	cert  *tls.Certificate
	roots *x509.CertPool
	stamp [3]time.Time
}

func newIdentity(files config.TLS) (*identity, error) {
	id := &identity{files: files}
	_, _, err := id.load()
	return id, err
}

// load returns what the files hold now. When a changed file cannot be read the
// last good state stays in use, with the error beside it.
func (id *identity) load() (*tls.Certificate, *x509.CertPool, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	var stamp [3]time.Time
	for i, f := range []string{id.files.CA, id.files.Cert, id.files.Key} {
		st, err := os.Stat(f)
		if err != nil {
			return id.cert, id.roots, fmt.Errorf("tls: %w", err)
		}
		stamp[i] = st.ModTime()
	}
	if id.cert != nil && stamp == id.stamp {
		return id.cert, id.roots, nil
	}
	cert, err := tls.LoadX509KeyPair(id.files.Cert, id.files.Key)
	if err != nil {
		return id.cert, id.roots, fmt.Errorf("tls: %s and %s: %w", id.files.Cert, id.files.Key, err)
	}
	pem, err := os.ReadFile(id.files.CA)
	if err != nil {
		return id.cert, id.roots, fmt.Errorf("tls: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return id.cert, id.roots, fmt.Errorf("tls: %s holds no PEM certificate", id.files.CA)
	}
	id.cert, id.roots, id.stamp = &cert, roots, stamp
	return id.cert, id.roots, nil
}

func (id *identity) serverConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			cert, roots, err := id.load()
			if cert == nil {
				return nil, err
			}
			return &tls.Config{
				MinVersion:   tls.VersionTLS13,
				Certificates: []tls.Certificate{*cert},
				ClientAuth:   tls.RequireAndVerifyClientCert,
				ClientCAs:    roots,
				NextProtos:   []string{"h2"},
			}, nil
		},
	}
}

// clientConfig trusts a server by the role in its certificate, not by its host
// name: services move, roles do not.
func (id *identity) clientConfig(want Role) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, _, err := id.load()
			if cert == nil {
				return nil, err
			}
			// The server would refuse it, but after our side of the handshake is
			// over (TLS 1.3), so that all we would see is a broken connection.
			if now := time.Now(); now.After(cert.Leaf.NotAfter) {
				return nil, fmt.Errorf("our certificate %s expired on %s; renew it", id.files.Cert, cert.Leaf.NotAfter.Format(time.DateTime))
			}
			return cert, nil
		},
		// The chain is verified below, against roots that may have been renewed,
		// and the role instead of the host name.
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does the verification
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, roots, err := id.load()
			if roots == nil {
				return err
			}
			if len(cs.PeerCertificates) == 0 {
				return errors.New("the server sent no certificate")
			}
			inter := x509.NewCertPool()
			for _, c := range cs.PeerCertificates[1:] {
				inter.AddCert(c)
			}
			leaf := cs.PeerCertificates[0]
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
				return err
			}
			c, err := callerOfCert(leaf)
			if err != nil {
				return err
			}
			if c.Role != want {
				return fmt.Errorf("the server is %s, want a %s", c, want)
			}
			return nil
		},
	}
}

// told logs why connections are refused: with TLS 1.3 the far end often sees no
// more than a connection that closed. At most one a second is logged.
type told struct {
	credentials.TransportCredentials
	log *slog.Logger

	mu    sync.Mutex
	next  time.Time
	quiet int
}

func (c *told) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	out, info, err := c.TransportCredentials.ServerHandshake(conn)
	if err == nil || errors.Is(err, io.EOF) { // EOF: a probe of the port
		return out, info, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Before(c.next) {
		c.quiet++
		return out, info, err
	}
	c.log.Warn("connection refused", "remote", conn.RemoteAddr().String(), "error", err, "not_logged_before", c.quiet)
	c.next, c.quiet = now.Add(time.Second), 0
	return out, info, err
}
