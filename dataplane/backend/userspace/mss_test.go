package userspace

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// TCP is told what an SA carries when it connects, or, with KeepMSS, is not and finds
// out: either way it gets through.
func TestTheMSSIsClampedUnlessPolicyKeepsIt(t *testing.T) {
	l := newLab(t)
	for _, n := range []*node{l.a, l.b} {
		n.startWorker(Config{})
	}
	l.protect(pair{mode: ipsec.ModeTransport, encap: true, suite: "aes128gcm16"})
	for i, keep := range []bool{false, true} {
		for _, n := range []*node{l.a, l.b} {
			p := n.policy(ipsec.ActionPermit, secureRule(ipsec.ModeTransport, n.v4, n.peer().v4))
			p.KeepMSS = keep
			n.worker.do("policy", p)
		}
		at := netip.AddrPortFrom(l.b.v4, uint16(5100+2*i)).String()
		l.b.child("serve", at).must()
		mss := 0
		if _, err := fmt.Sscan(l.a.child("mss", at).must(), &mss); err != nil {
			t.Fatal(err)
		}
		// 1500 less the headers of IPv4 and TCP and its timestamps is what the link carries.
		if clamped := mss < 1448; clamped == keep {
			t.Errorf("KeepMSS %v: segments of %d octets", keep, mss)
		}
		at = netip.AddrPortFrom(l.b.v4, uint16(5101+2*i)).String()
		server := l.b.child("serve", at)
		server.must()
		l.a.child("dial", at, "").must()
		server.must()
	}
}
