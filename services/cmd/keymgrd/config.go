package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/testudo-ipsec/testudo/services/internal/config"
)

type options struct {
	Listen  []string   `koanf:"listen" help:"addresses to serve on: unix:///path or host:port"`
	Policyd string     `koanf:"policyd" help:"address of policyd: unix:///path or host:port"`
	Metrics string     `koanf:"metrics" help:"host:port for /metrics, /healthz and /debug/pprof; empty for none"`
	TLS     config.TLS `koanf:"tls"`
	Secrets secrets    `koanf:"secrets"`
	Vault   vault      `koanf:"vault"`
	Log     config.Log `koanf:"log"`
}

type secrets struct {
	Dir      string        `koanf:"dir" help:"folder of preshared keys for file: references; empty for none"`
	MaxStale time.Duration `koanf:"max-stale" help:"how long a secret is used while its store is away"`
}

type vault struct {
	Address    string `koanf:"address" help:"URL of Vault for vault: references; empty for none"`
	CA         string `koanf:"ca" help:"PEM file with Vault's certificate authorities; empty for the system's"`
	Namespace  string `koanf:"namespace" help:"Vault namespace; empty for none"`
	TokenFile  string `koanf:"token-file" help:"file with a Vault token; read again when it changes"`
	RoleIDFile string `koanf:"role-id-file" help:"file with an AppRole role ID, instead of a token"`
	SecretFile string `koanf:"secret-id-file" help:"file with the AppRole secret ID"`
	AppRole    string `koanf:"approle-mount" help:"mount of the AppRole method"`
}

func defaults() *options {
	return &options{
		Listen:  []string{"unix:///run/testudo/keymgrd.sock"},
		Policyd: "unix:///run/testudo/policyd.sock",
		Metrics: "127.0.0.1:7412",
		Secrets: secrets{Dir: "/etc/testudo/secrets", MaxStale: 24 * time.Hour},
		Vault:   vault{AppRole: "approle"},
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
		errs = append(errs, config.ValidateAddress("metrics", o.Metrics))
	}
	if o.Secrets.Dir == "" && o.Vault.Address == "" {
		errs = append(errs, errors.New("secrets.dir and vault.address: neither is set, so no peer could be authenticated; set one"))
	}
	if o.Secrets.MaxStale <= 0 {
		errs = append(errs, fmt.Errorf("secrets.max-stale: got %s, want more than 0", o.Secrets.MaxStale))
	}
	v := o.Vault
	if v.Address != "" && (v.TokenFile == "") == (v.RoleIDFile == "") {
		errs = append(errs, errors.New("vault: want exactly one of token-file and role-id-file"))
	}
	if v.RoleIDFile != "" && v.SecretFile == "" {
		errs = append(errs, errors.New("vault.secret-id-file: not set, but role-id-file needs it"))
	}
	return errors.Join(errs...)
}
