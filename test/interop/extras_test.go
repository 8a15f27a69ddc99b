package interop

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
	"github.com/testudo-ipsec/testudo/test/lab"
)

func extras() []scenario {
	return append(twice(
		scenario{name: "ikev2-extensions", shows: "MOBIKE, fragmentation, childless IKE SAs and multiple authentication are offered and passed over", at: sites,
			swan: func(c *lab.SwanConn) {
				c.Settings = []string{"mobike = yes", "fragmentation = yes", "childless = allow"}
			},
			peer: lab.SwanOptions{Charon: []string{"multiple_authentication = yes", "send_vendor_id = yes", "cisco_unity = yes"}},
			steps: func(b *bed) {
				carriesLittle(b)
				if b.role == responder { // otherwise strongSwan answers offers of ours only
					b.peerSaid("N(MOBIKE_SUP)")
				}
			}},
		scenario{name: "ikev2-tfc", shows: "our packets are padded to one length, and arrive whole", at: sites,
			ours: policy{padTo: "1000"},
			steps: func(b *bed) {
				ours, _ := b.start()
				if n := ours.GetChildren()[0].GetPadTo(); n != 1000 {
					b.Errorf("the CHILD SA is padded to %d octets, want 1000", n)
				}
				b.ping()
				for _, sa := range b.wire[0].SAs() {
					if padded := sa.Dst == b.them.V4.Addr(); padded != (sa.Shortest >= 1000) {
						b.Errorf("the packets to %s have %d octets and more", sa.Dst, sa.Shortest)
					}
				}
				b.transfer(1 << 20)
				b.noFailures()
			}},
	),
		scenario{name: "ikev2-childless", shows: "we make an IKE SA without a CHILD SA, and a CHILD SA in it when traffic comes", role: initiator, at: sites,
			swan: func(c *lab.SwanConn) { c.Settings = []string{"childless = allow"} },
			steps: func(b *bed) {
				b.f.CLI("sa", "initiate", b.node, "--childless", "swan")
				if us := b.f.SAs(b.node); len(us) != 1 || us[0].GetState() != "established" || len(us[0].GetChildren()) != 0 {
					b.Fatalf("we have %v; want an IKE SA without a CHILD SA", us)
				}
				b.peerSaid("generating IKE_AUTH response 1 [ IDr AUTH ]")
				b.ping()
				b.up()
				b.noFailures()
			}},
		scenario{name: "ikev2-childless", shows: "strongSwan makes an IKE SA without a CHILD SA, and then a CHILD SA in it", role: responder, at: sites,
			swan: func(c *lab.SwanConn) { c.Settings = []string{"childless = force"} },
			steps: func(b *bed) {
				carriesLittle(b)
				b.peerSaid("generating CREATE_CHILD_SA request 2 [ SA No TSi TSr")
			}},
		scenario{name: "ikev2-childless-refused", shows: "strongSwan makes no IKE SA without a CHILD SA, and we say so", role: initiator, at: sites,
			swan: func(c *lab.SwanConn) { c.Settings = []string{"childless = never"} },
			steps: func(b *bed) {
				if out, err := b.f.TryCLI("sa", "initiate", b.node, "--childless", "swan"); err == nil || !strings.Contains(err.Error(), "CHILDLESS_IKEV2_SUPPORTED") {
					b.Errorf("got %s, %v; want a refusal that names the notify", out, err)
				}
			}},
		scenario{name: "ikev2-config-request", shows: "strongSwan asks for an address, we give none, the tunnel comes up", role: responder, at: sites,
			swan:  func(c *lab.SwanConn) { c.Settings = []string{"vips = 0.0.0.0"} },
			steps: carriesLittle},
		scenario{name: "ikev2-reauthentication", shows: "strongSwan authenticates anew: a new IKE SA in place of the old", role: responder, at: sites,
			steps: func(b *bed) {
				before, _ := b.start()
				b.ping()
				b.must(b.peer.Reauthenticate(conn))
				lab.WaitFor(b, limit, "a new IKE SA", func() error {
					if ours, _ := b.up(); ours.GetLocalSpi() == before.GetLocalSpi() {
						return fmt.Errorf("we have %v", ours)
					}
					return nil
				})
				b.ping()
				b.noFailures()
			}},
		scenario{name: "ikev2-cookie", shows: "strongSwan under load asks for a cookie, we bring it", role: initiator, at: sites,
			peer: lab.SwanOptions{Charon: []string{"cookie_threshold = 1"}},
			steps: func(b *bed) {
				b.halfOpen(b.us, b.them, 1)
				b.peerSaid("parsed IKE_SA_INIT request")
				carriesLittle(b)
				b.peerSaid("parsed IKE_SA_INIT request 0 [ N(COOKIE) SA KE No")
			}},
		scenario{name: "ikev2-cookie", shows: "we under load ask for a cookie, strongSwan brings it", role: responder, at: sites,
			steps: func(b *bed) {
				b.halfOpen(b.them, b.us, 80)
				lab.WaitFor(b, limit, "us to ask for cookies", func() error {
					if n := b.f.Keymgrd.Metrics()["testudo_keymgr_cookies_sent_total"]; n == 0 {
						return fmt.Errorf("%v half-open, no cookie sent", b.f.Keymgrd.Metrics()["testudo_keymgr_half_open"])
					}
					return nil
				})
				b.must(b.tryStart())
				b.peerSaid("generating IKE_SA_INIT request 0 [ N(COOKIE) SA KE No")
				b.ping()
				b.noFailures()
			}},
	)
}

// carriesLittle is carries without the volume.
func carriesLittle(b *bed) {
	b.start()
	b.ping()
	b.transfer(1 << 20)
	b.noFailures()
}

// halfOpen sends so many IKE_SA_INIT requests that are not followed up, from one
// end's address to the other.
func (b *bed) halfOpen(from, to *lab.Interface, n int) {
	b.Helper()
	b.must(from.Node.Do(func() error {
		local := netip.AddrPortFrom(b.addr(from), 0)
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(local), net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.addr(to), 500)))
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		for range n {
			if _, err := c.Write(initRequest()); err != nil {
				return err
			}
		}
		return nil
	}))
}

// initRequest is an IKE_SA_INIT request that both ends would go on with.
func initRequest() []byte {
	var random [72]byte
	_, _ = rand.Read(random[:])
	suite, err := ipsec.ParseProposal(ipsec.ProtocolIKE, defaultSuite)
	if err != nil {
		panic(err) // a wrong literal
	}
	p := wire.Proposal{Number: 1, Protocol: wire.ProtocolID(ipsec.ProtocolIKE)}
	for _, t := range suite.Transforms {
		p.Transforms = append(p.Transforms, wire.Transform{Transform: t})
	}
	h := wire.Header{SPIi: binary.BigEndian.Uint64(random[64:]), Exchange: wire.IKESAInit, Flags: wire.FlagInitiator}
	return wire.AppendMessage(nil, h, []wire.Payload{
		&wire.SA{Proposals: []wire.Proposal{p}},
		&wire.KE{Method: suite.OfType(ipsec.TransformKE)[0].ID, Data: random[:32]},
		&wire.Nonce{Data: random[32:64]},
	})
}
