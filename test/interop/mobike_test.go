package interop

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// mobike are the scenarios of RFC 4555. The original initiator is the one that may move.
func mobike() []scenario {
	mobile := func(c *lab.SwanConn) { c.Settings = []string{"mobike = yes"} }
	return []scenario{
		{name: "ikev2-mobike-we-move", shows: "our address goes and another one comes, strongSwan follows", role: initiator, at: sites, swan: mobile,
			steps: moves(func(b *bed) *lab.Interface { return b.us })},
		{name: "ikev2-mobike-peer-moves", shows: "strongSwan's address goes and another one comes, we follow", role: responder, at: sites, swan: mobile,
			steps: moves(func(b *bed) *lab.Interface { return b.them })},
		{name: "ikev2-mobike-nat", shows: "strongSwan moves behind a NAT, we follow", role: responder, at: sitesNAT, swan: mobile,
			steps: moves(func(b *bed) *lab.Interface { return b.them })},
	}
}

// moves gives one end another address while there are SAs.
func moves(which func(*bed) *lab.Interface) func(*bed) {
	return func(b *bed) {
		ours, _ := b.start()
		b.ping()
		end := which(b)
		via, err := netip.ParseAddr(strings.Fields(end.Node.Run("ip", "-4", "route", "show", "default"))[2])
		b.must(err)
		other := netip.PrefixFrom(end.V4.Addr().Next().Next().Next(), end.V4.Bits())
		end.Node.IP("address", "del", end.V4.String(), "dev", end.Name)
		end.Node.IP("address", "add", other.String(), "dev", end.Name)
		end.Node.Route(netip.MustParsePrefix("0.0.0.0/0"), via)
		b.ourHost.Node.WaitPing(b.addr(b.theirHost), limit)
		b.ping()
		b.transfer(1 << 20)
		lab.WaitFor(b, limit, "both ends to be at the new address", func() error {
			now, swan := b.up()
			// kernel-libipsec cannot move an SA: strongSwan rekeys the CHILD SA instead.
			if now == nil || now.GetLocalSpi() != ours.GetLocalSpi() {
				return fmt.Errorf("we have %v, strongSwan %+v; want the IKE SA of before", now, swan)
			}
			if b.at != sitesNAT && !strings.Contains(now.GetLocal()+now.GetRemote(), other.Addr().String()) {
				return fmt.Errorf("the IKE SA goes %s ... %s", now.GetLocal(), now.GetRemote())
			}
			return nil
		})
		b.noFailures()
	}
}
