package rpc

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// quickConn reads and writes without telling the Go scheduler, as the packet path
// does: its socket never blocks, and a call that the scheduler is told of wakes the
// runtime's monitor thread each time that the process was idle before.
type quickConn struct {
	*net.UnixConn
	raw syscall.RawConn

	in, out transfer
}

// transfer is one direction.
type transfer struct {
	call  uintptr
	b     []byte
	n     int
	errno syscall.Errno
	do    func(fd uintptr) bool
}

func newQuickConn(c *net.UnixConn) (net.Conn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	q := &quickConn{UnixConn: c, raw: raw}
	q.in.call, q.out.call = syscall.SYS_READ, syscall.SYS_WRITE
	q.in.do, q.out.do = q.in.once, q.out.once
	return q, nil
}

func (t *transfer) once(fd uintptr) bool {
	for {
		n, _, e := syscall.RawSyscall(t.call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.b))), uintptr(len(t.b)))
		if e == syscall.EINTR {
			continue
		}
		t.n, t.errno = int(n), e
		return e != syscall.EAGAIN
	}
}

// Read is for one goroutine at a time, as gRPC has it; so is Write.
func (q *quickConn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	t := &q.in
	t.b = b
	err := q.raw.Read(t.do)
	t.b = nil
	switch {
	case err != nil:
		return 0, err
	case t.errno != 0:
		return 0, os.NewSyscallError("read", t.errno)
	case t.n == 0:
		return 0, io.EOF
	}
	return t.n, nil
}

func (q *quickConn) Write(b []byte) (done int, err error) {
	t := &q.out
	for done < len(b) {
		t.b = b[done:]
		err := q.raw.Write(t.do)
		t.b = nil
		if err == nil && t.errno != 0 {
			err = os.NewSyscallError("write", t.errno)
		}
		if err != nil {
			return done, err
		}
		done += t.n
	}
	return done, nil
}
