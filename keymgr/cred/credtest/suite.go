// Package credtest is the conformance suite of cred.PSKs: every store passes it.
package credtest

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// Store is a store under test and the operator's hand on what it holds. Each
// change is in force when its method returns, caches included.
type Store interface {
	cred.PSKs
	// Ref is the reference of the secret called name.
	Ref(name string) string
	// Write puts text in force as the newest version. What was newest before is
	// in its overlap now; what was in its overlap is over.
	Write(t *testing.T, name, text string)
	// EndOverlap leaves only the newest version in force.
	EndOverlap(t *testing.T, name string)
	// Delete removes the secret.
	Delete(t *testing.T, name string)
	// Deny makes the secret unreadable for the key manager.
	Deny(t *testing.T, name string)
}

// The keys that the suite stores. Leak looks for every one of them.
const (
	first  = "first-key-4f1c9d0a77e24b5e"
	second = "second-key-b80de2419c3f5a66"
	third  = "third-key-0c55d1fe93b7428a"
	weak   = "weak-key-5e21"
)

// Run runs the suite; open makes an empty store for each test.
func Run(t *testing.T, open func(t *testing.T) Store) {
	tests := []struct {
		name string
		test func(*testing.T, Store)
	}{
		{"a secret is read", read},
		{"a secret that is not there is not found", notFound},
		{"a deleted secret is not found", deleted},
		{"a secret that comes back is read", recreated},
		{"a rotation offers two versions, newest first, and never three", rotation},
		{"text, hex and base64 with and without a newline", encodings},
		{"a short key is refused and the error says what to do", tooWeak},
		{"what cannot be decoded is invalid", undecodable},
		{"a secret that may not be read is denied", denied},
		{"bad references are invalid", badRefs},
		{"callers own what they get", ownership},
		{"a cancelled caller gets an error that says so", cancelled},
		{"many callers at once", concurrent},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			tt.test(t, s)
			Leak(t, s)
		})
	}
}

func read(t *testing.T, s Store) {
	s.Write(t, "web-db", first)
	want(t, s, "web-db", first)
	s.Write(t, "site/berlin.psk", second)
	want(t, s, "site/berlin.psk", second)
	want(t, s, "web-db", first)
}

func notFound(t *testing.T, s Store) {
	refused(t, s, s.Ref("nobody"), cred.NotFound, "")
}

func deleted(t *testing.T, s Store) {
	s.Write(t, "web-db", first)
	want(t, s, "web-db", first)
	s.Delete(t, "web-db")
	refused(t, s, s.Ref("web-db"), cred.NotFound, "")
}

func recreated(t *testing.T, s Store) {
	s.Write(t, "web-db", first)
	want(t, s, "web-db", first)
	s.Delete(t, "web-db")
	refused(t, s, s.Ref("web-db"), cred.NotFound, "")
	s.Write(t, "web-db", second)
	want(t, s, "web-db", second)
}

func rotation(t *testing.T, s Store) {
	s.Write(t, "web-db", first)
	want(t, s, "web-db", first)
	s.Write(t, "web-db", second)
	want(t, s, "web-db", second, first)
	s.Write(t, "web-db", third)
	want(t, s, "web-db", third, second)
	s.EndOverlap(t, "web-db")
	want(t, s, "web-db", third)
}

func encodings(t *testing.T, s Store) {
	hexed := "hex:" + hex.EncodeToString([]byte(first))
	based := "base64:" + base64.StdEncoding.EncodeToString([]byte(first))
	for i, tt := range []struct{ text, key string }{
		{first + "\n", first},
		{first + "\r\n", first},
		{first + "\n\n", first + "\n"}, // one newline, not all
		{" " + first + " ", " " + first + " "},
		{hexed, first},
		{"hex:" + strings.ToUpper(hexed[4:]) + "\n", first},
		{based + "\n", first},
		{"schlüssel mit umlaut €", "schlüssel mit umlaut €"},
		{"the prefix hex: leads, or is text", "the prefix hex: leads, or is text"},
		{strings.Repeat("k2", cred.MaxPSK/2), strings.Repeat("k2", cred.MaxPSK/2)},
	} {
		name := fmt.Sprintf("encoding-%d", i)
		s.Write(t, name, tt.text)
		want(t, s, name, tt.key)
	}
}

func tooWeak(t *testing.T, s Store) {
	for i, text := range []string{
		"",
		"\n",
		weak,
		strings.Repeat("w", cred.MinPSK-1) + "\n",
		"hex:" + hex.EncodeToString([]byte(weak)),
		strings.Repeat("a", 64),
		"hex:" + strings.Repeat("00", 32),
	} {
		name := fmt.Sprintf("weak-%d", i)
		s.Write(t, name, text)
		refused(t, s, s.Ref(name), cred.TooWeak, "openssl rand")
	}
	s.Write(t, "enough", weak+"4cb"+"\n") // MinPSK octets
	want(t, s, "enough", weak+"4cb")
}

