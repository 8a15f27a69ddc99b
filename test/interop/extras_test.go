package interop

import (
	"github.com/testudo-ipsec/testudo/test/lab"
)

func extras() []scenario {
	return twice(
		scenario{name: "ikev2-extensions", shows: "MOBIKE, fragmentation, childless, multiple authentication offered by strongSwan are passed over", at: sites,
			swan: func(c *lab.SwanConn) {
				c.Settings = []string{"mobike = yes", "fragmentation = yes", "childless = allow"}
			},
			peer:  lab.SwanOptions{Charon: []string{"multiple_authentication = yes", "send_vendor_id = yes", "cisco_unity = yes"}},
			steps: carriesLittle},
	)
}

// carriesLittle is carries without the volume.
func carriesLittle(b *bed) {
	b.start()
	b.ping()
	b.transfer(1 << 20)
	b.noFailures()
}
