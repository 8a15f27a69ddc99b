package engine

import (
	"net/netip"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// RFC 3948 §4: a peer MUST send a NAT-keepalive packet if a need for it is detected
// and no other packet to the peer has been sent in 20 seconds.
func TestASilentUDPPathIsKeptAlive(t *testing.T) {
	for _, encap := range []bool{true, false} {
		a, b := twoHosts(t, false)
		aNet, bNet := single(a.addr), single(b.addr)
		a.policy(t, ipsec.ModeTransport, aNet, bNet)
		b.policy(t, ipsec.ModeTransport, bNet, aNet)
		join(t, saSpec{mode: ipsec.ModeTransport, encap: encap, suite: "aes128gcm16"}, a, b, aNet, bNet)
		start := time.Now()
		want := uint64(0)
		for _, at := range []int{6, 19, 26, 30, 47} { // due after 20 s, looked at every 5
			a.keepalive(start.Add(time.Duration(at) * time.Second))
			if encap && (at == 26 || at == 47) {
				want++
			}
			if got := a.why(packet.WhyKeepaliveSent); got != want {
				t.Errorf("encap %t: %d keepalives after %d s of silence, want %d", encap, got, at, want)
			}
		}
		// What is sent behind them has arrived behind them.
		path := backend.Path{Local: netip.AddrPortFrom(a.addr, 4500), Remote: netip.AddrPortFrom(b.addr, 4500)}
		if err := a.SendIKE(path, pattern(60)); err != nil {
			t.Fatal(err)
		}
		if _, ok := (<-b.events).(backend.IKE); !ok {
			t.Fatal("a keepalive went up as something else")
		}
		if got := b.why(packet.WhyKeepalive); got != want {
			t.Errorf("encap %t: the peer took %d keepalives, want %d", encap, got, want)
		}
	}
}
