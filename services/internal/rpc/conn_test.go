package rpc

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// quickPair is the two ends of a connection.
func quickPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for at, c := range map[*net.Conn]net.Conn{&a: out, &b: in} {
		if *at, err = newQuickConn(c.(*net.UnixConn)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	return a, b
}

// Far more than a socket holds, both ways at once: writers wait for readers, and the
// other way round.
func TestQuickConnCarriesWhatIsWritten(t *testing.T) {
	a, b := quickPair(t)
	sent := make([]byte, 8<<20)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	var group sync.WaitGroup
	for _, x := range []struct{ from, to net.Conn }{{a, b}, {b, a}} {
		group.Go(func() {
			if n, err := x.from.Write(sent); n != len(sent) || err != nil {
				t.Errorf("wrote %d of %d: %v", n, len(sent), err)
			}
		})
		group.Go(func() {
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(x.to, got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("what was read is not what was written: %v", err)
			}
		})
	}
	group.Wait()
	if n, err := a.Read(nil); n != 0 || err != nil {
		t.Errorf("reading nothing: %d, %v", n, err)
	}
	_ = a.Close()
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the other end closed: %v, want EOF", err)
	}
	if _, err := b.Write([]byte{1}); err == nil {
		t.Error("a write to nobody succeeded")
	}
}

func TestQuickConnEndsWhatWaits(t *testing.T) {
	a, _ := quickPair(t)
	if err := a.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read past its deadline: %v", err)
	}
	_ = a.SetReadDeadline(time.Time{})
	done := make(chan error)
	go func() { _, err := a.Read(make([]byte, 1)); done <- err }()
	_ = a.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		t.Errorf("a read while the connection is closed: %v", err)
	}
}
