package vault

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"

	"github.com/hashicorp/vault/api"
)

// Config says which Vault, and how to log in to it. The VAULT_* environment is
// not read.
type Config struct {
	// Address is https://host:port; http only to this host itself (Vault Agent).
	Address string
	// Namespace is sent with every request; empty for the root namespace.
	Namespace string
	// CAFile holds the CAs of Vault's certificate in PEM; empty for the system's.
	CAFile string
	// ServerName is the name in Vault's certificate, when Address has another.
	ServerName string
	// Auth is how to get a token: TokenFile, AppRole or Cert.
	Auth Auth
	// Timeout is the deadline of one question, logins and retries included.
	// Default 2 s.
	Timeout time.Duration
	// Overlap is how long the version before the newest stays a candidate after
	// a rotation. Default 24 h; negative for not at all.
	Overlap time.Duration
	// MaxInFlight bounds the questions under way; others wait. Default 32.
	MaxInFlight int
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// Log takes logins and failures; slog.Default when nil.
	Log *slog.Logger
}

func (c *Config) setDefaults() {
	if c.Timeout <= 0 {
		c.Timeout = 2 * time.Second
	}
	if c.Overlap == 0 {
		c.Overlap = 24 * time.Hour
	}
	if c.MaxInFlight <= 0 {
		c.MaxInFlight = 32
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

// Check reports every mistake that can be seen without asking Vault.
func (c *Config) Check() error {
	var errs []error
	u, err := url.Parse(c.Address)
	switch {
	case err != nil:
		// url.Error quotes its input, which may hold a password.
		errs = append(errs, errors.New("vault: address is not a URL: want https://host:port"))
	case u.User != nil:
		errs = append(errs, errors.New("vault: address holds a user or password: remove it, use auth"))
	case u.Host == "" || u.RawQuery != "" || u.Fragment != "":
		errs = append(errs, fmt.Errorf("vault: address is %q: want https://host:port", c.Address))
	case u.Scheme == "http" && !loopback(u.Hostname()):
		errs = append(errs, fmt.Errorf("vault: address is %q: tokens and keys must not cross a network in clear: want https (http is for this host only)", c.Address))
	case u.Scheme != "http" && u.Scheme != "https":
		errs = append(errs, fmt.Errorf("vault: address is %q: want the scheme https", c.Address))
	}
	if c.Auth == nil {
		errs = append(errs, errors.New("vault: auth is missing: want a token file, an AppRole or a certificate"))
	} else if err := c.Auth.check(); err != nil {
		errs = append(errs, err)
	}
	if c.CAFile != "" {
		if _, err := readCAs(c.CAFile); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

func readCAs(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("vault: reading the CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("vault: %s holds no certificate in PEM", file)
	}
	return pool, nil
}

// newClient makes a client without a token. Everything that the API package
// would take from the environment is set here, VAULT_SKIP_VERIFY and
// VAULT_TOKEN above all.
func (c *Config) newClient() (*api.Client, *http.Transport, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		pool, err := readCAs(c.CAFile)
		if err != nil {
			return nil, nil, err
		}
		conf.RootCAs = pool
	}
	if cert, ok := c.Auth.(Cert); ok {
		// Read at each handshake, so that a renewed certificate is used.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert.CertFile, cert.KeyFile)
			return &pair, err
		}
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: c.Timeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:     conf,
		TLSHandshakeTimeout: c.Timeout,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: c.MaxInFlight,
		IdleConnTimeout:     90 * time.Second,
	}
	client, err := api.NewClient(&api.Config{
		Address: c.Address,
		HttpClient: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Timeout:    c.Timeout,
		MaxRetries: 0, // call retries, within the deadline and through the breaker
	})
	if err != nil {
		return nil, nil, fmt.Errorf("vault: %w", err)
	}
	client.ClearToken()
	client.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	if c.Namespace != "" {
		client.SetNamespace(c.Namespace)
	}
	return client, transport, nil
}
