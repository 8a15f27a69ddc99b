package vault

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/vault/api"
)

const (
	runPauseMin = time.Second
	runPauseMax = time.Minute
)

// Run keeps a token fresh until ctx ends: it renews while Vault lets it, and
// logs in again when renewing comes to its end (the token's maximum TTL). Then
// it revokes the token, if it came from a login of ours. Without Run, tokens
// are replaced when they stop working.
func (v *Vault) Run(ctx context.Context) {
	defer v.revoke()
	var pause time.Duration
	for ctx.Err() == nil {
		s, err := v.current(ctx)
		if err == nil {
			v.watch(ctx, s)
			if ctx.Err() != nil {
				return
			}
			if v.conf.Now().Sub(s.born) > runPauseMax {
				pause = 0
			}
		}
		// A token that does not last (a file nobody renews, a TTL of seconds) must
		// not become a loop without a pause.
		if !sleep(ctx, pause/2+rand.N(pause/2+1)) {
			return
		}
		pause = min(max(2*pause, runPauseMin), runPauseMax)
		if err == nil {
			_, _ = v.replace(ctx, s, false) // logged there; current tries again
		}
	}
}

// watch returns when s wants replacing, or was replaced.
func (v *Vault) watch(ctx context.Context, s *session) {
	if s.auth.LeaseDuration == 0 { // never expires, and the watcher would end at once
		select {
		case <-ctx.Done():
		case <-s.replaced:
		}
		return
	}
	w, err := s.client.NewLifetimeWatcher(&api.LifetimeWatcherInput{Secret: &api.Secret{Auth: s.auth}})
	if err != nil {
		return
	}
	go w.Start()
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.replaced:
			return
		case <-w.DoneCh(): //nolint:errcheck // nil or not: it is over, log in again
			return
		case r := <-w.RenewCh():
			v.mu.Lock()
			v.stats.Renewals++
			if r.Secret != nil && r.Secret.Auth != nil {
				v.stats.TokenExpires = v.conf.Now().Add(time.Duration(r.Secret.Auth.LeaseDuration) * time.Second)
			}
			v.mu.Unlock()
		}
	}
}

// revoke gives the token in force back, and that of a login which was under way
// when ctx ended: nobody waits for it, and it would live to its TTL.
func (v *Vault) revoke() {
	v.mu.Lock()
	l := v.login
	v.mu.Unlock()
	if l != nil {
		<-l.done // its deadline is its own
	}
	v.mu.Lock()
	s := v.session
	v.session = nil
	v.mu.Unlock()
	if s == nil || !v.conf.Auth.ours() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), v.conf.Timeout)
	defer cancel()
	err := v.call(ctx, func() error {
		return s.client.Auth().Token().RevokeSelfWithContext(ctx, "")
	})
	if err != nil {
		v.conf.Log.Info("the Vault token could not be revoked; it ends by its TTL", "err", describe(err, s.client.Token()))
	}
}

// sleep reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
