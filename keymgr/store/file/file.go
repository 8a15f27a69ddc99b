package file

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/store"
)

// MinKey is the least number of octets of a store's key.
const MinKey = 16

// Options of a store.
type Options struct {
	Dir string // is made, for this user only
	// Keys that it may be sealed with. It is written with the first; the others are
	// for the time after a rotation. The store keeps copies.
	Keys []ipsec.Secret
	Log  *slog.Logger // nil: none
}

// Store is an open store. It is safe for concurrent use.
type Store struct {
	dir  string
	keys [][]byte
	boot boot
	log  *slog.Logger
	lock *os.File

	mu     sync.Mutex
	closed bool
	active *writer // nil after an error: the next Commit begins a new file
	last   uint64  // number of the last file
	files  []segment
	index  map[string]ref
	live   int64 // octets of records in the index
	all    int64 // octets of records in the files
	busy   bool  // a base is being written
	rest   time.Time
	group  sync.WaitGroup
	plain  []byte
}

// ref is where a record is.
type ref struct {
	seg   segment
	frame uint32
	size  uint32
}

// Open opens the store in a folder, or makes one. A folder is one process's.
func Open(o Options) (*Store, error) {
	if len(o.Keys) == 0 || o.Keys[0].Len() < MinKey {
		return nil, fmt.Errorf("store %s: want a key of at least %d octets", o.Dir, MinKey)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := syncPath(filepath.Dir(o.Dir)); err != nil {
		return nil, fmt.Errorf("store %s: %w", o.Dir, err)
	}
	b, err := thisBoot()
	if err != nil {
		return nil, fmt.Errorf("store %s: it must be known whether the machine was booted since: %w", o.Dir, err)
	}
	return openIn(b, o)
}

func openIn(b boot, o Options) (*Store, error) {
	s := &Store{dir: o.Dir, boot: b, log: o.Log, index: make(map[string]ref)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, k := range o.Keys {
		s.keys = append(s.keys, slices.Clone(k.Reveal()))
	}
	if err := s.open(); err != nil {
		s.wipe()
		if s.lock != nil {
			_ = s.lock.Close()
		}
		return nil, fmt.Errorf("store %s: %w", o.Dir, err)
	}
	return s, nil
}

func (s *Store) open() error {
	var err error
	if s.lock, err = os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if err := syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("another process uses it: %w", err)
	}
	if s.files, err = list(s.dir); err != nil {
		return err
	}
	var last content // of the last file with a header
	for _, f := range s.files {
		s.last = f.number
		path := filepath.Join(s.dir, f.name())
		c, err := read(path, f, s.keys, func(frame uint32, k, v []byte) error {
			s.put(string(k), v, ref{f, frame, 0})
			return nil
		})
		if c.whole != 0 {
			last = c
		}
		if errors.Is(err, store.ErrDamaged) && s.lost(c) {
			return store.ErrLost // which is why
		}
		if err != nil {
			return err
		}
		if err := os.Truncate(path, c.whole); err != nil {
			return err
		}
	}
	if s.lost(last) {
		return store.ErrLost
	}
	if len(s.files) > 0 {
		s.startCompaction()
	}
	return nil
}

// lost reports a last file that a boot since may have taken batches from.
func (s *Store) lost(last content) bool {
	return last.whole != 0 && last.boot != s.boot && !last.closed
}

// list finds the files that count, oldest first, and removes the others: what a base
// made superfluous, and a base that was not finished.
func list(dir string) ([]segment, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var logs, bases []segment
	for _, e := range names {
		var n uint64
		var s segment
		if _, err := fmt.Sscanf(e.Name(), "%d.", &n); err == nil {
			for _, base := range []bool{false, true} {
				if s = (segment{n, base}); s.name() == e.Name() {
					if base {
						bases = append(bases, s)
					} else {
						logs = append(logs, s)
					}
				}
			}
		}
		if filepath.Ext(e.Name()) == ".new" {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
		}
	}
	byNumber := func(a, b segment) int { return int(int64(a.number) - int64(b.number)) } //nolint:gosec // small numbers
	slices.SortFunc(logs, byNumber)
	slices.SortFunc(bases, byNumber)
	var out []segment
	first := uint64(0)
	if len(bases) > 0 {
		out = bases[len(bases)-1:]
		first = out[0].number + 1
		for _, b := range bases[:len(bases)-1] {
			if err := os.Remove(filepath.Join(dir, b.name())); err != nil {
				return nil, err
			}
		}
	} else if len(logs) > 0 {
		first = logs[0].number
		if first != 1 {
			return nil, fmt.Errorf("%w: log %d is there, and nothing before it", store.ErrDamaged, first)
		}
	}
	for _, l := range logs {
		if l.number < first {
			if err := os.Remove(filepath.Join(dir, l.name())); err != nil {
				return nil, err
			}
			continue
		}
		if l.number != first {
			return nil, fmt.Errorf("%w: log %d is missing", store.ErrDamaged, first)
		}
		first++
		out = append(out, l)
	}
	return out, nil
}

// put brings the index up to date.
func (s *Store) put(k string, v []byte, at ref) {
	if old, ok := s.index[k]; ok {
		s.live -= int64(old.size)
		delete(s.index, k)
	}
	if v == nil {
		s.all += int64(len(k))
		return
	}
	at.size = uint32(len(k) + len(v)) //nolint:gosec // bounded by store.Check
	s.index[k] = at
	s.live += int64(at.size)
	s.all += int64(at.size)
}

// Load calls fn with each record, in no order. fn may keep value.
func (s *Store) Load(fn func(key string, value []byte) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.ErrClosed
	}
	for _, f := range s.files {
		_, err := read(filepath.Join(s.dir, f.name()), f, s.keys, func(frame uint32, k, v []byte) error {
			if at, ok := s.index[string(k)]; !ok || at.seg != f || at.frame != frame || v == nil {
				return nil
			}
			return fn(string(k), append([]byte{}, v...))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Commit hands a batch to the kernel, which keeps it if the process dies. After an
// error nothing of it is in force, and it may be tried again.
func (s *Store) Commit(batch []store.Change) error {
	if err := store.Check(batch); err != nil {
		return err
	}
	if len(batch) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.ErrClosed
	}
	if s.active == nil {
		if err := s.rotate(); err != nil {
			return fmt.Errorf("store %s: %w", s.dir, err)
		}
	}
	w := s.active
	s.plain = s.plain[:0]
	for _, c := range batch {
		s.plain = appendChange(s.plain, c)
	}
	whole, frame := w.size, w.frames
	if err := w.frame(s.plain); err != nil {
		// What part of it was written is not known: the frame goes, and no other takes
		// its number.
		s.active = nil
		err = errors.Join(err, w.f.Truncate(whole), w.f.Close())
		return fmt.Errorf("store %s: %w", s.dir, err)
	}
	for _, c := range batch {
		s.put(c.Key, c.Value, ref{w.seg, frame, 0})
	}
	if cap(s.plain) > 1<<20 {
		s.plain = nil
	}
	if dead := s.all - s.live; dead > max(s.live, 8<<20) && time.Now().After(s.rest) || w.frames > 1<<30 {
		s.startCompaction()
	}
	return nil
}

// rotate begins a new log, which is on the disk before anything is written to it: else
// the log before it could be taken for the last one.
func (s *Store) rotate() error {
	seg := segment{number: s.last + 1}
	w, err := create(filepath.Join(s.dir, seg.name()), seg, s.boot, s.keys[0])
	if err != nil {
		return err
	}
	if err := syncPath(s.dir); err != nil {
		_ = w.f.Close()
		return errors.Join(err, os.Remove(filepath.Join(s.dir, seg.name())))
	}
	if s.active != nil {
		_ = s.active.f.Close()
	}
	s.active, s.last = w, seg.number
	s.files = append(s.files, seg)
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(fsync(f), f.Close())
}

// startCompaction writes a new base in the background, of all files but the one that
// it begins for the batches that come meanwhile. The caller holds mu.
func (s *Store) startCompaction() {
	if s.busy {
		return
	}
	if err := s.rotate(); err != nil {
		s.rest = time.Now().Add(time.Minute)
		s.log.Warn("the store cannot be compacted now", "dir", s.dir, "error", err)
		return
	}
	s.busy = true
	old := slices.Clone(s.files[:len(s.files)-1])
	s.group.Go(func() {
		err := s.compact(old)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.busy = false
		if err != nil && !s.closed {
			s.rest = time.Now().Add(time.Minute)
			s.log.Warn("the store could not be compacted", "dir", s.dir, "error", err)
		}
	})
}

const baseFrame = 1 << 20

func (s *Store) compact(old []segment) (err error) {
	base := segment{number: old[len(old)-1].number, base: true}
	path := filepath.Join(s.dir, base.name())
	w, err := create(path+".new", base, s.boot, s.keys[0])
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(path + ".new")
		}
	}()
	type moved struct {
		key      string
		from, to ref
	}
	var all []moved
	var plain []byte
	for _, f := range old {
		_, err := read(filepath.Join(s.dir, f.name()), f, s.keys, func(frame uint32, k, v []byte) error {
			s.mu.Lock()
			at, ok := s.index[string(k)]
			closed := s.closed
			s.mu.Unlock()
			switch {
			case closed:
				return store.ErrClosed
			case !ok || at.seg != f || at.frame != frame || v == nil:
				return nil
			}
			plain = appendChange(plain, store.Change{Key: string(k), Value: v})
			all = append(all, moved{string(k), at, ref{base, w.frames, at.size}})
			if len(plain) < baseFrame {
				return nil
			}
			err := w.frame(plain)
			plain = plain[:0]
			return err
		})
		if err != nil {
			return errors.Join(err, w.f.Close())
		}
	}
	if len(plain) != 0 {
		err = w.frame(plain)
	}
	if err = errors.Join(err, fsync(w.f), w.f.Close()); err != nil {
		return err
	}
	if err = os.Rename(path+".new", path); err != nil {
		return err
	}
	if err = syncPath(s.dir); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var size int64
	for _, m := range all {
		if s.index[m.key] == m.from {
			s.index[m.key] = m.to
		}
		size += int64(m.to.size)
	}
	s.all = s.live
	s.files = append([]segment{base}, slices.DeleteFunc(s.files, func(f segment) bool { return slices.Contains(old, f) })...)
	for _, f := range old {
		if err := os.Remove(filepath.Join(s.dir, f.name())); err != nil {
			return err
		}
	}
	s.log.Debug("store compacted", "dir", s.dir, "records", len(all), "octets", size)
	return nil
}

// Close ends the use of the store. All of it is on the disk then, and it says so: it
// can be gone on with after a boot.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.group.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.end()
	s.wipe()
	return errors.Join(err, s.lock.Close())
}

// end writes the mark of a store that was closed, behind all else.
func (s *Store) end() error {
	if len(s.files) == 0 {
		return nil
	}
	if s.active == nil {
		if err := s.rotate(); err != nil {
			return err
		}
	}
	w := s.active
	defer w.f.Close()
	for _, f := range s.files {
		if err := syncPath(filepath.Join(s.dir, f.name())); err != nil {
			return err
		}
	}
	if err := w.frame(nil); err != nil {
		return err
	}
	return fsync(w.f)
}

func (s *Store) wipe() {
	for _, k := range s.keys {
		clear(k)
	}
	clear(s.plain[:cap(s.plain)])
}

// SetAside moves the folder of a store that cannot be used to a place beside it, and
// removes what was set aside before. It is one step: of a part of the files, an older
// state could be read.
func SetAside(dir string) (to string, err error) {
	to = filepath.Clean(dir) + ".set-aside"
	if err := os.RemoveAll(to); err != nil {
		return "", err
	}
	if err := os.Rename(dir, to); err != nil {
		return "", err
	}
	return to, syncPath(filepath.Dir(to))
}
