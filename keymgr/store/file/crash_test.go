package file

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/store"
	"github.com/testudo-ipsec/testudo/keymgr/store/storetest"
)

// disk is a folder and what of it is on the disk for sure: of each file what it held
// when it was synced last, and the names that were there when the folder was.
type disk struct {
	t       *testing.T
	rand    *rand.Rand
	dir     string
	boot    byte
	mu      sync.Mutex // a compaction syncs beside Commit
	names   map[string]*inode
	inodes  []*inode
	history []map[string]string // the records after each batch
	acked   atomic.Int32        // batches that Commit returned from
	closed  bool                // in order: all must be believed
	next    string              // an image that a crash may leave, to go on with

	killed, believed, refused int
}

type inode struct {
	info   os.FileInfo
	file   *os.File // reads what there is, removed or not
	synced []byte
}

func (d *disk) inode(path string) *inode {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		d.t.Fatal(err)
	}
	for _, n := range d.inodes {
		if os.SameFile(n.info, info) {
			_ = f.Close()
			return n
		}
	}
	n := &inode{info: info, file: f}
	d.inodes = append(d.inodes, n)
	return n
}

func (n *inode) content() []byte {
	b, _ := io.ReadAll(io.NewSectionReader(n.file, 0, 1<<30))
	return b
}

func (d *disk) list() map[string]*inode {
	names, err := os.ReadDir(d.dir)
	if err != nil {
		d.t.Fatal(err)
	}
	out := make(map[string]*inode)
	for _, e := range names {
		n := d.inode(filepath.Join(d.dir, e.Name()))
		if n == nil {
			return d.list() // it was removed or renamed meanwhile
		}
		out[e.Name()] = n
	}
	return out
}

