package pki_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/services/internal/pki"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

func TestTheAuthorityIsMadeOnceAndKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if _, made, err := pki.Open(dir); err != nil || !made {
		t.Fatalf("got made %t, %v", made, err)
	}
	first, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if _, made, err := pki.Open(dir); err != nil || made {
		t.Fatalf("the second time: got made %t, %v", made, err)
	}
	// The key is kept elsewhere, as it should be: that is no reason for another
	// authority, which would make every certificate worthless.
	if err := os.Remove(filepath.Join(dir, "ca-key.pem")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pki.Open(dir); err == nil || !strings.Contains(err.Error(), "ca-key.pem") {
		t.Errorf("without the key: got %v", err)
	}
	if now, err := os.ReadFile(filepath.Join(dir, "ca.pem")); err != nil || string(now) != string(first) {
		t.Errorf("the authority was replaced (%v)", err)
	}
}

func TestKeysAreForTheirOwnerOnly(t *testing.T) {
	dir := t.TempDir()
	ca, _, err := pki.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "w-key.pem"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	want := rpc.Caller{Role: rpc.RoleWorker, Name: "web-1.eu"}
	if err := ca.Issue("w", want); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"ca-key.pem", "w-key.pem"} {
		st, err := os.Stat(filepath.Join(dir, f))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: got mode %v, %v, want 0600", f, st.Mode(), err)
		}
	}
	if got, err := rpc.CallerOfFile(filepath.Join(dir, "w.pem")); err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

// A name with '?' would make a certificate of the name before it.
func TestNamesThatWouldBeOthers(t *testing.T) {
	ca, _, err := pki.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []rpc.Caller{
		{Role: rpc.RoleWorker, Name: "web-1?x"}, {Role: rpc.RoleWorker, Name: "web-1#x"}, {Role: rpc.RoleWorker, Name: "web%2d1"},
		{Role: rpc.RoleWorker, Name: "../web-1"}, {Role: rpc.RoleWorker, Name: "a/b"}, {Role: rpc.RoleWorker}, {Role: rpc.RoleLocal, Name: "x"},
		{Role: "worker/web-1?", Name: "x"},
	} {
		if err := ca.Issue("x", c); err == nil {
			t.Errorf("a certificate was made for %q %q", c.Role, c.Name)
		}
	}
}
