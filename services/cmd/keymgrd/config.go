package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/cred/vault"
	"github.com/testudo-ipsec/testudo/services/internal/config"
)

type options struct {
	Listen  []string     `koanf:"listen" help:"addresses to serve on: unix:///path or host:port"`
	Policyd string       `koanf:"policyd" help:"address of policyd: unix:///path or host:port"`
	Metrics string       `koanf:"metrics" help:"host:port for /metrics, /healthz and /debug/pprof; empty for none"`
	TLS     config.TLS   `koanf:"tls"`
	State   state        `koanf:"state"`
	Crash   crash        `koanf:"crash-detection"`
	Secrets secrets      `koanf:"secrets"`
	Vault   vaultOptions `koanf:"vault"`
	Log     config.Log   `koanf:"log"`
}

type secrets struct {
	Dir string `koanf:"dir" help:"folder of preshared keys and certificates for file: references; empty for none"`
}

type state struct {
	Dir string `koanf:"dir" help:"folder of the sealed state that outlives keymgrd; empty to keep none, and negotiate anew after each start"`
	Key string `koanf:"key" help:"reference of the key that seals it: file:NAME or vault:MOUNT/PATH; empty for one that is made in the folder"`
}

type crash struct {
	Secret string `koanf:"secret" help:"reference of the fleet's secret for quick crash detection (RFC 6290), the same for all keymgrds; empty for one that is made in state.dir"`
	Off    bool   `koanf:"off" help:"do without quick crash detection"`
}

// reachable checks that a reference leads to a store that is configured.
func (o *options) reachable(key, ref string) error {
	if ref == "" {
		return nil
	}
	r, err := cred.ParseRef(ref)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", key, err)
	case r.Scheme == cred.SchemeFile && o.Secrets.Dir == "":
		return fmt.Errorf("%s: got a file: reference, but secrets.dir is empty", key)
	case r.Scheme == cred.SchemeVault && o.Vault.Address == "":
		return fmt.Errorf("%s: got a vault: reference, but vault.address is empty", key)
	}
	return nil
}

type vaultOptions struct {
	Address   string        `koanf:"address" help:"URL of Vault for vault: references; empty for none"`
	CA        string        `koanf:"ca" help:"PEM file with Vault's certificate authorities; empty for the system's"`
	Namespace string        `koanf:"namespace" help:"Vault namespace; empty for none"`
	MaxStale  time.Duration `koanf:"max-stale" help:"how long a secret is used while Vault is away"`
	TokenFile string        `koanf:"token-file" help:"log in with the token in this file; read again when it changes"`
	AppRole   appRole       `koanf:"approle"`
	Cert      certLogin     `koanf:"cert"`
	Key       string        `koanf:"key" help:"kind of the private keys that Vault certifies: ecdsa256, ecdsa384, ecdsa521, ed25519, rsa2048, rsa3072 or rsa4096; what the role accepts"`
}

type appRole struct {
	RoleID       string `koanf:"role-id" help:"log in with this AppRole"`
	SecretIDFile string `koanf:"secret-id-file" help:"file with the AppRole's secret ID"`
	Mount        string `koanf:"mount" help:"mount of the AppRole method"`
}

type certLogin struct {
	File  string `koanf:"file" help:"log in with the client certificate in this PEM file"`
	Key   string `koanf:"key" help:"PEM file with its private key"`
	Role  string `koanf:"role" help:"role to ask for; empty: Vault chooses"`
	Mount string `koanf:"mount" help:"mount of the certificate method"`
}

func defaults() *options {
	return &options{
		Listen:  []string{"unix:///run/testudo/keymgrd.sock"},
		Policyd: "unix:///run/testudo/policyd.sock",
		Metrics: "127.0.0.1:7412",
		State:   state{Dir: "/var/lib/testudo/keymgrd"},
		Secrets: secrets{Dir: "/etc/testudo/secrets"},
		Vault:   vaultOptions{MaxStale: 24 * time.Hour, Key: cred.KeyKinds[0], AppRole: appRole{Mount: "approle"}, Cert: certLogin{Mount: "cert"}},
		Log:     config.DefaultLog,
	}
}

// Logging is where the log options are.
func (o *options) Logging() config.Log { return o.Log }

// Validate reports every problem.
func (o *options) Validate() error {
	errs := []error{o.Log.Validate(), config.ValidateAddress("policyd", o.Policyd), o.TLS.Validate(append(o.Listen, o.Policyd)...)}
	if len(o.Listen) == 0 {
		errs = append(errs, errors.New("listen: got no address, want at least one"))
	}
	for _, a := range o.Listen {
		errs = append(errs, config.ValidateAddress("listen", a))
	}
	if o.Metrics != "" {
		errs = append(errs, config.ValidateTCP("metrics", o.Metrics))
	}
	if o.Secrets.Dir == "" && o.Vault.Address == "" {
		errs = append(errs, errors.New("secrets.dir and vault.address: neither is set, so no peer could be authenticated; set one"))
	}
	errs = append(errs, o.reachable("state.key", o.State.Key), o.reachable("crash-detection.secret", o.Crash.Secret))
	if o.State.Key != "" && o.State.Dir == "" {
		errs = append(errs, errors.New("state.key: set, but state.dir is empty: nothing would be sealed"))
	}
	if o.Vault.Address != "" {
		if _, err := vaultConfig(o.Vault); err != nil {
			errs = append(errs, err)
		}
		if err := cred.CheckKeyKind(o.Vault.Key); err != nil {
			errs = append(errs, fmt.Errorf("vault.%w", err))
		}
		if o.Vault.MaxStale <= 0 {
			errs = append(errs, fmt.Errorf("vault.max-stale: got %s, want more than 0", o.Vault.MaxStale))
		}
	}
	return errors.Join(errs...)
}

// vaultConfig translates the options and checks them without asking Vault.
func vaultConfig(v vaultOptions) (vault.Config, error) {
	c := vault.Config{Address: v.Address, CAFile: v.CA, Namespace: v.Namespace}
	var ways []vault.Auth
	if v.TokenFile != "" {
		ways = append(ways, vault.TokenFile{Path: v.TokenFile})
	}
	if v.AppRole.RoleID != "" {
		ways = append(ways, vault.AppRole{Mount: v.AppRole.Mount, RoleID: v.AppRole.RoleID, SecretIDFile: v.AppRole.SecretIDFile})
	}
	if v.Cert.File != "" {
		ways = append(ways, vault.Cert{Mount: v.Cert.Mount, Role: v.Cert.Role, CertFile: v.Cert.File, KeyFile: v.Cert.Key})
	}
	if len(ways) != 1 {
		return c, fmt.Errorf("vault: got %d ways to log in, want exactly one of token-file, approle.role-id and cert.file", len(ways))
	}
	c.Auth = ways[0]
	return c, c.Check()
}
