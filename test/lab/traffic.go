package lab

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// PingOptions changes a ping.
type PingOptions struct {
	Count        int        // echo requests, 0 for 1
	Size         int        // octets of data, 0 for 56
	DontFragment bool       // set DF, and do not fragment at the source either
	Source       netip.Addr // zero: the kernel chooses

	wait int // seconds, 0 for 2
}

// TryPing sends echo requests, each after the answer to the one before or two seconds
// without: a neighbour that does not answer at once is asked again after one. An
// error says how many answers are missing. One process sends one request:
// after the last of several ping waits for two round trips only, and an answer that a
// loaded machine delays counts as lost.
func (n *Node) TryPing(dst netip.Addr, o PingOptions) error {
	args := []string{"ping", "-n", "-q", "-W", strconv.Itoa(cmp.Or(o.wait, 2)), "-c", "1"}
	if o.Size > 0 {
		args = append(args, "-s", strconv.Itoa(o.Size))
	}
	if o.DontFragment {
		args = append(args, "-M", "do")
	}
	if o.Source.IsValid() {
		args = append(args, "-I", o.Source.String())
	}
	var last error
	count, received := max(o.Count, 1), 0
	for range count {
		if _, err := n.Try(append(args[:len(args):len(args)], dst.String())...); err != nil {
			last = err
		} else {
			received++
		}
	}
	if last != nil {
		return fmt.Errorf("%s: ping %s: %d of %d answered: %w", n.Name, dst, received, count, last)
	}
	return nil
}

// Ping fails the test unless every echo request is answered, in ten seconds: where an
// answer must come, it is waited for.
func (n *Node) Ping(dst netip.Addr, o PingOptions) {
	n.lab.t.Helper()
	o.wait = 10
	n.lab.must(n.TryPing(dst, o))
}

// WaitPing pings until one is answered.
func (n *Node) WaitPing(dst netip.Addr, limit time.Duration) {
	n.lab.t.Helper()
	WaitFor(n.lab.t, limit, fmt.Sprintf("%s to reach %s", n.Name, dst), func() error {
		return n.TryPing(dst, PingOptions{})
	})
}

// transferLimit ends a transfer that does not move.
const transferLimit = 60 * time.Second

// Transfer is the outcome of a TCP transfer that arrived whole.
type Transfer struct {
	Bytes   int64
	Elapsed time.Duration
}

// BitsPerSecond is the goodput.
func (r Transfer) BitsPerSecond() float64 { return float64(r.Bytes) * 8 / r.Elapsed.Seconds() }

// TryTransfer sends random octets over TCP from a node to an address of another
// and compares the SHA-256 hash that the receiver made with the sender's.
func (n *Node) TryTransfer(to *Interface, v6 bool, size int64) (Transfer, error) {
	addr := to.V4.Addr()
	if v6 {
		addr = to.V6.Addr()
	}
	var l net.Listener
	if err := to.Node.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	}); err != nil {
		return Transfer{}, err
	}
	defer func() { _ = l.Close() }()
	deadline := time.Now().Add(transferLimit)
	received := make(chan error, 1)
	go func() { received <- answerHash(l, deadline) }()

	var c net.Conn
	start := time.Now()
	if err := n.Do(func() (err error) {
		// A literal address, so that the dialler makes its socket on this thread.
		c, err = net.DialTimeout("tcp", l.Addr().String(), transferLimit)
		return err
	}); err != nil {
		return Transfer{}, fmt.Errorf("%s: %w", n.Name, err)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(deadline); err != nil {
		return Transfer{}, err
	}
	h := sha256.New()
	// The data differs from run to run, the speed of making it must not matter.
	random := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%032d", start.UnixNano()))))
	if sent, err := io.CopyN(io.MultiWriter(c, h), random, size); err != nil {
		return Transfer{}, fmt.Errorf("%s: after %d of %d octets to %s: %w", n.Name, sent, size, addr, err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return Transfer{}, err
	}
	sum, err := io.ReadAll(c)
	if err := errors.Join(err, <-received); err != nil {
		return Transfer{}, fmt.Errorf("%s: answer of %s: %w", n.Name, addr, err)
	}
	if want := h.Sum(nil); string(sum) != string(want) {
		return Transfer{}, fmt.Errorf("%s: %d octets to %s arrived changed: hash %x, want %x", n.Name, size, addr, sum, want)
	}
	return Transfer{Bytes: size, Elapsed: time.Since(start)}, nil
}

// Transfer fails the test unless all octets arrive whole.
func (n *Node) Transfer(to *Interface, v6 bool, size int64) Transfer {
	n.lab.t.Helper()
	r, err := n.TryTransfer(to, v6, size)
	n.lab.must(err)
	return r
}

// answerHash takes one connection, reads it to its end and writes the hash back.
func answerHash(l net.Listener, deadline time.Time) error {
	if err := l.(*net.TCPListener).SetDeadline(deadline); err != nil {
		return err
	}
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, c); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	_, err = c.Write(h.Sum(nil))
	return err
}
