package engine

import (
	"net/netip"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/netio/netiotest"
)

// UDP and TCP connections have one port: what is for the one must not leave by
// the other, whichever worker sends it.
func TestUDPAndTCPDoNotMix(t *testing.T) {
	here, there := netip.MustParseAddrPort("192.0.2.1:4500"), netip.MustParseAddrPort("192.0.2.2:4500")
	udp, _ := netiotest.NewWire(here, there, 8)
	tcp, _ := netiotest.NewWire(here, there, 8)
	var sent string
	udp.Tamper = func([]byte) [][]byte { sent += "udp "; return nil }
	tcp.Tamper = func([]byte) [][]byte { sent += "tcp "; return nil }
	e, err := New(Config{
		Tun:     []netio.Tun{netiotest.NewTun(8)},
		Sockets: []Socket{{Conn: udp, Port: 4500, Encap: true}, {Conn: tcp, Port: 4500, Encap: true, TCP: true}},
		Emit:    func(backend.Event) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, overTCP := range []bool{false, true} {
		if err := e.SendIKE(backend.Path{Local: here, Remote: there, TCP: overTCP}, []byte("message")); err != nil {
			t.Fatal(err)
		}
	}
	if sent != "udp tcp " {
		t.Errorf("one message for each left by %q", sent)
	}
}
