// Package deploy checks what an operator copies: the configurations and units in
// deploy, the examples in docs, and the walk through docs/getting-started.md.
package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// root is the repository, seen from this folder.
const root = "../.."

// Without root the tests run in namespaces of their own, where they are root.
func TestMain(m *testing.M) { lab.Main(m) }

// run runs a program to its end and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return string(out)
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil || len(found) == 0 {
		t.Fatalf("%s: found %q, %v; want at least one file", pattern, found, err)
	}
	return found
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
