package interop

import (
	"errors"
	"fmt"
	"time"

	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// rekeys must not lose a packet (RFC 7296 §2.8), whoever starts them and whoever
// started the IKE SA.
func rekeys() []scenario {
	pfs := func(c *lab.SwanConn) { c.ESPProposals = []string{"aes128gcm16-ecp256"} }
	return append(twice(
		scenario{name: "ikev2-rekey-child-by-us", shows: "we rekey the CHILD SA under traffic, nothing is lost", at: sites,
			steps: rekeyChild((*bed).rekeyOurChild)},
		scenario{name: "ikev2-rekey-child-by-peer", shows: "strongSwan rekeys the CHILD SA under traffic, nothing is lost", at: sites,
			steps: rekeyChild((*bed).rekeyTheirChild)},
		scenario{name: "ikev2-rekey-ike-by-us", shows: "we rekey the IKE SA under traffic, nothing is lost", at: sites,
			steps: rekeyIKE((*bed).rekeyOurIKE, (*bed).rekeyTheirChild)},
		scenario{name: "ikev2-rekey-ike-by-peer", shows: "strongSwan rekeys the IKE SA under traffic, nothing is lost", at: sites,
			steps: rekeyIKE((*bed).rekeyTheirIKE, (*bed).rekeyOurChild)},
		scenario{name: "ikev2-rekey-child-by-both", shows: "both ends rekey the CHILD SA at the same time, nothing is lost", at: sites,
			steps: rekeyChild(bothRekey((*bed).rekeyOurChild, (*bed).rekeyTheirChild))},
		scenario{name: "ikev2-rekey-ike-by-both", shows: "both ends rekey the IKE SA at the same time, nothing is lost", at: sites,
			steps: rekeyIKE(bothRekey((*bed).rekeyOurIKE, (*bed).rekeyTheirIKE), (*bed).rekeyOurChild)},
		scenario{name: "ikev2-rekey-pfs-by-us", shows: "we rekey the CHILD SA with a key exchange of its own", at: sites,
			ours: policy{pfs: "ecp256"}, swan: pfs, steps: rekeyChild((*bed).rekeyOurChild)},
		scenario{name: "ikev2-rekey-pfs-by-peer", shows: "strongSwan rekeys the CHILD SA with a key exchange of its own", at: sites,
			ours: policy{pfs: "ecp256"}, swan: pfs, steps: rekeyChild((*bed).rekeyTheirChild)},
	), scenario{
		name: "ikev2-rekey-invalid-ke-by-peer", shows: "strongSwan rekeys with x25519, we answer INVALID_KE_PAYLOAD, it goes on with ecp256", role: responder, at: sites,
		ours:  policy{pfs: "ecp256"},
		swan:  func(c *lab.SwanConn) { c.ESPProposals = []string{"aes128gcm16-x25519-ecp256"} },
		steps: rekeyChild((*bed).rekeyTheirChild),
	})
}

type ikeSA = keymgrv1.IkeSa

func (b *bed) rekeyOurChild(ours *ikeSA) {
	b.f.RekeyChild(b.node, ours.GetChildren()[0].GetId())
}
func (b *bed) rekeyTheirChild(*ikeSA)  { b.must(b.peer.RekeyChild(conn)) }
func (b *bed) rekeyOurIKE(ours *ikeSA) { b.f.RekeyIKE(b.node, ours.GetLocalSpi()) }
func (b *bed) rekeyTheirIKE(*ikeSA)    { b.must(b.peer.RekeyIKE(conn)) }

// bothRekey starts two rekeys at the same time: a collision (RFC 7296 §2.25), or one
// after the other when one end is quicker.
func bothRekey(mine, theirs func(*bed, *ikeSA)) func(*bed, *ikeSA) {
	return func(b *bed, ours *ikeSA) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			theirs(b, ours)
		}()
		mine(b, ours)
		<-done
	}
}

const probeInterval = 5 * time.Millisecond

func rekeyChild(rekey func(*bed, *ikeSA)) func(*bed) {
	return func(b *bed) {
		ours, _ := b.start()
		b.ping()
		probe := b.ourHost.Node.StartProbe(b.theirHost, b.v6, probeInterval)
		b.answered(probe, 20)
		b.replaceChild(ours, rekey)
		b.answered(probe, 40)
		b.requireNoLoss(probe)
		b.noFailures()
	}
}

func rekeyIKE(rekey, child func(*bed, *ikeSA)) func(*bed) {
	return func(b *bed) {
		before, _ := b.start()
		b.ping()
		probe := b.ourHost.Node.StartProbe(b.theirHost, b.v6, probeInterval)
		b.answered(probe, 20)
		rekey(b, before)
		var ours *ikeSA
		lab.WaitFor(b, limit, "the IKE SA to be replaced", func() error {
			if ours, _ = b.up(); ours.GetLocalSpi() == before.GetLocalSpi() {
				return errors.New("it is the old one")
			}
			return nil
		})
		if got, want := ours.GetChildren()[0].GetSpiIn(), before.GetChildren()[0].GetSpiIn(); got != want {
			b.Errorf("the CHILD SA is now %08x; want the old one, %08x, to have moved", got, want)
		}
		// The new IKE SA has to work too, with its own SK_d, started by the other end.
		b.replaceChild(ours, child)
		b.answered(probe, 40)
		b.requireNoLoss(probe)
		b.noFailures()
	}
}

// replaceChild rekeys and waits until one fresh CHILD SA carries all.
func (b *bed) replaceChild(before *ikeSA, rekey func(*bed, *ikeSA)) {
	b.Helper()
	rekey(b, before)
	old := before.GetChildren()[0]
	lab.WaitFor(b, limit, "a fresh CHILD SA to carry the traffic both ways", func() error {
		ours, theirs := b.up()
		fresh := ours.GetChildren()
		if len(fresh) != 1 || fresh[0].GetSpiIn() == old.GetSpiIn() {
			return fmt.Errorf("we have %v, strongSwan %+v", fresh, theirs)
		}
		if c := theirs.Child("INSTALLED"); c.PacketsIn < 20 || c.PacketsOut < 20 {
			return fmt.Errorf("strongSwan has %+v", c)
		}
		return nil
	})
}

// answered waits until so many more datagrams of a probe came back.
func (b *bed) answered(p *lab.Probe, n int) {
	b.Helper()
	n += p.Answered()
	lab.WaitFor(b, limit, "the probe to be answered", func() error {
		if got := p.Answered(); got < n {
			return fmt.Errorf("%d answers, want %d", got, n)
		}
		return nil
	})
}

// requireOvertaken is requireNoLoss for a new IKE SA that we began. strongSwan, the
// responder, sends on its CHILD SA as soon as it has answered: what overtakes the
// installation of our inbound SA is lost, and our worker counts it.
func (b *bed) requireOvertaken(p *lab.Probe) {
	b.Helper()
	r := p.Stop()
	early := b.f.Worker(b.node).Metrics()[`testudo_worker_packets_total{why="no-sa"}`]
	b.Logf("probe: %v; %v before our inbound SA", r, early)
	if float64(r.Lost) > early {
		b.Errorf("probe: %v; want no more lost than the %v that came before our inbound SA", r, early)
	}
}

func (b *bed) requireNoLoss(p *lab.Probe) {
	b.Helper()
	r := p.Stop()
	b.Log("probe:", r)
	if r.Lost != 0 {
		b.Errorf("probe: %v; want no loss", r)
	}
}
