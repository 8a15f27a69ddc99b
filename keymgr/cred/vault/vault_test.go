package vault_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/cred/credtest"
	"github.com/testudo-ipsec/testudo/keymgr/cred/vault"
)

const (
	ref  = "vault:secret/testudo/psk/web-db"
	keyA = "key-a-51f0c2d37be84916"
	keyB = "key-b-0e9d7c4415ab62f8"
	keyC = "key-c-93b6d10fe2457a8c"
)

// kept is a mount of its own in a shared server, behind a cache: a store for
// the conformance suite.
type kept struct {
	*cred.Cache
	srv   *server
	mount string
}

func (k kept) Ref(name string) string { return "vault:" + k.mount + "/testudo/psk/" + name }
func (k kept) path(kind, name string) string {
	return k.mount + "/" + kind + "/testudo/psk/" + name
}

func (k kept) Write(t *testing.T, name, text string) {
	t.Helper()
	k.srv.write(t, k.path("data", name), map[string]any{"data": map[string]any{"psk": text, "owner": "team"}})
	k.Recheck(k.Ref(name))
}

func (k kept) EndOverlap(t *testing.T, name string) {
	t.Helper()
	s, err := k.srv.root.Logical().Read(k.path("metadata", name))
	must(t, err)
	current := s.Data["current_version"].(interface{ Int64() (int64, error) })
	n, err := current.Int64()
	must(t, err)
	k.srv.write(t, k.path("destroy", name), map[string]any{"versions": []int64{n - 1}})
	k.Recheck(k.Ref(name))
}

func (k kept) Delete(t *testing.T, name string) {
	t.Helper()
	_, err := k.srv.root.Logical().Delete(k.path("data", name))
	must(t, err)
	k.Recheck(k.Ref(name))
}

func (k kept) Deny(t *testing.T, name string) {
	t.Helper()
	must(t, k.srv.root.Sys().PutPolicy(k.mount, fmt.Sprintf(`
path "%[1]s/*" { capabilities = ["read"] }
path "%[1]s/+/testudo/psk/%[2]s" { capabilities = ["deny"] }`, k.mount, name)))
	k.Recheck(k.Ref(name))
}

