package vault

import (
	"context"
	"net/http"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

const (
	// policyAge is how old a living token must be before a 403 makes us log in
	// again: its role may have got policies since. It bounds the logins, and so
	// the tokens, that one path without permission can cause.
	policyAge = 5 * time.Minute
	// loginPause is how long a refused login is remembered.
	loginPause = 2 * time.Second
)

// session is one token. It never changes: a new token is a new session.
type session struct {
	client   *api.Client // holds the token
	auth     *api.SecretAuth
	born     time.Time
	replaced chan struct{} // closed when another session is in force
}

// login is one login under way, shared by all who wait for it.
type login struct {
	done chan struct{}
	s    *session
	err  error
}

// current is the session in force, after a login if there is none.
func (v *Vault) current(ctx context.Context) (*session, error) {
	v.mu.Lock()
	s := v.session
	v.mu.Unlock()
	if s != nil {
		return s, nil
	}
	return v.replace(ctx, nil, false)
}

// replace logs in again, unless old is not in force any more or, when suspect
// is set, turns out to be alive and young.
func (v *Vault) replace(ctx context.Context, old *session, suspect bool) (*session, error) {
	v.mu.Lock()
	if v.session != old {
		s := v.session
		v.mu.Unlock()
		return s, nil
	}
	l := v.login
	if l == nil {
		if wait := v.loginAfter.Sub(v.conf.Now()); wait > 0 {
			err := v.loginErr
			v.mu.Unlock()
			return nil, err
		}
		l = &login{done: make(chan struct{})}
		v.login = l
		go v.logIn(l, old, suspect)
	}
	v.mu.Unlock()
	select {
	case <-l.done:
		return l.s, l.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// logIn carries out l. Its deadline is its own: the caller that started it is
// not the only one who waits.
func (v *Vault) logIn(l *login, old *session, suspect bool) {
	ctx, cancel := context.WithTimeout(context.Background(), v.conf.Timeout)
	defer cancel()
	s, err := v.logInWith(ctx, old, suspect)

	v.mu.Lock()
	v.login = nil
	switch {
	case err == nil && s != old:
		v.session = s
		v.stats.Logins++
		v.stats.TokenExpires = s.expires()
		if old != nil {
			close(old.replaced)
		}
	case err != nil:
		v.stats.LoginFailures++
		// An absent Vault is the breaker's matter; a refusal must not be asked
		// for again by every peer that waits.
		if cred.KindOf(err) != cred.Unavailable {
			v.loginAfter, v.loginErr = v.conf.Now().Add(loginPause), err
		}
	}
	v.mu.Unlock()

	switch {
	case err != nil:
		v.conf.Log.Warn("login to Vault failed", "err", err)
	case s != old:
		v.conf.Log.Info("logged in to Vault", "ttl", time.Duration(s.auth.LeaseDuration)*time.Second, "renewable", s.auth.Renewable)
	}
	l.s, l.err = s, err
	close(l.done)
}

func (v *Vault) logInWith(ctx context.Context, old *session, suspect bool) (*session, error) {
	if suspect && v.conf.Now().Sub(old.born) < policyAge {
		err := v.call(ctx, func() error {
			_, err := old.client.Auth().Token().LookupSelfWithContext(ctx)
			return err
		})
		if err == nil {
			return old, nil // alive: what it may not read, it may not read
		}
		if status(err) != http.StatusForbidden {
			return nil, credError("", err, old.client.Token())
		}
	}
	client, err := v.client.CloneWithHeaders()
	if err != nil {
		return nil, cred.Errorf(cred.Unavailable, "", "%w", err)
	}
	if _, ok := v.conf.Auth.(Cert); ok {
		v.conns.CloseIdleConnections() // the next one shows the certificate of today
	}
	var secret *api.Secret
	var used string
	err = v.call(ctx, func() (err error) {
		client.ClearToken()
		secret, used, err = v.conf.Auth.login(ctx, client)
		if err == nil && (secret == nil || secret.Auth == nil || secret.Auth.ClientToken == "") {
			err = errNotVault
		}
		return err
	})
	if err != nil {
		e := credError("", err, used)
		if status(err) == 0 || cred.Retryable(e) {
			return nil, e
		}
		// Vault says 400 to a wrong SecretID and 404 to a wrong mount: to who
		// wants a secret all of it is "we may not".
		return nil, &cred.Error{Kind: cred.Denied, Why: "logging in: " + describe(err, used)}
	}
	client.SetToken(secret.Auth.ClientToken)
	return &session{client: client, auth: secret.Auth, born: v.conf.Now(), replaced: make(chan struct{})}, nil
}

func (s *session) expires() time.Time {
	if s.auth.LeaseDuration == 0 {
		return time.Time{}
	}
	return s.born.Add(time.Duration(s.auth.LeaseDuration) * time.Second)
}
