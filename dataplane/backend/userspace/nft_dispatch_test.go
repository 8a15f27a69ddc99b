package userspace

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Whatever the address, the list that it is dispatched to must decide as the whole
// list does: the first rule of each kind that covers it, in order.
func TestDispatchDecidesAsTheListDoes(t *testing.T) {
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
			x := &ipsec.Rule{Name: fmt.Sprint(i), Action: ipsec.Action(1 + r.IntN(2)), Selector: ipsec.Selector{Remote: ipsec.PrefixSelector(netip.PrefixFrom(a, bits))}}
			x.Selector.Local = ipsec.AddrSelector(netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(2))}))
			list = append(list, x)
		}
		d, ok := dispatchOf(list)
		if !ok || len(d.sections) < 1000 || len(d.lists) > len(d.sections)/2 {
			t.Fatalf("v6=%t: %d sections, %d lists, ok=%t; want many sections that share few lists", v6, len(d.sections), len(d.lists), ok)
		}
		for i, s := range d.sections {
			if i > 0 && d.sections[i-1].last.Next() != s.first {
				t.Fatalf("v6=%t: section %d begins at %s, the one before ends at %s", v6, i, s.first, d.sections[i-1].last)
			}
		}
		kinds := map[*ipsec.Rule]string{}
		for _, x := range list {
			kinds[x] = kindOf(x)
		}
		for range 2000 {
			x := list[r.IntN(len(list))].Selector.Remote
			a := []netip.Addr{x.First, x.Last, x.First.Prev(), x.Last.Next()}[r.IntN(4)]
			if !a.IsValid() {
				a = x.First
			}
			var want, got []string
			for _, x := range list {
				if x.Selector.Remote.ContainsAddr(a) && !slices.Contains(want, kinds[x]) {
					want = append(want, kinds[x])
				}
			}
			for _, s := range d.sections {
				if s.first.Compare(a) <= 0 && a.Compare(s.last) <= 0 && s.rules >= 0 {
					for _, x := range d.lists[s.rules] {
						got = append(got, kinds[x])
					}
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("v6=%t: at %s the rules are %v, want %v", v6, a, got, want)
			}
		}
	}
}

// Rules that cannot be dispatched without many copies stay a list.
func TestDispatchIsBounded(t *testing.T) {
	var list []*ipsec.Rule
	for i := range 400 { // each wider than the one before, all different
		x := &ipsec.Rule{Action: ipsec.ActionBlock, Selector: ipsec.Selector{
			Local:  ipsec.AddrSelector(addr("192.0.2.1")),
			Remote: ipsec.TrafficSelector{First: netip.AddrFrom4([4]byte{10, 0, 0, 0}), Last: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})},
		}}
		x.Selector.Local.PortLast = uint16(i)
		list = append(list, x)
	}
	if d, ok := dispatchOf(list); ok {
		t.Errorf("%d lists were made of 400 nested rules; want a refusal", len(d.lists))
	}
	if _, ok := dispatchOf(list[:shortChain/8]); !ok {
		t.Error("two rules cannot be dispatched")
	}
}

// Large policies come into force as a whole, and the last leaves only itself in the
// table.
func TestALargePolicy(t *testing.T) {
	for _, role := range []string{"worker", "worker-with-small-buffers"} {
		t.Run(role, func(t *testing.T) { largePolicy(t, role) })
	}
}

func largePolicy(t *testing.T, role string) {
	l := newLab(t)
	before := l.a.hostState()
	l.a.worker = l.a.child(role)
	l.a.worker.do("start", Config{})
	l.a.run("ip", "route", "add", "10.50.0.0/16", "via", l.b.v4.String())
	l.b.run("ip", "addr", "add", "10.50.200.1/32", "dev", "lo")
	rules := func(n int, action ipsec.Action) []ipsec.Rule {
		out := make([]ipsec.Rule, n)
		for i := range out {
			x := secureRule(ipsec.ModeTransport, l.a.v4, netip.AddrFrom4([4]byte{10, 50, byte(i >> 7), byte(2 * i)}))
			x.Name, x.Weight = fmt.Sprint("rule-", i), uint64(10000-i)
			if x.Action = action; action != ipsec.ActionSecure {
				x.Template = nil
			}
			out[i] = x
		}
		return out
	}
	const n = 10000
	large := l.a.policy(ipsec.ActionPermit, rules(n, ipsec.ActionBlock)...)
	timed := func(what string, p *ipsec.NodePolicy) {
		start := time.Now()
		l.a.worker.do("policy", p)
		t.Logf("%d rules %s in force after %v", n, what, time.Since(start).Round(time.Millisecond))
	}
	timed("of one kind", large)
	for k, i := range []int{0, 1, 255, 256, 7777, n - 1} {
		if _, err := l.a.try("ping", "-c", "1", "-W", "0.3", fmt.Sprintf("10.50.%d.%d", i>>7, 2*i&255)); err == nil {
			t.Errorf("rule %d does not block", i)
		}
		l.a.worker.wantWhy(packet.WhyBlocked, uint64(k+1))
	}
	l.a.run("ping", "-c", "1", "-W", "10", "10.50.200.1") // no rule
	for i := range large.Rules {                          // each its own ports: no two share a chain
		x := &large.Rules[i].Selector
		x.Local.Protocol, x.Remote.Protocol = 17, 17
		x.Remote.PortFirst, x.Remote.PortLast = uint16(i+1), uint16(i+1)
	}
	timed("of as many kinds", large)
	l.a.worker.do("policy", l.a.policy(ipsec.ActionPermit, rules(100, ipsec.ActionSecure)...))
	if _, err := l.a.try("ping", "-c", "1", "-W", "0.3", "10.50.0.198"); err == nil {
		t.Error("a packet that a rule secures was answered without an SA")
	}
	if got := l.a.worker.do("event", nil); !strings.Contains(got, "Acquire") {
		t.Errorf("event %s, want Acquire", got)
	}
	table := l.a.run("nft", "list", "table", "inet", "testudo_worker")
	if strings.Contains(table, "rules_2_") || !strings.Contains(table, "rules_3_out4") {
		t.Error("the table does not hold the last revision alone")
	}
	l.a.run("ip", "route", "del", "10.50.0.0/16")
	l.a.worker.do("close", nil)
	l.a.sameState(before)
}
