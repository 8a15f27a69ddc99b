package compile_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/compile"
	"github.com/testudo-ipsec/testudo/policyd/model"
)

// side draws one side of a selector within 16 addresses and 8 ports, ranges
// that are no prefix included.
func side(t *rapid.T, name string, v6 bool, protocol uint8) ipsec.TrafficSelector {
	a := rapid.IntRange(0, 15).Draw(t, name+" first")
	b := rapid.IntRange(a, 15).Draw(t, name+" last")
	addr := func(i int) netip.Addr {
		if v6 {
			return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i))
		}
		return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
	}
	s := ipsec.TrafficSelector{Protocol: protocol, First: addr(a), Last: addr(b), PortLast: 65535}
	if protocol != 0 && rapid.Bool().Draw(t, name+" ports") {
		s.PortFirst = uint16(rapid.IntRange(0, 7).Draw(t, name+" low"))
		s.PortLast = uint16(rapid.IntRange(int(s.PortFirst), 7).Draw(t, name+" high"))
	}
	return s
}

func selector(t *rapid.T, name string) ipsec.Selector {
	v6 := rapid.Bool().Draw(t, name+" v6")
	protocol := rapid.SampledFrom([]uint8{0, 6, 17}).Draw(t, name+" protocol")
	return ipsec.Selector{Local: side(t, name+" local", v6, protocol), Remote: side(t, name+" remote", v6, protocol)}
}

var directions = []ipsec.Direction{ipsec.Both, ipsec.Inbound, ipsec.Outbound}

// A selector inside another never weighs less, and both ends weigh alike.
func TestWeightFollowsCovering(t *testing.T) {
	covered := 0
	rapid.Check(t, func(t *rapid.T) {
		x, y := selector(t, "x"), selector(t, "y")
		d := rapid.SampledFrom(directions).Draw(t, "direction")
		w := compile.Weight(compile.TierPolicy, x, d)
		if w != compile.Weight(compile.TierPolicy, x.Swap(), d) {
			t.Fatal("the two ends weigh a selector differently")
		}
		if in, ok := x.Intersect(y); ok {
			covered++
			if compile.Weight(compile.TierPolicy, in, d) < max(w, compile.Weight(compile.TierPolicy, y, d)) {
				t.Fatalf("%s, inside %s and %s, weighs less than one of them", in, x, y)
			}
		}
		if compile.Weight(compile.TierIPsec, x, ipsec.Both) <= compile.Weight(compile.TierPolicy, y, d) {
			t.Fatal("an exemption weighs no more than a rule of the policy")
		}
	})
	if covered == 0 && !testing.Short() { // -short tries too few to be sure
		t.Fatal("no pair of selectors overlapped: the test looked at nothing")
	}
}

// Overlap says what trying every packet says.
func TestOverlapAgainstEveryPacket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := ipsec.Rule{Selector: selector(t, "x"), Direction: rapid.SampledFrom(directions).Draw(t, "dx")}
		y := ipsec.Rule{Selector: selector(t, "y"), Direction: rapid.SampledFrom(directions).Draw(t, "dy")}
		if got, want := compile.Overlap(&x, &y), somePacket(x, y); got != want {
			t.Fatalf("%s %s and %s %s: overlap %v, trying packets %v", x.Direction, x.Selector, y.Direction, y.Selector, got, want)
		}
	})
}

// somePacket tries the packets of the small world that selector draws from.
func somePacket(x, y ipsec.Rule) bool {
	if x.Direction&y.Direction == 0 {
		return false
	}
	first := x.Selector.Local.First
	for l := first; x.Selector.Local.ContainsAddr(l); l = l.Next() {
		if !y.Selector.Local.ContainsAddr(l) {
			continue
		}
		for r := x.Selector.Remote.First; x.Selector.Remote.ContainsAddr(r); r = r.Next() {
			if !y.Selector.Remote.ContainsAddr(r) {
				continue
			}
			for _, p := range []uint8{6, 17, 99} {
				for lp := range uint16(9) {
					for rp := range uint16(9) {
						f := ipsec.Flow{Local: l, Remote: r, Protocol: p, LocalPort: lp, RemotePort: rp}
						if x.Selector.Matches(f) && y.Selector.Matches(f) {
							return true
						}
					}
				}
			}
		}
	}
	return false
}

