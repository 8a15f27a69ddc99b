package analyze_test

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/analyze"
	"github.com/testudo-ipsec/testudo/policyd/compile"
	"github.com/testudo-ipsec/testudo/policyd/model"
)

var update = flag.Bool("update", false, "write the golden files")

const examples = "../../deploy/examples"

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it)\ngot:\n%s\nwant:\n%s", file, got, want)
	}
}

func read(t *testing.T, file string) *model.Set {
	t.Helper()
	set, _, err := model.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestExplain(t *testing.T) {
	c := compile.New(read(t, examples+"/permit-block-secure.yaml"))
	node, err := c.Node("web-1")
	if err != nil {
		t.Fatal(err)
	}
	flow := func(remote string, proto uint8, local, port uint16) ipsec.Flow {
		return ipsec.Flow{Local: netip.MustParseAddr("10.0.1.11"), Remote: netip.MustParseAddr(remote), Protocol: proto, LocalPort: local, RemotePort: port}
	}
	var out strings.Builder
	for _, x := range []struct {
		flow ipsec.Flow
		d    ipsec.Direction
		want ipsec.Action
		rule string
	}{
		{flow("10.0.2.21", 6, 40000, 5432), ipsec.Outbound, ipsec.ActionSecure, "server/database#postgresql>10.0.2.21"},
		{flow("10.0.2.21", 6, 40000, 5433), ipsec.Outbound, ipsec.ActionPermit, ""},
		{flow("10.0.8.1", 6, 22, 50000), ipsec.Inbound, ipsec.ActionPermit, "server/admin#admins<10.0.8.0/24"},
		{flow("10.0.7.1", 6, 22, 50000), ipsec.Inbound, ipsec.ActionBlock, "server/closed#ssh-in<0.0.0.0/0"},
		{flow("10.0.7.1", 1, 8<<8, 8<<8), ipsec.Inbound, ipsec.ActionPermit, "server/monitoring#ping<0.0.0.0/0"},
		{flow("10.0.7.1", 1, 8<<8, 8<<8), ipsec.Outbound, ipsec.ActionPermit, ""},
		{flow("::ffff:10.0.2.21", 17, 500, 500), ipsec.Outbound, ipsec.ActionPermit, "server/exempt#ike"},
	} {
		e := analyze.Explain(node, x.flow, x.d)
		rule := ""
		if e.Rule != nil {
			rule = e.Rule.Name
		}
		if e.Action != x.want || rule != x.rule {
			t.Errorf("%s: got %s by %q, want %s by %q", x.flow, e.Action, rule, x.want, x.rule)
		}
		if len(e.Rules) != len(node.Policy.Rules) {
			t.Errorf("%s: %d rules are explained, want all %d", x.flow, len(e.Rules), len(node.Policy.Rules))
		}
		// The reasons have to agree with the selectors themselves.
		for _, c := range e.Rules {
			matches := c.Rule.Direction&x.d != 0 && c.Rule.Selector.Matches(ipsec.Flow{Local: x.flow.Local, Remote: x.flow.Remote.Unmap(), Protocol: x.flow.Protocol, LocalPort: x.flow.LocalPort, RemotePort: x.flow.RemotePort})
			if said := c.Why == analyze.WhyDecides || c.Why == analyze.WhyOutweighed; said != matches {
				t.Errorf("%s: %s %q, but the selector says %v", x.flow, c.Rule.Name, c.Why, matches)
			}
		}
		out.WriteString(e.String() + "\n")
	}
	golden(t, "testdata/explain.golden", out.String())
}

// The examples warn of nothing; each testdata/*.yaml of exactly its golden file.
func TestLint(t *testing.T) {
	for _, f := range mustGlob(t, examples+"/*.yaml") {
		w, err := analyze.Lint(read(t, f))
		if err != nil || len(w) != 0 {
			t.Errorf("%s: %v, %v", f, w, err)
		}
	}
	for _, f := range mustGlob(t, "testdata/*.yaml") {
		w, err := analyze.Lint(read(t, f))
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		for _, x := range w {
			out.WriteString(x.String() + "\n")
		}
		golden(t, strings.TrimSuffix(f, ".yaml")+".golden", out.String())
	}
}

func mustGlob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: no files, %v", pattern, err)
	}
	return files
}
