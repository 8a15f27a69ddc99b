package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
)

// Log is how a daemon logs.
type Log struct {
	Level  string `koanf:"level" help:"debug, info, warn or error"`
	Format string `koanf:"format" help:"text or json"`
}

// DefaultLog is information as text.
var DefaultLog = Log{Level: "info", Format: "text"}

// Validate checks the words.
func (l Log) Validate() error {
	var errs []error
	var lv slog.Level
	if err := lv.UnmarshalText([]byte(l.Level)); err != nil {
		errs = append(errs, fmt.Errorf("log.level: got %q, want debug, info, warn or error", l.Level))
	}
	if l.Format != "text" && l.Format != "json" {
		errs = append(errs, fmt.Errorf("log.format: got %q, want text or json", l.Format))
	}
	return errors.Join(errs...)
}

// TLS names the files of a service's mutual TLS.
type TLS struct {
	CA   string `koanf:"ca" help:"PEM file with the certificate authorities of the other services"`
	Cert string `koanf:"cert" help:"PEM file with this service's certificate chain"`
	Key  string `koanf:"key" help:"PEM file with this service's private key (mode 0600)"`
}

// Validate checks that the files are there when an address needs them.
func (t TLS) Validate(addresses ...string) error {
	needed := ""
	for _, a := range addresses {
		if a != "" && !IsUnix(a) {
			needed = a
		}
	}
	if needed == "" {
		return nil
	}
	var errs []error
	for _, f := range []struct{ key, path string }{{"tls.ca", t.CA}, {"tls.cert", t.Cert}, {"tls.key", t.Key}} {
		if f.path == "" {
			errs = append(errs, fmt.Errorf("%s: not set, but %s is reached over the network and needs mutual TLS; `testudo pki init` makes certificates for development", f.key, needed))
		} else if _, err := os.Stat(f.path); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.key, err))
		}
	}
	return errors.Join(errs...)
}

// IsUnix reports an address of the form unix:///path.
func IsUnix(address string) bool { return strings.HasPrefix(address, "unix://") }

// ValidateAddress checks "unix:///path" or "host:port".
func ValidateAddress(key, address string) error {
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("%s: got %q, want unix:// and an absolute path", key, address)
		}
		return nil
	}
	if err := validateHostPort(address); err != nil {
		return fmt.Errorf("%s: got %q, want unix:///path or host:port: %w", key, address, err)
	}
	return nil
}

// ValidateTCP checks "host:port", for what is not served on unix sockets.
func ValidateTCP(key, address string) error {
	if err := validateHostPort(address); err != nil {
		return fmt.Errorf("%s: got %q, want host:port: %w", key, address, err)
	}
	return nil
}

func validateHostPort(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %q is not a number from 0 to 65535", port)
	}
	return nil
}
