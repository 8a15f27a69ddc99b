package engine

import (
	"context"
	"crypto"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
)

// What machines ask about certificates. Looking up waits on the pool for secrets,
// signing and checking signatures computes on the pool for key exchanges; both
// serve the peers in turn.

var errNoCertificates = errors.New("this key manager has no store of certificates configured")

// authorities remembers the names of trust anchors, which every IKE_SA_INIT of a
// peer with certificates asks for, and for a moment that they cannot be had: strangers
// are not to make us ask a store that is away over and over.
type authorities struct {
	mu  sync.Mutex
	has map[string]authority
}

type authority struct {
	keys  [][20]byte
	until time.Time
}

const (
	authorityTime  = time.Minute // a CA that is replaced is noticed by then
	authorityRetry = 5 * time.Second
	maxAuthority   = 1024
)

func (a *authorities) get(trust []string, now time.Time) ([][20]byte, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	x, ok := a.has[strings.Join(trust, " ")]
	return x.keys, ok && now.Before(x.until)
}

func (a *authorities) put(trust []string, keys [][20]byte, until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.has == nil || len(a.has) >= maxAuthority {
		a.has = make(map[string]authority)
	}
	a.has[strings.Join(trust, " ")] = authority{keys, until}
}

// slow runs a job on a pool and answers with refuse when the pool is full.
func (s *shard) slow(p *pool, c *cell, job func(), refuse ike.Event) {
	if !p.submit(c.source(), job) {
		s.e.stats.slowRefused.Add(1)
		c.post(refuse)
	}
}

func (s *shard) findAuthorities(c *cell, f ike.NeedAuthorities) {
	if keys, ok := s.e.authorities.get(f.Trust, time.Now()); ok {
		c.post(ike.Authorities{ID: f.ID, Keys: keys})
		return
	}
	s.slow(s.e.secrets, c, func() {
		a := ike.Authorities{ID: f.ID}
		a.Err = s.e.ask(func(ctx context.Context, store cred.Certificates) (err error) {
			a.Keys, err = store.Authorities(ctx, f.Trust)
			return err
		})
		if a.Err == nil {
			s.e.authorities.put(f.Trust, a.Keys, time.Now().Add(authorityTime))
		} else {
			s.e.authorities.put(f.Trust, nil, time.Now().Add(authorityRetry))
			s.e.cfg.Log.Warn("trust anchors cannot be had; the peer is not asked for a certificate", "node", c.node.name, "trust", f.Trust, "why", a.Err)
		}
		c.post(a)
	}, ike.Authorities{ID: f.ID, Err: errBusy})
}

// ask calls the store of certificates, bounded in time, and survives a panic of it.
func (e *Engine) ask(fn func(context.Context, cred.Certificates) error) (err error) {
	if e.cfg.Certificates == nil {
		return errNoCertificates
	}
	defer func() {
		if p := recover(); p != nil {
			e.stats.panics.Add(1)
			err = errors.New("the store of certificates failed inside")
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), e.cfg.SecretTimeout)
	defer cancel()
	return fn(ctx, e.cfg.Certificates)
}

// sign finds the credentials, and lets the first that suits the peer sign.
func (s *shard) sign(c *cell, f ike.NeedSignature) {
	busy := ike.Signed{ID: f.ID, Err: errBusy}
	s.slow(s.e.secrets, c, func() {
		found, err := s.e.credentials(f)
		if len(found) == 0 {
			c.post(ike.Signed{ID: f.ID, Err: err})
			return
		}
		s.slow(s.e.kes, c, func() {
			a := ike.Signed{ID: f.ID}
			for _, x := range found {
				if a = s.e.signWith(f, x); a.Err == nil {
					break
				}
			}
			c.post(a)
		}, busy)
	}, busy)
}

func (e *Engine) signWith(f ike.NeedSignature, x *cred.Credential) (a ike.Signed) {
	defer func() {
		if p := recover(); p != nil {
			e.stats.panics.Add(1)
			a = ike.Signed{ID: f.ID, Err: errors.New("the signer failed inside")}
		}
	}()
	return ikev2.PerformSignature(e.cfg.Rand, f, x.Signer, x.Chain)
}

// credentials are those that can be had, what the peer's CERTREQ names first. It
// is a hint (RFC 7296 §3.7): the others follow.
func (e *Engine) credentials(f ike.NeedSignature) (found []*cred.Credential, err error) {
	var errs []error
	var rest []*cred.Credential
	for _, m := range f.Credentials {
		var x *cred.Credential
		named := len(f.Wanted) == 0 || len(f.Credentials) == 1
		err := e.ask(func(ctx context.Context, store cred.Certificates) (err error) {
			if x, err = store.Credential(ctx, m.Credential); err != nil || named || len(m.Trust) == 0 {
				return err
			}
			keys, err := store.Authorities(ctx, m.Trust)
			named = err == nil && slices.ContainsFunc(keys, func(k [20]byte) bool { return slices.Contains(f.Wanted, k) })
			return nil
		})
		switch {
		case err != nil:
			errs = append(errs, err)
		case named:
			found = append(found, x)
		default:
			rest = append(rest, x)
		}
	}
	return append(found, rest...), errors.Join(errs...)
}

// verify judges a chain by each method until one accepts it, and then checks the
// signature.
func (s *shard) verify(c *cell, f ike.NeedVerification) {
	busy := ike.Verified{ID: f.ID, Err: errBusy, Unknown: true}
	s.slow(s.e.secrets, c, func() {
		key, unknown, err := s.e.judge(f)
		if err != nil {
			c.post(ike.Verified{ID: f.ID, Err: err, Unknown: unknown})
			return
		}
		s.slow(s.e.kes, c, func() { c.post(s.e.checkSignature(f, key)) }, busy)
	}, busy)
}

// judge finds the key that a chain proves; unknown says that no method could tell.
func (e *Engine) judge(f ike.NeedVerification) (key crypto.PublicKey, unknown bool, err error) {
	unknown = true
	var errs []error
	for _, m := range f.Methods {
		err := e.ask(func(ctx context.Context, store cred.Certificates) (err error) {
			key, err = store.Verify(ctx, cred.ChainQuestion{Chain: f.Chain, Identity: f.Identity, Method: m, Now: time.Now()})
			return err
		})
		if err == nil {
			return key, false, nil
		}
		unknown = unknown && cred.Retryable(err)
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, false, errors.New("no method of the policy judges certificates")
	}
	return nil, unknown, errors.Join(errs...)
}

func (e *Engine) checkSignature(f ike.NeedVerification, key crypto.PublicKey) (a ike.Verified) {
	defer func() {
		if p := recover(); p != nil {
			e.stats.panics.Add(1)
			a = ike.Verified{ID: f.ID, Err: errors.New("the check of the signature failed inside")}
		}
	}()
	return ikev2.PerformVerification(f, key)
}
