package engine

import (
	"net/netip"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// What a TCP segment ended must not end the trains of UDP that come after it.
func TestSmallDatagramsBecomeOneTrainWhateverCameBefore(t *testing.T) {
	w, c, in, _ := outAndIn(t, ipsec.ModeTunnel)
	tun := in.gro.tun.(*swallowed)
	src, dst := netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2")
	send := func(p []byte, count int) {
		t.Helper()
		w.begin()
		for range count {
			w.packet(append(make([]byte, 0, 2048), p...), netio.Offload{})
		}
		w.flush()
		before := *tun
		for _, m := range c.last {
			m.Local, m.Remote = m.Remote, m.Local
			in.batch([]netio.Message{m})
		}
		if got := tun.packets - before.packets; got != 1 {
			t.Errorf("%d packets of %d octets reached the TUN in %d writes, want 1", count, len(p), got)
		}
		if got, want := tun.octets-before.octets, len(p)+(count-1)*64; got != want {
			t.Errorf("%d octets reached the TUN, want %d", got, want)
		}
	}
	const ack = 0x10
	send(udp(src, dst, make([]byte, 64)), 12)
	send(tcp(src, dst, 1, ack|tcpPSH, make([]byte, 64)), 1)
	send(udp(src, dst, make([]byte, 64)), 12)
}
