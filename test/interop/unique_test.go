package interop

import (
	"errors"
	"fmt"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// uniques are scenarios in which strongSwan lets each peer have one IKE SA, and ends the
// other. It waits ten seconds, for it may be one that authenticates anew.
func uniques() []scenario {
	replace := func(c *lab.SwanConn) { c.Settings = append(c.Settings, "unique = replace") }
	reauth := func(makeBeforeBreak string) scenario {
		return scenario{name: "reauthentication-by-responder-mbb-" + makeBeforeBreak, shows: "strongSwan, which did not begin, authenticates anew; make_before_break = " + makeBeforeBreak,
			role: initiator, at: sites, swan: replace, peer: lab.SwanOptions{Charon: []string{"make_before_break = " + makeBeforeBreak}},
			steps: func(b *bed) {
				before, _ := b.start()
				b.ping()
				b.must(b.peer.Reauthenticate(conn))
				b.another(before)
				b.ping()
				b.noFailures()
			}}
	}
	return []scenario{
		{name: "unique-replace-crossing", shows: "both begin at the same time, strongSwan ends one of the IKE SAs, and one is left", role: responder, at: sites, swan: replace,
			steps: func(b *bed) {
				mine := make(chan error)
				go func() {
					_, err := b.f.TryInitiate(b.node, b.rule(0))
					mine <- err
				}()
				theirs := b.peer.Initiate(conn)
				if err := <-mine; err != nil && theirs != nil {
					b.Fatal(errors.Join(err, theirs))
				}
				b.up()
				b.ping()
				// Whatever is still to be ended must not take this one with it.
				probe := b.ourHost.Node.StartProbe(b.theirHost, b.v6, probeInterval)
				b.answered(probe, 2500)
				b.requireOvertaken(probe)
				b.up()
			}},
		{name: "unique-replace-lost", shows: "our key manager loses its state and begins anew, strongSwan ends the old IKE SA, and nothing else", role: initiator, at: sites, swan: replace,
			steps: func(b *bed) {
				before, _ := b.start()
				b.ping()
				b.f.Keymgrd.Kill9()
				b.f.Keymgrd.Start("--state.dir", "")
				b.f.WaitInSync()
				b.must(b.tryStart())
				b.another(before)
				b.ping()
				b.noFailures()
			}},
		reauth("yes"), reauth("no"),
	}
}

// another waits until both ends have one IKE SA and CHILD SA, which are not those of before.
func (b *bed) another(before *ikeSA) {
	b.Helper()
	lab.WaitFor(b, limit, "another IKE SA and CHILD SA, alone", func() error {
		ours, _ := b.up()
		if ours.GetLocalSpi() == before.GetLocalSpi() || ours.GetChildren()[0].GetSpiIn() == before.GetChildren()[0].GetSpiIn() {
			return fmt.Errorf("we have %v", ours)
		}
		return nil
	})
}
