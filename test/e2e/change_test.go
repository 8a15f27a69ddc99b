package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

const pace = 5 * time.Millisecond

func suite(name string) string { return fmt.Sprintf(", security: [{esp: {encryption: %s}}]", name) }

func TestPolicyChangesUnderTraffic(t *testing.T) {
	b := newPair(t, protectPair(suite("aes128gcm16")), fleet.Options{})
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
	old := b.Children("a")
	probe := b.A.Node.StartProbe(b.B, false, pace)
	moving(t, probe)

	b.Apply(protectPair(suite("chacha20poly1305")))
	b.WaitInSync()
	lab.WaitFor(t, limit, "SAs of the new suite only", func() error {
		moving(t, probe)
		for _, n := range []string{"a", "b"} {
			for _, c := range b.Children(n) {
				if !strings.HasPrefix(c.GetSuite(), "chacha20poly1305") || c.GetId() == old[0].GetId() {
					return fmt.Errorf("node %s has %v", n, c)
				}
			}
		}
		if len(b.Children("a")) == 0 {
			return errors.New("no CHILD SA")
		}
		return nil
	})
	moving(t, probe)
	t.Logf("another suite: %v", probe.Stop())
	b.wire.RequireProtected(100)

	t.Run("rule removed, default permit", func(t *testing.T) {
		b.clearAllowed()
		probe := b.A.Node.StartProbe(b.B, false, pace)
		b.Apply(policy(hostA, hostB, filters("other", "{from: me, to: 198.51.100.1}"), action("permit", "action: permit"),
			rules("p", "", "{name: other, filters: other, action: permit}"), assign("p", "a"), assign("p", "b")))
		b.WaitInSync()
		b.waitNoSAs("a")
		b.waitNoSAs("b")
		protected := b.wire.Count(lab.ESP)
		moving(t, probe)
		t.Logf("into the clear: %v", probe.Stop())
		if n := b.wire.Count(lab.ESP) - protected; n != 0 || b.wire.Count(lab.Cleartext) == 0 {
			t.Errorf("%d ESP packets without a rule, %d packets in clear; want 0 and more than 0", n, b.wire.Count(lab.Cleartext))
		}
	})
	t.Run("secured again", func(t *testing.T) {
		probe := b.A.Node.StartProbe(b.B, false, pace)
		b.Apply(protectPair(""))
		b.WaitInSync()
		moving(t, probe)
		clear := b.wire.Count(lab.Cleartext)
		moving(t, probe)
		t.Logf("out of the clear: %v", probe.Stop())
		if n := b.wire.Count(lab.Cleartext) - clear; n != 0 {
			t.Errorf("%d packets in clear with the rule in force", n)
		}
	})
	t.Run("rule removed, default block", func(t *testing.T) {
		b.Apply(policy(hostA, hostB, filters("other", "{from: me, to: 198.51.100.1}"), action("permit", "action: permit"),
			rules("p", "default: block", "{name: other, filters: other, action: permit}"), assign("p", "a"), assign("p", "b")))
		b.WaitInSync()
		b.waitNoSAs("a")
		b.waitNoSAs("b")
		before := b.wire.Count(lab.Cleartext) + b.wire.Count(lab.ESP)
		if err := b.A.Node.TryPing(b.B.V4.Addr(), lab.PingOptions{}); err == nil {
			t.Error("a ping passes where everything is blocked")
		}
		if n := b.wire.Count(lab.Cleartext) + b.wire.Count(lab.ESP) - before; n != 0 {
			t.Errorf("%d packets on the wire where everything is blocked", n)
		}
	})
}

// moving waits until some more datagrams of a probe have come back.
func moving(t *testing.T, p *lab.Probe) {
	t.Helper()
	want := p.Answered() + 20
	lab.WaitFor(t, limit, "the probe to be answered", func() error {
		if n := p.Answered(); n < want {
			return fmt.Errorf("%d answers; want %d", n, want)
		}
		return nil
	})
}

// A policy with another authentication replaces the IKE SA that is up, and one with
// another lifetime the CHILD SA, while traffic goes on.
func TestAuthenticationAndLifetimeChangeUnderTraffic(t *testing.T) {
	t.Parallel()
	first := protectPair("")
	b := newPair(t, first, fleet.Options{Secrets: map[string]string{"other.psk": fleet.RandomPSK()}})
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{})
	old := b.onlyIKE("a", "b")
	probe := b.A.Node.StartProbe(b.B, false, pace)
	moving(t, probe)

	second := strings.Replace(first, "file:"+fleet.PSK, "file:other.psk", 1)
	b.Apply(second)
	b.WaitInSync()
	lab.WaitFor(t, 3*limit, "one other IKE SA", func() error {
		for _, n := range []string{"a", "b"} {
			sas := b.SAs(n)
			if len(sas) != 1 || len(sas[0].GetChildren()) != 1 || sas[0].GetLocalSpi() == old.GetLocalSpi() || sas[0].GetRemoteSpi() == old.GetLocalSpi() {
				return fmt.Errorf("node %s has %v", n, sas)
			}
		}
		return nil
	})
	moving(t, probe)

	old = b.onlyIKE("a", "b")
	b.Apply(strings.Replace(second, "action: secure", "action: secure, lifetime: {bytes: 1GiB}", 1))
	b.WaitInSync()
	lab.WaitFor(t, 2*limit, "the CHILD SA to be rekeyed", func() error {
		if c := b.Children("a"); len(c) != 1 || c[0].GetId() == old.GetChildren()[0].GetId() {
			return fmt.Errorf("a has %v", c)
		}
		return nil
	})
	moving(t, probe)
	if now := b.onlyIKE("a", "b"); now.GetLocalSpi() != old.GetLocalSpi() {
		t.Errorf("IKE SA %v, before %v; want the same", now, old)
	}
	r := probe.Stop()
	// A worker that is slow to install a new IKE SA's CHILD SA gets its first packets early.
	early := packets(b.Worker("a"), "no-sa") + packets(b.Worker("b"), "no-sa")
	t.Logf("%v; %v before an inbound SA", r, early)
	if float64(r.Lost) > early {
		t.Errorf("%v; want no more lost than the %v that came before an inbound SA", r, early)
	}
	if fs := b.Failures(""); len(fs) != 0 {
		t.Errorf("failures: %v; want none", fs)
	}
}
