package main

import (
	kv "github.com/hashicorp/vault-plugin-secrets-kv"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/credential/cert"
	"github.com/hashicorp/vault/builtin/logical/pki"
	"github.com/hashicorp/vault/builtin/logical/transit"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
)

var (
	secretsEngines = map[string]logical.Factory{
		"kv":      kv.Factory,
		"pki":     pki.Factory,
		"transit": transit.Factory,
	}
	authMethods = map[string]logical.Factory{
		"approle": approle.Factory,
		"cert":    cert.Factory,
	}
)

// builtins is the plugin registry of this server: the backends above, instead
// of the hundred that the full registry would link.
type builtins struct{}

func (builtins) of(kind consts.PluginType) map[string]logical.Factory {
	switch kind {
	case consts.PluginTypeSecrets:
		return secretsEngines
	case consts.PluginTypeCredential:
		return authMethods
	}
	return nil
}

func (b builtins) Contains(name string, kind consts.PluginType) bool {
	_, ok := b.of(kind)[name]
	return ok
}

func (b builtins) Get(name string, kind consts.PluginType) (func() (any, error), bool) {
	f, ok := b.of(kind)[name]
	return func() (any, error) { return f, nil }, ok
}

func (b builtins) Keys(kind consts.PluginType) []string {
	var names []string
	for name := range b.of(kind) {
		names = append(names, name)
	}
	return names
}

func (b builtins) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	if b.Contains(name, kind) {
		return consts.Supported, true
	}
	return consts.Unknown, false
}

func (builtins) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }
