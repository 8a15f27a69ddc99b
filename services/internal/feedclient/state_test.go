package feedclient

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/testudo-ipsec/testudo/ipsec"
	ipsecv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/ipsec/v1"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
	"github.com/testudo-ipsec/testudo/services/internal/convert"
)

// rule is a resource with a rule that blocks a protocol.
func rule(node, name, version string, weight uint64) *policyv1.Resource {
	side := ipsec.AddrSelector(netip.MustParseAddr("192.0.2.1"))
	r := &ipsec.Rule{Name: name, Weight: weight, Direction: ipsec.Both, Action: ipsec.ActionBlock, Selector: ipsec.Selector{Local: side, Remote: side}}
	return &policyv1.Resource{
		Key: &policyv1.ResourceKey{Node: node, Kind: "rule", Name: name}, Version: version, Value: &policyv1.Resource_Rule{Rule: convert.ToRule(r)},
	}
}

func settings(node string, a ipsecv1.Action) *policyv1.Resource {
	return &policyv1.Resource{
		Key: &policyv1.ResourceKey{Node: node, Kind: "settings"}, Version: "1",
		Value: &policyv1.Resource_Settings{Settings: &policyv1.NodeSettings{DefaultAction: a}},
	}
}

func delta(revision uint64, rs ...*policyv1.Resource) *policyv1.SubscribeResponse {
	return &policyv1.SubscribeResponse{Store: &policyv1.StoreVersion{Revision: revision}, Resources: rs}
}

func TestADeltaIsUsedForAllNodesOrNone(t *testing.T) {
	inUse := map[string]*ipsec.NodePolicy{}
	full := false
	c := &Client{Log: slog.New(slog.DiscardHandler), state: newState("")}
	c.Use = func(_ context.Context, node string, p *ipsec.NodePolicy) error {
		if node == "c" && full {
			return errors.New("no room")
		}
		inUse[node] = p
		return nil
	}
	if err := c.put(t.Context(), delta(1, rule("a", "old", "1", 1), rule("c", "old", "1", 1))); err != nil {
		t.Fatal(err)
	}
	full = true
	err := c.put(t.Context(), delta(2, rule("a", "new", "1", 1), rule("b", "new", "1", 1), rule("c", "new", "1", 1)))
	if r := (*refusal)(nil); !errors.As(err, &r) || r.key.node != "c" {
		t.Errorf("got %v, want a refusal of node c", err)
	}
	if p := inUse["a"]; p == nil || len(p.Rules) != 1 || p.Rules[0].Name != "old" {
		t.Errorf("a uses %+v, want what it had", p)
	}
	if p := inUse["b"]; p != nil {
		t.Errorf("b uses %+v, want nothing, as before", p)
	}
	if rev, _ := c.Revision(); rev != 1 || len(c.state.have()) != 2 {
		t.Errorf("at revision %d with %v", rev, c.state.have())
	}
}

func TestResourcesThatAreRefused(t *testing.T) {
	bad := rule("a", "x", "1", 1)
	bad.GetRule().Action = 9
	for name, r := range map[string]*policyv1.Resource{
		"a rule without an action": bad,
		"a default of secure":      settings("a", 3),
		"no default":               settings("a", 0),
		"a kind of the future":     {Key: &policyv1.ResourceKey{Node: "a", Kind: "quota"}},
		"another node's":           settings("b", 1),
		"a peer without a name":    {Key: &policyv1.ResourceKey{Node: "a", Kind: "peer"}, Value: &policyv1.Resource_Peer{}},
		"settings with a bad address": {
			Key:   &policyv1.ResourceKey{Node: "a", Kind: "settings"},
			Value: &policyv1.Resource_Settings{Settings: &policyv1.NodeSettings{DefaultAction: 1, Addresses: [][]byte{{1, 2}}}},
		},
	} {
		s := newState("a")
		_, _, err := s.with(delta(1, rule("a", "good", "1", 1), r))
		if ref := (*refusal)(nil); !errors.As(err, &ref) || ref.key != keyOf(r.GetKey()) {
			t.Errorf("%s: got %v, want a refusal that names it", name, err)
		}
		if len(s.nodes) != 0 {
			t.Errorf("%s: something was kept: %v", name, s.nodes)
		}
	}
}

func TestRulesComeByFallingWeight(t *testing.T) {
	s, nodes, err := newState("").with(delta(3, rule("a", "z", "1", 5), rule("a", "light", "1", 1), rule("a", "y", "1", 5), settings("a", 2)))
	if err != nil || len(nodes) != 1 {
		t.Fatal(nodes, err)
	}
	p := s.policy("a")
	if p.Default != ipsec.ActionBlock || len(p.Rules) != 3 || p.Rules[0].Name != "y" || p.Rules[1].Name != "z" || p.Rules[2].Name != "light" || p.Version.Revision != 3 {
		t.Errorf("got %+v", p)
	}
	// The last resource goes: there is no policy, rather than an empty one.
	gone := &policyv1.SubscribeResponse{}
	for _, h := range s.have() {
		gone.Removed = append(gone.Removed, h.GetKey())
	}
	if s, _, err = s.with(gone); err != nil || s.policy("a") != nil {
		t.Errorf("got %+v, %v", s.policy("a"), err)
	}
	// Removal of what is not there touches nobody.
	if _, nodes, err = s.with(&policyv1.SubscribeResponse{Removed: []*policyv1.ResourceKey{{Node: "never"}}}); err != nil || len(nodes) != 0 {
		t.Errorf("got %v, %v", nodes, err)
	}
}

// Whatever arrives, nothing panics, and what was taken survives the file.
func FuzzDelta(f *testing.F) {
	b, err := proto.Marshal(delta(1, rule("a", "x", "1", 1), settings("a", 1)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &policyv1.SubscribeResponse{}
		if proto.Unmarshal(b, d) != nil {
			return
		}
		s, nodes, err := newState("").with(d)
		if err != nil {
			return
		}
		again, _, err := newState("").with(s.snapshot())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			p, q := s.policy(n), again.policy(n)
			if (p == nil) != (q == nil) || p != nil && (len(p.Rules) != len(q.Rules) || len(p.Peers) != len(q.Peers) || p.Default != q.Default) {
				t.Fatalf("got %+v, want %+v", q, p)
			}
		}
	})
}

func TestSealedFilesOnly(t *testing.T) {
	if b, err := unseal(seal([]byte("x"))); err != nil || string(b) != "x" {
		t.Errorf("got %q, %v", b, err)
	}
	for _, b := range [][]byte{nil, []byte(fileHeader), append([]byte(fileHeader), make([]byte, 31)...), append([]byte(fileHeader), make([]byte, 40)...)} {
		if _, err := unseal(b); err == nil {
			t.Errorf("%q was taken", b)
		}
	}
}
