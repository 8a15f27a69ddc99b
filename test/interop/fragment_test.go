package interop

import (
	"strings"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// fragments shows RFC 7383. Long identities, about the longest that swanctl takes,
// and many proposals make IKE_AUTH larger than a datagram.
func fragments() []scenario {
	long := func(c string) string { return "keyid:" + strings.Repeat(c, 240) }
	ours := policy{identity: long("u"), theirs: long("s"),
		esp: []string{"aes128gcm16", "aes256gcm16", "chacha20poly1305", "aes128-sha256", "aes256-sha256", "aes128-sha512", "aes256-sha512", "aes256-sha384",
			"aes192-sha256", "aes192-sha384", "aes192-sha512", "aes128ctr-sha256", "aes256ctr-sha256", "aes128ctr-sha512", "aes256ctr-sha512", "aes128ccm16", "aes256ccm16"}}
	return twice(scenario{
		name: "ikev2-fragmentation", shows: "the IKE_AUTH request goes in fragments", at: sites,
		ours: ours,
		swan: func(c *lab.SwanConn) {
			c.LocalID, c.RemoteID = ours.theirs, ours.identity
			c.Settings = []string{"fragmentation = yes"}
		},
		peer: lab.SwanOptions{Charon: []string{"fragment_size = 576"}},
		steps: func(b *bed) {
			carriesLittle(b)
			if b.role == initiator {
				b.peerSaid("received fragment #2 of 2, reassembled")
			} else {
				b.peerSaid("splitting IKE message")
			}
			b.noFailures()
		},
	}, scenario{
		name: "ikev2-fragmentation-off", shows: "strongSwan does not do fragmentation: IKE_AUTH stays whole", at: sites,
		ours: ours,
		swan: func(c *lab.SwanConn) {
			c.LocalID, c.RemoteID = ours.theirs, ours.identity
			c.Settings = []string{"fragmentation = no"}
		},
		steps: func(b *bed) {
			carriesLittle(b)
			b.noFailures()
		},
	})
}
