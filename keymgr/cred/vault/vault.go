package vault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// Stats counts what a Vault did since it was made.
type Stats struct {
	Requests      uint64 // to Vault, logins and retries included
	Failures      uint64 // requests that got no answer, or a 5xx
	RateLimited   uint64 // requests answered 429
	Retries       uint64 // requests repeated within their deadline
	Logins        uint64
	LoginFailures uint64
	Renewals      uint64
	Forbidden     uint64 // questions answered 403, before a new login was tried
	Refused       uint64 // questions that the breaker did not let through
	BreakerOpened uint64
	BreakerOpen   bool
	TokenExpires  time.Time // zero when there is no token, or it never expires
}

// Vault is a client of one Vault cluster. It implements cred.Source and is safe
// for concurrent use.
type Vault struct {
	conf    Config
	client  *api.Client // without a token; sessions are clones of it
	conns   *http.Transport
	slots   chan struct{}
	breaker breaker

	mu         sync.Mutex
	session    *session
	login      *login    // under way
	loginAfter time.Time // no login before this, and
	loginErr   error     // this instead
	stats      Stats
}

// New checks conf and makes a Vault. It does not ask Vault anything.
func New(conf Config) (*Vault, error) {
	conf.setDefaults()
	if err := conf.Check(); err != nil {
		return nil, err
	}
	client, conns, err := conf.newClient()
	if err != nil {
		return nil, err
	}
	return &Vault{
		conf:   conf,
		client: client,
		conns:  conns,
		slots:  make(chan struct{}, conf.MaxInFlight),
	}, nil
}

// Format keeps every verb from reaching the token.
func (v *Vault) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "[vault at %s]", v.conf.Address) }

// Stats returns the counters.
func (v *Vault) Stats() Stats {
	v.mu.Lock()
	s := v.stats
	v.mu.Unlock()
	s.BreakerOpen, s.BreakerOpened = v.breaker.state(v.conf.Now())
	return s
}

// do asks one question with a token, all retries and logins within one
// deadline. Its error is an *cred.Error.
func (v *Vault) do(ctx context.Context, ref string, ask func(context.Context, *api.Client) error) error {
	select {
	case v.slots <- struct{}{}:
		defer func() { <-v.slots }()
	case <-ctx.Done():
		return cred.Errorf(cred.Unavailable, ref, "waiting for one of %d requests to end: %w", cap(v.slots), ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, v.conf.Timeout)
	defer cancel()
	s, err := v.current(ctx)
	if err != nil {
		return credError(ref, err, "")
	}
	err = v.call(ctx, func() error { return ask(ctx, s.client) })
	if status(err) == http.StatusForbidden {
		v.count(func(st *Stats) { st.Forbidden++ })
		fresh, loginErr := v.replace(ctx, s, true)
		switch {
		case loginErr != nil:
			return credError(ref, loginErr, s.client.Token())
		case fresh == nil: // Run has ended and gave the token back
			return cred.Errorf(cred.Unavailable, ref, "logging out of Vault")
		case fresh != s:
			s = fresh
			err = v.call(ctx, func() error { return ask(ctx, s.client) })
		}
	}
	if err != nil {
		return credError(ref, err, s.client.Token())
	}
	return nil
}

// call sends one request through the breaker, and once more when that may help
// and the deadline leaves time for it.
func (v *Vault) call(ctx context.Context, send func() error) error {
	var last error
	for try := 0; ; try++ {
		ok, wait, why := v.breaker.allow(v.conf.Now())
		if !ok {
			v.count(func(st *Stats) { st.Refused++ })
			if last != nil {
				return last
			}
			return cred.Errorf(cred.Unavailable, "", "Vault is left alone for %s more, since: %s", wait.Round(time.Millisecond), why)
		}
		v.count(func(st *Stats) { st.Requests++ })
		err := send()
		switch judge(err) {
		case unasked:
			v.breaker.abandon()
			return err
		case answered:
			v.breaker.success()
			return err
		case again:
			v.breaker.success()
		case limited:
			v.count(func(st *Stats) { st.RateLimited++ })
			v.breaker.hold(v.conf.Now(), retryAfter(err), brief(err))
			return err
		case failed:
			v.count(func(st *Stats) { st.Failures++ })
			v.breaker.failure(v.conf.Now(), brief(err))
		}
		if last = err; try > 0 {
			return err
		}
		delay := 50*time.Millisecond + rand.N(100*time.Millisecond)
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < 2*delay {
			return err
		}
		if !sleep(ctx, delay) {
			return err
		}
		v.count(func(st *Stats) { st.Retries++ })
	}
}

func (v *Vault) count(f func(*Stats)) {
	v.mu.Lock()
	f(&v.stats)
	v.mu.Unlock()
}

// limitError is a 429 with the pause that Vault asked for.
type limitError struct {
	*api.ResponseError
	after time.Duration
}

func (e *limitError) Unwrap() error { return e.ResponseError }

// withRetryAfter keeps the Retry-After of a 429, which the API's error drops.
func withRetryAfter(resp *api.Response, err error) error {
	re, ok := errors.AsType[*api.ResponseError](err)
	if !ok || resp == nil || re.StatusCode != http.StatusTooManyRequests {
		return err
	}
	seconds, convErr := strconv.Atoi(resp.Header.Get("Retry-After"))
	if convErr != nil || seconds < 0 {
		return err
	}
	return &limitError{re, time.Duration(min(seconds, 3600)) * time.Second}
}

func retryAfter(err error) time.Duration {
	if le, ok := errors.AsType[*limitError](err); ok {
		return le.after
	}
	return 0
}
