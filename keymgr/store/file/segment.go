package file

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"

	"github.com/testudo-ipsec/testudo/keymgr/store"
)

// The header of a file:
//
//	magic (8) | kind (1) | reserved (7) | number (8) | boot (16) | salt (32) | check (16)
//
// boot is the boot of the machine in which it was written. check is a MAC of the rest
// under the store's key: it tells a wrong key from damage.
const (
	magic     = "TSTDSTA2"
	bootAt    = 24
	saltAt    = bootAt + 16
	checkAt   = saltAt + 32
	headerLen = checkAt + 16

	kindLog  = 0
	kindBase = 1
)

// A frame: length (4) | CRC-32 of the length and the frame's number (4) | sealed batch.
const (
	frameHeader = 8
	maxFrame    = 4*store.MaxBatch + 16 // a record of one octet takes four, and there is the tag
)

// fsync has a file or folder on the disk. Tests see by it what a crash may take.
var fsync = (*os.File).Sync

// segment is one file.
type segment struct {
	number uint64
	base   bool
}

func (s segment) name() string {
	if s.base {
		return fmt.Sprintf("%08d.base", s.number)
	}
	return fmt.Sprintf("%08d.log", s.number)
}

func (s segment) header(boot boot) []byte {
	h := make([]byte, headerLen)
	copy(h, magic)
	if s.base {
		h[8] = kindBase
	}
	binary.BigEndian.PutUint64(h[16:], s.number)
	copy(h[bootAt:], boot[:])
	return h
}

// boot tells one boot of the machine from another.
type boot [saltAt - bootAt]byte

const bootFile = "/proc/sys/kernel/random/boot_id"

// thisBoot is the kernel's UUID of its boot, random(4).
func thisBoot() (boot, error) {
	b, err := os.ReadFile(bootFile)
	if err != nil {
		return boot{}, err
	}
	id, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(b)), "-", ""))
	if err != nil || len(id) != len(boot{}) {
		return boot{}, fmt.Errorf("%s holds %q, want a UUID", bootFile, b)
	}
	return boot(id), nil
}

func check(key, header []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte("testudo state check"))
	m.Write(header[:checkAt])
	return m.Sum(nil)[:headerLen-checkAt]
}

func aead(key, header []byte) (cipher.AEAD, error) {
	k, err := hkdf.Key(sha256.New, key, header[saltAt:checkAt], "testudo state segment"+string(header[:saltAt]), 32)
	if err != nil {
		return nil, err
	}
	defer clear(k)
	b, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

func nonce(n uint32) []byte {
	var b [12]byte
	binary.BigEndian.PutUint32(b[8:], n)
	return b[:]
}

// writer appends frames to a new file.
type writer struct {
	seg    segment
	f      *os.File
	seal   cipher.AEAD
	frames uint32
	size   int64
	buf    []byte
}

// create makes a file whose header is on the disk when it returns.
func create(path string, s segment, boot boot, key []byte) (*writer, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	h := s.header(boot)
	_, _ = rand.Read(h[saltAt:checkAt]) // never fails
	copy(h[checkAt:], check(key, h))
	w := &writer{seg: s, f: f, size: headerLen}
	if w.seal, err = aead(key, h); err == nil {
		_, err = f.Write(h)
	}
	if err == nil {
		err = fsync(f)
	}
	if err != nil {
		_ = f.Close()
		_ = os.Remove(path)
		return nil, err
	}
	return w, nil
}

// frame seals a batch and writes it; plain is wiped. From then on it outlives the
// process, but not the machine's next crash.
func (w *writer) frame(plain []byte) error {
	defer clear(plain)
	n := len(plain) + w.seal.Overhead()
	b := append(w.buf[:0], make([]byte, frameHeader)...)
	binary.BigEndian.PutUint32(b, uint32(n)) //nolint:gosec // bounded by maxFrame
	binary.BigEndian.PutUint32(b[4:], frameCRC(b[:4], w.frames))
	b = w.seal.Seal(b, nonce(w.frames), plain, b[:frameHeader])
	w.buf = b
	w.frames++ // whatever becomes of it: the nonce is used
	if _, err := w.f.Write(b); err != nil {
		return err
	}
	w.size += int64(len(b))
	return nil
}

func frameCRC(length []byte, n uint32) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(length), crc32.IEEETable, nonce(n))
}

