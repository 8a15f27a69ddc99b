package static

import (
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// maxKept bounds what is kept parsed; beyond it things are read each time.
	maxKept = 4096
	// settled is how old a file must be before its stamp is believed: one that is
	// written twice within the clock tick of its file system keeps its stamp.
	settled = 2 * time.Second
)

// kept holds what was parsed from files until one of them changes: parsing an RSA
// key takes longer than a handshake may.
type kept[T any] struct {
	mu   sync.Mutex
	byID map[string]parsed[T]
}

type parsed[T any] struct {
	value  T
	stamps []stamp
}

// stamp tells one content of a file from another; zero when there is no file.
type stamp struct {
	device, inode uint64
	size          int64
	changed       int64 // ctime, which nobody can set back
}

// get returns what was parsed under ref from the files with the stamps they have
// now, else what read makes of them.
func (k *kept[T]) get(s *Store, ref string, names []string, read func() (T, error)) (T, error) {
	before, sure := s.stampsOf(names)
	k.mu.Lock()
	p, ok := k.byID[ref]
	k.mu.Unlock()
	if ok && sure && slices.Equal(p.stamps, before) {
		return p.value, nil
	}
	value, err := read()
	after, sure := s.stampsOf(names)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil || !sure || !slices.Equal(before, after) || len(k.byID) >= maxKept {
		delete(k.byID, ref)
		return value, err
	}
	if k.byID == nil {
		k.byID = make(map[string]parsed[T])
	}
	k.byID[ref] = parsed[T]{value, after}
	return value, nil
}

func (s *Store) stampsOf(names []string) (out []stamp, sure bool) {
	sure = true
	for _, name := range names {
		var one stamp
		if info, err := s.root.Stat(name); err == nil {
			st, ok := info.Sys().(*syscall.Stat_t)
			if !ok {
				return nil, false
			}
			one = stamp{st.Dev, st.Ino, st.Size, st.Ctim.Nano()}
			sure = sure && s.now().Sub(time.Unix(st.Ctim.Unix())) > settled
		}
		out = append(out, one)
	}
	return out, sure
}