func TestConformance(t *testing.T) {
	t.Parallel()
	srv := start(t)
	var n atomic.Int32
	credtest.Run(t, func(t *testing.T) credtest.Store {
		mount := fmt.Sprintf("kv%d", n.Add(1))
		srv.write(t, "sys/mounts/"+mount, map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
		srv.policy(t, mount, mount+"/*")
		conf := srv.config(t)
		conf.Auth = srv.appRole(t, mount, map[string]any{"token_policies": mount})
		return kept{cached(newVault(t, conf), nil), srv, mount}
	})
}

// cached puts a cache before v that checks whenever a test says so.
func cached(v *vault.Vault, now func() time.Time) *cred.Cache {
	return cred.NewCache(v, cred.CacheOptions{MaxStale: time.Hour, Retry: 1, Now: now, Log: quiet})
}

// keys checks what ref stands for.
func keys(t *testing.T, p cred.PSKs, want ...string) {
	t.Helper()
	got, err := p.PSK(t.Context(), ref)
	if err != nil {
		t.Fatalf("PSK: %v, want %d secrets", err, len(want))
	}
	if len(got) != len(want) {
		t.Fatalf("PSK: got %d secrets, want %d", len(got), len(want))
	}
	for i, w := range want {
		if !got[i].Equal(ipsec.CopySecret([]byte(w))) {
			t.Fatalf("PSK: secret %d is not the one expected", i)
		}
	}
}

func fails(t *testing.T, p cred.PSKs, ref string, kind cred.Kind, says string) {
	t.Helper()
	_, err := p.PSK(t.Context(), ref)
	if err == nil || cred.KindOf(err) != kind || !strings.Contains(err.Error(), says) {
		t.Fatalf("PSK(%s): got %v, want %q saying %q", ref, err, kind, says)
	}
	credtest.Leak(t, err, keyA, keyB, keyC)
}

func TestOverlapEndsByTime(t *testing.T) {
	t.Parallel()
	srv, now := start(t), newClock()
	conf := srv.config(t)
	conf.Overlap, conf.Now = time.Hour, now.Now
	v := newVault(t, conf)
	c := cred.NewCache(v, cred.CacheOptions{MaxStale: 24 * time.Hour, Refresh: 10 * time.Minute, Retry: 1, Now: now.Now, Log: quiet})
	srv.put(t, "web-db", keyA)
	srv.put(t, "web-db", keyB)
	keys(t, c, keyB, keyA)
	srv.control(t, "stop")
	now.advance(59 * time.Minute)
	keys(t, c, keyB, keyA)
	now.advance(2 * time.Minute)
	keys(t, c, keyB) // without Vault's help
}

func TestAMetadataCheckDoesNotReadTheSecret(t *testing.T) {
	t.Parallel()
	srv := start(t)
	c := cached(newVault(t, srv.config(t)), nil)
	srv.put(t, "web-db", keyA)
	keys(t, c, keyA)
	// With the metadata alone the check still works; the secret is not needed.
	srv.policy(t, "keymgrd", "secret/metadata/testudo/psk/*")
	c.Recheck(ref)
	keys(t, c, keyA)
	if s := c.Stats(); s.Failures != 0 || s.Fetches != 2 {
		t.Errorf("after a check by metadata: %+v, want 2 fetches without failure", s)
	}
	// And with the secret alone it works too, by reading it.
	srv.policy(t, "keymgrd", "secret/data/testudo/psk/*")
	srv.put(t, "web-db", keyB)
	c.Recheck(ref)
	keys(t, c, keyB, keyA)
}

func TestASecretMadeAnewIsNoticed(t *testing.T) {
	t.Parallel()
	srv := start(t)
	c := cached(newVault(t, srv.config(t)), nil)
	srv.put(t, "web-db", keyA)
	keys(t, c, keyA)
	_, err := srv.root.Logical().Delete("secret/metadata/testudo/psk/web-db")
	must(t, err)
	srv.put(t, "web-db", keyB) // version 1 again
	c.Recheck(ref)
	keys(t, c, keyB)
	_, err = srv.root.Logical().Delete("secret/metadata/testudo/psk/web-db")
	must(t, err)
	c.Recheck(ref)
	fails(t, c, ref, cred.NotFound, "404")
}

func TestFields(t *testing.T) {
	t.Parallel()
	srv := start(t)
	c := cached(newVault(t, srv.config(t)), nil)
	srv.write(t, "secret/data/testudo/psk/web-db", map[string]any{"data": map[string]any{"key": keyA, "number": 1234567890123456789}})
	fails(t, c, ref, cred.Invalid, `no field "psk"`)
	fails(t, c, ref+"#number", cred.Invalid, "not a string")
	if _, err := c.PSK(t.Context(), ref+"#key"); err != nil {
		t.Error(err)
	}
	fails(t, c, "vault:sekret/testudo/psk/web-db", cred.Denied, "policies")
	srv.policy(t, "keymgrd", "secret/*", "nowhere/*")
	fails(t, c, "vault:nowhere/testudo/psk/web-db", cred.Invalid, "no handler for route")
}

func TestABadNewVersionLeavesTheLastGoodInForce(t *testing.T) {
	t.Parallel()
	srv := start(t)
	c := cached(newVault(t, srv.config(t)), nil)
	srv.put(t, "web-db", keyA)
	keys(t, c, keyA)
	srv.put(t, "web-db", "short")
	c.Recheck(ref)
	keys(t, c, keyA)
	if s := c.Stats(); s.StaleNow != 1 || s.Failures == 0 {
		t.Errorf("stats %+v do not show the bad version", s)
	}
	srv.put(t, "web-db", keyB)
	c.Recheck(ref)
	keys(t, c, keyB) // the weak one is no candidate
}

func TestSealedVaultIsServedFromTheCacheUntilMaxStale(t *testing.T) {
	t.Parallel()
	srv, now := start(t), newClock()
	conf := srv.config(t)
	conf.Now = now.Now
	v := newVault(t, conf)
	c := cached(v, now.Now) // MaxStale: 1 h
	srv.put(t, "web-db", keyA)
	keys(t, c, keyA)

	srv.control(t, "seal")
	now.advance(time.Second)
	c.Recheck(ref)
	keys(t, c, keyA)
	fails(t, c, ref+"-other", cred.Unavailable, "sealed")
	now.advance(58 * time.Minute)
	keys(t, c, keyA)
	now.advance(2 * time.Minute)
	fails(t, c, ref, cred.Unavailable, "maxStale")

	srv.control(t, "unseal")
	now.advance(time.Minute) // past the breaker's pause
	keys(t, c, keyA)
	if s := v.Stats(); s.BreakerOpened == 0 || s.BreakerOpen || s.Failures == 0 {
		t.Errorf("stats %+v, want a breaker that opened and closed", s)
	}
}

func TestRestartOfVault(t *testing.T) {
	t.Parallel()
	data, now := t.TempDir(), newClock()
	srv := start(t, "-data", data)
	conf := srv.config(t)
	conf.Now = now.Now
	v := newVault(t, conf)
	c := cached(v, now.Now)
	srv.put(t, "web-db", keyA)
	keys(t, c, keyA)

	srv.control(t, "stop")
	now.advance(time.Second)
	c.Recheck(ref)
	keys(t, c, keyA)
	fails(t, c, ref+"-other", cred.Unavailable, "connection refused")
	for range 5 { // more than the breaker takes
		_, _ = c.PSK(t.Context(), ref+"-other")
		now.advance(10 * time.Millisecond)
	}
	before := v.Stats().Requests
	fails(t, c, ref+"-another", cred.Unavailable, "left alone")
	if after := v.Stats().Requests; after != before {
		t.Errorf("an open breaker let %d requests through", after-before)
	}

	srv.args = []string{"-data", data, "-listen", strings.TrimPrefix(srv.addr, "http://")}
	srv.launch(t)
	srv.put(t, "web-db", keyB)
	now.advance(time.Minute)
	keys(t, c, keyB, keyA)
}

func TestARevokedTokenIsReplacedByOneLogin(t *testing.T) {
	t.Parallel()
	srv := start(t)
	v := newVault(t, srv.config(t))
	c := cached(v, nil)
	srv.put(t, "web-db", keyA)
	keys(t, c, keyA)
	for i := range 20 {
		srv.put(t, fmt.Sprintf("peer-%d", i), keyB)
	}
	// Every token of the role, without us.
	_, err := srv.root.Logical().Write("sys/leases/revoke-prefix/auth/approle/", map[string]any{"sync": true})
	must(t, err)

	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := c.PSK(t.Context(), fmt.Sprintf("vault:secret/testudo/psk/peer-%d", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s := v.Stats(); s.Logins != 2 || s.Forbidden == 0 {
		t.Errorf("stats %+v, want 2 logins: the first, and one shared by 20 who were refused", s)
	}
}

func TestADeniedPathDoesNotCauseLogins(t *testing.T) {
	t.Parallel()
	srv, now := start(t), newClock()
	conf := srv.config(t)
	conf.Now = now.Now
	v := newVault(t, conf)
	c := cached(v, now.Now)
	const other = "vault:secret/elsewhere/web-db"
	srv.write(t, "secret/data/elsewhere/web-db", map[string]any{"data": map[string]any{"psk": keyA}})
	for range 10 {
		fails(t, c, other, cred.Denied, "permission denied")
		now.advance(time.Second)
	}
	if s := v.Stats(); s.Logins != 1 {
		t.Errorf("%d logins after 10 refusals of a living token, want 1", s.Logins)
	}
	// The role gets the policy that was missing; the old token never will.
	srv.policy(t, "elsewhere", "secret/data/elsewhere/*")
	srv.write(t, "auth/approle/role/keymgrd", map[string]any{"token_policies": "keymgrd,elsewhere"})
	now.advance(10 * time.Minute)
	if _, err := c.PSK(t.Context(), other); err != nil {
		t.Errorf("after the role got the policy: %v", err)
	}
}

func TestTheTokenIsRenewedAndAtItsEndReplaced(t *testing.T) {
	t.Parallel()
	srv, j := start(t), newJournal()
	conf := srv.config(t)
	conf.Auth = srv.appRole(t, "brief", map[string]any{"token_policies": "keymgrd", "token_ttl": "1s", "token_max_ttl": "3s"})
	conf.Log = j.logger()
	v := newVault(t, conf)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { v.Run(ctx) })
	j.await(t, "logged in")
	j.await(t, "logged in")
	srv.put(t, "web-db", keyA)
	keys(t, cached(v, nil), keyA)
	cancel()
	wg.Wait()
	if s := v.Stats(); s.Renewals == 0 || s.Logins < 2 {
		t.Errorf("stats %+v, want renewals and at least 2 logins", s)
	}
}

func TestRunRevokesItsTokenAtTheEnd(t *testing.T) {
	t.Parallel()
	srv, j := start(t), newJournal()
	conf := srv.config(t)
	conf.Log = j.logger()
	v := newVault(t, conf)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { v.Run(ctx) })
	j.await(t, "logged in")
	tokens := func() int {
		s, err := srv.root.Logical().List("auth/token/accessors")
		must(t, err)
		return len(s.Data["keys"].([]any))
	}
	with := tokens()
	cancel()
	wg.Wait()
	if without := tokens(); without != with-1 {
		t.Errorf("%d tokens before, %d after Run: want one less", with, without)
	}
}

func TestTokenFile(t *testing.T) {
	t.Parallel()
	srv := start(t)
	create := func() string {
		s := srv.write(t, "auth/token/create", map[string]any{"policies": []string{"keymgrd"}, "ttl": "1h"})
		return s.Auth.ClientToken
	}
	tokenA := create()
	file := srv.file(t, tokenA+"\n")
	conf := srv.config(t)
	conf.Auth = vault.TokenFile{Path: file}
	c := cached(newVault(t, conf), nil)
	srv.put(t, "web-db", keyA)
	keys(t, c, keyA)

	// Vault Agent puts another token there, and the old one dies.
	must(t, writeFile(file, create()))
	srv.write(t, "auth/token/revoke", map[string]any{"token": tokenA})
	srv.put(t, "web-db", keyB)
	c.Recheck(ref)
	keys(t, c, keyB, keyA)
}

func TestWrongCredentials(t *testing.T) {
	t.Parallel()
	srv := start(t)
	const wrong = "hvs.wrong-token-8f3a5512"
	for name, tt := range map[string]struct {
		auth vault.Auth
		says string
	}{
		"a wrong SecretID":     {vault.AppRole{RoleID: srv.role.RoleID, SecretIDFile: srv.file(t, wrong)}, "invalid role or secret ID"},
		"a wrong RoleID":       {vault.AppRole{RoleID: wrong, SecretIDFile: srv.role.SecretIDFile}, "invalid role or secret ID"},
		"a wrong mount":        {vault.AppRole{Mount: "nowhere", RoleID: srv.role.RoleID}, "logging in"},
		"a wrong token":        {vault.TokenFile{Path: srv.file(t, wrong)}, "logging in"},
		"no file":              {vault.TokenFile{Path: "/nonexistent/token"}, "no such file"},
		"an empty file":        {vault.TokenFile{Path: srv.file(t, "\n")}, "want one line"},
		"a file of two lines":  {vault.TokenFile{Path: srv.file(t, wrong+"\n"+wrong)}, "want one line"},
		"a file open to all":   {vault.TokenFile{Path: openToAll(t)}, "chmod"},
		"a role of a bad name": {vault.Cert{CertFile: "x", KeyFile: "y"}, "logging in"},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJournal()
			conf := srv.config(t)
			conf.Auth, conf.Log = tt.auth, j.logger()
			v := newVault(t, conf)
			c := cached(v, nil)
			for range 3 {
				fails(t, c, ref, cred.Denied, tt.says)
			}
			if n := v.Stats().LoginFailures; n != 1 {
				t.Errorf("%d logins tried in a row, want 1 and a pause", n)
			}
			_, err := c.PSK(t.Context(), ref)
			credtest.Leak(t, err, wrong)
			credtest.Leak(t, j.String(), wrong)
		})
	}
}

