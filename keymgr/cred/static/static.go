package static

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// Previous is what follows the name of the file with the last key, while a
// rotation overlaps.
const Previous = ".previous"

// Store is a folder of secrets. It is safe for concurrent use.
type Store struct {
	dir  string
	root *os.Root // keeps every path inside the folder, symbolic links included

	now         func() time.Time
	psks        kept[[]ipsec.Secret]
	credentials kept[*cred.Credential]
	anchors     kept[*cred.Anchors]
}

// Open opens the folder dir.
func Open(dir string) (*Store, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the folder of secrets: %w", err)
	}
	info, err := root.Stat(".")
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("opening the folder of secrets: %w", err)
	}
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		_ = root.Close()
		return nil, fmt.Errorf("the folder of secrets %s has mode %04o and can be written by others: chmod go-w %s", dir, perm, dir)
	}
	return &Store{dir: dir, root: root, now: time.Now}, nil
}

// Close lets go of the folder.
func (s *Store) Close() error { return s.root.Close() }

// locate is the file that ref names.
func locate(ctx context.Context, ref string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", cred.Errorf(cred.Unavailable, ref, "not asked for: %w", err)
	}
	r, err := cred.ParseRef(ref)
	if err != nil {
		return "", err
	}
	if r.Scheme != cred.SchemeFile {
		return "", cred.Errorf(cred.Invalid, ref, "this store serves file: references only")
	}
	return r.Path, nil
}

// PSK implements cred.PSKs.
func (s *Store) PSK(ctx context.Context, ref string) ([]ipsec.Secret, error) {
	path, err := locate(ctx, ref)
	if err != nil {
		return nil, err
	}
	secrets, err := s.psks.get(s, ref, []string{path, path + Previous}, func() ([]ipsec.Secret, error) { return s.readPSK(ref, path) })
	if err != nil {
		return nil, err
	}
	// The caller may wipe what it gets.
	out := make([]ipsec.Secret, len(secrets))
	for i := range secrets {
		out[i] = secrets[i].Clone()
	}
	return out, nil
}

func (s *Store) readPSK(ref, path string) ([]ipsec.Secret, error) {
	newest, err := s.read(ref, path)
	if err != nil {
		return nil, err
	}
	secrets := append(make([]ipsec.Secret, 0, cred.MaxCandidates), newest)
	previous, err := s.read(ref, path+Previous)
	switch {
	case err == nil:
		secrets = append(secrets, previous)
	case cred.KindOf(err) != cred.NotFound:
		// The operator meant it to be in force: say so rather than leave it out.
		newest.Wipe()
		return nil, err
	}
	return secrets, nil
}

func (s *Store) read(ref, name string) (ipsec.Secret, error) {
	text, err := s.readFile(ref, name, private, cred.MaxEncoded)
	defer clear(text)
	if err != nil {
		return ipsec.Secret{}, err
	}
	return cred.DecodePSK(ref, text)
}

// access is what the mode of a file must keep others from.
type access struct {
	mask   fs.FileMode
	advice string
}

var (
	private = access{0o077, "open to others than its owner: chmod 600 it, and replace the key if others have read it"}
	public  = access{0o022, "so that others than its owner may change it: chmod go-w it, and look at what is in it"}
)

// readFile reads a file of the folder that has at most limit octets.
func (s *Store) readFile(ref, name string, who access, limit int) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO must not hang.
	f, err := s.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, s.openError(ref, name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, cred.Errorf(cred.Unavailable, ref, "%w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, cred.Errorf(cred.Invalid, ref, "%s/%s is not a regular file", s.dir, name)
	}
	if perm := info.Mode().Perm(); perm&who.mask != 0 {
		return nil, cred.Errorf(cred.Denied, ref, "%s/%s has mode %04o, %s", s.dir, name, perm, who.advice)
	}
	buf := make([]byte, min(int64(limit), max(info.Size(), 512))+1)
	n, err := io.ReadFull(f, buf)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		clear(buf)
		return nil, cred.Errorf(cred.Unavailable, ref, "%w", err)
	}
	if n > limit {
		clear(buf)
		return nil, cred.Errorf(cred.Invalid, ref, "%s/%s has more than %d octets", s.dir, name, limit)
	}
	return buf[:n], nil
}

func (s *Store) openError(ref, name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return cred.Errorf(cred.NotFound, ref, "there is no file %s in %s", name, s.dir)
	case errors.Is(err, fs.ErrPermission):
		return cred.Errorf(cred.Denied, ref, "%w: the key manager must own %s/%s", err, s.dir, name)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.EIO), errors.Is(err, syscall.ENOMEM):
		return cred.Errorf(cred.Unavailable, ref, "%w", err)
	}
	// What is left is a path that cannot be a file of this folder: one that
	// leaves it, a loop of links, a folder where a file should be.
	return cred.Errorf(cred.Invalid, ref, "%w", err)
}
