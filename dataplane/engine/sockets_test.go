package engine

import (
	"bytes"
	"context"
	"net/netip"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/netio/netiotest"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// UDP and TCP have the same port number, and are two sockets all the same: of every
// worker, IKE and ESP leave by the one that their path names, whatever the rule says
// of the outer header's DF, which a stream does not have.
func TestUDPAndTCPOfOnePortAreKeptApart(t *testing.T) {
	aa, ba := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	aPort, bPort := netip.AddrPortFrom(aa, 4500), netip.AddrPortFrom(ba, 4500)
	udpHere, udpThere := netiotest.NewWire(aPort, bPort, 8)
	tcpHere, tcpThere := netiotest.NewWire(aPort, bPort, 8)
	whole, wholeThere := netiotest.NewWire(aPort, bPort, 8)
	tuns := []*netiotest.Tun{netiotest.NewTun(8), netiotest.NewTun(8)}
	e, err := New(Config{
		Tun: []netio.Tun{tuns[0], tuns[1]},
		Sockets: []Socket{
			{Conn: udpHere, Port: 4500, Encap: true},
			{Conn: tcpHere, Port: 4500, Encap: true, TCP: true},
		},
		Clear: [2]netio.Conn{whole},
		Emit:  func(backend.Event) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	e.Start()
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	got := make(chan string, 8)
	for name, c := range map[string]*netiotest.Conn{"UDP": udpThere, "TCP": tcpThere, "whole": wholeThere} {
		go func() {
			for ms := make([]netio.Message, 1); ; {
				if _, err := c.Recv(ms); err != nil {
					return
				}
				got <- name
			}
		}()
		t.Cleanup(func() { _ = c.Close() })
	}
	ike := bytes.Repeat([]byte{1}, minIKE)
	for want, tcp := range map[string]bool{"UDP": false, "TCP": true} {
		if err := e.SendIKE(backend.Path{Local: aPort, Remote: bPort, TCP: tcp}, ike); err != nil {
			t.Fatal(err)
		}
		if name := <-got; name != want {
			t.Errorf("IKE over %s left by %s", want, name)
		}
	}
	aNet, bNet := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	h := &host{Engine: e, addr: aa}
	for _, outer := range []ipsec.OuterHeader{{}, {DF: ipsec.DFCopy}} {
		rule := ipsec.Rule{
			Name: "r", Weight: 1, Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: "p",
			Selector: ipsec.Selector{Local: ipsec.PrefixSelector(aNet), Remote: ipsec.PrefixSelector(bNet)},
			Template: &ipsec.Template{Mode: ipsec.ModeTunnel, Outer: outer},
		}
		if err := e.SetPolicy(context.Background(), &ipsec.NodePolicy{Node: "n", Default: ipsec.ActionBlock, Rules: []ipsec.Rule{rule}}); err != nil {
			t.Fatal(err)
		}
		for _, tcp := range []bool{false, true} {
			want := "UDP"
			switch {
			case tcp:
				want = "TCP"
			case outer.DF == ipsec.DFCopy:
				want = "whole"
			}
			out, _ := simplex(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, 1, h, &host{addr: ba}, aNet, bNet)
			out.SA.Encap.TCP = tcp
			if err := e.Apply([]backend.Op{out}); err != nil {
				t.Fatal(err)
			}
			for i, tun := range tuns {
				tun.ToEngine <- netio.Packet{Data: udp(netip.MustParseAddrPort("10.1.0.1:1000"), netip.MustParseAddrPort("10.2.0.1:2000"), []byte("x"))}
				if name := <-got; name != want {
					t.Errorf("DF %v: ESP of queue %d left by %s, want %s", outer.DF, i, name, want)
				}
			}
			if err := e.Apply([]backend.Op{{Kind: backend.OpRemove, ID: 1}}); err != nil {
				t.Fatal(err)
			}
		}
	}
}
