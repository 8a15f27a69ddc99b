package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// spis are the SPIs of the CHILD SAs of node a.
func (b *pairBench) spis() []string {
	var out []string
	for _, c := range b.Children("a") {
		out = append(out, fmt.Sprintf("%08x/%08x", c.GetSpiIn(), c.GetSpiOut()))
	}
	slices.Sort(out)
	return out
}

// waitSpis waits until keymgrd is back with SAs that are, or are not, those of before.
func (b *pairBench) waitSpis(t *testing.T, what string, ok func([]string) bool) []string {
	t.Helper()
	var got []string
	lab.WaitFor(t, 3*limit, what, func() error {
		if got = b.spis(); !ok(got) {
			return fmt.Errorf("node a has the CHILD SAs %v", got)
		}
		return nil
	})
	return got
}

// rekeyBy asks for a fresh CHILD SA on a node and waits until it has replaced the old one.
func (b *pairBench) rekeyBy(t *testing.T, node string) {
	t.Helper()
	old := b.waitSpis(t, "one CHILD SA", func(s []string) bool { return len(s) == 1 })
	one := b.Children("a")[0]
	for _, c := range b.Children(node) { // another one may be on its way out yet
		if c.GetSpiIn() == one.GetSpiIn() || c.GetSpiIn() == one.GetSpiOut() {
			b.RekeyChild(node, c.GetId())
		}
	}
	b.waitSpis(t, "a CHILD SA rekeyed by "+node, func(s []string) bool { return len(s) == 1 && s[0] != old[0] })
}

// The key manager of both hosts is killed with -9 over and over, under traffic, at
// random moments, some of them in the middle of a rekey. Not one packet is lost, and
// nothing is negotiated anew: the IKE SAs stay, and CHILD SAs change by rekeys only.
func TestKeyManagerIsKilledAndResumes(t *testing.T) {
	b := newPair(t, protectPair(""), fleet.Options{})
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
	before := b.spis()
	probe := b.A.Node.StartProbe(b.B, false, pace)
	moving(t, probe)
	n := restarts(t)
	for i := range n {
		rekey := i%2 == 1
		if rekey {
			node := []string{"a", "b"}[i/2%2]
			// What the last restart left under way may have replaced it by now.
			id := strconv.FormatUint(b.Children(node)[0].GetId(), 10)
			if _, err := b.TryCLI("sa", "rekey", node, "--child", id); err != nil {
				t.Logf("rekey %d: %v", i+1, err)
			}
			<-time.After(time.Duration(rand.IntN(8000)) * time.Microsecond) // in the middle of it
		}
		b.Keymgrd.Kill9()
		moving(t, probe)
		b.Keymgrd.Start()
		b.Keymgrd.WaitUp()
		b.WaitInSync()
		if got := metric(b.Keymgrd, "testudo_keymgr_state_restored_total"); got < 2 {
			t.Errorf("restart %d: %v IKE SAs restored, want 2, one of each end", i+1, got)
		}
		if got := metric(b.Keymgrd, "testudo_keymgr_sas_orphaned"); got != 0 {
			t.Errorf("restart %d: %v orphans, want none", i+1, got)
		}
		if !rekey && i == 0 {
			if got := b.spis(); !slices.Equal(got, before) {
				t.Errorf("CHILD SAs %v after a restart, want %v", got, before)
			}
		}
		moving(t, probe)
		if got := metric(b.Keymgrd, "testudo_keymgr_established_total"); got != 0 {
			t.Errorf("restart %d: %v IKE SAs were negotiated, want none", i+1, got)
		}
	}
	b.rekeyBy(t, "a")
	b.rekeyBy(t, "b")
	moving(t, probe)
	if r := probe.Stop(); r.Lost != 0 {
		t.Errorf("%d restarts: %v; want none lost", n, r)
	} else {
		t.Logf("%d restarts: %v", n, r)
	}
}

// What the stored state can come to while keymgrd is down. Traffic never stops, and
// fresh SAs take over.
func TestStoredStateIsLost(t *testing.T) {
	t.Parallel() // it waits most of the time
	sas := func(b *pairBench) string { return filepath.Join(b.State(), "sas") }
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name  string
		early func(t *testing.T, b *pairBench) // while it still runs
		down  func(t *testing.T, b *pairBench)
		boot  bool // of the machine, while it is down
		says  string
	}{
		{name: "machine went down", boot: true, says: "the machine went down before"},
		{name: "deleted", down: func(t *testing.T, b *pairBench) { must(t, os.RemoveAll(b.State())) }},
		{name: "damaged", says: "the stored state cannot be used", down: func(t *testing.T, b *pairBench) {
			for _, f := range files(t, sas(b)) {
				c, err := os.ReadFile(f)
				must(t, err)
				c[len(c)/2] ^= 1
				must(t, os.WriteFile(f, c, 0o600))
			}
		}},
		{name: "older copy", says: "older than what the worker knows",
			early: func(t *testing.T, b *pairBench) {
				must(t, exec.CommandContext(t.Context(), "cp", "-a", b.State(), filepath.Join(b.Control.Dir(), "copy")).Run())
				b.rekeyBy(t, "a")
			},
			down: func(t *testing.T, b *pairBench) {
				must(t, os.RemoveAll(b.State()))
				must(t, os.Rename(filepath.Join(b.Control.Dir(), "copy"), b.State()))
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newPair(t, protectPair(""), fleet.Options{})
			b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
			if tc.early != nil {
				tc.early(t, b)
			}
			before := b.spis()
			probe := b.A.Node.StartProbe(b.B, false, pace)
			moving(t, probe)
			b.Keymgrd.Kill9()
			if tc.down != nil {
				tc.down(t, b)
			}
			if tc.boot {
				b.Keymgrd.StartBooted()
			} else {
				b.Keymgrd.Start()
			}
			if tc.says != "" {
				b.Keymgrd.Process().WaitOutput(tc.says, limit)
			}
			b.Keymgrd.WaitUp()
			b.waitSpis(t, "fresh CHILD SAs", func(s []string) bool {
				return len(s) > 0 && !slices.ContainsFunc(s, func(x string) bool { return slices.Contains(before, x) })
			})
			lab.WaitFor(t, 3*limit, "the old SAs to be gone", func() error {
				if n := metric(b.Keymgrd, "testudo_keymgr_sas_orphaned"); n != 0 {
					return fmt.Errorf("%v SAs of the earlier key manager", n)
				}
				return nil
			})
			moving(t, probe)
			r := probe.Stop()
			t.Log(r)
			if r.Lost > r.Sent/50 {
				t.Errorf("%v; want at most one in fifty", r)
			}
		})
	}
}

