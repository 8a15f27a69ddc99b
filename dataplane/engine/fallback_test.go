package engine

import (
	"context"
	"net/netip"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// A rule that falls back to clear does so no longer when a new policy says that it
// may not.
func TestFallBackToClearEndsWithThePolicyThatAllowsIt(t *testing.T) {
	a, b := twoHosts(t, false)
	policy := func(fallback bool) {
		err := a.SetPolicy(context.Background(), &ipsec.NodePolicy{Node: "n", Default: ipsec.ActionBlock, Rules: []ipsec.Rule{{
			Name: "r", Weight: 1, Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: "p",
			Selector: ipsec.Selector{Local: ipsec.PrefixSelector(single(a.addr)), Remote: ipsec.PrefixSelector(single(b.addr))},
			Template: &ipsec.Template{Mode: ipsec.ModeTransport, FallbackClear: fallback},
		}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	send := func() {
		a.tun.ToEngine <- netio.Packet{Data: udp(netip.AddrPortFrom(a.addr, 1), netip.AddrPortFrom(b.addr, 2), nil)}
	}
	// There is no socket for clear packets here: they are counted as unsupported.
	clear := func() uint64 { return a.why(packet.WhyUnsupported) }
	policy(true)
	send()
	a.AcquireFailed((<-a.events).(backend.Acquire).ID, "no answer")
	waitFor(t, func() bool { return clear() == 1 })
	send()
	waitFor(t, func() bool { return clear() == 2 })
	policy(false)
	send()
	waitFor(t, func() bool { return clear() > 2 || a.why(packet.WhyAcquireFail) > 0 })
	if got := clear(); got != 2 {
		t.Errorf("%d packets in clear under a policy that forbids it", got-2)
	}
}
