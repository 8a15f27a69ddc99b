package engine_test

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/push"
	"github.com/testudo-ipsec/testudo/keymgr/store"
	"github.com/testudo-ipsec/testudo/keymgr/store/memory"
)

// process is a key manager that can be killed: from then on nothing reaches its store
// or its workers.
type process struct {
	e    *engine.Engine
	dead atomic.Bool
}

type mortal struct {
	*memory.Store
	p *process
}

func (m mortal) Commit(batch []store.Change) error {
	if m.p.dead.Load() {
		return errors.New("killed")
	}
	return m.Store.Commit(batch)
}

// ends are two workers with a key manager each; a's has a store, and dies.
type ends struct {
	*lab
	t    *testing.T
	disk *memory.Store
	pa   *process
	ea   *engine.Engine
	eb   *engine.Engine
	a, b *host

	secret string // of quick crash detection
	log    *slog.Logger
}

func crashSecrets(s string) []ipsec.Secret { return []ipsec.Secret{ipsec.CopySecret([]byte(s))} }

func inEnds(t *testing.T, fn func(t *testing.T, p *ends)) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		p := &ends{lab: l, t: t, disk: new(memory.Store), a: l.host("a", "192.0.2.1"), b: l.host("b", "192.0.2.2")}
		p.secret = "the secret of the fleet"
		p.eb = newEngine(t, func(c *engine.Config) { c.CrashSecrets = crashSecrets(p.secret) })
		p.eb.SetPolicy("b", policy(t, "b", "192.0.2.2", "a", "192.0.2.1", 2))
		p.b.attach(p.eb)
		p.start()
		defer func() {
			p.lossless = false
			p.ea.Close()
			p.eb.Close()
			l.close()
		}()
		p.a.attach(p.ea)
		fn(t, p)
	})
}

// start starts a's key manager on what is on the disk.
func (p *ends) start() {
	p.pa = &process{}
	p.ea = newEngine(p.t, func(c *engine.Config) {
		c.Store, c.CrashSecrets = mortal{p.disk, p.pa}, crashSecrets(p.secret)
		c.Log = p.log
	})
	p.pa.e = p.ea
	p.ea.SetPolicy("a", policy(p.t, "a", "192.0.2.1", "b", "192.0.2.2", 2))
}

// kill is kill -9: whatever was under way goes nowhere.
func (p *ends) kill() {
	p.pa.dead.Store(true)
	p.a.do(func() { p.a.session = nil })
	p.a.cut()
	p.ea.Close()
}

func (p *ends) restart() {
	p.kill()
	p.start()
	p.a.attach(p.ea)
}

// spis are the IKE SPIs and CHILD SPIs of an engine's view, as the initiator of the
// IKE SA counts them.
func (p *ends) spis(e *engine.Engine, swap bool) []string {
	sas, err := e.List(p.t.Context(), engine.Filter{})
	if err != nil {
		p.t.Fatal(err)
	}
	var out []string
	for _, sa := range sas {
		l, r := sa.LocalSPI, sa.RemoteSPI
		if swap {
			l, r = r, l
		}
		out = append(out, fmt.Sprintf("ike %016x %016x", l, r))
		for _, c := range sa.Children {
			in, o := c.SPIIn, c.SPIOut
			if swap {
				in, o = o, in
			}
			out = append(out, fmt.Sprintf("child %s %s", in, o))
		}
	}
	slices.Sort(out)
	return out
}

func (p *ends) agree() []string {
	p.t.Helper()
	a, b := p.spis(p.ea, false), p.spis(p.eb, true)
	if !slices.Equal(a, b) {
		p.t.Fatalf("the ends do not agree:\n%v\n%v", a, b)
	}
	return a
}

func (p *ends) must(n int, err error) {
	p.t.Helper()
	if err != nil || n == 0 {
		p.t.Fatalf("command: %d, %v", n, err)
	}
}

