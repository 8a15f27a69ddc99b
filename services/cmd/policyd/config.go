package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/testudo-ipsec/testudo/services/internal/config"
)

type options struct {
	Listen  []string   `koanf:"listen" help:"addresses to serve on: unix:///path or host:port"`
	Metrics string     `koanf:"metrics" help:"host:port for /metrics, /healthz and /debug/pprof; empty for none"`
	Data    string     `koanf:"data" help:"folder of the embedded etcd; not used with etcd.endpoints"`
	Etcd    cluster    `koanf:"etcd"`
	TLS     config.TLS `koanf:"tls"`
	Log     config.Log `koanf:"log"`
}

type cluster struct {
	Endpoints []string `koanf:"endpoints" help:"URLs of an etcd cluster; empty for the embedded one"`
	Prefix    string   `koanf:"prefix" help:"prefix of all keys in etcd"`
	CA        string   `koanf:"ca" help:"PEM file with the etcd cluster's certificate authorities"`
	Cert      string   `koanf:"cert" help:"PEM file with a client certificate for etcd"`
	Key       string   `koanf:"key" help:"PEM file with its private key"`
}

func defaults() *options {
	return &options{
		Listen:  []string{"unix:///run/testudo/policyd.sock"},
		Metrics: "127.0.0.1:7411",
		Data:    "/var/lib/testudo/policyd",
		Etcd:    cluster{Prefix: "/testudo"},
		Log:     config.DefaultLog,
	}
}

// Logging is where the log options are.
func (o *options) Logging() config.Log { return o.Log }

// Validate reports every problem.
func (o *options) Validate() error {
	errs := []error{o.Log.Validate(), o.TLS.Validate(o.Listen...)}
	if len(o.Listen) == 0 {
		errs = append(errs, errors.New("listen: got no address, want at least one"))
	}
	for _, a := range o.Listen {
		errs = append(errs, config.ValidateAddress("listen", a))
	}
	if o.Metrics != "" {
		errs = append(errs, config.ValidateTCP("metrics", o.Metrics))
	}
	if o.Data == "" && len(o.Etcd.Endpoints) == 0 {
		errs = append(errs, errors.New("data and etcd.endpoints: neither is set; want a folder for the embedded etcd or the URLs of a cluster"))
	}
	if o.Etcd.Prefix == "" || o.Etcd.Prefix[0] != '/' {
		errs = append(errs, fmt.Errorf("etcd.prefix: got %q, want one that begins with /", o.Etcd.Prefix))
	}
	for _, f := range []struct{ key, path string }{{"etcd.ca", o.Etcd.CA}, {"etcd.cert", o.Etcd.Cert}, {"etcd.key", o.Etcd.Key}} {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.key, err))
		}
	}
	if (o.Etcd.Cert == "") != (o.Etcd.Key == "") {
		errs = append(errs, errors.New("etcd.cert and etcd.key: one is set without the other"))
	}
	return errors.Join(errs...)
}
