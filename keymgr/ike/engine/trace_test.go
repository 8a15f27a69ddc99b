package engine_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
)

// text is a trace as one line for each step.
func text(tr engine.Trace) string {
	var b strings.Builder
	for _, s := range tr.Steps {
		fmt.Fprintf(&b, "%s %s %s\n", s.Way, s.What, s.Detail)
	}
	return b.String()
}

// inOrder reports whether all of words are in s, each after the one before.
func inOrder(s string, words ...string) error {
	rest := s
	for _, w := range words {
		_, after, ok := strings.Cut(rest, w)
		if !ok {
			return fmt.Errorf("no %q, or not in its place, in\n%s", w, s)
		}
		rest = after
	}
	return nil
}

// A negotiation is one trace at each end, from what asked for it to the CHILD
// SA, and goes on under the same number when the IKE SA is rekeyed.
func TestTraceFollowsANegotiation(t *testing.T) {
	inPair(t, 1, nil, func(t *testing.T, p *pair) {
		p.a.acquire(1)
		p.after(time.Second)
		a, b := p.e.Traces("a", "b"), p.e.Traces("b", "a")
		if len(a) != 1 || len(b) != 1 {
			t.Fatalf("%d and %d traces; want one at each end", len(a), len(b))
		}
		if err := inOrder(text(a[0]), "event CHILD SA is asked for rule-0", "sent IKE_SA_INIT request 0", "received IKE_SA_INIT response 0",
			"preshared key is looked up", "preshared key is there", "sent IKE_AUTH request 1", "received IKE_AUTH response 1",
			"IKE SA is up", "worker is given SAs", "worker has the SAs", "CHILD SA is up rule-0"); err != nil {
			t.Error("initiator: ", err)
		}
		if err := inOrder(text(b[0]), "received IKE_SA_INIT request 0", "sent IKE_SA_INIT response 0", "received IKE_AUTH request 1",
			"preshared key is looked up", "worker is given SAs", "worker has the SAs", "sent IKE_AUTH response 1", "CHILD SA is up rule-0"); err != nil {
			t.Error("responder: ", err)
		}
		// By each of its names.
		spi := a[0].Steps[len(a[0].Steps)-1].SPI
		for _, name := range []string{"", "b", "192.0.2.2", "192.0.2.2:500", fmt.Sprintf("%016x", spi), fmt.Sprintf("0x%x", spi)} {
			if got := p.e.Traces("a", name); len(got) != 1 || got[0].ID != a[0].ID || got[0].Peer != "b" || got[0].Remote.String() != "192.0.2.2:500" {
				t.Errorf("by the name %q: %d traces", name, len(got))
			}
		}
		if got := p.e.Traces("a", "nobody"); len(got) != 0 {
			t.Errorf("a peer that is not there has %d traces", len(got))
		}
		if _, err := p.e.Rekey(t.Context(), engine.Filter{Node: "a", SPI: spi}); err != nil {
			t.Fatal(err)
		}
		p.after(time.Second)
		a = p.e.Traces("a", "b")
		if len(a) != 1 {
			t.Fatalf("%d traces after a rekey; want the one", len(a))
		}
		if err := inOrder(text(a[0]), "CHILD SA is up", "event RekeyIKE", "sent CREATE_CHILD_SA request 2", "received CREATE_CHILD_SA response 2",
			"another IKE SA takes over", "sent INFORMATIONAL request 3"); err != nil {
			t.Error(err)
		}
	})
}

// What fails is there with its why, and the ring stays bounded.
func TestTraceIsBounded(t *testing.T) {
	inPair(t, 1, func(c *engine.Config) {
		c.Shards = 1
		c.HalfOpenPrefixCookie = 1e6
		c.HalfOpenCookie = 1e6
		c.HalfOpenPrefixMax = 1e6
	}, func(t *testing.T, p *pair) {
		for i := range uint64(12000) {
			p.b.session.Handle(request("192.0.2.1", initRequest(i+1)))
			if i%1000 == 0 {
				p.after(0)
			}
		}
		p.after(time.Second)
		steps := 0
		for _, tr := range p.e.Traces("", "") {
			steps += len(tr.Steps)
		}
		if steps == 0 || steps > 8192 {
			t.Errorf("%d steps are remembered; want some and at most 8192", steps)
		}
	})
}
