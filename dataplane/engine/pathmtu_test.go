package engine

import (
	"net/netip"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// RFC 4301 §8.2: what unauthenticated ICMP says is bounded, for one SA's path only,
// and forgotten after a while (RFC 1191 §6.3).
func TestPathMTUIsBoundedAndForgotten(t *testing.T) {
	a, b := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	a.policy(t, ipsec.ModeTunnel, an, bn)
	join(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, a, b, an, bn)
	p := a.outs[1].path.Load()
	known := func() int { return p.known(time.Now().UnixNano()) }

	a.PathMTU(netip.MustParseAddr("192.0.2.77"), 600)
	if got := known(); got != 0 {
		t.Errorf("ICMP about another address: the path's MTU is %d, want none known", got)
	}
	a.PathMTU(b.addr, 1400)
	a.PathMTU(b.addr, 1450) // says more than is known: not believed
	if got := known(); got != 1400 {
		t.Errorf("MTU %d, want 1400", got)
	}
	a.PathMTU(b.addr, 68)
	if got := known(); got != packet.MinMTU4 {
		t.Errorf("MTU %d, want no less than %d", got, packet.MinMTU4)
	}
	later := time.Now().Add(pathMTULife).UnixNano()
	if got := p.known(later); got != 0 {
		t.Errorf("MTU %d after %s, want none known", got, pathMTULife)
	}
	p.learn(1450, later)
	if got := p.known(later); got != 1450 {
		t.Errorf("MTU %d, want 1450: what was known is forgotten", got)
	}
}

// IPv6 fragments that had to be made whole here are sent on whatever their length: their
// source has cut them to the path, and could do nothing about a packet that is too big.
func TestWhatWasMadeWholeIsNotTooBig(t *testing.T) {
	a, b := twoHosts(t, true)
	a.policy(t, ipsec.ModeTransport, single(a.addr), single(b.addr))
	b.policy(t, ipsec.ModeTransport, single(b.addr), single(a.addr))
	join(t, saSpec{mode: ipsec.ModeTransport, encap: true, suite: "aes128gcm16"}, a, b, single(a.addr), single(b.addr))
	a.PathMTU(b.addr, 1300)
	whole := udp(netip.AddrPortFrom(a.addr, 5), netip.AddrPortFrom(b.addr, 6), pattern(4000))
	for _, f := range cut(whole, 1024) {
		a.tun.ToEngine <- netio.Packet{Data: f}
	}
	waitFor(t, func() bool { return len(b.tun.FromEngine) == 1 || a.why(packet.WhyTooBig) != 0 })
	if n := a.why(packet.WhyTooBig); n != 0 {
		t.Errorf("%d packets that were made whole were too big", n)
	}
	// One that was whole all along is another matter.
	a.tun.ToEngine <- netio.Packet{Data: whole}
	waitFor(t, func() bool { return a.why(packet.WhyTooBig) == 1 })
}
