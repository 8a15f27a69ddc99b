package policyapi_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/testudo-ipsec/testudo/ipsec"
	ipsecv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/ipsec/v1"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
	"github.com/testudo-ipsec/testudo/services/internal/convert"
)

func TestApplyStoresAndGetReturns(t *testing.T) {
	r := newRig(t)
	resp := r.apply(&policyv1.ApplyRequest{Files: files(base), Message: "first"})
	if len(resp.GetChanged()) != 8 || len(resp.GetRemoved()) != 0 || !slices.Equal(resp.GetNodes(), []string{"blue", "red"}) || resp.GetVersion().GetRevision() != 1 {
		t.Errorf("got %v", resp)
	}
	log, err := r.store.History(r.ctx(), 1)
	if err != nil || !strings.HasPrefix(log[0].Author, "local/uid-") || log[0].Message != "first" {
		t.Errorf("history: got %+v, %v", log, err)
	}
	got, err := r.Get(r.ctx(), &policyv1.GetRequest{Kind: "node", Name: "red"})
	if err != nil || len(got.GetDocuments()) != 1 || !strings.Contains(string(got.GetDocuments()[0].GetContent()), "10.77.0.1") {
		t.Errorf("got %v, %v", got, err)
	}
	// A document that was taken out of its file stands alone.
	if again := r.apply(&policyv1.ApplyRequest{Files: files(string(got.GetDocuments()[0].GetContent()))}); len(again.GetChanged()) != 0 || again.GetVersion().GetRevision() != 1 {
		t.Errorf("what is stored, applied again: got %v", again)
	}
	if _, err := r.Get(r.ctx(), &policyv1.GetRequest{Kind: "Node", Name: "green"}); status.Code(err) != codes.NotFound {
		t.Errorf("got %v", err)
	}
	e, err := r.Effective(r.ctx(), &policyv1.EffectiveRequest{Node: "red"})
	if err != nil || len(e.GetRules()) == 0 || len(e.GetPeers()) != 1 {
		t.Errorf("got %v, %v", e, err)
	}
	if _, err := r.Effective(r.ctx(), &policyv1.EffectiveRequest{Node: "green"}); status.Code(err) != codes.NotFound {
		t.Errorf("got %v", err)
	}
}

func TestInvalidDocumentsStoreNothing(t *testing.T) {
	r := newRig(t)
	r.apply(&policyv1.ApplyRequest{Files: files(base)})
	before := r.documents()
	for _, tt := range []struct {
		name  string
		req   *policyv1.ApplyRequest
		file  string
		line  uint32
		words string
	}{
		{"not YAML", &policyv1.ApplyRequest{Files: files("kind: [\n")}, "f0.yaml", 1, "not YAML"},
		{
			"one good, one bad", &policyv1.ApplyRequest{Files: files(
				"apiVersion: testudo/v1\nkind: Node\nmetadata: {name: green}\nspec: {addresses: [10.77.0.3]}\n",
				"apiVersion: testudo/v1\nkind: Node\nmetadata: {name: grey}\nspec: {addresses: [10.77.0.300]}\n",
			)}, "f1.yaml", 4, "10.77.0.300",
		},
		{"a reference to nothing", &policyv1.ApplyRequest{Files: files("apiVersion: testudo/v1\nkind: Assignment\nmetadata: {name: x}\nspec: {policy: nowhere, to: red}\n")}, "f0.yaml", 0, "nowhere"},
		{"the same document twice", &policyv1.ApplyRequest{Files: files(base, base)}, "f1.yaml", 0, "is already in f0.yaml"},
		{"removal of what is needed", &policyv1.ApplyRequest{Remove: []string{"Policy/p"}}, "stored Assignment/red", 0, `no Policy is named "p"`},
		{"removal of nothing", &policyv1.ApplyRequest{Remove: []string{"Policy/q"}}, "", 0, "remove Policy/q: no such document"},
		{"removal without a kind", &policyv1.ApplyRequest{Remove: []string{"red"}}, "", 0, "want Kind/name"},
		{"given and removed", &policyv1.ApplyRequest{Files: files(base), Remove: []string{"Node/red"}}, "", 0, "remove Node/red: it is in f0.yaml"},
		{"replaced by half", &policyv1.ApplyRequest{Files: files("apiVersion: testudo/v1\nkind: Assignment\nmetadata: {name: red}\nspec: {policy: p, to: red}\n"), Replace: true}, "f0.yaml", 0, "p"},
	} {
		resp, err := r.Apply(r.ctx(), tt.req)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if !slices.ContainsFunc(resp.GetProblems(), func(p *policyv1.Problem) bool {
			return !p.GetWarning() && p.GetFile() == tt.file && (tt.line == 0 || p.GetLine() == tt.line) && strings.Contains(p.GetMessage(), tt.words)
		}) {
			t.Errorf("%s: no problem at %s:%d with %q in %v", tt.name, tt.file, tt.line, tt.words, resp.GetProblems())
		}
		if len(resp.GetChanged())+len(resp.GetRemoved()) != 0 || resp.GetVersion().GetRevision() != 1 || r.documents() != before {
			t.Errorf("%s: something was stored: %v", tt.name, resp)
		}
	}
	// Validate finds the same, and stores nothing when all is well either.
	v, err := r.Validate(r.ctx(), &policyv1.ValidateRequest{Files: files("kind: [\n")})
	if err != nil || len(v.GetProblems()) == 0 {
		t.Errorf("got %v, %v", v, err)
	}
	v, err = r.Validate(r.ctx(), &policyv1.ValidateRequest{Files: files(blocking("b", 1))})
	if err != nil || !slices.Equal(v.GetNodes(), []string{"b"}) || r.documents() != before {
		t.Errorf("got %v, %v", v, err)
	}
}

