package main

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/cred/pki"
	"github.com/testudo-ipsec/testudo/keymgr/cred/static"
	"github.com/testudo-ipsec/testudo/keymgr/cred/vault"
)

// stores are where secrets and certificates come from.
type stores struct {
	secrets      cred.Router
	certificates cred.Certificates
	background   []func(context.Context) error
}

// openStores makes the stores that are configured, and puts those of one kind
// behind one look-up.
func openStores(log *slog.Logger, o *options, reg *prometheus.Registry) (*stores, error) {
	s := &stores{secrets: cred.Router{}}
	certs := map[string]pki.Store{}
	if o.Secrets.Dir != "" {
		files, err := static.Open(o.Secrets.Dir)
		if err != nil {
			return nil, err
		}
		s.secrets[cred.SchemeFile], certs[cred.SchemeFile] = files, files
	}
	if o.Vault.Address != "" {
		c, err := vaultConfig(o.Vault)
		if err != nil {
			return nil, err
		}
		c.Log = log
		v, err := vault.New(c)
		if err != nil {
			return nil, err
		}
		cache := cred.NewCache(v, cred.CacheOptions{MaxStale: o.Vault.MaxStale, Log: log})
		mounts, err := vault.NewPKI(v, vault.PKIOptions{Key: o.Vault.Key, MaxStale: o.Vault.MaxStale})
		if err != nil {
			return nil, err
		}
		s.secrets[cred.SchemeVault], certs[cred.SchemeVault] = cache, mounts
		reg.MustRegister(vaultMetrics{Client: v, Cache: cache, Mounts: mounts})
		s.background = append(s.background,
			func(ctx context.Context) error { v.Run(ctx); return nil },
			func(ctx context.Context) error { cache.Run(ctx); return nil },
			func(ctx context.Context) error { mounts.Run(ctx); return nil })
	}
	judge := pki.New(pki.Config{Stores: certs, Log: log})
	s.certificates = judge
	reg.MustRegister(certMetrics{judge})
	return s, nil
}
