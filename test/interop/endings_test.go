package interop

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/testudo-ipsec/testudo/test/lab"
)

func endings() []scenario {
	return append(twice(
		scenario{name: "ikev2-delete-child-by-us", shows: "we delete the CHILD SA, the IKE SA stays and makes another", at: sites,
			steps: func(b *bed) {
				ours, _ := b.start()
				b.ping()
				b.f.CLI("sa", "terminate", b.node, "--child", strconv.FormatUint(ours.GetChildren()[0].GetId(), 10))
				b.childGone()
			}},
		scenario{name: "ikev2-delete-child-by-peer", shows: "strongSwan deletes the CHILD SA, the IKE SA stays and makes another", at: sites,
			steps: func(b *bed) {
				b.start()
				b.ping()
				b.must(b.peer.TerminateChild(conn))
				b.childGone()
			}},
		scenario{name: "ikev2-delete-ike-by-us", shows: "we delete the IKE SA, both ends have nothing left", at: sites,
			steps: func(b *bed) {
				ours, _ := b.start()
				b.ping()
				b.f.CLI("sa", "terminate", b.node, "--ike-spi", fmt.Sprintf("%016x", ours.GetLocalSpi()))
				b.gone(limit)
				b.noFailures()
			}},
		scenario{name: "ikev2-delete-ike-by-peer", shows: "strongSwan deletes the IKE SA, both ends have nothing left, the next packet negotiates", at: sites,
			steps: func(b *bed) {
				b.start()
				b.ping()
				b.must(b.peer.Terminate(conn))
				b.gone(limit)
				b.ourHost.Node.WaitPing(b.addr(b.theirHost), limit)
				b.up()
				b.noFailures()
			}},
	),
		scenario{name: "ikev2-initial-contact", shows: "strongSwan crashes and comes back: its INITIAL_CONTACT ends what we had", role: responder, at: sites,
			steps: func(b *bed) {
				b.start()
				b.ping()
				b.crashPeer()
				b.start()
				b.ping()
				b.noFailures()
			}},
		scenario{name: "ikev2-initial-contact", shows: "we lose everything and come back: our INITIAL_CONTACT ends what strongSwan had", role: initiator, at: sites,
			steps: func(b *bed) {
				b.start()
				b.ping()
				b.f.Keymgrd.Kill9()
				b.f.Worker(b.node).Kill9()
				b.must(os.RemoveAll(b.f.State()))
				b.f.Keymgrd.Start()
				b.f.Worker(b.node).Start()
				b.f.WaitInSync()
				b.start()
				b.ping()
				b.noFailures()
			}},
		scenario{name: "ikev2-restart-worker", shows: "our worker crashes and comes back: same SAs, traffic goes on", role: initiator, at: sites,
			steps: func(b *bed) {
				b.start()
				b.ping()
				b.f.Worker(b.node).Restart()
				b.f.WaitInSync()
				b.ourHost.Node.WaitPing(b.addr(b.theirHost), limit)
				b.up()
				b.ping()
			}},
	)
}

// crashPeer ends charon without a word and starts it again.
func (b *bed) crashPeer() {
	b.Helper()
	b.peer.Kill()
	b.peer = b.them.Node.StartStrongSwanWith(b.scenario.peer, b.conn)
}

// childGone waits until the IKE SA has no CHILD SA, and then makes one by a packet.
func (b *bed) childGone() {
	b.Helper()
	lab.WaitFor(b, limit, "the CHILD SA to go at both ends", func() error {
		us, them := b.f.SAs(b.node), b.peer.SAs()
		if len(us) != 1 || len(us[0].GetChildren()) != 0 || len(them) != 1 || them[0].Child("INSTALLED") != nil {
			return fmt.Errorf("we have %v, strongSwan %+v; want an IKE SA without CHILD SA", us, them)
		}
		return nil
	})
	before := b.f.SAs(b.node)[0].GetLocalSpi()
	b.ourHost.Node.WaitPing(b.addr(b.theirHost), limit)
	if ours, _ := b.up(); ours.GetLocalSpi() != before {
		b.Errorf("IKE SA %016x has the new CHILD SA; want the old one, %016x", ours.GetLocalSpi(), before)
	}
	b.ping()
	b.noFailures()
}

// longOnes wait for timers of minutes. They come first, beside all others.
func longOnes() []scenario {
	return []scenario{
		{name: "ikev2-dpd", shows: "strongSwan is killed: liveness checks end our SAs; it comes back and so do they", role: initiator, at: sites,
			ours: policy{dpd: "1s"},
			steps: func(b *bed) {
				b.start()
				b.ping()
				b.peer.Kill()
				// Eight sendings of the check with back-off take about a minute.
				b.gone(2 * time.Minute)
				b.requireFailure("TIMEOUT")
				b.peer = b.them.Node.StartStrongSwanWith(b.scenario.peer, b.conn)
				b.ourHost.Node.WaitPing(b.addr(b.theirHost), limit)
				b.up()
				b.ping()
			}},
		{name: "ikev2-restart-keymgr", shows: "our key manager crashes and comes back without its stored state: traffic goes on, fresh SAs replace the old", role: initiator, at: sites,
			steps: func(b *bed) {
				before, _ := b.start()
				b.ping()
				probe := b.ourHost.Node.StartProbe(b.theirHost, b.v6, probeInterval)
				b.answered(probe, 20)
				b.f.Keymgrd.Kill9()
				b.answered(probe, 100)
				b.f.Keymgrd.Start("--state.dir", "")
				b.f.WaitInSync()
				// Negotiations after a restart are spread over 30 s. strongSwan keeps the
				// old IKE SA, of which nobody can tell it, beside the new one.
				lab.WaitFor(b, time.Minute, "a fresh IKE SA", func() error {
					us := b.f.SAs(b.node)
					if len(us) != 1 || us[0].GetState() != "established" || len(us[0].GetChildren()) != 1 || us[0].GetLocalSpi() == before.GetLocalSpi() {
						return fmt.Errorf("we have %v", us)
					}
					for _, sa := range b.peer.SAs() {
						if sa.InitiatorSPI == fmt.Sprintf("%016x", us[0].GetLocalSpi()) {
							return b.sameChildren(us[0], sa)
						}
					}
					return errors.New("strongSwan does not have it")
				})
				b.answered(probe, 100)
				b.requireOvertaken(probe)
				b.ping()
				b.noFailures()
			}},
	}
}
