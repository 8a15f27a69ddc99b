package interop

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/testudo-ipsec/testudo/test/lab"
)

func nets(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}

// narrowing is RFC 7296 §2.9: the narrower side wins. kernel-libipsec can only have
// local selectors that hold an address of the gateway, for it has to make a route.
func narrowing() []scenario {
	return append(twice(
		scenario{
			name: "ikev2-narrow-to-theirs", shows: "our subnets are narrowed to strongSwan's", at: sites,
			swan: func(c *lab.SwanConn) { c.LocalTS, c.RemoteTS = nets("10.2.0.0/25"), nets("10.1.0.2/32") },
			steps: func(b *bed) {
				b.start()
				b.ping()
				b.requireSelectors([]string{"10.2.0.0/25"}, []string{"10.1.0.2/32"})
			},
		},
		scenario{
			name: "ikev2-narrow-to-ours", shows: "strongSwan's wide subnets are narrowed to our rule", at: sites,
			ours: policy{local: nets("10.1.0.0/24"), remote: nets("10.2.0.0/25")},
			swan: func(c *lab.SwanConn) { c.LocalTS, c.RemoteTS = nets("10.2.0.0/16"), nets("10.0.0.0/8") },
			steps: func(b *bed) {
				b.start()
				b.ping()
				b.requireSelectors([]string{"10.2.0.0/25"}, []string{"10.1.0.0/24"})
			},
		},
		scenario{
			name: "ikev2-narrow-to-tcp", shows: "strongSwan's any protocol is narrowed to our TCP", at: sites,
			ours: policy{protocol: "tcp"},
			steps: func(b *bed) {
				b.start()
				b.transfer(1 << 20)
				b.requireSelectors([]string{"10.2.0.0/24[tcp]"}, []string{"10.1.0.0/24[tcp]"})
			},
		},
		scenario{
			name: "ikev2-narrow-to-icmp", shows: "strongSwan's any protocol is narrowed to our ICMP", at: sites,
			ours: policy{protocol: "icmp"},
			steps: func(b *bed) {
				b.start()
				b.ping()
				b.requireSelectors([]string{"10.2.0.0/24[icmp]"}, []string{"10.1.0.0/24[icmp]"})
			},
		},
		scenario{
			name: "ikev2-ports", shows: "both ends have a range of TCP ports of strongSwan's side", at: sites,
			ours: policy{protocol: "tcp", port: "32768-60999"},
			swan: func(c *lab.SwanConn) {
				c.ChildSettings = []string{"local_ts = 10.2.0.0/24[tcp/32768-60999]", "remote_ts = 10.1.0.0/24[tcp]"}
			},
			steps: func(b *bed) {
				b.start()
				b.ourHost.Node.Transfer(b.theirHost, false, 1<<20)
				b.requireSelectors([]string{"10.2.0.0/24[tcp/32768-60999]"}, []string{"10.1.0.0/24[tcp]"})
			},
		},
		scenario{
			name: "ikev2-several-children", shows: "two CHILD SAs, IPv4 and IPv6, under one IKE SA", at: sites,
			ours: policy{local: []netip.Prefix{lab.SiteA4, lab.SiteA6}, remote: []netip.Prefix{lab.SiteB4, lab.SiteB6}},
			swan: func(c *lab.SwanConn) {
				c.LocalTS, c.RemoteTS = []netip.Prefix{lab.SiteB4}, []netip.Prefix{lab.SiteA4}
				c.More = []lab.SwanSelectors{{Name: "six", LocalTS: []netip.Prefix{lab.SiteB6}, RemoteTS: []netip.Prefix{lab.SiteA6}}}
			},
			steps: func(b *bed) {
				b.start()
				if b.role == initiator {
					b.f.Initiate(b.node, b.rule(1))
				} else {
					b.must(b.peer.InitiateChild(conn, "six"))
				}
				ours, _ := b.up()
				if n := len(ours.GetChildren()); n != 2 {
					b.Fatalf("%d CHILD SAs: %v; want 2", n, ours)
				}
				b.ping()
				b.v6 = true
				b.ping()
				b.noFailures()
			},
		},
	), scenario{
		name: "ikev2-acquire", shows: "the first packet makes us negotiate, and is not lost", role: initiator, at: sites,
		steps: func(b *bed) {
			b.ourHost.Node.Ping(b.addr(b.theirHost), lab.PingOptions{Count: 3})
			b.up()
			b.ping()
			b.requireSelectors([]string{"10.2.0.0/24"}, []string{"10.1.0.0/24"})
			b.noFailures()
		},
	})
}

// requireSelectors wants both ends to have these, as strongSwan lists them.
func (b *bed) requireSelectors(local, remote []string) {
	b.Helper()
	ours, theirs := b.up()
	c := theirs.Child("INSTALLED")
	if !slices.Equal(c.LocalTS, local) || !slices.Equal(c.RemoteTS, remote) {
		b.Errorf("strongSwan has selectors %q %q; want %q %q", c.LocalTS, c.RemoteTS, local, remote)
	}
	// Ours read such as "10.1.0.0/24 <-> 10.2.0.2".
	got := strings.Join(ours.GetChildren()[0].GetSelectors(), ", ")
	for _, want := range append(slices.Clone(local), remote...) {
		host, _, _ := strings.Cut(want, "[")
		if !strings.Contains(got, strings.TrimSuffix(host, "/32")) {
			b.Errorf("our selectors are %s; want %s in them", got, want)
		}
	}
	b.noFailures()
}