func TestKeyManagerResumes(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.a.acquire(1)
		p.after(time.Second)
		before := p.agree()
		if len(before) != 2 {
			t.Fatalf("SAs %v, want an IKE SA and a CHILD SA", before)
		}
		p.lossless = true
		applied := p.a.applied
		p.restart()
		p.after(time.Minute)
		if got := p.agree(); !slices.Equal(got, before) {
			t.Fatalf("SAs after the restart %v, want %v", got, before)
		}
		if p.a.applied != applied {
			t.Errorf("%d SAs were installed anew, want none", p.a.applied-applied)
		}
		if s := p.ea.Stats(); s.Restored != 1 || s.Orphans != 0 || s.Established != 0 {
			t.Errorf("restored %d, orphans %d, established %d; want 1, 0, 0", s.Restored, s.Orphans, s.Established)
		}

		// Everything that an IKE SA does works, asked for by either side.
		for _, step := range []func() (int, error){
			func() (int, error) { return p.ea.Rekey(t.Context(), engine.Filter{Rule: "rule-0"}) },
			func() (int, error) { return p.eb.Rekey(t.Context(), engine.Filter{Rule: "rule-0"}) },
			func() (int, error) { return p.ea.Rekey(t.Context(), engine.Filter{Peer: "b"}) },
			func() (int, error) { return p.eb.Rekey(t.Context(), engine.Filter{Peer: "a"}) },
		} {
			old := p.agree()
			p.must(step())
			p.after(20 * time.Second)
			now := p.agree()
			if slices.Equal(old, now) {
				t.Fatalf("nothing was rekeyed: %v", now)
			}
			p.restart()
			p.after(time.Second)
			if got := p.agree(); !slices.Equal(got, now) {
				t.Fatalf("SAs after a restart %v, want %v", got, now)
			}
		}
		p.lossless = false
		p.must(p.ea.Terminate(t.Context(), engine.Filter{Peer: "b"}, "done"))
		p.after(time.Second)
		if got := p.agree(); len(got) != 0 {
			t.Errorf("SAs after the delete: %v", got)
		}
		p.restart()
		if s := p.ea.Stats(); s.Restored != 0 {
			t.Errorf("%d IKE SAs restored after the delete", s.Restored)
		}
	})
}

// Killed at random moments, with rekeys of both kinds and sides under way: the ends
// agree again by themselves, and nothing is negotiated anew. That no lease is granted
// twice is what host.grant looks after.
func TestKilledAtRandomMoments(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inEnds(t, func(t *testing.T, p *ends) {
				r := rand.New(rand.NewPCG(seed, 7)) //nolint:gosec // a test that can be repeated
				p.a.acquire(1)
				p.after(time.Second)
				for range 40 {
					switch f := (engine.Filter{Rule: "rule-0"}); r.IntN(5) {
					case 0:
						_, _ = p.ea.Rekey(t.Context(), f)
					case 1:
						_, _ = p.eb.Rekey(t.Context(), f)
					case 2:
						_, _ = p.ea.Rekey(t.Context(), engine.Filter{Peer: "b"})
					case 3:
						_, _ = p.eb.Rekey(t.Context(), engine.Filter{Peer: "a"})
					}
					p.after(time.Duration(r.IntN(20000)) * time.Microsecond)
					p.kill()
					p.after(time.Duration(r.IntN(300)) * time.Millisecond) // longer, and b may give up by chance
					p.start()
					p.a.attach(p.ea)
					p.after(time.Duration(r.IntN(3000)) * time.Millisecond)
				}
				p.after(3 * time.Minute)
				sas := p.agree()
				if len(sas) != 2 {
					t.Errorf("SAs %v, want an IKE SA and a CHILD SA", sas)
				}
				p.mustForward()
				if s := p.eb.Stats(); s.Established != 1 {
					t.Errorf("%d IKE SAs were negotiated, want 1; failures %v", s.Established, s.Failures)
				}
			})
		})
	}
}

// An older copy of the store: the worker has what the copy does not know, so the copy
// is not used, nothing is sent under its keys, and fresh SAs replace the old ones.
func TestOldCopyOfTheStore(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.a.acquire(1)
		p.after(time.Second)
		copied := p.disk.Copy()
		p.must(p.ea.Rekey(t.Context(), engine.Filter{Rule: "rule-0"}))
		p.after(time.Minute)
		before := p.agree()
		p.kill()
		p.disk = copied
		p.start()
		p.a.attach(p.ea)
		p.after(time.Second)
		if s := p.ea.Stats(); s.TooOld != 1 {
			t.Errorf("the old copy was believed")
		}
		p.mustForward() // the worker goes on
		p.after(5 * time.Minute)
		p.mustForward()
		if got := p.agree(); len(got) != 2 || slices.Equal(got, before) {
			t.Errorf("SAs %v, want fresh ones instead of %v", got, before)
		}
	})
}

// A store that was lost is the case that there has always been: orphans.
func TestLostStore(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.a.acquire(1)
		p.after(time.Minute)
		p.kill()
		p.disk = new(memory.Store)
		p.start()
		p.a.attach(p.ea)
		p.after(time.Millisecond)
		if s := p.ea.Stats(); s.Orphans != 2 {
			t.Errorf("%d orphans, want 2", s.Orphans)
		}
		p.mustForward()
		p.after(5 * time.Minute)
		p.mustForward()
		if s := p.ea.Stats(); s.Orphans != 0 || s.Established != 1 {
			t.Errorf("%d orphans and %d IKE SAs, want 0 and 1", s.Orphans, s.Established)
		}
	})
}

