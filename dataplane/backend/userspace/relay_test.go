package userspace

import (
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// What one peer sends through this host to another one, with which policy secures it
// too, does not go on in clear; what it sends to others does.
func TestWhatIsRelayedDoesNotLeaveInClear(t *testing.T) {
	l := newLab(t)
	hostA, hostB := l.hostsBehind()
	sel := ipsec.Selector{Local: subnet("10.3.0.0/24"), Remote: subnet("10.2.9.0/24")}
	var first ipsec.Rule // of a
	for _, n := range []*node{l.a, l.b} {
		n.startWorker(Config{})
		r := secureRule(ipsec.ModeTunnel, n.v4, n.peer().v4)
		r.Selector = sel
		rules := []ipsec.Rule{r}
		if n == l.b {
			rules[0].Selector = sel.Swap()
		} else {
			first = r
			r.Name, r.Weight, r.Selector = "on", 40, sel.Swap()
			rules = append(rules, r)
		}
		n.worker.do("policy", n.policy(ipsec.ActionPermit, rules...))
		specs := pair{ipsec.ModeTunnel, false, false, false, "aes128gcm16"}.specs(n)
		for i := range specs {
			specs[i].Selector = rules[0].Selector
		}
		n.worker.do("install", specs)
	}
	l.a.run("ip", "route", "add", "10.3.0.0/24", "via", "10.1.9.2")
	l.b.run("ip", "route", "add", "10.3.0.0/24", "via", l.a.v4.String())
	stop := hostA.sniff()
	if out, err := hostB.try("ping", "-c", "3", "-i", "0.1", "-W", "0.3", "10.3.0.1"); err == nil {
		t.Errorf("a ping was answered:\n%s", out)
	}
	if seen := stop(); seen["other-1"] != 0 {
		t.Errorf("ICMP in clear: %v", seen)
	}
	l.a.worker.wantWhy(packet.WhyBlocked, 3)
	l.a.worker.do("policy", l.a.policy(ipsec.ActionPermit, first))
	hostA.run("ip", "addr", "add", "10.3.0.1/32", "dev", "lo")
	hostB.run("ping", "-c", "3", "-i", "0.1", "-W", "10", "10.3.0.1")
}
