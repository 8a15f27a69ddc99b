package interop

import (
	"fmt"
	"strings"
	"time"

	"github.com/testudo-ipsec/testudo/test/lab"
)

func networks() []scenario {
	return append(twice(
		scenario{name: "ikev2-nat-ipv4", shows: "the initiator is behind a NAT, IPv4", at: sitesNAT, steps: carries},
		scenario{name: "ikev2-nat-ipv6", shows: "the initiator is behind a NAT, IPv6", at: sitesNAT, v6: true, steps: carries},
		scenario{name: "ikev2-loss", shows: "each exchange loses its first request and its first response", at: sites,
			steps: func(b *bed) {
				b.wan.Nft(loseTwoOfFive)
				b.start()
				b.wan.Lose(0)
				b.ping()
				b.noFailures()
			}},
		scenario{name: "ikev2-loss-rekey-by-us", shows: "we rekey the CHILD SA, its exchanges lose requests and responses, the traffic nothing", at: sites,
			steps: rekeyChild(func(b *bed, ours *ikeSA) {
				b.wan.Nft(loseTwoOfFive)
				b.rekeyOurChild(ours)
			})},
		scenario{name: "ikev2-loss-rekey-by-peer", shows: "strongSwan rekeys the CHILD SA, its exchanges lose requests and responses, the traffic nothing", at: sites,
			steps: rekeyChild(func(b *bed, ours *ikeSA) {
				b.wan.Nft(loseTwoOfFive)
				b.rekeyTheirChild(ours)
			})},
	), scenario{
		name: "ikev2-nat-rebinding", shows: "the NAT in front of strongSwan changes its port, we follow", role: responder, at: sitesNAT,
		swan: func(c *lab.SwanConn) { c.DPD = 2 * time.Second },
		steps: func(b *bed) {
			ours, _ := b.start()
			b.ping()
			b.wan.Nft(otherPorts)
			// A masquerade's bindings end with the interface.
			b.wan.IP("link", "set", "dev", "toB", "down")
			b.wan.IP("link", "set", "dev", "toB", "up")
			var now *ikeSA
			lab.WaitFor(b, limit, "us to follow strongSwan to its new port", func() error {
				if now, _ = b.up(); !strings.Contains(now.GetRemote(), ":61") {
					return fmt.Errorf("it is at %s", now.GetRemote())
				}
				return nil
			})
			if now.GetLocalSpi() != ours.GetLocalSpi() {
				b.Error("it is another IKE SA; want the same one at its new address")
			}
			b.ourHost.Node.WaitPing(b.addr(b.theirHost), limit)
			b.ping()
			b.transfer(1 << 20)
			b.noFailures()
		},
	})
}

// loseTwoOfFive drops of an exchange the request, lets its first retransmission
// pass, drops the response to that, and lets the rest pass. Of what is on port 4500
// only IKE has the non-ESP marker, four octets of zero. (Node.Lose(0) ends it.)
const loseTwoOfFive = `table inet lose {
	chain pattern {
		numgen inc mod 5 vmap { 0 : drop, 1 : accept, 2 : drop, 3 : accept, 4 : accept }
	}
	chain forward {
		type filter hook forward priority filter
		udp dport 500 goto pattern
		udp dport 4500 @th,64,32 0 goto pattern
	}
}
`

// otherPorts has the NAT give out these ports.
const otherPorts = `delete table inet nat
table inet nat {
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname "toB" meta l4proto udp masquerade to :61000-61999
		oifname "toB" masquerade
	}
}
`