// A keymgrd that was stopped in order goes on after a boot of the machine.
func TestStoppedBeforeTheBoot(t *testing.T) {
	b := newPair(t, protectPair(""), fleet.Options{})
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
	before := b.spis()
	probe := b.A.Node.StartProbe(b.B, false, pace)
	moving(t, probe)
	b.Keymgrd.Stop()
	b.Keymgrd.StartBooted()
	b.Keymgrd.WaitUp()
	b.waitSpis(t, "the CHILD SAs of before", func(s []string) bool { return slices.Equal(s, before) })
	b.rekeyBy(t, "a")
	moving(t, probe)
	if r := probe.Stop(); r.Lost != 0 {
		t.Errorf("%v; want none lost", r)
	}
}

// With a wrong key keymgrd says so and changes nothing: with the right one it resumes.
func TestStoredStateUnderAnotherKey(t *testing.T) {
	b := newPair(t, protectPair(""), fleet.Options{})
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
	before := b.spis()
	probe := b.A.Node.StartProbe(b.B, false, pace)
	moving(t, probe)
	b.Keymgrd.Kill9()
	b.Secret("other.key", fleet.RandomPSK())
	b.Keymgrd.Start("--state.key", "file:other.key")
	b.Keymgrd.Process().WaitOutput("sealed with another key", limit)
	lab.WaitFor(t, limit, "keymgrd to give up", func() error {
		if b.Keymgrd.Running() == nil {
			return errors.New("it runs")
		}
		return nil
	})
	b.Keymgrd.Start()
	b.Keymgrd.WaitUp()
	b.WaitInSync()
	if got := b.spis(); !slices.Equal(got, before) {
		t.Errorf("CHILD SAs %v, want %v", got, before)
	}
	moving(t, probe)
	if r := probe.Stop(); r.Lost != 0 {
		t.Errorf("%v; want none lost", r)
	}
}

// RFC 6290: a key manager that has lost its IKE SAs shows the token of the one that a
// request of the peer's comes under, and the peer, which has another key manager,
// drops it at once and starts anew. With liveness checks it would take a minute.
func TestLostStateIsProvenToThePeer(t *testing.T) {
	p := lab.NewPair(t, lab.PairOptions{})
	wire := p.A.Sniff()
	a := newBench(t, p.Lab, "", fleet.Options{Hosts: []*lab.Node{p.A.Node}}, wire)
	b := newBench(t, p.Lab, "", fleet.Options{Hosts: []*lab.Node{p.B.Node}, Control: "control2"})
	here := side{identity: "a.example", other: "b.example", ike: "aes256gcm16-prfsha256-x25519", esp: "aes128gcm16", traffic: "protocol: icmp", psk: fleet.RandomPSK()}
	there := here
	there.identity, there.other = here.other, here.identity
	a.Secret(fleet.PSK, here.psk)
	b.Secret(fleet.PSK, here.psk)
	a.Apply(here.policy("a", "192.0.2.1", "b", "192.0.2.2"))
	b.Apply(there.policy("b", "192.0.2.2", "a", "192.0.2.1"))
	a.WaitInSync()
	b.WaitInSync()
	p.A.Node.Ping(p.B.V4.Addr(), lab.PingOptions{})
	before := a.SAs("a")
	if len(before) != 1 {
		t.Fatalf("IKE SAs %v, want one", before)
	}
	// The store goes; what tokens are made from stays.
	b.Keymgrd.Kill9()
	if err := os.RemoveAll(filepath.Join(b.State(), "sas")); err != nil {
		t.Fatal(err)
	}
	b.Keymgrd.Start()
	b.Keymgrd.WaitUp()
	b.WaitInSync()
	a.RekeyIKE("a", before[0].GetLocalSpi())
	lab.WaitFor(t, limit, "a to know that b has lost the IKE SA", func() error {
		for _, f := range a.Failures("") {
			if f.GetWhy() == "PEER_LOST_STATE" {
				return nil
			}
		}
		return fmt.Errorf("failures %v", a.Failures(""))
	})
	lab.WaitFor(t, 3*limit, "another IKE SA in place of the lost one", func() error {
		s := a.SAs("a")
		if len(s) != 1 || s[0].GetLocalSpi() == before[0].GetLocalSpi() || s[0].GetState() != "established" || len(s[0].GetChildren()) == 0 {
			return fmt.Errorf("a has %v", s)
		}
		return nil
	})
	// For a moment b still sends on the SA that its worker kept, and a has not any more.
	p.A.Node.WaitPing(p.B.V4.Addr(), limit)
	p.A.Node.Ping(p.B.V4.Addr(), lab.PingOptions{Count: 3})
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".log") || strings.HasSuffix(e.Name(), ".base") {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out
}