func TestRemoveAndReplace(t *testing.T) {
	r := newRig(t)
	r.apply(&policyv1.ApplyRequest{Files: files(base, blocking("b", 1))})
	resp := r.apply(&policyv1.ApplyRequest{Remove: []string{"Assignment/b", "Policy/b"}})
	if got := strings.Join(resp.GetRemoved(), " "); got != "Assignment/b Policy/b" || !slices.Equal(resp.GetNodes(), []string{"b"}) {
		t.Errorf("got %v", resp)
	}
	resp = r.apply(&policyv1.ApplyRequest{Files: files(base), Replace: true})
	if got := strings.Join(resp.GetRemoved(), " "); got != "FilterAction/b FilterList/b Node/b" || len(resp.GetChanged()) != 0 {
		t.Errorf("got %v", resp)
	}
}

func TestAChangeForAnOldRevisionIsRefused(t *testing.T) {
	r := newRig(t)
	r.apply(&policyv1.ApplyRequest{Files: files(base)})
	r.apply(&policyv1.ApplyRequest{Files: files(blocking("b", 1)), BaseRevision: 1})
	_, err := r.Apply(r.ctx(), &policyv1.ApplyRequest{Files: files(blocking("c", 2)), BaseRevision: 1})
	if status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "at revision 2, the change was made for 1") {
		t.Errorf("got %v", err)
	}
	if strings.Contains(r.documents(), "/c") {
		t.Error("it was stored all the same")
	}
}

func TestConcurrentChangesAllLand(t *testing.T) {
	r := newRig(t)
	r.apply(&policyv1.ApplyRequest{Files: files(base)})
	var wg sync.WaitGroup
	const n = 4 // below the tries of Apply, so that none can lose every race
	for i := range n {
		wg.Go(func() {
			resp, err := r.Apply(r.ctx(), &policyv1.ApplyRequest{Files: files(blocking(fmt.Sprint("b", i), i+1))})
			if err != nil || len(resp.GetChanged()) != 5 {
				t.Errorf("got %v, %v", resp, err)
			}
		})
	}
	wg.Wait()
	r.inForce(1 + n)
	for i := range n {
		e, err := r.Effective(r.ctx(), &policyv1.EffectiveRequest{Node: fmt.Sprint("b", i)})
		if err != nil || len(e.GetRules()) == 0 {
			t.Errorf("change %d is not in force: got %v, %v", i, e, err)
		}
	}
}

func TestAnOversizedChangeIsTheCallersMistake(t *testing.T) {
	r := newRig(t)
	big := "apiVersion: testudo/v1\nkind: Node\nmetadata: {name: red}\nspec: {addresses: [10.77.0.1]}\n# " + strings.Repeat("x", 1<<20) + "\n"
	if _, err := r.Apply(r.ctx(), &policyv1.ApplyRequest{Files: files(big)}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "apply it in parts") {
		t.Errorf("got %v", err)
	}
}

