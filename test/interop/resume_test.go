package interop

import (
	"errors"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// resumes kill our key manager with -9 under traffic, at rest and in the middle of a
// rekey. strongSwan never notices: its IKE SA and CHILD SA stay, and everything that
// either end asks for afterwards works.
func resumes() []scenario {
	return twice(
		scenario{name: "ikev2-resume", shows: "our key manager is killed and resumes: nothing is negotiated or lost, then both ends rekey both SAs", at: sites,
			steps: resume},
		scenario{name: "ikev2-resume-in-rekey", shows: "our key manager is killed in the middle of a rekey by us, and ends it after the restart", at: sites,
			steps: resumeInRekey},
	)
}

func (b *bed) restart() {
	b.Helper()
	b.f.Keymgrd.Restart()
	b.f.Keymgrd.WaitUp()
	b.f.WaitInSync()
}

func resume(b *bed) {
	before, _ := b.start()
	b.ping()
	probe := b.ourHost.Node.StartProbe(b.theirHost, b.v6, probeInterval)
	b.answered(probe, 20)
	b.f.Keymgrd.Kill9()
	b.answered(probe, 20)
	b.f.Keymgrd.Start()
	b.f.Keymgrd.WaitUp()
	b.f.WaitInSync()
	ours, _ := b.up()
	if ours.GetLocalSpi() != before.GetLocalSpi() || ours.GetChildren()[0].GetSpiIn() != before.GetChildren()[0].GetSpiIn() {
		b.Fatalf("SAs %v after the restart, want %v", ours, before)
	}
	for _, rekey := range []func(*bed, *ikeSA){(*bed).rekeyOurChild, (*bed).rekeyTheirChild} {
		ours, _ = b.up()
		b.replaceChild(ours, rekey)
		b.restart()
	}
	for _, rekey := range []func(*bed, *ikeSA){(*bed).rekeyOurIKE, (*bed).rekeyTheirIKE} {
		old, _ := b.up()
		rekey(b, old)
		lab.WaitFor(b, limit, "the IKE SA to be replaced", func() error {
			if ours, _ = b.up(); ours.GetLocalSpi() == old.GetLocalSpi() {
				return errors.New("it is the old one")
			}
			return nil
		})
		b.restart()
	}
	b.answered(probe, 20)
	b.requireNoLoss(probe)
	b.noFailures()
	b.must(b.peer.Terminate(conn))
	b.gone(limit)
}

func resumeInRekey(b *bed) {
	ours, _ := b.start()
	b.ping()
	probe := b.ourHost.Node.StartProbe(b.theirHost, b.v6, probeInterval)
	for range 5 {
		b.answered(probe, 20)
		old := ours.GetChildren()[0].GetSpiIn()
		b.rekeyOurChild(ours)
		b.restart()
		lab.WaitFor(b, limit, "the rekey to come to its end", func() error {
			if ours, _ = b.up(); len(ours.GetChildren()) != 1 || ours.GetChildren()[0].GetSpiIn() == old {
				return errors.New("there is the old CHILD SA")
			}
			return nil
		})
	}
	b.answered(probe, 20)
	b.requireNoLoss(probe)
	b.noFailures()
}
