package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/vault/vault"
)

// unsealKeys is what initialisation gave: it opens the barrier again after a
// seal or a restart.
type unsealKeys struct {
	Shares    [][]byte `json:"shares"`
	RootToken string   `json:"rootToken"`
}

// openKeys initialises a new server, or reads the keys of an old one from
// beside its storage, which no real server would keep there.
func openKeys(core *vault.Core, data string) (unsealKeys, error) {
	var k unsealKeys
	name := filepath.Join(data, "testudo-unseal.json")
	ctx := context.Background()
	done, err := core.Initialized(ctx)
	if err != nil {
		return k, fmt.Errorf("asking whether the storage is initialised: %w", err)
	}
	if done {
		b, err := os.ReadFile(name)
		if err != nil {
			return k, err
		}
		return k, json.Unmarshal(b, &k)
	}
	res, err := core.Initialize(ctx, &vault.InitParams{
		BarrierConfig: &vault.SealConfig{SecretShares: 1, SecretThreshold: 1, StoredShares: 1},
	})
	if err != nil {
		return k, fmt.Errorf("initialising: %w", err)
	}
	k = unsealKeys{Shares: res.SecretShares, RootToken: res.RootToken}
	if data == "" {
		return k, nil
	}
	b, err := json.Marshal(k)
	if err != nil {
		return k, err
	}
	return k, os.WriteFile(name, b, 0o600)
}

func (k unsealKeys) unseal(core *vault.Core) error {
	for _, share := range k.Shares {
		// The core keeps the slice as part of the key: give it its own.
		open, err := core.Unseal(bytes.Clone(share))
		if err != nil {
			return fmt.Errorf("unsealing: %w", err)
		}
		if open {
			return nil
		}
	}
	return fmt.Errorf("still sealed after %d key shares", len(k.Shares))
}