// content is what was found in a file.
type content struct {
	whole  int64 // up to the end of the last whole frame; 0 without a header
	boot   boot
	closed bool // its last frame says that the store was closed behind it
}

// read calls fn with each record of a file, and the number of its frame. The value is
// valid during the call.
func read(path string, s segment, keys [][]byte, fn func(frame uint32, key []byte, value []byte) error) (c content, err error) {
	f, err := os.Open(path)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return c, err
	}
	in := bufio.NewReaderSize(f, 1<<20)
	h := make([]byte, headerLen)
	if _, err := io.ReadFull(in, h); err != nil {
		return c, nil // cut off: nothing was acknowledged
	}
	c.boot = boot(h[bootAt:saltAt])
	if !bytes.Equal(h[:saltAt], s.header(c.boot)[:saltAt]) {
		return c, fmt.Errorf("%w: %s has the header of another file, or of another version of this program", store.ErrDamaged, path)
	}
	var open cipher.AEAD
	for _, k := range keys {
		if hmac.Equal(check(k, h), h[checkAt:]) {
			if open, err = aead(k, h); err != nil {
				return c, err
			}
		}
	}
	if open == nil {
		return c, fmt.Errorf("%w: %s", store.ErrWrongKey, path)
	}
	c.whole = headerLen
	left := info.Size() - headerLen
	var buf []byte
	for n := uint32(0); left > 0; n++ {
		fh := make([]byte, frameHeader)
		if left < frameHeader {
			return c, nil
		}
		if _, err := io.ReadFull(in, fh); err != nil {
			return c, err
		}
		left -= frameHeader
		length := int64(binary.BigEndian.Uint32(fh))
		if binary.BigEndian.Uint32(fh[4:]) != frameCRC(fh[:4], n) || length > maxFrame {
			return c, fmt.Errorf("%w: %s, frame %d: its header is not one that was written", store.ErrDamaged, path, n)
		}
		if length > left {
			return c, nil
		}
		if int64(cap(buf)) < length {
			buf = make([]byte, length)
		}
		buf = buf[:length]
		if _, err := io.ReadFull(in, buf); err != nil {
			return c, err
		}
		left -= length
		plain, err := open.Open(buf[:0], nonce(n), buf, fh)
		if err != nil {
			return c, fmt.Errorf("%w: %s, frame %d does not open", store.ErrDamaged, path, n)
		}
		c.closed = len(plain) == 0
		err = each(plain, func(k, v []byte) error { return fn(n, k, v) })
		clear(plain)
		if err != nil {
			return c, err
		}
		c.whole += frameHeader + length
	}
	return c, nil
}

// A batch: for each record 1, the lengths of key and value as varints, key and value;
// or 0, the length of the key, and the key, for one that is removed. A batch without
// records is the last of a store that was closed.

func appendChange(b []byte, c store.Change) []byte {
	if c.Value == nil {
		b = binary.AppendUvarint(append(b, 0), uint64(len(c.Key)))
		return append(b, c.Key...)
	}
	b = binary.AppendUvarint(append(b, 1), uint64(len(c.Key)))
	b = binary.AppendUvarint(b, uint64(len(c.Value)))
	return append(append(b, c.Key...), c.Value...)
}

func each(b []byte, fn func(key, value []byte) error) error {
	bad := fmt.Errorf("%w: a batch that no program of this version writes", store.ErrDamaged)
	for len(b) > 0 {
		kind := b[0]
		b = b[1:]
		var lens [2]uint64
		for i := range lens {
			if i == 1 && kind == 0 {
				break
			}
			v, n := binary.Uvarint(b)
			if n <= 0 || v > uint64(len(b)) {
				return bad
			}
			lens[i], b = v, b[n:]
		}
		if kind > 1 || lens[0]+lens[1] > uint64(len(b)) {
			return bad
		}
		k, v := b[:lens[0]], b[lens[0]:lens[0]+lens[1]:lens[0]+lens[1]]
		b = b[lens[0]+lens[1]:]
		if kind == 0 {
			v = nil
		}
		if err := fn(k, v); err != nil {
			return err
		}
	}
	return nil
}
