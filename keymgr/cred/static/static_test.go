package static_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/cred/credtest"
	"github.com/testudo-ipsec/testudo/keymgr/cred/static"
)

// folder is an operator with a shell in the folder of secrets.
type folder struct {
	*static.Store
	dir string
}

func open(t *testing.T) folder {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := static.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return folder{s, dir}
}

func (f folder) Ref(name string) string  { return "file:" + name }
func (f folder) path(name string) string { return filepath.Join(f.dir, name) }

func (f folder) Write(t *testing.T, name, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(f.path(name)), 0o700))
	if old, err := os.ReadFile(f.path(name)); err == nil {
		must(t, os.WriteFile(f.path(name)+static.Previous, old, 0o600))
	}
	must(t, os.WriteFile(f.path(name)+".new", []byte(text), 0o600))
	must(t, os.Rename(f.path(name)+".new", f.path(name)))
}

func (f folder) EndOverlap(t *testing.T, name string) {
	t.Helper()
	must(t, os.Remove(f.path(name)+static.Previous))
}

func (f folder) Delete(t *testing.T, name string) {
	t.Helper()
	must(t, os.Remove(f.path(name)))
}

func (f folder) Deny(t *testing.T, name string) {
	t.Helper()
	must(t, os.Chmod(f.path(name), 0o640)) // a file that others may read is one that we must not
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	credtest.Run(t, func(t *testing.T) credtest.Store { return open(t) })
}

const key = "a-key-of-more-than-sixteen-octets"

func TestModesThatLetOthersInAreDenied(t *testing.T) {
	f := open(t)
	f.Write(t, "web-db.psk", key)
	for mode, want := range map[os.FileMode]cred.Kind{
		0o600: "", 0o400: "", 0o700: "",
		0o640: cred.Denied, 0o604: cred.Denied, 0o660: cred.Denied, 0o666: cred.Denied, 0o610: cred.Denied, 0o601: cred.Denied,
	} {
		must(t, os.Chmod(f.path("web-db.psk"), mode))
		_, err := f.PSK(t.Context(), "file:web-db.psk")
		if want == "" && err != nil || want != "" && cred.KindOf(err) != want {
			t.Errorf("mode %04o: got %v, want %q", mode, err, want)
		}
		if want != "" && !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %04o: the error %q does not say what to do", mode, err)
		}
	}
}

func TestAFolderThatOthersMayWriteIsRefused(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o770))
	if _, err := static.Open(dir); err == nil || !strings.Contains(err.Error(), "chmod go-w") {
		t.Errorf("Open of a folder with mode 0770: got %v, want a refusal that says chmod go-w", err)
	}
	if _, err := static.Open(filepath.Join(dir, "nothing")); err == nil {
		t.Error("Open of a folder that is not there succeeded")
	}
}

func TestLinksStayInside(t *testing.T) {
	f := open(t)
	outside := filepath.Join(t.TempDir(), "outside.psk")
	must(t, os.WriteFile(outside, []byte(key), 0o600))
	must(t, os.Symlink(outside, f.path("absolute")))
	rel, err := filepath.Rel(f.dir, outside)
	must(t, err)
	must(t, os.Symlink(rel, f.path("relative")))
	must(t, os.Symlink(filepath.Dir(outside), f.path("folder")))
	must(t, os.Symlink("loop", f.path("loop")))
	for _, ref := range []string{"file:absolute", "file:relative", "file:folder/outside.psk", "file:loop"} {
		if _, err := f.PSK(t.Context(), ref); cred.KindOf(err) != cred.Invalid {
			t.Errorf("PSK(%s): got %v, want Invalid", ref, err)
		}
	}

	// As Kubernetes mounts a secret: name -> ..data/name, ..data -> ..2026_01_01.
	must(t, os.Mkdir(f.path("..2026_01_01"), 0o700))
	must(t, os.WriteFile(f.path("..2026_01_01/web-db.psk"), []byte(key), 0o400))
	must(t, os.Symlink("..2026_01_01", f.path("..data")))
	must(t, os.Symlink("..data/web-db.psk", f.path("web-db.psk")))
	if _, err := f.PSK(t.Context(), "file:web-db.psk"); err != nil {
		t.Errorf("a link inside the folder: %v", err)
	}
}

func TestWhatIsNoRegularFileIsInvalid(t *testing.T) {
	f := open(t)
	must(t, os.Mkdir(f.path("folder"), 0o700))
	must(t, syscall.Mkfifo(f.path("fifo"), 0o600)) // nobody writes: a blocking open would hang
	for _, ref := range []string{"file:folder", "file:fifo"} {
		if _, err := f.PSK(t.Context(), ref); cred.KindOf(err) != cred.Invalid {
			t.Errorf("PSK(%s): got %v, want Invalid", ref, err)
		}
	}
}

func TestABadPreviousKeyIsNotPassedOver(t *testing.T) {
	f := open(t)
	f.Write(t, "web-db.psk", key)
	must(t, os.WriteFile(f.path("web-db.psk.previous"), []byte("short"), 0o600))
	if _, err := f.PSK(t.Context(), "file:web-db.psk"); cred.KindOf(err) != cred.TooWeak {
		t.Errorf("got %v, want TooWeak", err)
	}
}

func TestAFolderWhereAFileShouldBe(t *testing.T) {
	f := open(t)
	f.Write(t, "web-db.psk", key)
	if _, err := f.PSK(t.Context(), "file:web-db.psk/more"); cred.KindOf(err) != cred.Invalid {
		t.Errorf("got %v, want Invalid", err)
	}
}

func BenchmarkPSK(b *testing.B) {
	dir := b.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o700), os.WriteFile(filepath.Join(dir, "web-db.psk"), []byte(key), 0o600)); err != nil {
		b.Fatal(err)
	}
	s, err := static.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.PSK(b.Context(), "file:web-db.psk"); err != nil {
			b.Fatal(err)
		}
	}
}
