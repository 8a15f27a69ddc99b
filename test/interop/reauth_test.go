package interop

import (
	"errors"
	"fmt"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// repeated are scenarios of authentication that is repeated (RFC 4478), make before
// break, and of postquantum preshared keys (RFC 8784).
func repeated() []scenario {
	const ppk = "a postquantum key that two people agreed on"
	withPPK := func(required bool) string {
		return fmt.Sprintf(`{methods: [{psk: {secret: "file:interop.psk"}}], ppk: {id: interop, secret: "file:ppk", required: %t}}`, required)
	}
	has := func(required string) func(*lab.SwanConn) {
		return func(c *lab.SwanConn) {
			c.PPKID, c.PPK = "interop", ipsec.NewSecret([]byte(ppk))
			c.Settings = append(c.Settings, "ppk_required = "+required)
		}
	}
	files := map[string]string{"ppk": ppk + "\n"}
	return append(twice(
		scenario{name: "ppk-required", shows: "both ends require the same PPK", at: pair, ours: policy{auth: withPPK(true)}, files: files, swan: has("yes"), steps: usesPPK("interop")},
		scenario{name: "ppk-optional", shows: "both ends have the same PPK", at: pair, ours: policy{auth: withPPK(false)}, files: files, swan: has("no"), steps: usesPPK("interop")},
		scenario{name: "ppk-ours-only", shows: "the peer has no PPK and ours is optional", at: pair, ours: policy{auth: withPPK(false)}, files: files, steps: usesPPK("")},
		scenario{name: "ppk-unreadable", shows: "our PPK is optional and cannot be read", at: pair, ours: policy{auth: withPPK(false)}, swan: has("no"), steps: usesPPK("")},
		scenario{name: "ppk-theirs-only", shows: "we have no PPK and the peer's is optional", at: pair, swan: has("no"), steps: usesPPK("")},
		scenario{name: "ppk-missing", shows: "the peer has no PPK and we require one", at: pair, ours: policy{auth: withPPK(true)}, files: files, steps: refusesPPK},
	),
		scenario{
			name: "reauthentication-by-us", shows: "we authenticate anew, make before break; strongSwan, with unique = replace, ends nothing else", role: initiator, at: sites,
			swan: func(c *lab.SwanConn) { c.Settings = append(c.Settings, "unique = replace") },
			ours: policy{reauth: "1m"}, steps: reauthenticated,
		},
		scenario{
			name: "reauthentication-lifetime", shows: "strongSwan takes our AUTH_LIFETIME (RFC 4478)", role: responder, at: pair,
			ours: policy{reauth: "1h"}, steps: func(b *bed) {
				b.start()
				b.peerSaid("received AUTH_LIFETIME of 3600s, scheduling reauthentication")
				b.ping()
				b.noFailures()
			},
		},
		scenario{
			name: "reauthentication-by-peer", shows: "strongSwan authenticates anew, make before break, and nothing is lost", role: responder, at: sites,
			peer: lab.SwanOptions{Charon: []string{"make_before_break = yes"}},
			swan: func(c *lab.SwanConn) { c.Settings = append(c.Settings, "reauth_time = 15s", "over_time = 20s") }, steps: reauthenticated,
		})
}

func usesPPK(id string) func(*bed) {
	return func(b *bed) {
		sa, _ := b.start()
		if sa.GetPpkId() != id {
			b.Errorf("the IKE SA has PPK %q in its keys, want %q", sa.GetPpkId(), id)
		}
		b.ping()
		b.noFailures()
	}
}

func refusesPPK(b *bed) {
	if err := b.tryStart(); err == nil {
		b.Error("the IKE SA came up")
	}
	b.requireFailure("PPK")
	b.gone(limit)
}

// reauthenticated waits until another IKE SA does the work of the first.
func reauthenticated(b *bed) {
	before, _ := b.start()
	b.ping()
	probe := b.ourHost.Node.StartProbe(b.theirHost, b.v6, probeInterval)
	b.answered(probe, 20)
	lab.WaitFor(b, 2*time.Minute, "another IKE SA to do the work of the first", func() error {
		if ours, _ := b.up(); ours.GetLocalSpi() == before.GetLocalSpi() {
			return errors.New("it is the old one")
		} else if ours.GetChildren()[0].GetSpiIn() == before.GetChildren()[0].GetSpiIn() {
			return errors.New("the CHILD SA is the old one")
		}
		return nil
	})
	b.answered(probe, 40)
	if b.role == initiator {
		b.requireOvertaken(probe)
	} else {
		b.requireNoLoss(probe)
	}
	b.noFailures()
}
