package cred_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// shelf is a store in memory that counts questions and fails on request.
type shelf struct {
	mu      sync.Mutex
	secrets map[string][]string // newest first
	version int
	err     error
	hang    bool
	reads   int
	checks  int
}

func newShelf() *shelf { return &shelf{secrets: map[string][]string{}} }

func (s *shelf) put(ref string, keys ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[ref] = keys
	s.version++
}

func (s *shelf) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *shelf) asked() (reads, checks int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads, s.checks
}

// trouble waits as a network would, and reports what is wrong.
func (s *shelf) trouble(ctx context.Context, ref string) error {
	s.mu.Lock()
	hang, err, known := s.hang, s.err, s.secrets[ref] != nil
	s.mu.Unlock()
	if hang {
		<-ctx.Done()
		return cred.Errorf(cred.Unavailable, ref, "%w", ctx.Err())
	}
	select {
	case <-time.After(10 * time.Millisecond):
	case <-ctx.Done():
	}
	if err == nil && !known {
		err = cred.Errorf(cred.NotFound, ref, "not on the shelf")
	}
	return err
}

func (s *shelf) Read(ctx context.Context, ref string) (cred.Reading, error) {
	s.mu.Lock()
	s.reads++
	s.mu.Unlock()
	if err := s.trouble(ctx, ref); err != nil {
		return cred.Reading{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := cred.Reading{Version: fmt.Sprint(s.version)}
	for _, key := range s.secrets[ref] {
		r.Candidates = append(r.Candidates, cred.Candidate{Secret: ipsec.CopySecret([]byte(key))})
	}
	return r, nil
}

func (s *shelf) Version(ctx context.Context, ref string) (string, error) {
	s.mu.Lock()
	s.checks++
	s.mu.Unlock()
	if err := s.trouble(ctx, ref); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint(s.version), nil
}

const ref = "vault:secret/web-db"

var away = cred.Errorf(cred.Unavailable, "", "sealed")

func newCache(s cred.Source, opt cred.CacheOptions) *cred.Cache {
	opt.Log = slog.New(slog.DiscardHandler)
	return cred.NewCache(s, opt)
}

func want(t *testing.T, c cred.PSKs, ref, key string) {
	t.Helper()
	got, err := c.PSK(t.Context(), ref)
	if err != nil || len(got) != 1 || !got[0].Equal(ipsec.CopySecret([]byte(key))) {
		t.Fatalf("PSK(%s): got %d secrets, %v; want the one expected", ref, len(got), err)
	}
}

func wantErr(t *testing.T, c cred.PSKs, ref string, kind cred.Kind) {
	t.Helper()
	if got, err := c.PSK(t.Context(), ref); err == nil || cred.KindOf(err) != kind {
		t.Fatalf("PSK(%s): got %d secrets, %v; want %q", ref, len(got), err, kind)
	}
}

func TestCallersShareOneQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.put(ref, "the key")
		c := newCache(s, cred.CacheOptions{})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { want(t, c, ref, "the key") })
		}
		wg.Wait()
		if reads, _ := s.asked(); reads != 1 {
			t.Errorf("100 callers caused %d reads, want 1", reads)
		}
	})
}

func TestACallerThatLeavesDoesNotTakeTheAnswerAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.put(ref, "the key")
		c := newCache(s, cred.CacheOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := c.PSK(ctx, ref); !errors.Is(err, context.DeadlineExceeded) || !cred.Retryable(err) {
			t.Errorf("got %v, want a retryable DeadlineExceeded", err)
		}
		want(t, c, ref, "the key")
		if reads, _ := s.asked(); reads != 1 {
			t.Errorf("%d reads, want the one that the first caller started", reads)
		}
	})
}

func TestTheBackgroundKeepsSecretsFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.put(ref, "the key")
		c := newCache(s, cred.CacheOptions{Refresh: time.Minute})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go c.Run(ctx)
		want(t, c, ref, "the key")
		time.Sleep(time.Hour) // the bubble's clock
		reads, checks := s.asked()
		if reads != 1 || checks < 45 || checks > 75 {
			t.Errorf("in an hour %d reads and %d checks, want 1 and about 60", reads, checks)
		}
		s.put(ref, "the new key")
		time.Sleep(2 * time.Minute)
		s.fail(away) // so that what is served was there before it was asked for
		want(t, c, ref, "the new key")
	})
}

