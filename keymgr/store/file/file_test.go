package file

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/store"
	"github.com/testudo-ipsec/testudo/keymgr/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func secret(b byte) ipsec.Secret { return ipsec.NewSecret(bytes.Repeat([]byte{b}, 32)) }

func opened(t *testing.T, dir string, keys ...ipsec.Secret) *Store {
	t.Helper()
	if keys == nil {
		keys = []ipsec.Secret{secret(1)}
	}
	s, err := Open(Options{Dir: dir, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// kill leaves the store as a process that died would: nothing is flushed or closed
// in order, only the kernel lets go of the lock.
func kill(s *Store) {
	s.group.Wait()
	_ = s.lock.Close()
	if s.active != nil {
		_ = s.active.f.Close()
	}
}

func TestStore(t *testing.T) {
	dirs := make(map[string]string)
	storetest.Run(t, func(t *testing.T, killed storetest.Store) storetest.Store {
		if dirs[t.Name()] == "" {
			dirs[t.Name()] = t.TempDir()
		}
		if killed != nil {
			kill(killed.(*Store))
		}
		return opened(t, dirs[t.Name()])
	})
}

func put(k, v string) []store.Change { return []store.Change{{Key: k, Value: []byte(v)}} }

func commit(t *testing.T, s *Store, batch []store.Change) {
	t.Helper()
	if err := s.Commit(batch); err != nil {
		t.Fatal(err)
	}
}

// filled is a folder with one log of n frames, and where the frames end.
func filled(t *testing.T, n int) (dir string, ends []int64) {
	dir = t.TempDir()
	s := opened(t, dir)
	for i := range n {
		commit(t, s, put(fmt.Sprint("k", i), "secret value"))
		ends = append(ends, s.active.size)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, ends
}

func logFile(t *testing.T, dir string) string {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	if len(names) != 1 {
		t.Fatalf("logs: %v, want one", names)
	}
	return names[0]
}

func clone(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// Wherever the process's end cuts the last write off, what was acknowledged before is
// there.
func TestTornWrite(t *testing.T) {
	dir, ends := filled(t, 3)
	whole, err := os.ReadFile(logFile(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	for cut := ends[1]; cut < ends[2]; cut++ {
		to := clone(t, dir)
		if err := os.WriteFile(logFile(t, to), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Options{Dir: to, Keys: []ipsec.Secret{secret(1)}})
		if err != nil {
			t.Fatalf("cut at %d of %d: %v", cut, ends[2], err)
		}
		if got := storetest.All(t, s); len(got) != 2 {
			t.Fatalf("cut at %d: records %v, want the first two", cut, got)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// bootedIn opens the store in a boot of the machine.
func bootedIn(n byte, dir string) (*Store, error) {
	return openIn(boot{n}, Options{Dir: dir, Keys: []ipsec.Secret{secret(1)}})
}

// What a crash of the machine may have taken is not known, so what is left of the
// state is not believed; a store that was closed is.
func TestBoot(t *testing.T) {
	dir := t.TempDir()
	open := func(n byte, records int) *Store {
		t.Helper()
		s, err := bootedIn(n, dir)
		if err != nil {
			t.Fatalf("boot %d: %v", n, err)
		}
		if got := storetest.All(t, s); len(got) != records {
			t.Fatalf("boot %d: records %v, want %d", n, got, records)
		}
		return s
	}
	lost := func(n byte, dir, what string) {
		t.Helper()
		if s, err := bootedIn(n, dir); !errors.Is(err, store.ErrLost) {
			t.Fatalf("%s: got %v and %v, want ErrLost", what, s, err)
		}
	}
	kill(open(1, 0)) // nothing was written
	s := open(2, 0)
	commit(t, s, put("a", "1"))
	kill(s)
	s = open(2, 1) // the process died, not the machine
	commit(t, s, put("b", "2"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(3, 2) // it was closed
	s.group.Wait() // a base of boot 3, and a log without batches
	kill(s)
	lost(4, dir, "a log without batches, which may have had some")
	s = open(3, 2)
	commit(t, s, put("c", "3"))
	s.group.Wait()
	kill(s)
	lost(4, dir, "a log with a batch")

	name := logFile(t, dir)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, left := range [][]byte{whole[:headerLen], whole[:len(whole)-1], append(bytes.Clone(whole), make([]byte, 100)...), append(bytes.Clone(whole[:headerLen]), make([]byte, 100)...)} {
		to := clone(t, dir)
		if err := os.WriteFile(filepath.Join(to, filepath.Base(name)), left, 0o600); err != nil {
			t.Fatal(err)
		}
		lost(4, to, fmt.Sprintf("a log with %d of %d octets", len(left), len(whole)))
	}
	was, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	to, err := SetAside(dir)
	if err != nil {
		t.Fatal(err)
	}
	// Whoever moves files one by one may be stopped when the log is away and the base is not.
	if is, err := os.Stat(to); err != nil || !os.SameFile(was, is) {
		t.Errorf("%s is not the folder that was set aside, %v", to, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	kill(open(4, 0))
}

// A batch within the bounds can be read again, of however small records it is.
func TestSmallRecords(t *testing.T) {
	dir := t.TempDir()
	s := opened(t, dir)
	commit(t, s, put("k", "v"))
	commit(t, s, slices.Repeat([]store.Change{{Key: "12345678"}}, store.MaxBatch/8)) // removals
	kill(s)
	if got := storetest.All(t, opened(t, dir)); len(got) != 1 {
		t.Fatalf("records %v, want one", got)
	}
}

// A new log that the machine's crash left without its header had no batches, so the one
// that was closed before it counts.
func TestBootWithoutHeader(t *testing.T) {
	dir, _ := filled(t, 2)
	if err := os.WriteFile(filepath.Join(dir, "00000002.log"), []byte(magic), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := bootedIn(9, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := storetest.All(t, s); len(got) != 2 {
		t.Fatalf("records %v, want two", got)
	}
}

// Logs that were left for another are on the disk too, before it is said that all is.
func TestClosedWithSeveralLogs(t *testing.T) {
	dir := t.TempDir()
	s, err := bootedIn(1, dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		commit(t, s, put(fmt.Sprint(i), "v"))
		_ = s.active.f.Close() // stands for a full or broken disk
		if err := s.Commit(put("x", "2")); err == nil {
			t.Fatal("a write to a closed file succeeded")
		}
	}
	if err := s.Close(); err != nil { // in a fourth log
		t.Fatal(err)
	}
	if s, err = bootedIn(2, dir); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := storetest.All(t, s); len(got) != 3 {
		t.Fatalf("records %v, want three", got)
	}
}

// A bit that flips in what was acknowledged is noticed, in whatever octet.
func TestDamage(t *testing.T) {
	dir, ends := filled(t, 3)
	whole, err := os.ReadFile(logFile(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	for at := range ends[1] {
		to := clone(t, dir)
		b := bytes.Clone(whole)
		b[at] ^= 0x10
		if err := os.WriteFile(logFile(t, to), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Options{Dir: to, Keys: []ipsec.Secret{secret(1)}})
		if !errors.Is(err, store.ErrDamaged) && !errors.Is(err, store.ErrWrongKey) {
			t.Fatalf("octet %d: got %v and %v, want a refusal", at, s, err)
		}
		if s != nil {
			t.Fatal("a store and an error")
		}
		if at == ends[0]+20 {
			if _, err := SetAside(to); err != nil {
				t.Fatal(err)
			}
			s := opened(t, to)
			if got := storetest.All(t, s); len(got) != 0 {
				t.Fatalf("records %v after the damaged files were set aside", got)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestMissingFile(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		s := opened(t, dir)
		commit(t, s, put(fmt.Sprint(i), "v"))
		s.group.Wait()
		commit(t, s, put(fmt.Sprint(i), "w"))
		s.mu.Lock()
		err := s.rotate()
		s.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		commit(t, s, put("more", "v"))
		_ = s.Close()
	}
	names, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	if len(names) < 2 {
		t.Fatalf("logs %v, want two or more", names)
	}
	for _, gone := range names[:len(names)-1] {
		to := clone(t, dir)
		if err := os.Remove(filepath.Join(to, filepath.Base(gone))); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Options{Dir: to, Keys: []ipsec.Secret{secret(1)}}); !errors.Is(err, store.ErrDamaged) {
			t.Errorf("without %s: %v, want ErrDamaged", gone, err)
		}
	}
}

func TestKeys(t *testing.T) {
	dir, _ := filled(t, 1)
	if _, err := Open(Options{Dir: dir, Keys: []ipsec.Secret{secret(2)}}); !errors.Is(err, store.ErrWrongKey) {
		t.Fatalf("another key: %v, want ErrWrongKey", err)
	}
	if _, err := Open(Options{Dir: dir, Keys: []ipsec.Secret{ipsec.NewSecret([]byte("short"))}}); err == nil {
		t.Fatal("a key of five octets was taken")
	}
	s := opened(t, dir, secret(2), secret(1)) // rotated
	s.group.Wait()
	_ = s.Close()
	s = opened(t, dir, secret(2)) // all of it is under the new one by now
	if got := storetest.All(t, s); got["k0"] != "secret value" {
		t.Fatalf("records %v after the key was rotated", got)
	}
}

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	opened(t, dir)
	if _, err := Open(Options{Dir: dir, Keys: []ipsec.Secret{secret(1)}}); err == nil {
		t.Fatal("a folder was opened twice")
	}
}

func TestNothingInTheClear(t *testing.T) {
	dir, _ := filled(t, 3)
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("secret")) || bytes.Contains(b, []byte("k1")) {
			t.Errorf("%s holds a record in the clear", n)
		}
		if info, _ := os.Stat(n); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %s, want 0600", n, info.Mode())
		}
	}
}

// A write that fails is taken back as a whole, and the next one does not take its
// place under the same nonce: it is in another file.
func TestFailedWrite(t *testing.T) {
	dir := t.TempDir()
	s := opened(t, dir)
	commit(t, s, put("a", "1"))
	first := s.active.seg
	_ = s.active.f.Close() // stands for a full or broken disk
	if err := s.Commit(put("a", "2")); err == nil {
		t.Fatal("a write to a closed file succeeded")
	}
	if got := storetest.All(t, s); got["a"] != "1" {
		t.Fatalf("records %v after a failed write", got)
	}
	commit(t, s, put("a", "3"))
	if s.active.seg == first {
		t.Error("the log is gone on with after an error")
	}
	kill(s)
	if got := storetest.All(t, opened(t, dir)); got["a"] != "3" {
		t.Fatalf("records %v", got)
	}
}

// What is out of date is cleared away, while batches come.
func TestCompaction(t *testing.T) {
	dir := t.TempDir()
	s := opened(t, dir)
	value := string(bytes.Repeat([]byte{'v'}, 64<<10))
	for i := range 2000 {
		commit(t, s, put(fmt.Sprint(i%7), value+fmt.Sprint(i)))
	}
	s.group.Wait()
	var size int64
	names, _ := filepath.Glob(filepath.Join(dir, "*.*"))
	for _, n := range names {
		info, err := os.Stat(n)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > 32<<20 {
		t.Errorf("%d octets on disk for 7 records of 64 KiB, in %v", size, names)
	}
	kill(s)
	got := storetest.All(t, opened(t, dir))
	for i := 1993; i < 2000; i++ {
		if got[fmt.Sprint(i%7)] != value+fmt.Sprint(i) {
			t.Errorf("record %d is not the last one written", i%7)
		}
	}
}

// Whatever is in a file, opening it ends in an error or a store. The seeds are a log
// that was closed and one that was not, in their boot and in another.
func FuzzOpen(f *testing.F) {
	for _, end := range []func(*Store){func(s *Store) { _ = s.Close() }, kill} {
		dir := f.TempDir()
		s, err := bootedIn(1, dir)
		if err != nil {
			f.Fatal(err)
		}
		_ = s.Commit(put("k", "v"))
		_ = s.Commit(put("k", "w"))
		end(s)
		b, err := os.ReadFile(filepath.Join(dir, "00000001.log"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, byte(1))
		f.Add(b, byte(2))
	}
	f.Fuzz(func(t *testing.T, b []byte, boot byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "00000001.log"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := bootedIn(boot, dir)
		if err == nil {
			if err := s.Commit(put("x", "y")); err != nil {
				t.Fatal(err)
			}
			_ = s.Close()
		}
	})
}

// Batches of 1, 16 and 256 records as the engine writes them: about 1 KiB each.
func BenchmarkCommit(b *testing.B) {
	for _, n := range []int{1, 16, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, err := Open(Options{Dir: b.TempDir(), Keys: []ipsec.Secret{secret(1)}})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			batch := make([]store.Change, n)
			for i := range batch {
				batch[i] = store.Change{Key: fmt.Sprint(i), Value: make([]byte, 1000)}
			}
			start := time.Now()
			for b.Loop() {
				if err := s.Commit(batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/time.Since(start).Seconds(), "records/s")
		})
	}
}