func TestNothingShowsSecretsOrTokens(t *testing.T) {
	t.Parallel()
	srv, j := start(t), newJournal()
	token := srv.write(t, "auth/token/create", map[string]any{"policies": []string{"keymgrd"}, "ttl": "1h"}).Auth.ClientToken
	conf := srv.config(t)
	conf.Auth, conf.Log = vault.TokenFile{Path: srv.file(t, token)}, j.logger()
	v := newVault(t, conf)
	c := cached(v, nil)
	srv.put(t, "web-db", keyA)
	srv.put(t, "web-db", keyB)
	keys(t, c, keyB, keyA)
	reading, err := v.Read(t.Context(), ref)
	must(t, err)
	_, denied := c.PSK(t.Context(), "vault:secret/elsewhere/x")
	srv.control(t, "seal")
	_, sealed := c.PSK(t.Context(), ref+"-other")
	for _, x := range []any{v, *conf.Log, conf, c, reading, reading.Candidates[0], &reading, denied, sealed, v.Stats(), c.Stats(), j.String()} {
		credtest.Leak(t, x, token, keyA, keyB)
	}
}

func BenchmarkRead(b *testing.B) {
	srv := start(b)
	srv.put(b, "web-db", keyA)
	v := newVault(b, srv.config(b))
	for b.Loop() {
		if _, err := v.Read(b.Context(), ref); err != nil {
			b.Fatal(err)
		}
	}
}