func TestUnavailableNeverEvictsBeforeMaxStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.put(ref, "the key")
		c := newCache(s, cred.CacheOptions{MaxStale: 24 * time.Hour})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go c.Run(ctx)
		want(t, c, ref, "the key")
		s.fail(away)
		for range 23 {
			time.Sleep(time.Hour)
			want(t, c, ref, "the key")
		}
		if st := c.Stats(); st.StaleNow != 1 || time.Since(st.OldestGood) < 22*time.Hour {
			t.Errorf("stats %+v do not show how stale the secret is", st)
		}
		time.Sleep(2 * time.Hour)
		wantErr(t, c, ref, cred.Unavailable)
		if st := c.Stats(); st.Expired != 1 {
			t.Errorf("%d secrets expired, want 1", st.Expired)
		}
		s.fail(nil)
		time.Sleep(10 * time.Second)
		want(t, c, ref, "the key")
	})
}

func TestWithoutRunMaxStaleHoldsToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.put(ref, "the key")
		c := newCache(s, cred.CacheOptions{MaxStale: time.Hour})
		want(t, c, ref, "the key")
		s.fail(away)
		time.Sleep(59 * time.Minute)
		want(t, c, ref, "the key")
		time.Sleep(2 * time.Minute)
		wantErr(t, c, ref, cred.Unavailable)
		wantErr(t, c, ref, cred.Unavailable)
	})
}

func TestWhatEachFailureDoesToACachedSecret(t *testing.T) {
	for kind, kept := range map[cred.Kind]bool{
		cred.Unavailable: true, cred.Denied: true, cred.TooWeak: true, cred.Invalid: true,
		cred.NotFound: false,
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newShelf()
			s.put(ref, "the key")
			c := newCache(s, cred.CacheOptions{})
			want(t, c, ref, "the key")
			s.fail(cred.Errorf(kind, ref, "because"))
			time.Sleep(time.Hour)
			if kept {
				want(t, c, ref, "the key")
			} else {
				wantErr(t, c, ref, kind)
				s.fail(away)
				time.Sleep(time.Minute)
				wantErr(t, c, ref, cred.Unavailable) // dropped for good
			}
		})
	}
}

func TestAFailureIsRememberedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		c := newCache(s, cred.CacheOptions{Retry: 5 * time.Second})
		for range 100 {
			wantErr(t, c, ref, cred.NotFound)
		}
		if reads, _ := s.asked(); reads != 1 {
			t.Errorf("100 questions about nothing caused %d reads, want 1", reads)
		}
		time.Sleep(6 * time.Second)
		s.put(ref, "the key")
		want(t, c, ref, "the key")
	})
}

func TestASourceThatHangsIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.put(ref, "the key")
		c := newCache(s, cred.CacheOptions{Timeout: 3 * time.Second})
		want(t, c, ref, "the key")
		s.mu.Lock()
		s.hang = true
		s.mu.Unlock()
		time.Sleep(time.Hour)
		begin := time.Now()
		want(t, c, ref, "the key")
		if d := time.Since(begin); d != 3*time.Second {
			t.Errorf("served after %s, want the timeout of 3s", d)
		}
		time.Sleep(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := c.PSK(ctx, ref); err != nil {
			t.Errorf("a caller in a hurry: %v, want the cached secret", err)
		}
		time.Sleep(10 * time.Second)
	})
}

func TestRecheckIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.put(ref, "the key")
		c := newCache(s, cred.CacheOptions{Retry: 5 * time.Second})
		want(t, c, ref, "the key")
		s.put(ref, "the new key")
		if c.Recheck(ref) {
			t.Error("Recheck right after a check was taken up")
		}
		want(t, c, ref, "the key")
		time.Sleep(5 * time.Second)
		if !c.Recheck(ref) {
			t.Error("Recheck was not taken up")
		}
		want(t, c, ref, "the new key")
		for range 100 { // a peer that fails on purpose
			c.Recheck(ref)
			want(t, c, ref, "the new key")
		}
		if reads, checks := s.asked(); reads != 2 || checks != 1 {
			t.Errorf("%d reads and %d checks, want 2 and 1", reads, checks)
		}
	})
}

func TestTheCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		c := newCache(s, cred.CacheOptions{MaxEntries: 10})
		for i := range 10 {
			name := fmt.Sprintf("vault:secret/%d", i)
			s.put(name, "the key")
			want(t, c, name, "the key")
			time.Sleep(time.Second)
		}
		want(t, c, "vault:secret/0", "the key") // used last
		wantErr(t, c, "vault:secret/nobody", cred.NotFound)
		wantErr(t, c, "vault:secret/nobody-else", cred.NotFound) // replaces the failure
		st := c.Stats()
		if st.Entries != 10 || st.Evicted != 2 {
			t.Errorf("%d entries and %d evicted, want 10 and 2", st.Entries, st.Evicted)
		}
		s.fail(away)
		want(t, c, "vault:secret/0", "the key")
		want(t, c, "vault:secret/2", "the key")
	})
}

func TestTheCacheIsBoundedWhileAllIsBeingFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.hang = true
		c := newCache(s, cred.CacheOptions{MaxEntries: 3, Timeout: time.Second})
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() { wantErr(t, c, fmt.Sprintf("vault:secret/%d", i), cred.Unavailable) })
		}
		synctest.Wait()
		begin := time.Now()
		wantErr(t, c, "vault:secret/3", cred.Unavailable)
		if time.Since(begin) != 0 || c.Stats().Refused != 1 {
			t.Errorf("stats %+v after %s, want one refused at once", c.Stats(), time.Since(begin))
		}
		wg.Wait()
	})
}

func TestAStoreThatGivesTooManyIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		c := newCache(s, cred.CacheOptions{})
		s.put(ref, "one", "two", "three")
		wantErr(t, c, ref, cred.Invalid)
		s.put(ref + "-2")
		wantErr(t, c, ref+"-2", cred.NotFound)
	})
}

func TestRouter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		s.put(ref, "the key")
		r := cred.Router{cred.SchemeVault: newCache(s, cred.CacheOptions{})}
		want(t, r, ref, "the key")
		wantErr(t, r, "file:web-db.psk", cred.Invalid)
		wantErr(t, r, "web-db.psk", cred.Invalid)
	})
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"file:web-db.psk", ref, ref + "#key", "vault:a/../b", "file:/etc/passwd", "", ":", "file:a%2fb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := cred.ParseRef(s)
		if err != nil {
			if cred.KindOf(err) != cred.Invalid {
				t.Errorf("%q: %v is not Invalid", s, err)
			}
			return
		}
		back := r.Scheme + ":" + r.Path
		if r.Field != "" {
			back += "#" + r.Field
		}
		if back != s {
			t.Errorf("%q was read as %q", s, back)
		}
	})
}

func FuzzDecodePSK(f *testing.F) {
	for _, s := range []string{"", "hex:", "base64:", "hex:00", "base64:AAAA", "long enough to be a key\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		before := string(text)
		s, err := cred.DecodePSK(ref, text)
		if err == nil && (s.Len() < cred.MinPSK || s.Len() > cred.MaxPSK) {
			t.Errorf("a key of %d octets was let through", s.Len())
		}
		if err != nil && !s.IsZero() {
			t.Error("a secret came with an error")
		}
		s.Wipe()
		if string(text) != before {
			t.Error("the text was changed")
		}
	})
}

func BenchmarkHit(b *testing.B) {
	s := newShelf()
	s.put(ref, "the key of a peer, thirty-two oct")
	c := newCache(s, cred.CacheOptions{})
	if _, err := c.PSK(b.Context(), ref); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.PSK(b.Context(), ref); err != nil {
			b.Fatal(err)
		}
	}
}