func undecodable(t *testing.T, s Store) {
	for i, text := range []string{
		"hex:" + hex.EncodeToString([]byte(first)) + "0",
		"hex:0x" + hex.EncodeToString([]byte(first)),
		"base64:" + first + "!",
		strings.Repeat("k2", cred.MaxPSK/2) + "3",
		"hex:" + strings.Repeat("a1", cred.MaxPSK+1),
		strings.Repeat("long", 4*cred.MaxPSK),
	} {
		name := fmt.Sprintf("undecodable-%d", i)
		s.Write(t, name, text)
		refused(t, s, s.Ref(name), cred.Invalid, "")
	}
}

func denied(t *testing.T, s Store) {
	s.Write(t, "mine", first)
	s.Write(t, "theirs", second)
	s.Deny(t, "theirs")
	refused(t, s, s.Ref("theirs"), cred.Denied, "")
	want(t, s, "mine", first)
}

func badRefs(t *testing.T, s Store) {
	s.Write(t, "web-db", first)
	good := s.Ref("web-db")
	scheme, path, _ := strings.Cut(good, ":")
	dir, file := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, file = path[:i+1], path[i+1:]
	}
	for _, ref := range []string{
		"", ":", file, "http:" + path, strings.ToUpper(scheme) + ":" + path,
		scheme + ":", scheme + ":/" + path, scheme + "://" + path,
		scheme + ":" + dir + "../" + dir + file,
		scheme + ":" + dir + "./" + file,
		scheme + ":" + dir + "/" + file,
		scheme + ":" + path + "/",
		scheme + ":" + path + "/..",
		scheme + ":" + dir + "%2e%2e/" + file,
		scheme + ":" + path + "?version=1",
		scheme + ":" + path + "#",
		scheme + ":" + path + "#a/b",
		scheme + ":" + path + "\x00",
		scheme + ":" + path + "\n",
		scheme + ":" + dir + "web db",
		scheme + ":" + dir + strings.Repeat("x", 600),
	} {
		refused(t, s, ref, cred.Invalid, "")
	}
	// A secret written where its reference belongs is not repeated in the error.
	_, err := s.PSK(t.Context(), second)
	Leak(t, err)
	want(t, s, "web-db", first)
}

func ownership(t *testing.T, s Store) {
	s.Write(t, "web-db", first)
	got, err := s.PSK(t.Context(), s.Ref("web-db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range got {
		secret.Wipe()
	}
	want(t, s, "web-db", first)
}

func cancelled(t *testing.T, s Store) {
	s.Write(t, "web-db", first)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.PSK(ctx, s.Ref("web-db"))
	if !errors.Is(err, context.Canceled) || !errors.Is(err, cred.Unavailable) {
		t.Fatalf("PSK with a cancelled context: got %v, want Unavailable and context.Canceled", err)
	}
	want(t, s, "web-db", first)
}

func concurrent(t *testing.T, s Store) {
	s.Write(t, "a", first)
	s.Write(t, "b", second)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			switch i % 3 {
			case 0:
				want(t, s, "a", first)
			case 1:
				want(t, s, "b", second)
			case 2:
				refused(t, s, s.Ref("c"), cred.NotFound, "")
			}
		})
	}
	wg.Wait()
}

// want checks that name stands for exactly these keys, in this order.
func want(t *testing.T, s Store, name string, keys ...string) {
	t.Helper()
	got, err := s.PSK(t.Context(), s.Ref(name))
	if err != nil {
		t.Errorf("PSK(%s): got error %v, want %d secrets", s.Ref(name), err, len(keys))
		return
	}
	if len(got) != len(keys) {
		t.Errorf("PSK(%s): got %d secrets, want %d", s.Ref(name), len(got), len(keys))
		return
	}
	for i := range keys {
		if !got[i].Equal(ipsec.CopySecret([]byte(keys[i]))) {
			t.Errorf("PSK(%s): secret %d is not the one expected", s.Ref(name), i)
		}
	}
}

// refused checks the kind of the error, its reference and its advice.
func refused(t *testing.T, s Store, ref string, kind cred.Kind, advice string) {
	t.Helper()
	got, err := s.PSK(t.Context(), ref)
	if err == nil {
		t.Errorf("PSK(%q): got %d secrets, want the error %q", ref, len(got), kind)
		return
	}
	if cred.KindOf(err) != kind || !errors.Is(err, kind) {
		t.Errorf("PSK(%q): got %v, want the kind %q", ref, err, kind)
	}
	if !strings.Contains(err.Error(), advice) {
		t.Errorf("PSK(%q): the error %q does not say %q", ref, err, advice)
	}
	Leak(t, err)
}
