package userspace

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Every address must lie in exactly one part, and that part must hold all rules
// that cover it, in their order.
func TestPartitionKeepsEveryRuleInOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, v6 := range []bool{false, true} {
		var list []*ipsec.Rule
		for i := range 3000 {
			a, bits := netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(256)), byte(r.IntN(256))}), []int{32, 32, 28, 24}[r.IntN(4)]
			if v6 {
				b := [16]byte{0x20, 1, 14: byte(r.IntN(256)), 15: byte(r.IntN(256))}
				a, bits = netip.AddrFrom16(b), 96+bits
			}
			if i%1000 == 999 {
				bits = 0
			}
			list = append(list, &ipsec.Rule{Name: fmt.Sprint(i), Selector: ipsec.Selector{Remote: ipsec.PrefixSelector(netip.PrefixFrom(a, bits))}})
		}
		parts := partition(list)
		if len(parts) < 100 {
			t.Fatalf("v6=%t: %d parts for 3000 rules, want many", v6, len(parts))
		}
		longest := 0
		for _, p := range parts {
			longest = max(longest, len(p.rules))
		}
		if longest > 200 {
			t.Errorf("v6=%t: a part has %d rules, want short chains", v6, longest)
		}
		for range 5000 {
			x := list[r.IntN(len(list))].Selector.Remote
			a := []netip.Addr{x.First, x.Last, x.First.Prev(), x.Last.Next()}[r.IntN(4)]
			if !a.IsValid() {
				a = x.First
			}
			i := len(parts) - 1
			for a.Less(parts[i].first) {
				i--
			}
			covers := func(rules []*ipsec.Rule) (out []string) {
				for _, x := range rules {
					if x.Selector.Remote.ContainsAddr(a) {
						out = append(out, x.Name)
					}
				}
				return out
			}
			if got, want := covers(parts[i].rules), covers(list); !slices.Equal(got, want) {
				t.Fatalf("v6=%t: at %s the part has rules %v, want %v", v6, a, got, want)
			}
		}
	}
}

// A policy of more rules than fit one netlink message comes into force as a
// whole, twice, and leaves only itself in the table.
func TestALargePolicy(t *testing.T) {
	l := newLab(t)
	before := l.a.hostState()
	l.a.startWorker(Config{})
	l.a.run("ip", "route", "add", "10.50.0.0/16", "via", l.b.v4.String())
	l.b.run("ip", "addr", "add", "10.50.200.1/32", "dev", "lo")
	rules := func(n int, action ipsec.Action) []ipsec.Rule {
		out := make([]ipsec.Rule, n)
		for i := range out {
			x := secureRule(ipsec.ModeTransport, l.a.v4, netip.AddrFrom4([4]byte{10, 50, byte(i >> 8), byte(i)}))
			x.Name, x.Weight = fmt.Sprint("rule-", i), uint64(10000-i)
			if x.Action = action; action != ipsec.ActionSecure {
				x.Template = nil
			}
			out[i] = x
		}
		return out
	}
	const n = 1500
	l.a.worker.do("policy", l.a.policy(ipsec.ActionPermit, rules(n, ipsec.ActionBlock)...))
	for k, i := range []int{0, 1, 255, 256, 777, n - 1} {
		if _, err := l.a.try("ping", "-c", "1", "-W", "0.3", fmt.Sprintf("10.50.%d.%d", i>>8, i&255)); err == nil {
			t.Errorf("rule %d does not block", i)
		}
		if got := l.a.worker.why(packet.WhyBlocked); got != uint64(k+1) {
			t.Errorf("after rule %d: %d packets blocked, want %d", i, got, k+1)
		}
	}
	l.a.run("ping", "-c", "1", "-W", "2", "10.50.200.1") // no rule
	l.a.worker.do("policy", l.a.policy(ipsec.ActionPermit, rules(100, ipsec.ActionSecure)...))
	if _, err := l.a.try("ping", "-c", "1", "-W", "0.3", "10.50.0.99"); err == nil {
		t.Error("a packet that a rule secures was answered without an SA")
	}
	if got := l.a.worker.do("event", nil); !strings.Contains(got, "Acquire") {
		t.Errorf("event %s, want Acquire", got)
	}
	table := l.a.run("nft", "list", "table", "inet", "testudo_worker")
	if strings.Contains(table, "rules_1_") || !strings.Contains(table, "rules_2_out4") {
		t.Error("the table does not hold the second revision alone")
	}
	l.a.run("ip", "route", "del", "10.50.0.0/16")
	l.a.worker.do("close", nil)
	l.a.sameState(before)
}
