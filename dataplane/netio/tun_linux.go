package netio

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TUN_F_USO4 and TUN_F_USO6 (Linux 6.2) are not in golang.org/x/sys.
const (
	tunUSO4 = 0x20
	tunUSO6 = 0x40
)

// TunFeatures is what a TUN device was found to do.
type TunFeatures struct {
	TSO bool // TCP trains, both ways
	USO bool // UDP trains, both ways
}

// DeviceTun is one queue of a kernel TUN device.
type DeviceTun struct {
	file *os.File
	conn syscall.RawConn
	out  *DeviceTun // what it writes to, when not to itself: see OpenTun

	// The state of the read under way. The function given to RawConn is made
	// once, because a closure per call would allocate.
	hdr   [VnetHeaderLen]byte
	iov   [2]unix.Iovec
	n     int
	errno syscall.Errno
	wait  bool
	read  func(uintptr) bool
}

// OpenTun makes a TUN device with so many queues, or fewer when the kernel has no
// more. A queue lives as long as it is open; the device goes with its last queue.
//
// Linux moves a flow to the queue that its answers were written to, while packets of
// it may be in the old one, and they overtake each other. So several queues write to
// one more, which is detached: then flows stay where their hash puts them.
func OpenTun(name string, queues int) ([]*DeviceTun, TunFeatures, error) {
	var out []*DeviceTun
	var features TunFeatures
	for range queues {
		q, f, err := openQueue(name, queues > 1)
		if err != nil && len(out) > 0 {
			break // MAX_TAP_QUEUES
		}
		if errors.Is(err, unix.EINVAL) && queues > 1 { // no multi-queue at all
			queues = 1
			q, f, err = openQueue(name, false)
		}
		if err != nil {
			return nil, TunFeatures{}, err
		}
		out, features = append(out, q), f
		if queues == 1 {
			return out, features, nil
		}
	}
	return out, features, writeDetached(name, out)
}

func writeDetached(name string, queues []*DeviceTun) error {
	w, _, err := openQueue(name, true)
	if err == nil {
		var req *unix.Ifreq
		if req, err = unix.NewIfreq(name); err == nil {
			req.SetUint16(unix.IFF_DETACH_QUEUE)
			ctl := w.conn.Control(func(fd uintptr) { err = unix.IoctlIfreq(int(fd), unix.TUNSETQUEUE, req) })
			err = errors.Join(err, ctl)
		}
	}
	if err != nil {
		for _, q := range append(queues, w) {
			if q != nil {
				_ = q.Close()
			}
		}
		return fmt.Errorf("detached queue of TUN device %s: %w; with one queue it needs none", name, err)
	}
	for _, q := range queues {
		q.out = w
	}
	return nil
}

func openQueue(name string, multi bool) (*DeviceTun, TunFeatures, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, TunFeatures{}, fmt.Errorf("open /dev/net/tun: %w; the worker needs the tun module and access to the device", err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		_ = unix.Close(fd)
		return nil, TunFeatures{}, fmt.Errorf("TUN device name %q: %w", name, err)
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		_ = unix.Close(fd)
		return nil, TunFeatures{}, fmt.Errorf("create TUN device %s: %w; the worker needs CAP_NET_ADMIN and the name must be free", name, err)
	}
	features, err := setOffloads(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, TunFeatures{}, fmt.Errorf("offloads of TUN device %s: %w", name, err)
	}
	t := &DeviceTun{file: os.NewFile(uintptr(fd), "/dev/net/tun")}
	if t.conn, err = t.file.SyscallConn(); err != nil {
		_ = t.file.Close()
		return nil, TunFeatures{}, fmt.Errorf("TUN device %s: %w", name, err)
	}
	t.read = t.readv
	return t, features, nil
}

// closedError makes os.ErrClosed of what RawConn reports. With no deadlines set
// that is one thing only, by an error of its own.
func closedError(err error) error { return fmt.Errorf("%w: %w", os.ErrClosed, err) }

// setOffloads asks for the most the kernel has, and less when it refuses.
func setOffloads(fd int) (TunFeatures, error) {
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	var err error
	for _, try := range []struct {
		bits int
		f    TunFeatures
	}{
		{tso | tunUSO4 | tunUSO6, TunFeatures{TSO: true, USO: true}},
		{tso, TunFeatures{TSO: true}},
		{0, TunFeatures{}},
	} {
		if err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, try.bits); err == nil {
			return try.f, nil
		}
	}
	return TunFeatures{}, err
}

// largeTrain ends a batch: what was read is worth sending at once.
const largeTrain = 16 << 10

// Read implements Tun.
func (t *DeviceTun) Read(ps []Packet) (int, error) {
	n := 0
	for n < len(ps) {
		p := &ps[n]
		p.Data = p.Data[:cap(p.Data)]
		t.iov[0].Base = &t.hdr[0]
		t.iov[0].SetLen(VnetHeaderLen)
		t.iov[1].Base = &p.Data[0]
		t.iov[1].SetLen(len(p.Data))
		t.wait = n == 0
		if err := t.conn.Read(t.read); err != nil {
			return n, closedError(err)
		}
		switch {
		case t.errno == unix.EAGAIN:
			return n, nil
		case t.errno != 0:
			return n, os.NewSyscallError("readv", t.errno)
		case t.n <= VnetHeaderLen:
			continue
		}
		p.Data = p.Data[:t.n-VnetHeaderLen]
		p.Offload = offloadFrom(&t.hdr)
		if n++; len(p.Data) >= largeTrain {
			break
		}
	}
	return n, nil
}

func (t *DeviceTun) readv(fd uintptr) bool {
	for {
		n, _, e := syscall.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&t.iov[0])), 2)
		if e == unix.EINTR {
			continue
		}
		t.n, t.errno = int(n), e
		return e != unix.EAGAIN || !t.wait
	}
}

// DeviceWriter writes to a DeviceTun for one goroutine.
type DeviceWriter struct {
	t     *DeviceTun
	hdr   [VnetHeaderLen]byte
	iov   []unix.Iovec
	errno syscall.Errno
	write func(uintptr) bool
}

// Writer implements Tun.
func (t *DeviceTun) Writer() TunWriter {
	to := t
	if t.out != nil {
		to = t.out
	}
	w := &DeviceWriter{t: to, iov: make([]unix.Iovec, 0, 2+MaxSegments)}
	w.write = w.writev
	return w
}

// Write implements TunWriter.
func (w *DeviceWriter) Write(o Offload, parts [][]byte) error {
	o.put(&w.hdr)
	w.iov = append(w.iov[:0], unix.Iovec{Base: &w.hdr[0], Len: VnetHeaderLen})
	for _, p := range parts {
		if len(p) > 0 {
			w.iov = append(w.iov, unix.Iovec{Base: &p[0], Len: uint64(len(p))})
		}
	}
	err := w.t.conn.Write(w.write)
	clear(w.iov) // keep no caller's buffer alive
	if err != nil {
		return closedError(err)
	}
	if w.errno != 0 {
		return os.NewSyscallError("writev", w.errno)
	}
	return nil
}

func (w *DeviceWriter) writev(fd uintptr) bool {
	for {
		_, _, e := syscall.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&w.iov[0])), uintptr(len(w.iov)))
		if e == unix.EINTR {
			continue
		}
		w.errno = e
		return e != unix.EAGAIN
	}
}

// Close implements Tun.
func (t *DeviceTun) Close() error {
	if t.out != nil {
		if err := t.out.Close(); err != nil {
			return err
		}
	}
	if err := t.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
