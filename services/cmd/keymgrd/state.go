package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/store"
	"github.com/testudo-ipsec/testudo/keymgr/store/file"
)

// Files in the state folder, beside those of the store.
const (
	keyFile    = "key"          // made at the first start, unless state.key names another
	crashFile  = "crash-secret" // the same for crash-detection.secret
	policyFile = "policy"       // the last policy
)

const vaultRetry = 5 * time.Second

// openState opens what outlives the process; nil when it is switched off. While Vault,
// which holds the key, is away it waits: workers go on meanwhile.
func openState(ctx context.Context, log *slog.Logger, o state, secrets cred.PSKs) (engine.Store, error) {
	if o.Dir == "" {
		log.Warn("state.dir is empty: IKE SAs will not outlive this process")
		return nil, nil
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("state.dir: %w; set state.dir to a folder that keymgrd may write, or to \"\" to keep nothing", err)
	}
	keys, err := stateKeys(ctx, log, o, secrets)
	if err != nil {
		return nil, fmt.Errorf("state.key: %w", err)
	}
	defer wipe(keys)
	options := file.Options{Dir: filepath.Join(o.Dir, "sas"), Keys: keys, Log: log}
	s, err := file.Open(options)
	switch {
	case errors.Is(err, store.ErrWrongKey):
		return nil, fmt.Errorf("%w; bring the right key back, or remove %s to negotiate all SAs anew", err, options.Dir)
	case errors.Is(err, store.ErrDamaged), errors.Is(err, store.ErrLost):
		to, moveErr := file.SetAside(options.Dir)
		if moveErr != nil {
			return nil, errors.Join(err, moveErr)
		}
		log.Warn("the stored state cannot be used; all SAs are negotiated anew while workers go on with those they have", "error", err, "moved_to", to)
		s, err = file.Open(options)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

func wipe(keys []ipsec.Secret) {
	for _, k := range keys {
		k.Wipe()
	}
}

func stateKeys(ctx context.Context, log *slog.Logger, o state, secrets cred.PSKs) ([]ipsec.Secret, error) {
	if o.Key == "" {
		k, err := generatedKey(filepath.Join(o.Dir, keyFile))
		return []ipsec.Secret{k}, err
	}
	return waitFor(ctx, log, o.Key, secrets)
}

// openCrashSecrets are what tokens of quick crash detection are made from.
func openCrashSecrets(ctx context.Context, log *slog.Logger, o *options, secrets cred.PSKs) ([]ipsec.Secret, error) {
	var keys []ipsec.Secret
	var err error
	switch {
	case o.Crash.Off || o.Crash.Secret == "" && o.State.Dir == "":
		return nil, nil
	case o.Crash.Secret != "":
		keys, err = waitFor(ctx, log, o.Crash.Secret, secrets)
	default:
		keys = make([]ipsec.Secret, 1)
		keys[0], err = generatedKey(filepath.Join(o.State.Dir, crashFile))
	}
	if err != nil {
		return nil, fmt.Errorf("crash-detection.secret: %w", err)
	}
	return keys, nil
}

// waitFor finds secrets, and waits while their store is away.
func waitFor(ctx context.Context, log *slog.Logger, ref string, secrets cred.PSKs) ([]ipsec.Secret, error) {
	for {
		keys, err := secrets.PSK(ctx, ref)
		if err == nil || cred.KindOf(err) != cred.Unavailable {
			return keys, err
		}
		log.Warn("a secret that keymgrd needs to start cannot be had; waiting", "error", err, "retry_in", vaultRetry)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(vaultRetry):
		}
	}
}

// generatedKey is the key in a file, which is made when it is not there.
func generatedKey(path string) (ipsec.Secret, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		var k [32]byte
		_, _ = rand.Read(k[:]) // never fails
		b = append(hex.AppendEncode(nil, k[:]), '\n')
		clear(k[:])
		if err := writeOnce(path, b); err != nil {
			return ipsec.Secret{}, err
		}
	} else if err != nil {
		return ipsec.Secret{}, err
	}
	defer clear(b)
	info, err := os.Stat(path)
	if err != nil {
		return ipsec.Secret{}, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return ipsec.Secret{}, fmt.Errorf("%s has mode %04o, open to others than its owner: chmod 600 it", path, info.Mode().Perm())
	}
	text := bytes.TrimSpace(b)
	k := make([]byte, hex.DecodedLen(len(text)))
	if n, err := hex.Decode(k, text); err != nil || n != 32 {
		return ipsec.Secret{}, fmt.Errorf("%s does not hold 64 hexadecimal digits: restore it, or remove it and what it sealed", path)
	}
	return ipsec.NewSecret(k), nil
}

// writeOnce makes a file that is on the disk when it returns, whole or not at all.
func writeOnce(path string, b []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
