package interop

import "github.com/testudo-ipsec/testudo/test/lab"

// hybrids shows that a peer which does not know RFC 9370 is no obstacle, unless
// policy says so.
func hybrids() []scenario {
	const hybrid = "aes256gcm16-prfsha256-x25519-ke1_mlkem768"
	return twice(scenario{
		name: "ikev2-hybrid-fallback", shows: "strongSwan passes over our proposal with ML-KEM and takes the one without", at: sites,
		ours: policy{suites: []string{hybrid, defaultSuite}},
		steps: func(b *bed) {
			ours, _ := b.start()
			b.ping()
			if got := ours.GetSuite(); got != defaultSuite {
				b.Errorf("we have suite %s; want %s", got, defaultSuite)
			}
			b.noFailures()
		},
	}, scenario{
		name: "ikev2-hybrid-required", shows: "policy wants ML-KEM, strongSwan does not do it: no SA, and the reason", at: sites,
		ours: policy{suites: []string{hybrid}},
		swan: func(c *lab.SwanConn) { c.IKEProposals = []string{defaultSuite} },
		steps: func(b *bed) {
			if err := b.tryStart(); err == nil {
				b.Error("an SA came up without ML-KEM")
			}
			b.requireFailure("NO_PROPOSAL_CHOSEN")
			b.gone(limit)
		},
	})
}
