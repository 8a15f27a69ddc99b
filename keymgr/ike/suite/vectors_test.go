package suite

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// readVectors returns the lines of a file in testdata as fields, without
// comments. It fails when there are fewer than least, so that a test cannot pass
// on an empty file.
func readVectors(t testing.TB, name string, least int) [][]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var out [][]string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) != 0 && f[0] != "#" {
			out = append(out, f)
		}
	}
	if len(out) < least {
		t.Fatalf("%s holds %d vectors, want at least %d", name, len(out), least)
	}
	return out
}

// unhex reads hexadecimal with spaces in it; "-" is empty.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	if s == "-" {
		return nil
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func secret(t testing.TB, s string) ipsec.Secret {
	t.Helper()
	return ipsec.NewSecret(unhex(t, s))
}

// transform finds a transform by its name; "-" is the zero Transform.
func transform(t testing.TB, name string) ipsec.Transform {
	t.Helper()
	if name == "-" {
		return ipsec.Transform{}
	}
	a, ok := ipsec.AlgorithmByName(name)
	if !ok {
		t.Fatalf("no algorithm named %q", name)
	}
	return a.Transform
}

func newPRF(t testing.TB, name string) PRF {
	t.Helper()
	p, err := NewPRF(transform(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return p
}
