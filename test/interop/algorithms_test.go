package interop

import (
	"fmt"
	"strings"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// algorithms shows one of each family of IKE algorithms that is in no default: the
// other end knows no other.
func algorithms() []scenario {
	var out []scenario
	for _, suite := range []string{
		"aes128gcm8-prfsha256-x25519", "aes256gcm12-prfsha256-x25519", "aes192gcm16-prfsha384-ecp384",
		"aes128ccm8-prfsha256-x25519", "aes192ccm12-prfsha256-ecp256", "aes256ccm16-prfsha512-x25519",
		"aes128ctr-sha256-prfsha256-x25519", "aes256ctr-aesxcbc-prfaesxcbc-ecp256",
		"aes192-aescmac-prfaescmac-modp3072", "aes128-sha256-prfsha256-modp6144",
		"3des-sha1-prfsha1-modp1024", "aes128-md5-prfmd5-modp1536",
	} {
		legacy := strings.Contains(suite, "sha1-") || strings.Contains(suite, "md5-")
		out = append(out, twice(scenario{
			name: "ikev2-ike-" + suite, shows: "IKE with " + suite, at: sites,
			ours: policy{suites: []string{suite}, legacy: legacy},
			swan: func(c *lab.SwanConn) { c.IKEProposals = []string{suite} },
			steps: func(b *bed) {
				ours, theirs := b.start()
				b.ping()
				if got := ours.GetSuite(); got != suite {
					b.Errorf("strongSwan has %s %s, we have %s; want %s", theirs.Encryption, theirs.KeyExchange, got, suite)
				}
				lab.WaitFor(b, limit, "legacy algorithms to be counted", func() error {
					if n := b.f.Keymgrd.Metrics()["testudo_keymgr_legacy_total"]; (n > 0) != legacy {
						return fmt.Errorf("%v SAs have legacy algorithms", n)
					}
					return nil
				})
				b.noFailures()
			},
		})...)
	}
	return out
}