// A policy of random permit and block filters is refused exactly when two of
// its rules have equal weight, overlap and differ; the reference compiles each
// filter alone, where nothing can conflict, and compares every pair.
func TestConflictsAgainstEveryPair(t *testing.T) {
	refused, taken := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 6).Draw(t, "filters")
		var filters []string
		var rules []ipsec.Rule
		for i := range n {
			action := rapid.SampledFrom([]string{"permit", "block"}).Draw(t, "action")
			f := fmt.Sprintf("%s {from: %s, to: %s%s}", action, endpoint(t), endpoint(t), ports(t))
			filters = append(filters, f)
			nodes, err := compile.All(load(t, document(filters[i:])))
			if err != nil {
				t.Fatalf("one filter alone, %s: %v", f, err)
			}
			rules = append(rules, policyRules(nodes["n"])...)
		}
		conflict := false
		for i := range rules {
			for j := range i {
				x, y := &rules[i], &rules[j]
				conflict = conflict || x.Weight == y.Weight && x.Action != y.Action && compile.Overlap(x, y)
			}
		}
		nodes, err := compile.All(load(t, document(filters)))
		if (err != nil) != conflict {
			t.Fatalf("%s\ngot %v, comparing every pair says conflict %v", strings.Join(filters, "\n"), err, conflict)
		}
		if err != nil {
			refused++
			return
		}
		taken++
		if got := len(policyRules(nodes["n"])); got != len(rules) {
			t.Fatalf("together %d rules, alone %d", got, len(rules))
		}
	})
	if refused == 0 || taken == 0 {
		t.Fatalf("%d policies refused, %d taken: the test looked at one side only", refused, taken)
	}
}

func policyRules(p ipsec.NodePolicy) (out []ipsec.Rule) {
	for _, r := range p.Rules {
		if !strings.Contains(r.Name, "/exempt#") {
			out = append(out, r)
		}
	}
	return out
}

func endpoint(t *rapid.T) string {
	return rapid.SampledFrom([]string{
		"{node: n}", "any", "10.0.0.0/30", "10.0.0.0/31", "10.0.0.1-10.0.0.2", "10.0.0.2", "10.0.0.3",
		"10.0.0.0-10.0.0.4", "{labels: {x: y}}",
	}).Draw(t, "endpoint")
}

func ports(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "", ", protocol: tcp", ", protocol: tcp, toPort: 80", ", protocol: tcp, fromPort: 80", ", protocol: tcp, toPort: 80-81, mirrored: false"}).Draw(t, "ports")
}

// document is a policy with one rule and one list per filter.
func document(filters []string) string {
	var w strings.Builder
	w.WriteString(`apiVersion: testudo/v1
kind: Node
metadata: {name: n}
spec: {addresses: [10.0.0.1]}
---
kind: Node
metadata: {name: m, labels: {x: "y"}}
spec: {addresses: [10.0.0.2], external: true}
---
kind: FilterAction
metadata: {name: permit}
spec: {action: permit}
---
kind: FilterAction
metadata: {name: block}
spec: {action: block}
---
kind: Assignment
metadata: {name: a}
spec: {policy: p, to: n}
`)
	rules := ""
	for i, f := range filters {
		action, filter, _ := strings.Cut(f, " ")
		fmt.Fprintf(&w, "---\nkind: FilterList\nmetadata: {name: l%d}\nspec: {filters: [%s]}\n", i, strings.ReplaceAll(filter, "{x: y}", `{x: "y"}`))
		rules += fmt.Sprintf("  - {name: r%d, filters: l%d, action: %s}\n", i, i, action)
	}
	fmt.Fprintf(&w, "---\nkind: Policy\nmetadata: {name: p}\nspec:\n  rules:\n%s", rules)
	return w.String()
}

