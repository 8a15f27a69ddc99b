package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Whatever batches come, the lists that are changed step by step are the ones
// that would be made anew.
func TestListsByRuleFollowBatches(t *testing.T) {
	a, b := twoHosts(t, false)
	nets := [2]netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")}
	const rules = 2*rulePage + 5 // three pages, the last not full
	p := &ipsec.NodePolicy{Node: "n", Default: ipsec.ActionBlock}
	for i := range rules {
		p.Rules = append(p.Rules, ipsec.Rule{Name: fmt.Sprint("r", i), Weight: uint64(rules - i), Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: "p",
			Selector: ipsec.Selector{Local: ipsec.PrefixSelector(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), 24)), Remote: ipsec.PrefixSelector(nets[1])},
			Template: &ipsec.Template{Mode: ipsec.ModeTunnel}})
	}
	if err := a.SetPolicy(context.Background(), p); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	var held []ipsec.SAID
	for id := ipsec.SAID(1); id < 600; {
		var ops []backend.Op
		for range 1 + rnd.IntN(4) {
			if n := len(held); n > 0 && rnd.IntN(2) == 0 {
				i := rnd.IntN(n)
				ops = append(ops, backend.Op{Kind: backend.OpRemove, ID: held[i]})
				held = slices.Delete(held, i, i+1)
				continue
			}
			out, _ := simplex(t, saSpec{mode: ipsec.ModeTunnel, suite: "aes128gcm16"}, id, a, b, nets[0], nets[1])
			out.SA.Rule = fmt.Sprint("r", rnd.IntN(rules+1)) // the last is of no rule
			ops = append(ops, out)
			id++
		}
		fresh := held
		for _, op := range ops {
			if op.Kind == backend.OpInstall {
				fresh = append(fresh, op.SA.ID)
			}
		}
		before := a.state.Load().outs
		var kept [rules][]*outSA
		for i := range kept {
			kept[i] = slices.Clone(*before.of(i))
		}
		if err := a.Apply(ops); err != nil {
			t.Fatal(err)
		}
		held = fresh
		a.mu.Lock()
		want, got := a.byRule(a.state.Load().table), a.state.Load().outs
		a.mu.Unlock()
		for i := range rules {
			if want, got := *want.of(i), *got.of(i); !slices.Equal(want, got) {
				t.Fatalf("rule %d has %d SAs, or another order; want %d", i, len(got), len(want))
			}
			// The packet path may still read the state before.
			if !slices.Equal(*before.of(i), kept[i]) {
				t.Fatalf("the list of rule %d was changed while it may be read", i)
			}
		}
	}
}
