package ikev2_test

import (
	"slices"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
)

// Random schedules of commands on both ends over a network that loses, repeats,
// delays and reorders: at rest both ends agree on which SAs there are, nothing is
// left in a worker that no machine owns, and nothing is under way.
func TestRandomSchedulesEndInAgreement(t *testing.T) {
	schedules := uint64(2000)
	if testing.Short() {
		schedules = 200
	}
	var rekeys, failures, both int
	for seed := range schedules {
		n, web, db := schedule(t, seed)
		for _, h := range []*iketest.Host{web, db} {
			rekeys += len(h.Up)
			failures += len(h.Failures)
		}
		if len(web.Children()) > 0 {
			both++
		}
		if err := iketest.Agree(web, db); err != nil {
			t.Fatalf("seed %d: %v\nweb %+v\ndb %+v\n%s", seed, err, web.Failures, db.Failures, n.LadderText(60))
		}
	}
	t.Logf("%d schedules: %d CHILD SAs came up, %d failures, %d ended with a CHILD SA", schedules, rekeys, failures, both)
	if both < int(schedules)/10 || rekeys < int(schedules)*2 {
		t.Errorf("the schedules do not exercise much")
	}
}

func schedule(t testing.TB, seed uint64) (n *iketest.Net, web, db *iketest.Host) {
	n, web, db = iketest.Pair(t, seed, func(w, d *iketest.Side) {
		w.DPD, d.DPD = 20*time.Second, 20*time.Second
		switch {
		case seed%50 == 0: // slow: every exchange waits for the engine
			w.PFS, d.PFS = ipsec.KEMODP2048, ipsec.KEMODP2048
			w.IKE = []string{"aes256-sha256-modp2048"}
			d.IKE = w.IKE
		case seed%4 == 0:
			w.PFS, d.PFS = ipsec.KEX25519, ipsec.KEX25519
		}
	})
	r := n.Rand
	if seed%3 == 0 {
		n.AnswerDelay = func() time.Duration { return time.Duration(r.IntN(400)) * time.Millisecond }
	}
	loss, dup, late := r.IntN(20), r.IntN(20), r.IntN(40)
	n.Hook = func(p iketest.Packet) []iketest.Packet {
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
	web.Connect("rule", nil)
	if r.IntN(4) == 0 {
		db.Connect("rule", nil) // both at once: two IKE SAs, each complete
	}
	for range 2 + r.IntN(8) {
		n.Run(time.Duration(r.IntN(r.IntN(2)*4000+20)) * time.Millisecond)
		h := web
		if r.IntN(2) == 0 {
			h = db
		}
		if len(h.Machines) == 0 {
			continue
		}
		m := h.Machines[r.IntN(len(h.Machines))]
		var child uint64
		if c := m.Info().Children; len(c) > 0 {
			child = c[r.IntN(len(c))].ID
		}
		events := []ike.Event{ike.RekeyChild{Child: child}, ike.RekeyChild{Child: child}, ike.RekeyIKE{}, ike.RekeyIKE{},
			ike.CheckPeer{}, ike.ChildExpired{Child: child, Cause: "bytes"}, ike.ChildExpired{Child: child, Hard: true, Cause: "bytes"},
			ike.DeleteChild{Child: child}, ike.CreateChild{Rule: "rule"}, ike.Timer{}, ike.Terminate{Why: "test"}}
		i := r.IntN(len(events))
		if i == len(events)-1 && r.IntN(3) > 0 {
			i = 0
		}
		h.Tell(m, events[i])
	}
	// Rest: the network heals, and everything that was begun comes to an end.
	n.Run(5 * time.Second)
	n.Hook = nil
	n.Run(4 * time.Minute)
	for _, h := range []*iketest.Host{web, db} {
		if i := slices.IndexFunc(h.Machines, func(m ike.Machine) bool { return m.Info().State != "established" }); i >= 0 {
			t.Fatalf("seed %d: %s still is %s\n%s", seed, h.Name, h.Machines[i].Info().State, n.LadderText(60))
		}
	}
	return n, web, db
}
