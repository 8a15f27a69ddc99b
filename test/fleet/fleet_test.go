package fleet

import (
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

const pairPolicy = `apiVersion: testudo/v1
kind: Node
metadata: {name: a}
spec: {addresses: [192.0.2.1]}
---
kind: Node
metadata: {name: b}
spec: {addresses: [192.0.2.2]}
---
kind: FilterList
metadata: {name: all}
spec: {filters: [{from: {node: a}, to: {node: b}}]}
---
kind: FilterAction
metadata: {name: require}
spec: {action: secure}
---
kind: Authentication
metadata: {name: psk}
spec: {methods: [{psk: {secret: "file:fleet.psk"}}]}
---
kind: Policy
metadata: {name: p}
spec: {rules: [{name: all, filters: all, action: require, authentication: psk}]}
---
kind: Assignment
metadata: {name: a}
spec: {policy: p, to: a}
---
kind: Assignment
metadata: {name: b}
spec: {policy: p, to: b}
`

func TestFleet(t *testing.T) {
	for name, o := range map[string]Options{"unix sockets": {}, "mutual TLS": {MutualTLS: true}} {
		t.Run(name, func(t *testing.T) {
			p := lab.NewPair(t, lab.PairOptions{})
			wire := p.A.Sniff()
			o.Hosts = []*lab.Node{p.A.Node, p.B.Node}
			f := New(t, p.Lab, o)
			f.Apply(pairPolicy)
			f.WaitInSync()

			rules := f.Rules("a", "all")
			if len(rules) != 1 {
				t.Fatalf("node a: %d rules %q of rule all; want 1", len(rules), rules)
			}
			if _, err := f.TryInitiate("a", "no-such-rule"); err == nil || !strings.Contains(err.Error(), "no-such-rule") {
				t.Errorf("initiate for a rule that is not there: %v; want an error that names it", err)
			}
			child := f.Initiate("a", rules[0])
			p.A.Node.Ping(p.B.V4.Addr(), lab.PingOptions{Count: 3})
			wire.RequireProtected(6)

			at, has := f.SAs("b"), f.Children("b")
			if len(at) != 1 || len(has) != 1 || has[0].GetSpiIn() != child.GetSpiOut() {
				t.Errorf("node b: SAs %v; want one CHILD SA with SPI in %08x", at, child.GetSpiOut())
			}
			f.RekeyChild("a", child.GetId())
			f.RekeyIKE("a", f.SAs("a")[0].GetLocalSpi())
			if fs := f.Failures(""); len(fs) != 0 {
				t.Errorf("failures %v; want none", fs)
			}
			if n := f.Worker("a").Metrics()["testudo_worker_sas"]; n < 2 {
				t.Errorf("worker a has %v SAs by its metrics; want at least 2", n)
			}
			f.Worker("b").Restart()
			f.WaitInSync()
			f.Policyd.Stop()
			if err := f.TryApply(pairPolicy); err == nil {
				t.Error("policy was applied without policyd")
			}
		})
	}
}
