package e2e

import (
	"errors"
	"fmt"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// tap is an attacker on the wire: it keeps the ESP packets that a host sends, and
// sends them again.
type tap struct {
	fd     int
	frames [][]byte
}

func openTap(t *testing.T, from *lab.Interface) *tap {
	t.Helper()
	x := &tap{}
	if err := from.Node.Do(func() error {
		link, err := net.InterfaceByName(from.Name)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00
		if x.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err != nil {
			return err
		}
		return unix.Bind(x.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(x.fd) })
	return x
}

// keep takes what has passed since it was called last.
func (x *tap) keep() {
	b := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(x.fd, b, 0)
		if err != nil {
			return
		}
		a, ok := from.(*unix.SockaddrLinklayer)
		if ok && a.Pkttype == unix.PACKET_OUTGOING && n > 34 && b[12] == 8 && b[13] == 0 && b[23] == unix.IPPROTO_ESP {
			x.frames = append(x.frames, append([]byte(nil), b[:n]...))
		}
	}
}

func (x *tap) replay(t *testing.T) {
	t.Helper()
	for _, f := range x.frames {
		if _, err := unix.Write(x.fd, f); err != nil {
			t.Fatal(err)
		}
	}
}

// Packets that a worker had accepted are sent to it again: while it runs, and after
// it was killed and has come back with the same SAs. Its window then begins at what
// it had reported, so that none is accepted twice.
func TestReplaysAreRefusedAlsoAfterARestart(t *testing.T) {
	b := newPair(t, protectPair(""), fleet.Options{})
	b.clearAllowed() // the wire sees numbers twice: they are replayed
	b.A.Node.WaitPing(b.B.V4.Addr(), limit)
	x := openTap(t, b.A)
	const accepted = 1 + 5
	for range 5 {
		b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
	}
	x.keep()
	if len(x.frames) < 5 {
		t.Fatalf("%d ESP packets seen, want those of five pings", len(x.frames))
	}
	w := b.Worker("b")
	refused := func(whys ...string) (n float64) {
		for _, why := range whys {
			n += packets(w, why)
		}
		return n
	}
	want := func(whys ...string) {
		t.Helper()
		x.replay(t)
		lab.WaitFor(t, limit, "the replays to be refused", func() error {
			if n := refused(whys...); int(n) != len(x.frames) {
				return fmt.Errorf("%v of %d refused as %v", n, len(x.frames), whys)
			}
			return nil
		})
	}

	want("replayed", "left-of-window")

	lab.WaitFor(t, limit, "the worker to report what it has accepted", func() error {
		for _, c := range b.Children("b") {
			if n := c.GetIn().GetPackets(); n >= accepted {
				return nil
			}
		}
		return fmt.Errorf("CHILD SAs %v; want %d packets in", b.Children("b"), accepted)
	})
	w.Kill9()
	w.Start()
	w.WaitUp()
	lab.WaitFor(t, limit, "the worker's SAs", func() error {
		if metric(w, "testudo_worker_sas") < 2 {
			return errors.New("none yet")
		}
		return nil
	})
	// SAs that were taken over are soon replaced: then nobody knows their SPI.
	want("below-replay-floor", "no-sa")
	lab.WaitFor(t, limit, "fresh SAs", func() error {
		if packets(w, "below-replay-floor") == 0 && packets(w, "no-sa") == 0 {
			return errors.New("nothing refused")
		}
		return b.A.Node.TryPing(b.B.V4.Addr(), lab.PingOptions{})
	})
	t.Logf("%d replayed: %v below the floor, %v without an SA", len(x.frames), packets(w, "below-replay-floor"), packets(w, "no-sa"))
}
