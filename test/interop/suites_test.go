package interop

import (
	"strings"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// suites shows each algorithm on its own: the other end knows no other.
func suites() []scenario {
	out := algorithms()
	for _, esp := range []struct{ suite, cipher, integrity string }{
		{"aes128gcm16", "AES_GCM_16", ""},
		{"aes256gcm16", "AES_GCM_16", ""},
		{"chacha20poly1305", "CHACHA20_POLY1305", ""},
		{"aes128-sha256", "AES_CBC", "HMAC_SHA2_256_128"},
		{"aes256-sha256", "AES_CBC", "HMAC_SHA2_256_128"},
		{"aes256-sha384", "AES_CBC", "HMAC_SHA2_384_192"},
		{"aes256-sha512", "AES_CBC", "HMAC_SHA2_512_256"},
	} {
		out = append(out, twice(scenario{
			name: "ikev2-esp-" + esp.suite, shows: "ESP with " + esp.suite, at: sites,
			ours: policy{esp: []string{esp.suite}},
			swan: func(c *lab.SwanConn) { c.ESPProposals = []string{esp.suite} },
			steps: func(b *bed) {
				ours, theirs := b.start()
				b.ping()
				b.transfer(1 << 20)
				c := theirs.Child("INSTALLED")
				if c.Encryption != esp.cipher || c.Integrity != esp.integrity {
					b.Errorf("strongSwan has %+v; want %s %s", c, esp.cipher, esp.integrity)
				}
				if got := ours.GetChildren()[0].GetSuite(); !strings.HasPrefix(got, esp.suite) || strings.Contains(got, "-esn") {
					b.Errorf("we have suite %s; want %s without ESN", got, esp.suite)
				}
				b.noFailures()
			},
		})...)
	}
	for _, ike := range []struct{ suite, group string }{
		{"aes256gcm16-prfsha256-x25519", "CURVE_25519"},
		{"aes256gcm16-prfsha256-ecp256", "ECP_256"},
		{"aes256gcm16-prfsha384-ecp384", "ECP_384"},
		{"aes256gcm16-prfsha512-x25519", "CURVE_25519"},
		{"aes128gcm16-prfsha256-modp2048", "MODP_2048"},
		{"chacha20poly1305-prfsha256-x25519", "CURVE_25519"},
		{"aes256-sha256-prfsha256-x25519", "CURVE_25519"},
		{"aes128-sha384-prfsha384-ecp256", "ECP_256"},
	} {
		out = append(out, twice(scenario{
			name: "ikev2-ike-" + ike.suite, shows: "IKE with " + ike.suite, at: sites,
			ours: policy{suites: []string{ike.suite}},
			swan: func(c *lab.SwanConn) { c.IKEProposals = []string{ike.suite} },
			steps: func(b *bed) {
				ours, theirs := b.start()
				b.ping()
				if theirs.KeyExchange != ike.group || ours.GetSuite() != ike.suite {
					b.Errorf("strongSwan has %s %s, we have %s; want %s", theirs.Encryption, theirs.KeyExchange, ours.GetSuite(), ike.suite)
				}
				b.noFailures()
			},
		})...)
	}
	out = append(out, scenario{
		name: "ikev2-invalid-ke", shows: "strongSwan answers our x25519 with INVALID_KE_PAYLOAD, we go on with ecp256", role: initiator, at: sites,
		ours: policy{suites: []string{"aes256gcm16-prfsha256-x25519-ecp256"}},
		swan: func(c *lab.SwanConn) { c.IKEProposals = []string{"aes256gcm16-prfsha256-ecp256"} },
		steps: func(b *bed) {
			b.start()
			b.ping()
			b.peerSaid("DH group CURVE_25519 unacceptable, requesting ECP_256")
			b.noFailures()
		},
	}, scenario{
		name: "ikev2-invalid-ke", shows: "we answer strongSwan's x25519 with INVALID_KE_PAYLOAD, it goes on with ecp256", role: responder, at: sites,
		ours: policy{suites: []string{"aes256gcm16-prfsha256-ecp256"}},
		swan: func(c *lab.SwanConn) { c.IKEProposals = []string{"aes256gcm16-prfsha256-x25519-ecp256"} },
		steps: func(b *bed) {
			b.start()
			b.ping()
			b.peerSaid("peer didn't accept DH group CURVE_25519, it requested ECP_256")
			b.noFailures()
		},
	})
	return append(out, twice(scenario{
		name: "ikev2-second-choice", shows: "the first proposals are not common, the second are", at: sites,
		ours: policy{suites: []string{"aes256gcm16-prfsha512-x25519", "aes256-sha256-prfsha256-ecp256"}, esp: []string{"aes256gcm16", "aes256-sha256"}},
		swan: func(c *lab.SwanConn) {
			c.IKEProposals = []string{"chacha20poly1305-prfsha256-ecp384", "aes256-sha256-ecp256"}
			c.ESPProposals = []string{"chacha20poly1305", "aes256-sha256"}
		},
		steps: func(b *bed) {
			ours, theirs := b.start()
			b.ping()
			if c := theirs.Child("INSTALLED"); theirs.KeyExchange != "ECP_256" || c.Encryption != "AES_CBC" {
				b.Errorf("ours %v, theirs %+v; want the second proposals", ours, theirs)
			}
			b.noFailures()
		},
	})...)
}
