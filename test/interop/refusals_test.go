package interop

import (
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// refusals must fail on both ends, leak nothing, and be explained to our operator.
func refusals() []scenario {
	return twice(
		scenario{name: "ikev2-wrong-psk", shows: "different secrets: no SA", at: sites,
			swan:  func(c *lab.SwanConn) { c.PSK = ipsec.NewSecret([]byte("another")) },
			steps: refused("AUTHENTICATION_FAILED", "PEER_NOT_AUTHENTICATED")},
		scenario{name: "ikev2-unknown-peer-identity", shows: "strongSwan has an identity that our policy does not know: no SA", at: sites,
			swan:  func(c *lab.SwanConn) { c.LocalID = "mallory.example" },
			steps: refused("AUTHENTICATION_FAILED", "PEER_IDENTITY")},
		scenario{name: "ikev2-unknown-identity-of-ours", shows: "we have an identity that strongSwan does not know: no SA", at: sites,
			swan:  func(c *lab.SwanConn) { c.RemoteID = "mallory.example" },
			steps: refused("AUTHENTICATION_FAILED", "PEER_IDENTITY", "PEER_NOT_AUTHENTICATED")},
		scenario{name: "ikev2-no-ike-proposal", shows: "no IKE suite in common: no SA", at: sites,
			swan:  func(c *lab.SwanConn) { c.IKEProposals = []string{"aes128-sha384-ecp384"} },
			steps: refused("NO_PROPOSAL_CHOSEN")},
		scenario{name: "ikev2-no-esp-proposal", shows: "no ESP suite in common: no CHILD SA", at: sites,
			ours:  policy{esp: []string{"aes256gcm16"}},
			swan:  func(c *lab.SwanConn) { c.ESPProposals = []string{"aes128-sha256"} },
			steps: refused("NO_PROPOSAL_CHOSEN")},
		scenario{name: "ikev2-no-selectors", shows: "no traffic selectors in common: no CHILD SA", at: sites,
			swan:  func(c *lab.SwanConn) { c.LocalTS, c.RemoteTS = nets("10.9.0.0/24"), nets("10.8.0.0/24") },
			steps: refused("TS_UNACCEPTABLE")},
		scenario{name: "ikev2-mode-differs", shows: "we want transport mode, strongSwan has tunnel mode: no CHILD SA", at: pair,
			ours:  policy{mode: "transport"},
			steps: refused("MODE", "TS_UNACCEPTABLE")},
		scenario{name: "ikev2-ah-through-nat", shows: "both want AH, strongSwan's kernel-libipsec makes believe that there is a NAT: no CHILD SA, and we say why", at: sites,
			ours: policy{ah: "sha256"},
			swan: func(c *lab.SwanConn) {
				c.ESPProposals, c.ChildSettings = nil, []string{"ah_proposals = sha256"}
			},
			steps: func(b *bed) {
				refused("POLICY", "NO_PROPOSAL_CHOSEN")(b)
				if f := b.requireFailure("POLICY", "NO_PROPOSAL_CHOSEN"); !strings.Contains(f.GetDetail(), "NAT") || !strings.Contains(f.GetAdvice(), "esp") {
					b.Errorf("explained as %v; want the NAT named, and esp advised", f)
				}
			}},
		scenario{name: "ikev2-transport-unsupported", shows: "transport mode, which strongSwan's kernel-libipsec cannot do: no CHILD SA", at: pair,
			ours: policy{mode: "transport"},
			swan: func(c *lab.SwanConn) { c.ChildSettings = []string{"mode = transport"} },
			steps: func(b *bed) {
				if err := b.tryStart(); err == nil && b.role == responder {
					b.Error("strongSwan says that it has a CHILD SA in transport mode")
				}
				if b.role == initiator {
					b.requireFailure("NO_PROPOSAL_CHOSEN", "TS_UNACCEPTABLE")
				}
				b.noChild()
			}},
	)
}

// refused starts, which must fail with one of these reasons.
func refused(whys ...string) func(*bed) {
	return func(b *bed) {
		if err := b.tryStart(); err == nil {
			b.Error("the negotiation succeeded")
		} else {
			b.Log(err)
		}
		f := b.requireFailure(whys...)
		b.Logf("explained as %v", f)
		if f.GetRole() != string(b.role) {
			b.Errorf("the failure is of our role %s; want %s", f.GetRole(), b.role)
		}
		b.noChild()
	}
}

// noChild wants no CHILD SA at either end, and our worker to hold traffic back.
func (b *bed) noChild() {
	b.Helper()
	lab.WaitFor(b, limit, "both ends to have no CHILD SA", b.childless)
	if err := b.ourHost.Node.TryPing(b.addr(b.theirHost), lab.PingOptions{}); err == nil {
		b.Error("a ping went through without a CHILD SA")
	}
}

func (b *bed) childless() error {
	for _, sa := range b.f.SAs(b.node) {
		if len(sa.GetChildren()) > 0 {
			return errChild(sa)
		}
	}
	for _, sa := range b.peer.SAs() {
		if sa.Child("INSTALLED") != nil {
			return errChild(sa)
		}
	}
	return nil
}