// Records of another version of this program are not misread: what they were of is
// negotiated anew, traffic goes on meanwhile, a peer that asks is told by its token that
// the IKE SA is lost, and one line of the log says why.
func TestStoreOfAnotherVersion(t *testing.T) {
	for _, kinds := range []string{"m", "s", "ms"} {
		inEnds(t, func(t *testing.T, p *ends) {
			p.a.acquire(1)
			p.after(time.Second)
			before := p.agree()
			p.kill()
			var changed []store.Change
			if err := p.disk.Load(func(key string, b []byte) error {
				if strings.Contains(kinds, key[:1]) {
					b[0]++
					changed = append(changed, store.Change{Key: key, Value: b})
				}
				return nil
			}); err != nil || len(changed) != map[string]int{"m": 1, "s": 2, "ms": 3}[kinds] {
				t.Fatalf("%d records, %v", len(changed), err)
			}
			if err := p.disk.Commit(changed); err != nil {
				t.Fatal(err)
			}
			var log strings.Builder
			p.log = slog.New(slog.NewTextHandler(&syncWriter{w: &log}, nil))
			p.start()
			p.a.attach(p.ea)
			p.after(time.Millisecond)
			if s := p.ea.Stats(); s.Orphans != 2 || s.Restored != 0 {
				t.Errorf("%s: %d orphans and %d IKE SAs restored, want 2 and 0", kinds, s.Orphans, s.Restored)
			}
			p.mustForward()
			if n := strings.Count(log.String(), "another version of keymgrd"); n != 1 {
				t.Errorf("%s: the log says it %d times, want once:\n%s", kinds, n, log.String())
			}
			p.must(p.eb.Rekey(t.Context(), engine.Filter{Rule: "rule-0"}))
			p.after(3 * time.Second)
			if s := p.eb.Stats(); s.Failures["PEER_LOST_STATE"] != 1 {
				t.Errorf("%s: failures %v, want one of PEER_LOST_STATE", kinds, s.Failures)
			}
			p.after(5 * time.Minute)
			if got := p.agree(); len(got) != 2 || slices.Equal(got, before) {
				t.Errorf("%s: SAs %v, want fresh ones instead of %v", kinds, got, before)
			}
			p.mustForward()
			if s := p.ea.Stats(); s.Orphans != 0 {
				t.Errorf("%s: %d orphans, want none", kinds, s.Orphans)
			}
		})
	}
}

// The record of SA numbers was shorter before numbers were reserved: all is resumed.
func TestSANumbersOfAnOlderVersion(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.a.acquire(1)
		p.after(time.Second)
		before := p.agree()
		p.kill()
		var old []byte
		if err := p.disk.Load(func(key string, b []byte) error {
			if key == "e" {
				old = b[:16]
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := p.disk.Commit([]store.Change{{Key: "e", Value: old}}); err != nil {
			t.Fatal(err)
		}
		p.start()
		p.a.attach(p.ea)
		p.after(time.Second)
		if after := p.agree(); !slices.Equal(after, before) {
			t.Errorf("SAs %v, want %v", after, before)
		}
		p.mustForward()
	})
}

// Both ends of the link have died: nobody knows how far the worker got in its lease.
// The CHILD SA is rekeyed under the IKE SA, which resumes.
func TestKeyManagerAndWorkerDie(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.a.acquire(1)
		p.after(time.Second)
		before := p.agree()
		p.kill()
		p.a.incarnation++
		p.a.sas = make(map[ipsec.SAID]ipsec.SA)
		p.start()
		p.a.attach(p.ea)
		p.after(time.Minute)
		after := p.agree()
		if len(after) != 2 || after[1] != before[1] || after[0] == before[0] {
			t.Errorf("SAs %v, want the IKE SA of %v and a fresh CHILD SA", after, before)
		}
		p.mustForward()
	})
}

// An outbound SA was written, and the worker's answer to it was not, when both ends of
// the link died: there is no lease for it any more, and nothing is left of it.
func TestAnOutboundSAThatCannotBeAskedForAgain(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.after(time.Second)
		pa := p.pa
		p.disk.Before = func(batch []store.Change) error {
			if slices.ContainsFunc(batch, func(c store.Change) bool { return strings.HasPrefix(c.Key, "m/") }) {
				pa.dead.Store(true) // this is the last that reaches the disk
			}
			return nil
		}
		p.b.acquire(1)
		p.after(time.Second)
		p.kill()
		p.a.do(func() { p.a.incarnation++; clear(p.a.sas) })
		p.start()
		p.a.attach(p.ea)
		p.after(time.Minute)
		if s := p.ea.Stats(); s.Restored != 1 {
			t.Errorf("%d IKE SAs were restored, want 1", s.Restored)
		}
		if w := p.ea.Workers()[0]; w.Desired != len(p.a.sas) || w.Installed != w.Desired {
			t.Errorf("the worker has %d SAs, of which %d are wanted", len(p.a.sas), w.Desired)
		}
		p.agree()
	})
}

