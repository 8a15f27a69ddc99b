package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// binDirVar names a folder of programs that are up to date, as `make build` leaves it.
const binDirVar = "TESTUDO_BIN"

var building sync.Mutex

// Binary is the path of one of our programs, such as "workerd". Outside of make,
// which says by TESTUDO_BIN where it put them, the program is built first, so that a
// test never runs a stale one.
func Binary(t testing.TB, name string) string {
	t.Helper()
	if dir := os.Getenv(binDirVar); dir != "" {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("lab: %v; `make build` puts it there", err)
		}
		return path
	}
	root := repository(t)
	path := filepath.Join(root, "out", "bin", name)
	building.Lock()
	defer building.Unlock()
	build := exec.Command("go", "build", "-trimpath", "-o", path, "./services/cmd/"+name)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("lab: build %s: %v\n%s", name, err, out)
	}
	return path
}

// repository is the folder that holds go.work.
func repository(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal("lab:", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("lab: no go.work above the working directory; run the test inside the repository")
		}
		dir = filepath.Dir(dir)
	}
}
