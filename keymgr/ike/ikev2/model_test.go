package ikev2_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
)

// Random schedules of commands on both ends over a network that loses, repeats,
// delays and reorders, with restarts of either end, other policies and other addresses.
// Whatever happens: at rest both ends agree on which SAs
// there are, nothing is left in a worker that no machine owns, and nothing is
// under way; there are never more SAs than the bound; and while nobody closes
// anything, each end can send at any moment, and the other would receive it.
//
// TESTUDO_SCHEDULES sets how many schedules run (`make model` runs 10^5),
// TESTUDO_SCHEDULE runs the one of a seed and prints its ladder.
func TestRandomSchedulesEndInAgreement(t *testing.T) {
	if s := os.Getenv("TESTUDO_SCHEDULE"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		r := newSchedule(t, seed)
		err = r.run()
		t.Logf("%+v\n%s", r, r.net.LadderText(0))
		if err != nil {
			t.Error(err)
		}
		return
	}
	schedules := 2000
	if testing.Short() {
		schedules = 200
	}
	if s := os.Getenv("TESTUDO_SCHEDULES"); s != "" {
		var err error
		if schedules, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	var next, up, failures, kept, steps atomic.Int64
	t.Run("shards", func(t *testing.T) {
		for shard := range runtime.GOMAXPROCS(0) {
			t.Run(strconv.Itoa(shard), func(t *testing.T) {
				t.Parallel()
				for seed := next.Add(1) - 1; seed < int64(schedules); seed = next.Add(1) - 1 {
					r := newSchedule(t, uint64(seed))
					if err := r.run(); err != nil {
						t.Fatalf("TESTUDO_SCHEDULE=%d: %v\n%+v\nweb %+v\ndb %+v\n%s", seed, err, r, r.web.Failures, r.db.Failures, r.net.LadderText(60))
					}
					up.Add(int64(len(r.web.Up) + len(r.db.Up)))
					failures.Add(int64(len(r.web.Failures) + len(r.db.Failures)))
					steps.Add(int64(r.steps))
					if len(r.web.Children()) > 0 {
						kept.Add(1)
					}
				}
			})
		}
	})
	t.Logf("%d schedules, %d events: %d CHILD SAs came up, %d failures, %d ended with a CHILD SA", schedules, steps.Load(), up.Load(), failures.Load(), kept.Load())
	if !t.Failed() && (kept.Load() < int64(schedules)/3 || up.Load() < int64(schedules)*2) {
		t.Errorf("the schedules do not exercise much")
	}
}

// schedule is one run. Everything in it comes from the seed.
type schedule struct {
	net     *iketest.Net
	web, db *iketest.Host
	seed    uint64

	resources uint32 // CHILD SAs beside the first
	rules     int    // more than the one that is connected for
	mobile    bool   // with MOBIKE, and addresses that change
	changing  bool   // policies do
	narrow    bool   // now and then a peer takes one request at a time
	gentle    bool   // nobody closes anything
	both      bool   // both ends connect, so that there may be two IKE SAs
	steps     int
	most      map[*iketest.Host]int // CHILD SAs at once
	wanted    bool                  // from now on there must be a usable CHILD SA
	bad       error
}

func newSchedule(t testing.TB, seed uint64) *schedule {
	s := &schedule{seed: seed, most: map[*iketest.Host]int{}, gentle: seed%2 == 0, mobile: seed%5 == 2, changing: seed%6 == 5, narrow: seed%3 == 1}
	if seed%7 > 3 {
		s.rules = 2
	}
	s.net, s.web, s.db = iketest.Pair(t, seed, func(w, d *iketest.Side) {
		w.DPD, d.DPD = 20*time.Second, 20*time.Second
		w.Mobike, d.Mobike = s.mobile, s.mobile
		switch {
		case seed%16 == 0: // slow: every exchange waits for the engine
			w.PFS, d.PFS = ipsec.KEMODP2048, ipsec.KEMODP2048
			w.IKE = []string{"aes256-sha256-modp2048"}
			d.IKE = w.IKE
		case seed%8 == 3: // several exchanges for each rekey
			w.IKE, w.ESP = []string{hybridIKE}, []string{hybridESP}
			d.IKE, d.ESP = w.IKE, w.ESP
		case seed%10 > 7:
			s.resources = 1 + uint32(seed%6)
			w.Resources, d.Resources = s.resources, s.resources
		case seed%10 < 2: // several key exchanges (RFC 9370), so follow-up exchanges
			w.IKE, w.ESP = []string{hybridIKE}, []string{hybridESP}
			d.IKE, d.ESP = w.IKE, w.ESP
		case seed%10 < 4:
			w.PFS = ipsec.KEX25519
			if seed%4 > 1 { // else web alone asks for it
				d.PFS = ipsec.KEX25519
			}
		}
	})
	for _, h := range []*iketest.Host{s.web, s.db} {
		for i := range s.rules {
			more := h.Policy.Rules[0]
			more.Name = fmt.Sprint("rule-", i)
			more.Selector.Local.Protocol, more.Selector.Remote.Protocol = uint8(100+i), uint8(100+i)
			h.Policy.Rules = append([]ipsec.Rule{more}, h.Policy.Rules...)
		}
	}
	r := s.net.Rand
	if r.IntN(3) == 0 {
		s.net.AnswerDelay = func() time.Duration { return time.Duration(r.IntN(400)) * time.Millisecond }
	}
	loss, dup, late := r.IntN(20), r.IntN(20), r.IntN(40)
	s.net.Hook = func(p iketest.Packet) []iketest.Packet {
		if r.IntN(100) < loss {
			return nil
		}
		if r.IntN(100) < late {
			p.At = p.At.Add(time.Duration(r.IntN(3000)) * time.Millisecond)
		}
		out := []iketest.Packet{p}
		if r.IntN(100) < dup {
			p.At = p.At.Add(time.Duration(r.IntN(2000)) * time.Millisecond)
			out = append(out, p)
		}
		return out
	}
	s.net.Step = s.step
	return s
}

func (s *schedule) run() error {
	r := s.net.Rand
	s.web.Connect("rule", nil)
	if s.both = r.IntN(4) == 0; s.both {
		s.db.Connect("rule", nil)
	}
	for range 2 + r.IntN(8) {
		s.net.Run(time.Duration(r.IntN(r.IntN(2)*4000+20)) * time.Millisecond)
		h := s.web
		if r.IntN(2) == 0 {
			h = s.db
		}
		if len(h.Machines) > 0 {
			s.command(h, h.Machines[r.IntN(len(h.Machines))])
		}
	}
	// Rest: the network heals, and everything that was begun comes to an end.
	s.calm(s.web)
	s.calm(s.db)
	s.net.Run(5 * time.Second)
	s.net.Hook = nil
	s.net.Run(4 * time.Minute)
	if s.bad != nil {
		return s.bad
	}
	for _, h := range []*iketest.Host{s.web, s.db} {
		if i := slices.IndexFunc(h.Machines, func(m ike.Machine) bool { return m.Info().State != "established" }); i >= 0 {
			return fmt.Errorf("%s still is %s", h.Name, h.Machines[i].Info().State)
		}
		if s.gentle && s.wanted && s.rules == 0 && !s.changing {
			for _, m := range h.Machines {
				if c, want := m.Info().Children, 1+int(s.resources); len(c) != want {
					return fmt.Errorf("%s ends with %d CHILD SAs on one IKE SA, want %d: %+v", h.Name, len(c), want, c)
				}
			}
		}
	}
	if err := iketest.Agree(s.web, s.db); err != nil {
		return err
	}
	for _, h := range []*iketest.Host{s.web, s.db} {
		for _, m := range h.Machines {
			if n := m.(*ikev2.Machine).WaitingForTest(); n != 0 {
				return fmt.Errorf("%s: %d tasks wait, for ever", h.Name, n)
			}
			for _, c := range m.Info().Children {
				for _, sa := range h.SAs {
					if p := m.Info().Path; sa.Child == c.ID && (sa.Local != p.Local.Addr() || sa.Remote != p.Remote.Addr()) {
						return fmt.Errorf("%s: SA %s goes %s ... %s, its IKE SA %s", h.Name, sa.SPI, sa.Local, sa.Remote, p)
					}
				}
			}
		}
	}
	return nil
}

// move changes the addresses of a host.
func (s *schedule) move(h *iketest.Host) {
	all := map[*iketest.Host][]string{s.web: {"10.0.0.1", "10.0.8.1", "10.0.9.1"}, s.db: {"10.0.0.2", "10.0.7.2"}}[h]
	s.net.Rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	h.Readdress(all[:1+s.net.Rand.IntN(len(all))]...)
}

// change gives a host another policy: a rule that goes or comes back, other lifetimes.
func (s *schedule) change(h *iketest.Host) {
	r := s.net.Rand
	p := *h.Policy
	p.Version.Revision++
	p.Rules, p.Peers = slices.Clone(p.Rules), slices.Clone(p.Peers)
	switch i := r.IntN(len(p.Rules)); r.IntN(3) {
	case 0:
		if p.Rules[i].Peer = "peer"; r.IntN(2) == 0 {
			p.Rules[i].Peer = "another"
		}
	case 1:
		t := *p.Rules[i].Template
		t.Lifetime.TimeSoft, t.Lifetime.TimeHard = time.Duration(r.IntN(3))*time.Minute, 5*time.Minute
		p.Rules[i].Template = &t
	case 2:
		p.Peers[0].Lifetime = time.Duration(r.IntN(3)) * time.Minute
	}
	tellPolicy(h, &p)
}

// calm takes the lifetimes out of a host's policy: what they lead to has no end.
func (s *schedule) calm(h *iketest.Host) {
	p := *h.Policy
	p.Rules, p.Peers = slices.Clone(p.Rules), slices.Clone(p.Peers)
	p.Peers[0].Lifetime = 0
	for i := range p.Rules {
		t := *p.Rules[i].Template
		t.Lifetime, p.Rules[i].Template = ipsec.Lifetime{}, &t
	}
	tellPolicy(h, &p)
}

func tellPolicy(h *iketest.Host, p *ipsec.NodePolicy) {
	h.Policy = p
	for _, m := range slices.Clone(h.Machines) {
		h.Tell(m, ike.PolicyChanged{Policy: p})
	}
}

// command gives a machine something to do. Most of it keeps the CHILD SA.
func (s *schedule) command(h *iketest.Host, m ike.Machine) {
	r := s.net.Rand
	switch {
	case r.IntN(6) == 0 && h.Restart(m):
		s.step()
		return
	case s.mobile && r.IntN(3) == 0:
		s.move(h)
		s.step()
		return
	case s.changing && r.IntN(2) == 0:
		s.change(h)
		s.step()
		return
	case s.rules > 0 && r.IntN(3) == 0:
		for i := range s.rules {
			h.Tell(m, ike.CreateChild{Rule: fmt.Sprint("rule-", i)})
		}
	case s.narrow && r.IntN(3) == 0:
		m.(*ikev2.Machine).ForgetWindowForTest()
	}
	if (s.resources > 0 || s.rules > 0) && r.IntN(3) == 0 { // as many requests as the window takes, and more
		for _, c := range m.Info().Children {
			h.Tell(m, ike.RekeyChild{Child: c.ID})
		}
		s.step()
		return
	}
	var child uint64
	if c := m.Info().Children; len(c) > 0 {
		child = c[r.IntN(len(c))].ID
	}
	events := []ike.Event{ike.RekeyChild{Child: child}, ike.RekeyChild{Child: child}, ike.RekeyIKE{}, ike.RekeyIKE{},
		ike.CheckPeer{}, ike.ChildExpired{Child: child, Cause: "bytes"}, ike.Timer{}, ike.CreateChild{Rule: "rule"}}
	if s.gentle {
		// Another CHILD SA may be asked for while the one there is being replaced.
		events = events[:len(events)-1]
	} else {
		events = append(events, ike.ChildExpired{Child: child, Hard: true, Cause: "bytes"}, ike.DeleteChild{Child: child})
		if r.IntN(3) == 0 {
			events = append(events, ike.Terminate{Why: "test"})
		}
	}
	h.Tell(m, events[r.IntN(len(events))])
	s.step()
}

// step checks what must hold after every event.
func (s *schedule) step() {
	s.steps++
	if s.bad != nil {
		return
	}
	s.bad = errors.Join(s.bounded(s.web), s.bounded(s.db), s.usable())
	if s.bad != nil {
		s.bad = fmt.Errorf("after event %d, message %d: %w", s.steps, len(s.net.Ladder), s.bad)
	}
}

// bounded checks the number of CHILD SAs and of a worker's SAs. One IKE SA has one
// CHILD SA here. While it is replaced there may be two successors, made by either
// end, and what each end has not deleted yet of the time before. Draining ones
// come on top, also of CHILD SAs that are gone.
func (s *schedule) bounded(h *iketest.Host) error {
	for _, m := range h.Machines {
		if c := len(m.Info().Children); c > 5*(1+s.rules)*(1+int(s.resources)) && s.gentle {
			return fmt.Errorf("%s has %d CHILD SAs on one IKE SA", h.Name, c)
		}
	}
	out, in := 0, 0
	for i := range h.SAs {
		if h.SAs[i].Direction == ipsec.Outbound {
			out++
		} else {
			in++
		}
	}
	c := len(h.Children())
	most := max(s.most[h], c)
	s.most[h] = most
	if out > c || in > 3*most+2*len(h.Machines)+2 {
		return fmt.Errorf("%s: the worker has %d outbound and %d inbound SAs of %d CHILD SAs", h.Name, out, in, c)
	}
	return nil
}

// usable checks that a packet sent now would arrive, in both directions.
func (s *schedule) usable() error {
	for _, h := range []*iketest.Host{s.web, s.db} {
		for _, f := range h.Failures {
			if f.Why == "TIMEOUT" || f.Why == "HALF_OPEN_EXPIRED" { // the network was too bad
				s.wanted = false
				return nil
			}
		}
	}
	if !s.wanted {
		first := 1
		if s.both {
			first = 2
		}
		s.wanted = s.gentle && !s.changing && len(s.web.Up) >= first && len(s.db.Up) >= first
		return nil
	}
	for _, p := range [][2]*iketest.Host{{s.web, s.db}, {s.db, s.web}} {
		check := iketest.Deliverable
		if s.both || s.resources > 0 || s.rules > 0 { // the engine holds the second one's outbound SA back
			check = iketest.Reachable
		}
		if err := check(p[0], p[1]); err != nil {
			return err
		}
	}
	return nil
}
