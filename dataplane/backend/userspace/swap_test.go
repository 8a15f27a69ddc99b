package userspace

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// A new policy of 10,000 rules is swapped in, again and again, under traffic that it
// secures as the old one did: nothing is lost, and nothing goes in clear.
func TestASwapOfPolicyLosesAndLeaksNothing(t *testing.T) {
	l := newLab(t)
	for _, n := range []*node{l.a, l.b} {
		n.startWorker(Config{})
	}
	l.protect(pair{mode: ipsec.ModeTransport, encap: true, suite: "aes128gcm16"})
	swaps := make([]*ipsec.NodePolicy, 2)
	for k := range swaps {
		rules := []ipsec.Rule{secureRule(ipsec.ModeTransport, l.a.v4, l.b.v4)}
		rules[0].Weight = 1 << 20
		for i := range 10000 {
			x := secureRule(ipsec.ModeTransport, l.a.v4, netip.AddrFrom4([4]byte{10, byte(50 + k), byte(i >> 8), byte(i)}))
			x.Name, x.Weight = fmt.Sprint("rule-", i), uint64(10000-i)
			if i%3 == 0 {
				x.Action, x.Template = ipsec.ActionBlock, nil
			}
			rules = append(rules, x)
		}
		swaps[k] = l.a.policy(ipsec.ActionPermit, rules...)
	}
	stop := l.a.sniff()
	const sent = 1500
	ping := exec.Command("ip", "netns", "exec", l.a.ns, "ping", "-q", "-i", "0.002", "-c", fmt.Sprint(sent), "-W", "2", l.b.v4.String())
	var said strings.Builder
	ping.Stdout, ping.Stderr = &said, &said
	if err := ping.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- ping.Wait() }()
	n := 0
	for running := true; running; n++ {
		l.a.worker.do("policy", swaps[n%2])
		select {
		case err := <-done:
			running = false
			if err != nil {
				t.Error(err)
			}
		default:
		}
	}
	seen := stop()
	t.Logf("%d swaps; %s", n, strings.ReplaceAll(strings.TrimSpace(said.String()), "\n", "; "))
	if !strings.Contains(said.String(), fmt.Sprintf("%d received", sent)) {
		t.Errorf("packets were lost:\n%s", said.String())
	}
	for kind, count := range seen {
		if kind != "udp4500" && kind != "arp" && kind != "nd" {
			t.Errorf("%d frames of kind %s on the wire; want protected ones only", count, kind)
		}
	}
	if n < 2 { // under the race detector one takes a second
		t.Errorf("%d swaps while traffic flowed; want more", n)
	}
}