// A new inbound SA may be in a worker before the disk knows of it. A key manager that
// is killed then has the worker take it out, and the peer's request is served anew.
func TestKilledBeforeAnInboundSAIsWritten(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.a.acquire(1)
		p.after(time.Second)
		before := p.agree()
		p.disk.Before = func([]store.Change) error { return errors.New("no space left on device") }
		p.must(p.eb.Rekey(t.Context(), engine.Filter{Rule: "rule-0"}))
		p.after(time.Second)
		if len(p.a.sas) != 3 {
			t.Fatalf("the worker has %d SAs, want the 2 that there were, and the new inbound one", len(p.a.sas))
		}
		unwritten := ipsec.SAID(0)
		for id := range p.a.sas {
			unwritten = max(unwritten, id)
		}
		p.kill()
		p.disk.Before = nil
		p.start()
		p.a.attach(p.ea)
		p.after(100 * time.Millisecond)
		if _, there := p.a.sas[unwritten]; there {
			t.Errorf("the worker still has %s, of which nobody knows", unwritten)
		}
		p.after(time.Minute)
		if got := p.agree(); len(got) != 2 || slices.Equal(got, before) || len(p.a.sas) != 2 {
			t.Errorf("SAs %v, and the worker has %d; want a rekeyed CHILD SA, and 2", got, len(p.a.sas))
		}
		p.mustForward()
	})
}

// Until the policy is there a restored IKE SA answers what needs none, and puts off
// what does.
func TestRestoredWithoutPolicy(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.a.acquire(1)
		p.after(time.Second)
		before := p.agree()
		p.kill()
		p.pa = &process{}
		p.ea = newEngine(t, func(c *engine.Config) { c.Store = mortal{p.disk, p.pa} })
		p.a.attach(p.ea)
		p.must(p.eb.Rekey(t.Context(), engine.Filter{Rule: "rule-0"}))
		p.after(5 * time.Second)
		if got := p.agree(); !slices.Equal(got, before) {
			t.Errorf("SAs %v without a policy, want %v still", got, before)
		}
		p.ea.SetPolicy("a", policy(t, "a", "192.0.2.1", "b", "192.0.2.2", 2))
		p.after(20 * time.Second)
		if got := p.agree(); len(got) != 2 || slices.Equal(got, before) {
			t.Errorf("SAs %v with the policy, want a rekeyed CHILD SA", got)
		}
		p.mustForward()
	})
}

// How far SAs have got is written now and then, with nobody waiting.
func TestCountersAreWritten(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.a.acquire(1)
		p.after(time.Second)
		var largest int
		p.disk.Before = func(b []store.Change) error {
			largest = max(largest, len(b))
			return store.Check(b)
		}
		var counters []ipsec.SACounters
		for _, sa := range p.a.sas {
			counters = append(counters, ipsec.SACounters{ID: sa.ID, Top: 5, Packets: 5})
		}
		p.after(2 * time.Minute) // counters are written once a minute
		p.a.report(push.Counters{SAs: counters})
		p.after(time.Second)
		if largest != 3 { // two SAs, and the numbers
			t.Errorf("the largest batch has %d records, want 3", largest)
		}
	})
}

// CHILD SAs that do the same are closed after a restart too, though the one who had planned
// it is gone.
func TestDuplicatesAreClosedAfterARestart(t *testing.T) {
	inEnds(t, func(t *testing.T, p *ends) {
		p.eb.Close() // the other end would close them as well
		p.eb = newEngine(t, func(c *engine.Config) { c.Drain = 24 * time.Hour })
		p.eb.SetPolicy("b", policy(t, "b", "192.0.2.2", "a", "192.0.2.1", 2))
		p.b.attach(p.eb)
		p.a.acquire(1)
		p.b.acquire(1) // at once
		p.after(time.Second)
		if len(p.a.sas) != 4 {
			t.Fatalf("the worker has %d SAs before the restart, want two CHILD SAs", len(p.a.sas))
		}
		p.restart()
		p.after(2 * time.Minute)
		if len(p.a.sas) != 2 || len(p.b.sas) != 2 {
			t.Errorf("the workers have %d and %d SAs, want one CHILD SA", len(p.a.sas), len(p.b.sas))
		}
	})
}
