package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// The default IKE suite is hybrid (RFC 9370), and so are the rekeys of both kinds here.
func TestRekeysLoseNothing(t *testing.T) {
	b := newPair(t, protectPair(", pfs: x25519-ke1_mlkem768"), fleet.Options{})
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
	probe := b.A.Node.StartProbe(b.B, false, 2*time.Millisecond)
	const times = 4
	for i := range times {
		node, peer := "a", "b"
		if i%2 == 1 {
			node, peer = peer, node
		}
		old := b.onlyIKE(node, peer)
		b.RekeyChild(node, old.GetChildren()[0].GetId())
		b.waitRekeyed(node, peer, func() error {
			if s := b.SAs(node); len(s) != 1 || len(s[0].GetChildren()) != 1 || s[0].GetChildren()[0].GetId() == old.GetChildren()[0].GetId() {
				return fmt.Errorf("SAs %v; want another CHILD SA than %v", s, old)
			}
			return nil
		})
		child := b.onlyIKE(node, peer).GetChildren()[0]
		b.RekeyIKE(node, old.GetLocalSpi())
		b.waitRekeyed(node, peer, func() error {
			if s := b.SAs(node); len(s) != 1 || s[0].GetLocalSpi() == old.GetLocalSpi() || s[0].GetState() != "established" {
				return fmt.Errorf("SAs %v; want another IKE SA than %v", s, old)
			}
			return nil
		})
		if c := b.onlyIKE(node, peer).GetChildren()[0]; c.GetSpiIn() != child.GetSpiIn() {
			t.Errorf("an IKE rekey changed the CHILD SA from %v to %v; want it to be inherited", child, c)
		}
		moving(t, probe)
	}
	for _, node := range []string{"a", "b"} {
		s := b.SAs(node)[0]
		if !strings.HasSuffix(s.GetSuite(), "-x25519-ke1_mlkem768") || !strings.Contains(s.GetChildren()[0].GetSuite(), "-x25519-ke1_mlkem768") {
			t.Errorf("%s has suites %s and %s; want ML-KEM in both", node, s.GetSuite(), s.GetChildren()[0].GetSuite())
		}
	}
	r := probe.Stop()
	t.Logf("%d CHILD and %d IKE rekeys, from both sides: %v", times, times, r)
	if r.Lost != 0 {
		t.Errorf("%v; want none lost", r)
	}
}

func (b *bench) waitRekeyed(node, peer string, cond func() error) {
	b.t.Helper()
	lab.WaitFor(b.t, limit, node+" to have rekeyed with "+peer, cond)
}

// rekeyed is how many rekeys led to the CHILD SA with the most. Both ends may have
// made one at the same time, and one of the two carries nothing.
func (b *bench) rekeyed(node string) (n uint32) {
	for _, c := range b.Children(node) {
		n = max(n, c.GetRekeyed())
	}
	return n
}

// An SA that has carried so much is replaced in time, again and again.
func TestLifetimesInTraffic(t *testing.T) {
	b := newPair(t, protectPair(", lifetime: {bytes: 1MiB}"), fleet.Options{})
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
	probe := b.A.Node.StartProbeOf(1300, b.B, false, 2*time.Millisecond)
	lab.WaitFor(t, 2*limit, "two rekeys", func() error {
		if n := b.rekeyed("a"); n < 2 {
			return fmt.Errorf("%d so far", n)
		}
		return nil
	})
	r := probe.Stop()
	t.Logf("lifetime of 1 MiB: %v", r)
	if r.Lost != 0 {
		t.Errorf("%v; want none lost", r)
	}

	b.Apply(protectPair(", lifetime: {packets: 1000}"))
	b.WaitInSync()
	b.Terminate("a", "b") // an SA keeps the lifetime it was made with
	b.waitNoSAs("a")      // what is probed meanwhile may be answered on an SA that goes
	b.waitNoSAs("b")
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{}) // few packets wait for SAs
	probe = b.A.Node.StartProbe(b.B, false, 2*time.Millisecond)
	lab.WaitFor(t, 2*limit, "three rekeys", func() error {
		if n := b.rekeyed("a"); n < 3 {
			return fmt.Errorf("%d so far", n)
		}
		return nil
	})
	r = probe.Stop()
	t.Logf("lifetime of 1000 packets: %v", r)
	if r.Lost != 0 {
		t.Errorf("%v; want none lost", r)
	}
}

// Use counts from an SA's first packet: without traffic it is not replaced, however
// old, and in traffic it is, with nothing lost.
func TestLifetimeInUse(t *testing.T) {
	t.Parallel()
	const use = 10 * time.Second
	b := newPair(t, protectPair(", lifetime: {use: 10s}"), fleet.Options{})
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
	old := b.onlyIKE("a", "b").GetChildren()[0].GetId()
	b.RekeyChild("a", old) // the new SA has carried nothing
	b.waitRekeyed("a", "b", func() error {
		if c := b.Children("a"); len(c) != 1 || c[0].GetId() == old {
			return fmt.Errorf("CHILD SAs %v; want one other than %d", c, old)
		}
		return nil
	})
	idle := b.Children("a")[0]
	began := time.Now()
	lab.WaitFor(t, limit, "more than the lifetime without traffic", func() error {
		if c := b.Children("a"); len(c) != 1 || c[0].GetId() != idle.GetId() {
			t.Fatalf("CHILD SAs %v after %v without traffic; want %v as it was", c, time.Since(began), idle)
		}
		if passed := time.Since(began); passed < use+2*time.Second {
			return fmt.Errorf("%v passed", passed)
		}
		return nil
	})

	began = time.Now()
	probe := b.A.Node.StartProbe(b.B, false, 2*time.Millisecond)
	lab.WaitFor(t, limit, "a rekey in traffic", func() error {
		if n := b.rekeyed("a"); n <= idle.GetRekeyed() {
			return fmt.Errorf("CHILD SAs %v", b.Children("a"))
		}
		return nil
	})
	if after := time.Since(began); after < use-use/10 {
		t.Errorf("rekeyed %v after the first packet; want %v or up to a tenth less", after, use)
	}
	lab.WaitFor(t, limit, "a rekey of the SA that followed", func() error {
		if n := b.rekeyed("a"); n <= idle.GetRekeyed()+1 {
			return fmt.Errorf("CHILD SAs %v", b.Children("a"))
		}
		return nil
	})
	after := time.Since(began)
	r := probe.Stop()
	t.Logf("lifetime of %v in use: two rekeys in %v of traffic: %v", use, after, r)
	if r.Lost != 0 {
		t.Errorf("%v; want none lost", r)
	}
}
