package ikev2_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
)

// withResources is a pair whose policies have so many CHILD SAs beside the first.
// Whatever either end sends at any moment is received.
func withResources(t *testing.T, w, d uint32) (n *iketest.Net, web, db *iketest.Host) {
	n, web, db = iketest.Pair(t, 1, func(ws, ds *iketest.Side) { ws.Resources, ds.Resources = w, d })
	n.Step = func() {
		for _, p := range [][2]*iketest.Host{{web, db}, {db, web}} {
			if err := iketest.Complete(p[0], p[1]); err != nil && len(web.Up) > 0 && len(db.Up) > 0 && !t.Failed() {
				t.Errorf("after\n%s%v", n.LadderText(0), err)
			}
		}
	}
	web.Connect("rule", nil)
	n.Run(5 * time.Second)
	mustBeUp(t, n, web, db)
	return n, web, db
}

func resources(h *iketest.Host) []uint32 {
	var out []uint32
	for _, c := range h.Children() {
		out = append(out, c.Resource)
	}
	slices.Sort(out)
	return out
}

func mustHave(t *testing.T, n *iketest.Net, h *iketest.Host, want ...uint32) {
	t.Helper()
	if got := resources(h); !slices.Equal(got, want) {
		t.Fatalf("%s has CHILD SAs for the resources %v, want %v\n%+v\n%s", h.Name, got, want, h.Failures, n.LadderText(0))
	}
	outbound := 0
	for _, sa := range h.SAs {
		if sa.Direction == ipsec.Outbound {
			outbound++
			if i := slices.IndexFunc(h.Children(), func(c ike.Child) bool { return c.ID == sa.Child }); h.Children()[i].Resource != sa.Resource {
				t.Errorf("%s: SA %s is for resource %d, its CHILD SA for %d", h.Name, sa.SPI, sa.Resource, h.Children()[i].Resource)
			}
		}
	}
	if outbound != len(want) {
		t.Errorf("%s has %d outbound SAs, want %d", h.Name, outbound, len(want))
	}
}

// RFC 9611 §3: one CHILD SA for all, then one for each queue, with the same traffic
// selectors; each is rekeyed by itself and stays with its queue.
func TestPerResourceChildSAs(t *testing.T) {
	n, web, db := withResources(t, 3, 3)
	mustHave(t, n, web, 0, 1, 2, 3)
	mustHave(t, n, db, 0, 1, 2, 3)
	for _, c := range web.Children() {
		if !slices.Equal(c.Selectors, web.Children()[0].Selectors) {
			t.Errorf("selectors %v", c.Selectors)
		}
	}
	for _, h := range []*iketest.Host{web, db} {
		for _, c := range h.Children() {
			h.Do(ike.RekeyChild{Child: c.ID})
			n.Run(7 * time.Second)
		}
	}
	mustHave(t, n, web, 0, 1, 2, 3)
	mustHave(t, n, db, 0, 1, 2, 3)
	for _, c := range db.Children() {
		if c.Rekeyed != 2 {
			t.Errorf("%+v", c)
		}
	}
	web.Do(ike.RekeyIKE{})
	n.Run(7 * time.Second)
	mustHave(t, n, db, 0, 1, 2, 3)
	if len(web.Failures)+len(db.Failures) != 0 || len(web.Machines) != 1 {
		t.Errorf("%+v %+v", web.Failures, db.Failures)
	}
}

// RFC 9611 §5.2: TS_MAX_QUEUE, once the peer has as many as it wants.
func TestPeerWantsFewerResources(t *testing.T) {
	n, web, db := withResources(t, 3, 1)
	mustHave(t, n, web, 0, 1)
	mustHave(t, n, db, 0, 1)
	if len(web.Failures) != 1 || web.Failures[0].Why != "TS_MAX_QUEUE" || web.Failures[0].Rule != "rule queue 1" {
		t.Errorf("%+v", web.Failures)
	}
	// The two that it refuses were asked for at the same time.
	if c := strings.Count(n.LadderText(0), "TS_MAX_QUEUE"); c != 2 {
		t.Errorf("asked %d times", c)
	}
}

// A peer that does not answer the notify is asked for no more.
func TestPeerKnowsNoResources(t *testing.T) {
	n, web, db := withResources(t, 3, 0)
	mustHave(t, n, web, 0)
	mustHave(t, n, db, 0)
	if len(web.Failures) != 0 {
		t.Errorf("%+v", web.Failures)
	}
}

// The policy changes: more are made, and those it does not have any more are closed.
func TestResourcesFollowThePolicy(t *testing.T) {
	n, web, db := withResources(t, 1, 1)
	set := func(count uint32) {
		for _, h := range []*iketest.Host{db, web} {
			p := *h.Policy
			p.Rules = slices.Clone(p.Rules)
			tmpl := *p.Rules[0].Template
			tmpl.Resources, p.Rules[0].Template = count, &tmpl
			h.Do(ike.PolicyChanged{Policy: &p})
		}
		n.Run(10 * time.Second)
	}
	set(3)
	mustHave(t, n, web, 0, 1, 2, 3)
	mustHave(t, n, db, 0, 1, 2, 3)
	set(2)
	mustHave(t, n, web, 0, 1, 2)
	mustHave(t, n, db, 0, 1, 2)
	set(0)
	mustHave(t, n, web, 0)
	mustHave(t, n, db, 0)
}
