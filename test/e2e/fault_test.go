package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// transfers moves data from a to b over and over until stop is called, which tells
// how much went over, or fails the test when a transfer failed.
func (b *pairBench) transfers(t *testing.T) (stop func() int64) {
	end, done := make(chan struct{}), make(chan struct{})
	var total int64
	var err error
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			default:
			}
			var r lab.Transfer
			if r, err = b.A.Node.TryTransfer(b.B, false, 4*megabyte); err != nil {
				return
			}
			total += r.Bytes
		}
	}()
	return func() int64 {
		t.Helper()
		close(end)
		<-done
		if err != nil {
			t.Errorf("a transfer failed: %v", err)
		}
		return total
	}
}

func TestPolicyDaemonIsKilledAndComesBack(t *testing.T) {
	b := newPair(t, protectPair(""), fleet.Options{})
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
	probe := b.A.Node.StartProbe(b.B, false, pace)
	moving(t, probe)
	revision := b.Status().Revision
	stop := b.transfers(t)

	b.Policyd.Kill9()
	moving(t, probe)
	err := b.TryApply(protectPair(suite("aes256gcm16")))
	if err == nil || !strings.Contains(err.Error(), "policyd.sock") {
		t.Errorf("apply without policyd: %v; want an error that says where it looked for policyd", err)
	}
	moving(t, probe)
	if r := probe.Stop(); r.Lost != 0 {
		t.Errorf("policyd killed: %v; want none lost", r)
	}
	stop()

	// A host that reboots now enforces what it had.
	b.Worker("a").Stop()
	b.Worker("a").Start()
	b.Worker("a").Process().WaitOutput("policy in force", limit)
	b.A.Node.WaitPing(b.B.V4.Addr(), limit)

	b.Policyd.Start()
	b.WaitInSync()
	if r := b.Status().Revision; r < revision {
		t.Errorf("revision %d after the restart; want %d or more", r, revision)
	}
	b.Apply(protectPair(suite("aes256gcm16")))
	b.WaitInSync()
	if r := b.Status().Revision; r <= revision {
		t.Errorf("revision %d after one more apply; want more than %d", r, revision)
	}
}

// The default's 5 restarts become as many as TESTUDO_E2E_RESTARTS says.
func restarts(t *testing.T) int {
	v := os.Getenv("TESTUDO_E2E_RESTARTS")
	if v == "" {
		return 5
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("TESTUDO_E2E_RESTARTS: got %q, want a number from 1", v)
	}
	return n
}

// A worker is killed and started, either side, at any moment, while TCP sends all it
// can. Traffic comes back by itself, under sequence numbers never used before (the
// wire is asked at the end).
func TestWorkerIsKilledUnderLoad(t *testing.T) {
	b := newPair(t, protectPair(""), fleet.Options{})
	probe := b.A.Node.StartProbe(b.B, false, pace)
	moving(t, probe)
	load := b.transfers(t)
	var worst, sum time.Duration
	n := restarts(t)
	for i := range n {
		<-time.After(rand.N(50 * time.Millisecond)) // any moment, of a rekey or a lease, too
		w := b.Worker([]string{"a", "b"}[rand.IntN(2)])
		w.Kill9()
		answered, start := probe.Answered(), time.Now()
		w.Start()
		lab.WaitFor(t, limit, fmt.Sprintf("traffic after restart %d", i+1), func() error {
			if probe.Answered() <= answered+1 { // one may have been under way
				return errors.New("no answer yet")
			}
			return nil
		})
		took := time.Since(start)
		worst, sum = max(worst, took), sum+took
		moving(t, probe)
	}
	t.Logf("%d MB over TCP", load()/megabyte)
	t.Logf("%d restarts: traffic back after %v on average, %v at worst; %v", n, (sum / time.Duration(n)).Round(time.Millisecond), worst.Round(time.Millisecond), probe.Stop())
	for _, sa := range b.wire.SAs() {
		t.Logf("SPI %08x to %s: %d packets, numbers %d to %d", sa.SPI, sa.Dst, sa.Packets, sa.Lowest, sa.Highest)
	}
}

// What a killed worker leaves keeps traffic in; cleanup takes it away.
func TestKilledWorkerLeavesNoClear(t *testing.T) {
	b := newPair(t, protectPair(""), fleet.Options{})
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
	w := b.Worker("a")
	w.Kill9()
	for _, to := range []string{"192.0.2.2", "2001:db8::2"} {
		if out, err := b.A.Node.Try("ping", "-c", "3", "-i", "0.1", "-W", "1", to); err == nil {
			t.Errorf("pings to %s are answered without a worker: %s", to, out)
		}
	}
	if err := b.B.Node.TryPing(b.A.V4.Addr(), lab.PingOptions{}); err == nil {
		t.Error("a host without its worker answers")
	}
	b.wire.RequireProtected(2)

	b.A.Node.Run(fleet.Program(t, "workerd"), "cleanup")
	if after := state(b.A.Node); after != b.before[b.A.Node] {
		t.Errorf("after cleanup:\n%s\nwant, as before:\n%s", after, b.before[b.A.Node])
	}
	w.Start()
	b.WaitInSync()
	b.A.Node.WaitPing(b.B.V4.Addr(), limit)
}