func load(t interface{ Fatal(...any) }, text string) *model.Set {
	docs, err := model.Parse("p.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	set, err := model.Load(docs)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// The order of documents, filters and rules in the files means nothing.
func TestOrderOfDocumentsMeansNothing(t *testing.T) {
	files, err := filepath.Glob(examples + "/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	more, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(more) == 0 {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, f := range append(files, more...) {
		set, docs, err := model.Read(f)
		if err != nil {
			t.Fatal(err)
		}
		want, wantErr := compile.All(set)
		for range 10 {
			r.Shuffle(len(docs), func(i, j int) { docs[i], docs[j] = docs[j], docs[i] })
			set, err := model.Load(docs)
			if err != nil {
				t.Fatal(err)
			}
			got, gotErr := compile.All(set)
			if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
				t.Fatalf("%s: shuffled: got error %v, want %v", f, gotErr, wantErr)
			}
			for n := range want {
				if a, b := compile.Text(got[n]), compile.Text(want[n]); a != b {
					t.Fatalf("%s: shuffled: got\n%s\nwant\n%s", f, a, b)
				}
			}
		}
	}
}

// Adding a host to a label changes nothing that is about the others.
func TestUnrelatedChangesKeepVersions(t *testing.T) {
	file := examples + "/permit-block-secure.yaml"
	_, docs, err := model.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	versions := func(docs []model.Document) map[string]string {
		set, err := model.Load(docs)
		if err != nil {
			t.Fatal(err)
		}
		nodes, err := compile.All(set)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, p := range nodes {
			for i := range p.Rules {
				out[p.Node+" "+p.Rules[i].Name] = compile.RuleVersion(&p.Rules[i])
			}
			for i := range p.Peers {
				out[p.Node+" peer "+p.Peers[i].Name] = compile.PeerVersion(&p.Peers[i])
			}
		}
		return out
	}
	before := versions(docs)
	added, err := model.Parse("new", []byte("apiVersion: testudo/v1\nkind: Node\nmetadata: {name: aaa, labels: {tier: web}}\nspec: {addresses: [10.0.1.3]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	after := versions(append(added, docs...))
	if len(after) <= len(before) {
		t.Fatalf("the new host made no rules: %d before, %d after", len(before), len(after))
	}
	for name, v := range before {
		if after[name] != v {
			t.Errorf("%s: version %q became %q", name, v, after[name])
		}
	}
}

// Changing any field of a rule, a peer or the settings changes the version.
// Fields are found by reflection, so that a new one cannot be forgotten.
func TestEveryFieldIsInTheVersion(t *testing.T) {
	set, _, err := model.Read("testdata/labels-dual-stack.yaml")
	if err != nil {
		t.Fatal(err)
	}
	compiled := func() ipsec.NodePolicy {
		nodes, err := compile.All(set)
		if err != nil {
			t.Fatal(err)
		}
		p := nodes["web-1"]
		for i := range p.Rules {
			if p.Rules[i].Template != nil {
				tmpl := *p.Rules[i].Template
				tmpl.Proposals = cloneProposals(tmpl.Proposals)
				p.Rules[i].Template = &tmpl
			}
		}
		return p
	}
	p := compiled()
	secure := slices.IndexFunc(p.Rules, func(r ipsec.Rule) bool { return r.Template != nil })
	rule, peer, settings := p.Rules[secure], p.Peers[0], compile.SettingsOf(p)
	peer.Proposals, peer.Local, peer.Remote, peer.Auth = cloneProposals(peer.Proposals), slices.Clone(peer.Local), slices.Clone(peer.Remote), slices.Clone(peer.Auth)
	peer.Auth = []ipsec.AuthMethod{{PSK: "s", Certificate: &ipsec.CertificateAuth{Trust: []string{"t"}, Credential: "c", PeerIdentity: "p", RevocationURLs: []string{"u"}}}}
	peer.PPK = &ipsec.PPK{ID: "i", Secret: "s"}
	settings.Addresses = slices.Clone(settings.Addresses)
	if n := eachLeaf(t, reflect.ValueOf(&rule).Elem(), "rule", func() string { return compile.RuleVersion(&rule) }); n < 25 {
		t.Errorf("only %d fields of a rule were tried", n)
	}
	if n := eachLeaf(t, reflect.ValueOf(&peer).Elem(), "peer", func() string { return compile.PeerVersion(&peer) }); n < 28 {
		t.Errorf("only %d fields of a peer were tried", n)
	}
	eachLeaf(t, reflect.ValueOf(&settings).Elem(), "settings", func() string { return compile.SettingsVersion(settings) })
}

func cloneProposals(in []ipsec.Proposal) []ipsec.Proposal {
	out := slices.Clone(in)
	for i := range out {
		out[i].Transforms = slices.Clone(out[i].Transforms)
	}
	return out
}

// eachLeaf changes each leaf of v in turn and wants the version to change.
func eachLeaf(t *testing.T, v reflect.Value, path string, version func() string) int {
	t.Helper()
	try := func(change func()) int {
		before, old := version(), reflect.New(v.Type()).Elem()
		old.Set(v)
		change()
		if version() == before {
			t.Errorf("%s is not in the version", path)
		}
		v.Set(old)
		return 1
	}
	if a, ok := v.Interface().(netip.Addr); ok {
		return try(func() { v.Set(reflect.ValueOf(a.Next())) })
	}
	n := 0
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			n += eachLeaf(t, v.Field(i), path+"."+v.Type().Field(i).Name, version)
		}
	case reflect.Pointer:
		return eachLeaf(t, v.Elem(), path, version)
	case reflect.Slice:
		if v.Len() == 0 {
			t.Fatalf("%s is empty: the test cannot see its elements", path)
		}
		n += try(func() { v.Set(v.Slice(0, v.Len()-1)) })
		for i := range v.Len() {
			n += eachLeaf(t, v.Index(i), fmt.Sprintf("%s[%d]", path, i), version)
		}
	case reflect.String:
		return try(func() { v.SetString(v.String() + "x") })
	case reflect.Bool:
		return try(func() { v.SetBool(!v.Bool()) })
	case reflect.Int64:
		return try(func() { v.SetInt(v.Int() + 1) })
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return try(func() { v.SetUint(v.Uint() + 1) })
	default:
		t.Fatalf("%s: a field of kind %s, which this test cannot change", path, v.Kind())
	}
	return n
}

func TestNodeSaysWhyItCannotCompile(t *testing.T) {
	set, _, err := model.Read("testdata/secure-any.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c := compile.New(set)
	for _, name := range []string{"strange", "not-there"} {
		if _, err := c.Node(name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	set, _, err = model.Read("testdata/conflicts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var errs model.Errors
	if _, err := compile.New(set).Node("n1"); !errors.As(err, &errs) {
		t.Errorf("a node with a conflict: got %v, want model.Errors", err)
	}
}

// fleet is n nodes in groups of 50 that secure everything among themselves, and
// a policy of 50 more filters: about 100 rules a node.
func fleet(t testing.TB, n int) *model.Set {
	var w strings.Builder
	w.WriteString("apiVersion: testudo/v1\nkind: FilterAction\nmetadata: {name: s}\nspec: {action: secure}\n---\nkind: FilterAction\nmetadata: {name: b}\nspec: {action: block}\n---\nkind: Authentication\nmetadata: {name: k}\nspec: {methods: [{psk: {secret: \"file:k\"}}]}\n")
	w.WriteString("---\nkind: FilterList\nmetadata: {name: out}\nspec:\n  filters:\n")
	for i := range 45 {
		fmt.Fprintf(&w, "  - {from: me, to: 192.0.%d.0/24, protocol: tcp, toPort: %d}\n", i, 1000+i)
	}
	for g := range n / 50 {
		fmt.Fprintf(&w, "---\nkind: FilterList\nmetadata: {name: g%d}\nspec: {filters: [{from: {labels: {group: g%d}}, to: {labels: {group: g%d}}}]}\n", g, g, g)
		fmt.Fprintf(&w, "---\nkind: Policy\nmetadata: {name: p%d}\nspec: {rules: [{name: mesh, filters: g%d, action: s, authentication: k}, {name: out, filters: out, action: b}]}\n", g, g)
		fmt.Fprintf(&w, "---\nkind: Assignment\nmetadata: {name: a%d}\nspec: {policy: p%d, to: /g%d}\n", g, g, g)
	}
	for i := range n {
		fmt.Fprintf(&w, "---\nkind: Node\nmetadata: {name: n%d, labels: {group: g%d}}\nspec: {unit: /g%d, addresses: [10.0.%d.%d]}\n", i, i/50, i/50, i/250, 1+i%250)
	}
	return load(t, w.String())
}

func BenchmarkCompileAll1000Nodes100Rules(b *testing.B) {
	set := fleet(b, 1000)
	rules := 0
	for b.Loop() {
		nodes, err := compile.All(set)
		if err != nil {
			b.Fatal(err)
		}
		rules = 0
		for p := range maps.Values(nodes) {
			rules += len(p.Rules)
		}
	}
	b.ReportMetric(float64(rules), "rules")
}

func BenchmarkVersions1000Nodes100Rules(b *testing.B) {
	nodes, err := compile.All(fleet(b, 1000))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		for _, p := range nodes {
			for i := range p.Rules {
				compile.RuleVersion(&p.Rules[i])
			}
			for i := range p.Peers {
				compile.PeerVersion(&p.Peers[i])
			}
		}
	}
}

// The compiler's work grows with the rules, not with their square: four times the
// fleet may not take much more than four times as long. Processor time is compared,
// and the best of a few attempts, so that a busy machine does not matter.
func TestWorkGrowsWithTheRules(t *testing.T) {
	small, large := fleet(t, 250), fleet(t, 1000)
	took := func(set *model.Set) time.Duration {
		runtime.GC()
		before := processorTime(t)
		nodes, err := compile.All(set)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(nodes["n0"].Rules); got != 99 {
			t.Fatalf("a node has %d rules, want 49 of the mesh, 45 of the list and 5 exemptions", got)
		}
		return processorTime(t) - before
	}
	var few, many time.Duration
	for range 10 {
		few, many = took(small), took(large)
		t.Logf("250 nodes took %s of processor time, 1000 nodes %s", few, many)
		if many < 8*few {
			return
		}
	}
	t.Errorf("1000 nodes took %s of processor time and 250 nodes %s; want less than 8 times as much", many, few)
}

// processorTime is what this process has had so far.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
