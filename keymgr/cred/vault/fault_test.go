package vault_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/cred/credtest"
	"github.com/testudo-ipsec/testudo/keymgr/cred/vault"
)

// between is a proxy before the real Vault that answers in its place while it
// has something to say: what one open-source node cannot be made to answer.
type between struct {
	mu    sync.Mutex
	next  []http.HandlerFunc
	proxy http.Handler
}

func interpose(t *testing.T, srv *server) (*between, string) {
	t.Helper()
	target, err := url.Parse(srv.addr)
	must(t, err)
	b := &between{proxy: httputil.NewSingleHostReverseProxy(target)}
	s := httptest.NewServer(b)
	t.Cleanup(s.Close)
	return b, s.URL
}

func (b *between) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	h := b.proxy.ServeHTTP
	if len(b.next) > 0 {
		h, b.next = b.next[0], b.next[1:]
	}
	b.mu.Unlock()
	h(w, r)
}

func (b *between) say(h ...http.HandlerFunc) {
	b.mu.Lock()
	b.next = append(b.next, h...)
	b.mu.Unlock()
}

func answer(status int, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func TestOneBadAnswerIsRiddenOut(t *testing.T) {
	t.Parallel()
	srv := start(t)
	b, addr := interpose(t, srv)
	conf := srv.config(t)
	conf.Address = addr
	srv.put(t, "web-db", keyA)
	v := newVault(t, conf)
	c := cached(v, nil)
	keys(t, c, keyA)
	for name, bad := range map[string]http.HandlerFunc{
		"412, a standby that is behind": answer(412, `{"errors":["required index state not present"]}`),
		"473, a performance standby":    answer(473, `{"errors":[]}`),
		"472, a DR standby":             answer(472, `{"errors":["path disabled in replication DR secondary mode"]}`),
		"500":                           answer(500, `{"errors":["internal error"]}`),
		"503, sealed":                   answer(503, `{"errors":["Vault is sealed"]}`),
		"502 from a load balancer":      answer(502, `<html>bad gateway</html>`),
		"404 from a load balancer":      answer(404, `<html>no such site</html>`),
		"403 from a firewall":           answer(403, `<html>blocked</html>`),
	} {
		before := v.Stats().Retries
		b.say(bad)
		c.Recheck(ref)
		keys(t, c, keyA)
		if s := c.Stats(); s.StaleNow != 0 {
			t.Errorf("%s: the cache says that the check failed", name)
		}
		if n := v.Stats().Retries - before; n != 1 {
			t.Errorf("%s: %d retries, want 1", name, n)
		}
	}
	// net/http repeats what breaks on a connection that was used before: that
	// leaves one broken connection for us.
	b.say(hangUp, hangUp)
	c.Recheck(ref)
	keys(t, c, keyA)
	if s := v.Stats(); c.Stats().StaleNow != 0 || s.Logins != 1 || s.BreakerOpened != 0 {
		t.Errorf("stats %+v, want one login, no open breaker and nothing stale", s)
	}
}

// What a proxy says is no evidence that a secret is gone or withheld.
func TestOnlyVaultItselfCanSayThatASecretIsGone(t *testing.T) {
	t.Parallel()
	srv, now := start(t), newClock()
	b, addr := interpose(t, srv)
	conf := srv.config(t)
	conf.Address, conf.Now = addr, now.Now
	srv.put(t, "web-db", keyA)
	for name, bad := range map[string]http.HandlerFunc{
		"404 in HTML":          answer(404, `<html>`),
		"404 without a body":   answer(404, ``),
		"403 in HTML":          answer(403, `<html>`),
		"200 in HTML":          answer(200, `<html>login</html>`),
		"200 in other JSON":    answer(200, `{"data":{"data":"`+keyB+`","metadata":{"version":"`+keyB+`"}}}`),
		"200 in truncated":     answer(200, `{"data":{"data":{"psk":"`+keyB),
		"a redirect elsewhere": answer(302, ``, "Location", "/ui/"),
	} {
		t.Run(name, func(t *testing.T) {
			v := newVault(t, conf)
			c := cached(v, now.Now)
			keys(t, c, keyA)
			b.say(bad, bad, bad, bad, bad, bad, bad, bad) // retries and redirects take more than one
			now.advance(time.Second)
			c.Recheck(ref)
			keys(t, c, keyA)
			if s := c.Stats(); s.Gone != 0 || s.Failures == 0 {
				t.Errorf("stats %+v, want a failure and nothing gone", s)
			}
			fails(t, c, ref+"-other", cred.Unavailable, "")
			b.mu.Lock()
			b.next = nil
			b.mu.Unlock()
		})
	}
}

func TestARateLimitIsObeyed(t *testing.T) {
	t.Parallel()
	srv, now := start(t), newClock()
	b, addr := interpose(t, srv)
	conf := srv.config(t)
	conf.Address, conf.Now = addr, now.Now
	srv.put(t, "web-db", keyA)
	v := newVault(t, conf)
	c := cached(v, now.Now)
	keys(t, c, keyA)
	b.say(answer(429, `{"errors":["request path \"secret/data/x\": rate limit quota exceeded"]}`, "Retry-After", "20"))
	fails(t, c, ref+"-other", cred.Unavailable, "429")
	before := v.Stats().Requests
	now.advance(19 * time.Second)
	fails(t, c, ref+"-other", cred.Unavailable, "rate limit")
	if n := v.Stats().Requests - before; n != 0 {
		t.Errorf("%d requests within Retry-After, want none", n)
	}
	c.Recheck(ref)
	keys(t, c, keyA)
	now.advance(2 * time.Second)
	fails(t, c, ref+"-other", cred.NotFound, "")
}

func TestVaultsOwnRateLimit(t *testing.T) {
	t.Parallel()
	srv := start(t)
	srv.put(t, "web-db", keyA)
	v := newVault(t, srv.config(t))
	c := cached(v, nil)
	keys(t, c, keyA)
	srv.write(t, "sys/quotas/rate-limit/tight", map[string]any{"rate": 1, "interval": "1m", "path": "secret"})
	for range 5 {
		c.Recheck(ref)
		keys(t, c, keyA) // the cache does not mind
	}
	if s := v.Stats(); s.RateLimited == 0 || s.Refused == 0 {
		t.Errorf("stats %+v, want a 429 and then a pause", s)
	}
}

func TestAVaultThatHangsCostsOneDeadline(t *testing.T) {
	t.Parallel()
	srv := start(t)
	b, addr := interpose(t, srv)
	conf := srv.config(t)
	conf.Address, conf.Timeout = addr, 2*time.Second
	srv.put(t, "web-db", keyA)
	c := cached(newVault(t, conf), nil)
	keys(t, c, keyA)
	b.say(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	begin := time.Now()
	c.Recheck(ref)
	keys(t, c, keyA)
	if d := time.Since(begin); d < conf.Timeout || d > 5*conf.Timeout {
		t.Errorf("served after %s, want a little more than the deadline of %s", d, conf.Timeout)
	}

	// A caller in more of a hurry is served from the cache at once.
	hung, done := make(chan struct{}), make(chan struct{})
	b.say(func(_ http.ResponseWriter, r *http.Request) { close(hung); <-r.Context().Done() })
	ctx, cancel := context.WithCancel(t.Context())
	c.Recheck(ref)
	c.Recheck(ref)
	go func() {
		defer close(done)
		if _, err := c.PSK(ctx, ref); err != nil {
			t.Errorf("a caller that left while the check hung: %v, want the cached secret", err)
		}
	}()
	select {
	case <-hung:
	case <-done: // its failure was still remembered: it did not even ask
	}
	cancel()
	<-done
}

// A token or key that an error page echoes goes no further.
func TestEchoesAreNotRepeated(t *testing.T) {
	t.Parallel()
	srv, now := start(t), newClock()
	b, addr := interpose(t, srv)
	token := srv.write(t, "auth/token/create", map[string]any{"policies": []string{"keymgrd"}, "ttl": "1h"}).Auth.ClientToken
	j := newJournal()
	conf := srv.config(t)
	conf.Address, conf.Log, conf.Now = addr, j.logger(), now.Now
	conf.Auth = vault.TokenFile{Path: srv.file(t, token)}
	v := newVault(t, conf)
	srv.put(t, "web-db", keyA)
	c := cached(v, nil)
	keys(t, c, keyA)
	for _, bad := range []http.HandlerFunc{
		answer(400, `{"errors":["bad token `+token+`"]}`),
		answer(500, `{"errors":["`+token+` `+keyA+`"]}`),
		answer(500, token+keyA),
		answer(200, `{"data":{"data":{"psk":`+`"`+keyA+`"},"metadata":{"version":"`+keyA+`"}}}`),
		answer(200, `{"data":{"data":{"psk":["`+keyA+`"]},"metadata":{"version":1}}}`),
	} {
		b.say(bad, bad)
		now.advance(time.Minute) // past any pause of the breaker
		_, err := v.Read(t.Context(), ref)
		if err == nil {
			t.Fatal("a bad answer was taken for a good one")
		}
		credtest.Leak(t, err, token, keyA)
		b.mu.Lock()
		b.next = nil
		b.mu.Unlock()
	}
	credtest.Leak(t, j.String(), token, keyA)
}

// Requests wait for a slot no longer than their caller does.
func TestRequestsUnderWayAreBounded(t *testing.T) {
	t.Parallel()
	srv := start(t)
	b, addr := interpose(t, srv)
	conf := srv.config(t)
	conf.Address, conf.MaxInFlight = addr, 1
	v := newVault(t, conf)
	srv.put(t, "web-db", keyA)
	if _, err := v.Read(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	arrived, release := make(chan struct{}), make(chan struct{})
	b.say(func(w http.ResponseWriter, r *http.Request) { close(arrived); <-release; b.proxy.ServeHTTP(w, r) })
	first := make(chan error)
	go func() { _, err := v.Read(t.Context(), ref); first <- err }()
	<-arrived
	ctx, cancel := context.WithCancel(t.Context())
	second := make(chan error)
	go func() { _, err := v.Read(ctx, ref); second <- err }()
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) || cred.KindOf(err) != cred.Unavailable {
		t.Errorf("the second of one allowed: got %v, want Unavailable", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
}