func TestAStateThatDoesNotCompileKeepsTheLastOne(t *testing.T) {
	r := newRig(t)
	r.apply(&policyv1.ApplyRequest{Files: files(base)})
	red := r.subscribe("worker", "red", "red", "")
	red.at(t, 1)
	rules := red.rules("red")
	broken := func(what string) {
		t.Helper()
		eventually(t, what+" is noticed", func() bool { return r.keeper.Healthy() != nil })
		if got := red.rules("red"); got != rules {
			t.Fatalf("%s: red uses %s, want %s", what, got, rules)
		}
		if e, err := r.Effective(r.ctx(), &policyv1.EffectiveRequest{Node: "red"}); err != nil || e.GetVersion().GetRevision() != 1 {
			t.Fatalf("%s: got %v, %v", what, e.GetVersion(), err)
		}
	}
	mended := func(by string) {
		t.Helper()
		eventually(t, "mended by "+by, func() bool { return r.keeper.Healthy() == nil })
	}
	ask := func(req *policyv1.ApplyRequest) *policyv1.ApplyResponse {
		t.Helper()
		resp, err := r.Apply(r.ctx(), req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	const garbage = "kind: Gibberish\n"

	// A reference that leads nowhere.
	r.put("Assignment", "x", "apiVersion: testudo/v1\nkind: Assignment\nmetadata: {name: x}\nspec: {policy: nowhere, to: red}\n")
	broken("a dangling reference")
	if resp := ask(&policyv1.ApplyRequest{Files: files(blocking("b", 1))}); len(resp.GetChanged()) != 0 || len(resp.GetProblems()) == 0 {
		t.Errorf("a change that does not mend it: got %v", resp)
	}
	ask(&policyv1.ApplyRequest{Remove: []string{"Assignment/x"}})
	mended("removal")

	// A document that this software cannot read.
	r.put("FilterList", "between", garbage)
	rules = red.rules("red")
	eventually(t, "garbage is noticed", func() bool { return r.keeper.Healthy() != nil })
	resp := ask(&policyv1.ApplyRequest{Files: files(blocking("b", 1))})
	if len(resp.GetChanged()) != 0 || !slices.ContainsFunc(resp.GetProblems(), func(p *policyv1.Problem) bool {
		return strings.Contains(p.GetMessage(), "stored document FilterList/between cannot be read")
	}) {
		t.Errorf("got %v", resp)
	}
	if got := red.rules("red"); got != rules {
		t.Errorf("red uses %s, want %s", got, rules)
	}
	ask(&policyv1.ApplyRequest{Files: files(base)})
	mended("giving it anew")

	r.put("Node", "extra", garbage)
	eventually(t, "garbage is noticed", func() bool { return r.keeper.Healthy() != nil })
	if resp := ask(&policyv1.ApplyRequest{Remove: []string{"Node/extra"}}); !slices.Equal(resp.GetRemoved(), []string{"Node/extra"}) {
		t.Errorf("got %v", resp)
	}
	mended("removing what cannot be read")

	r.put("Node", "extra", garbage)
	eventually(t, "garbage is noticed", func() bool { return r.keeper.Healthy() != nil })
	if resp := ask(&policyv1.ApplyRequest{Files: files(base), Replace: true}); !slices.Equal(resp.GetRemoved(), []string{"Node/extra"}) {
		t.Errorf("got %v", resp)
	}
	mended("replacing everything")
}

func TestExplainNamesTheRule(t *testing.T) {
	r := newRig(t)
	a, b := netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.77.0.2")
	flow := func(l, rem netip.Addr) *ipsecv1.Flow {
		return convert.ToFlow(ipsec.Flow{Local: l, Remote: rem, Protocol: 6, LocalPort: 40000, RemotePort: 443})
	}
	if _, err := r.Explain(r.ctx(), &policyv1.ExplainRequest{Flow: flow(a, b)}); status.Code(err) != codes.FailedPrecondition && status.Code(err) != codes.NotFound {
		t.Errorf("with an empty store: got %v", err)
	}
	r.apply(&policyv1.ApplyRequest{Files: files(base, blocking("b", 7))})
	far := netip.MustParseAddr("198.51.100.1")
	for _, tt := range []struct {
		name   string
		req    *policyv1.ExplainRequest
		node   string
		action ipsec.Action
		rule   string
	}{
		{"between", &policyv1.ExplainRequest{Flow: flow(a, b)}, "red", ipsec.ActionSecure, "p/all"},
		{"from the other end", &policyv1.ExplainRequest{Flow: flow(a, b), Node: "red"}, "red", ipsec.ActionSecure, "p/all"},
		{"blocked", &policyv1.ExplainRequest{Flow: flow(netip.MustParseAddr("10.78.0.7"), netip.MustParseAddr("192.0.2.7"))}, "b", ipsec.ActionBlock, "b/r"},
		{"inbound", &policyv1.ExplainRequest{Flow: flow(far, b)}, "blue", ipsec.ActionPermit, ""},
		{"no rule", &policyv1.ExplainRequest{Flow: flow(a, far)}, "red", ipsec.ActionPermit, ""},
	} {
		got, err := r.Explain(r.ctx(), tt.req)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got.GetNode() != tt.node || got.GetAction() != ipsecv1.Action(tt.action) || !strings.HasPrefix(got.GetRule().GetName(), tt.rule) || (tt.rule == "") != (got.GetRule() == nil) || got.GetWhy() == "" {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
	for name, tt := range map[string]struct {
		req  *policyv1.ExplainRequest
		code codes.Code
	}{
		"no flow":      {&policyv1.ExplainRequest{}, codes.InvalidArgument},
		"nobody":       {&policyv1.ExplainRequest{Flow: flow(far, far)}, codes.NotFound},
		"unknown node": {&policyv1.ExplainRequest{Flow: flow(a, b), Node: "green"}, codes.NotFound},
	} {
		if _, err := r.Explain(r.ctx(), tt.req); status.Code(err) != tt.code {
			t.Errorf("%s: got %v, want %s", name, err, tt.code)
		}
	}
}
