package e2e

import (
	"testing"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// Under failClosed nothing that policy secures goes out while no worker runs: not
// after a clean stop, not after a reboot. The other host has no worker here, so it
// would answer whatever comes.
func TestFailClosedBlocksWithoutAWorker(t *testing.T) {
	b := newPair(t, pairPolicy("", "failClosed: true"), fleet.Options{})
	b.clearAllowed()
	a, bees := b.A.Node, []string{"192.0.2.2", "2001:db8::2"}
	workerd := fleet.Program(t, "workerd")
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
	b.Worker("b").Stop()
	b.B.Node.Run(workerd, "cleanup")
	reach := func(want bool, when string) {
		t.Helper()
		for _, to := range bees {
			if out, err := a.Try("ping", "-c", "2", "-i", "0.1", "-W", "1", to); (err == nil) != want {
				t.Errorf("%s: %s answers: %t, want %t\n%s", when, to, err == nil, want, out)
			}
		}
	}

	b.Worker("a").Stop()
	reach(false, "after a clean stop")
	if err := b.B.Node.TryPing(b.A.V4.Addr(), lab.PingOptions{}); err == nil {
		t.Error("after a clean stop the host answers in clear")
	}
	a.Run(workerd, "cleanup") // as a reboot
	reach(true, "after cleanup")
	a.Run(workerd, "block", "--node", "a", "--state", fleet.State(a))
	reach(false, "blocked at boot")

	b.Worker("a").Start()
	b.Worker("b").Start()
	b.WaitInSync()
	a.WaitPing(b.B.V4.Addr(), limit)

	// Without it a clean stop opens the host, and there is nothing to block.
	b.Apply(pairPolicy("", ""))
	b.WaitInSync()
	b.Worker("a").Stop()
	b.Worker("b").Stop()
	reach(true, "without failClosed")
	a.Run(workerd, "block", "--node", "a", "--state", fleet.State(a))
	reach(true, "without failClosed, at boot")
}