// fsync stands for the real one: just before and just after it, the machine or the
// process may go down.
func (d *disk) fsync(f *os.File) error {
	if f.Name() != d.dir && filepath.Dir(f.Name()) != d.dir {
		return nil // of an image
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crash()
	if f.Name() == d.dir {
		d.names = d.list()
	} else {
		n := d.inode(f.Name())
		n.synced = n.content()
	}
	d.crash()
	return nil
}

// left is what a crash of the machine may leave of a file.
func (d *disk) left(n *inode) []byte {
	now := n.content()
	if !bytes.HasPrefix(now, n.synced) { // it was cut
		return [][]byte{now, n.synced}[d.rand.IntN(2)]
	}
	tail := now[len(n.synced):]
	keep := d.rand.IntN(len(tail) + 1)
	switch d.rand.IntN(4) {
	case 0:
		return n.synced
	case 1:
		return now[:len(n.synced)+keep]
	case 2: // the size was written, the content not, from a sector on
		keep = (len(n.synced)+keep)&^511 - len(n.synced)
		clear(tail[max(keep, 0):])
	}
	return now
}

// crash checks what is believed if the process dies now, and if the machine does.
func (d *disk) crash() {
	least := int(d.acked.Load())
	cached := d.list()
	d.killed++
	d.check("killed", d.image(cached, (*inode).content), d.boot, least)
	all := maps.Clone(cached)
	maps.Copy(all, d.names)
	for range 3 {
		names := make(map[string]*inode)
		for _, name := range slices.Sorted(maps.Keys(all)) {
			n := [](map[string]*inode){cached, d.names}[d.rand.IntN(2)][name]
			if n != nil {
				names[name] = n
			}
		}
		d.next = d.image(names, d.left)
		d.check("crashed", d.next, d.boot+1, least)
	}
}

func (d *disk) image(names map[string]*inode, content func(*inode) []byte) string {
	to, err := os.MkdirTemp(d.t.TempDir(), "image")
	for name, n := range names {
		err = errors.Join(err, os.WriteFile(filepath.Join(to, name), content(n), 0o600))
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return to
}

func (d *disk) check(what, image string, boot byte, least int) {
	copied := clone(d.t, image)
	s, err := bootedIn(boot, copied)
	if err != nil {
		if boot == d.boot || d.closed || !errors.Is(err, store.ErrLost) && !errors.Is(err, store.ErrDamaged) {
			d.t.Fatalf("%s: %v, in %s", what, err, d.describe(image))
		}
		d.refused++
		return
	}
	if boot != d.boot {
		d.believed++
	}
	got := storetest.All(d.t, s)
	kill(s)
	_ = os.RemoveAll(copied)
	for _, want := range d.history[least:] { // the last may be one that is being written
		if maps.Equal(got, want) {
			return
		}
	}
	d.t.Fatalf("%s: the records %v, want those after batch %d: %v; in %s", what, got, least, d.history[least:], d.describe(image))
}

func (d *disk) describe(dir string) (out string) {
	names, _ := os.ReadDir(dir)
	for _, e := range names {
		info, _ := e.Info()
		out += fmt.Sprintf(" %s (%d)", e.Name(), info.Size())
	}
	return out
}

// begin has the folder as it is on the disk, all of it.
func (d *disk) begin(dir string, records map[string]string) {
	for _, n := range d.inodes {
		_ = n.file.Close()
	}
	d.dir, d.inodes, d.history = dir, nil, []map[string]string{records}
	d.acked.Store(0)
	d.names = d.list()
	for _, n := range d.inodes {
		n.synced = n.content()
	}
}

// Whenever the process dies, all that was committed is there. Whenever the machine does,
// whatever of files and names that were not synced it takes along, either all that was
// committed is there or nothing is believed; after Close it is there.
func TestCrashes(t *testing.T) {
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any will do
	t.Logf("seed %d", seed)
	d := &disk{t: t, rand: rand.New(rand.NewPCG(seed, 0)), boot: 1} //nolint:gosec // a test
	steps := rand.New(rand.NewPCG(seed, 1))                         //nolint:gosec // a test
	d.begin(t.TempDir(), map[string]string{})
	fsync = d.fsync
	defer func() { fsync = (*os.File).Sync }()
	for i := 0; i < 10 || i < 1000 && (d.believed == 0 || d.refused == 0); i++ {
		s, err := bootedIn(d.boot, d.dir)
		if err != nil { // checked when it crashed
			d.begin(t.TempDir(), map[string]string{})
			continue
		}
		d.run(s, steps)
		switch steps.IntN(3) {
		case 0:
			kill(s)
			d.crash()
		case 1:
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			d.closed = true
			d.crash()
			d.closed = false
		case 2:
			kill(s)
			d.crash()
			d.boot++
			last := d.history[len(d.history)-1]
			d.begin(d.next, last)
		}
	}
	for _, n := range d.inodes {
		_ = n.file.Close()
	}
	t.Logf("killed %d times; crashes: %d believed, %d refused", d.killed, d.believed, d.refused)
	if d.believed == 0 || d.refused == 0 {
		t.Errorf("crashes: %d believed, %d refused, want some of each", d.believed, d.refused)
	}
}

func (d *disk) run(s *Store, r *rand.Rand) {
	for range r.IntN(8) {
		switch r.IntN(5) {
		case 0:
			s.mu.Lock()
			if len(s.files) != 0 {
				s.startCompaction()
			}
			s.mu.Unlock()
		case 1: // a full or broken disk
			if s.active != nil {
				_ = s.active.f.Close()
				if s.Commit(put("never", "x")) == nil {
					d.t.Fatal("a write to a closed file succeeded")
				}
			}
		default:
			next := maps.Clone(d.history[len(d.history)-1])
			c := store.Change{Key: fmt.Sprint(r.IntN(4))}
			if delete(next, c.Key); r.IntN(4) != 0 {
				c.Value = fmt.Append(nil, "value ", r.Uint32())
				next[c.Key] = string(c.Value)
			}
			d.mu.Lock()
			d.history = append(d.history, next)
			d.mu.Unlock()
			if err := s.Commit([]store.Change{c}); err != nil {
				d.t.Fatal(err)
			}
			d.acked.Add(1)
		}
	}
	if r.IntN(2) == 0 { // else Close or the crash comes in the middle of a compaction
		s.group.Wait()
	}
}
