package userspace

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

func TestTrafficIsProtectedOnTheWire(t *testing.T) {
	l := newLab(t)
	before := [2][]string{l.a.hostState(), l.b.hostState()}
	for _, p := range []pair{
		{ipsec.ModeTunnel, true, false, false, "aes128gcm16"},
		{ipsec.ModeTunnel, true, true, false, "aes128gcm16"},
		{ipsec.ModeTunnel, false, false, true, "aes128gcm16"},
		{ipsec.ModeTunnel, false, true, true, "chacha20poly1305"},
		{ipsec.ModeTransport, true, false, false, "aes128gcm16"},
		{ipsec.ModeTransport, true, true, true, "aes256-sha256"},
		{ipsec.ModeTransport, false, false, false, "aes256gcm16"},
		{ipsec.ModeTransport, false, true, true, "aes128gcm16"},
	} {
		t.Run(p.String(), func(t *testing.T) {
			l.t, l.a.l, l.b.l = t, l, l
			l.a.startWorker(Config{})
			l.b.startWorker(Config{})
			l.protect(p)
			stop := l.a.sniff()
			_, from := p.ends(l.a)
			_, to := p.ends(l.b)
			l.a.run("ping", "-c", "3", "-i", "0.05", "-W", "10", "-I", from.String(), to.String())
			// Fragments: of the inner packet in tunnel mode, of the outer one in
			// transport mode.
			big := []string{"ping", "-c", "1", "-W", "10", "-s", "4000", "-p", hex.EncodeToString([]byte(marker)), "-I", from.String(), to.String()}
			if out, err := l.a.try(big...); err != nil {
				t.Errorf("%v\n%s\nat a: %s\nat b: %s", err, out, l.a.worker.do("counters", nil), l.b.worker.do("counters", nil))
			}
			l.swap(p)
			seen := stop()
			kind := "esp"
			if p.encap {
				kind = "udp4500"
			}
			for k, n := range seen {
				if k != kind && k != "arp" && k != "nd" && k != "fragment" {
					t.Errorf("%d frames of kind %s on the wire; want %s only", n, k, kind)
				}
			}
			if seen[kind] < 100 {
				t.Errorf("%d frames of kind %s seen; want the whole exchange", seen[kind], kind)
			}
			l.a.worker.do("close", nil)
			l.b.worker.do("close", nil)
		})
	}
	for i, n := range []*node{l.a, l.b} {
		l.t = t
		n.sameState(before[i])
	}
}

func TestPermitAndBlock(t *testing.T) {
	l := newLab(t)
	l.a.startWorker(Config{})
	permit, block := secureRule(ipsec.ModeTransport, l.a.v4, l.b.v4), secureRule(ipsec.ModeTransport, l.a.in4, l.b.in4)
	permit.Name, permit.Action, permit.Template = "permit", ipsec.ActionPermit, nil
	block.Name, block.Action, block.Template = "block", ipsec.ActionBlock, nil
	l.a.worker.do("policy", l.a.policy(ipsec.ActionPermit, permit, block))
	l.a.run("ping", "-c", "1", "-W", "10", l.b.v4.String())
	if out, err := l.a.try("ping", "-c", "1", "-W", "0.3", "-I", l.a.in4.String(), l.b.in4.String()); err == nil {
		t.Errorf("a blocked ping was answered:\n%s", out)
	}
	if out, err := l.b.try("ping", "-c", "1", "-W", "0.3", "-I", l.b.in4.String(), l.a.in4.String()); err == nil {
		t.Errorf("a blocked ping from outside was answered:\n%s", out)
	}
	l.a.worker.wantWhy(packet.WhyBlocked, 2)
	// What no rule names: the default action.
	if out, err := l.a.try("ping", "-c", "1", "-W", "10", "-6", l.b.v6.String()); err != nil {
		t.Errorf("default permit: %v\n%s", err, out)
	}
	l.a.worker.do("policy", l.a.policy(ipsec.ActionBlock, permit))
	if out, err := l.a.try("ping", "-c", "1", "-W", "0.3", "-6", l.b.v6.String()); err == nil {
		t.Errorf("default block let a ping through:\n%s", out)
	}
	l.a.worker.wantWhy(packet.WhyNoRule, 1)
}

func TestInboundClearIsDropped(t *testing.T) {
	l := newLab(t)
	l.a.startWorker(Config{})
	l.a.worker.do("policy", l.a.policy(ipsec.ActionPermit, secureRule(ipsec.ModeTransport, l.a.v4, l.b.v4)))
	if out, err := l.b.try("ping", "-c", "2", "-i", "0.1", "-W", "0.3", l.a.v4.String()); err == nil {
		t.Errorf("a ping in clear was answered though a rule secures it:\n%s", out)
	}
	l.a.worker.wantWhy(packet.WhyClear, 2)
	accepting := secureRule(ipsec.ModeTransport, l.a.v4, l.b.v4)
	accepting.Template.AcceptClear = true
	l.a.worker.do("policy", l.a.policy(ipsec.ActionPermit, accepting))
	_, _ = l.b.try("ping", "-c", "1", "-W", "0.3", l.a.v4.String())
	// The answer is outbound traffic that the rule secures: it asks for an SA.
	if got := l.a.worker.do("event", nil); !strings.Contains(got, "Acquire") {
		t.Errorf("event %s, want Acquire", got)
	}
	if got := l.a.worker.why(packet.WhyClear); got != 2 {
		t.Errorf("acceptClear: %d packets dropped, want no more than the 2 before", got)
	}
}

// A rule may say that traffic goes in clear to peers that never answer IKE; any
// other rule's traffic never does.
func TestFallBackToClear(t *testing.T) {
	l := newLab(t)
	l.a.startWorker(Config{})
	r := secureRule(ipsec.ModeTransport, l.a.v4, l.b.v4)
	for _, soft := range []bool{false, true} {
		r.Template.FallbackClear = soft
		l.a.worker.do("policy", l.a.policy(ipsec.ActionPermit, r))
		_, _ = l.a.try("ping", "-c", "1", "-W", "0.3", l.b.v4.String())
		if got := l.a.worker.do("event", nil); !strings.Contains(got, "Acquire") {
			t.Fatalf("event %s, want Acquire", got)
		}
		l.a.worker.do("acquire-failed", nil)
		wait := "0.3"
		if soft {
			wait = "10"
		}
		out, err := l.a.try("ping", "-c", "2", "-i", "0.1", "-W", wait, l.b.v4.String())
		if soft && err != nil {
			t.Errorf("fallbackToClear: %v\n%s\n%s", err, out, l.a.worker.do("counters", nil))
		}
		if !soft && err == nil {
			t.Errorf("a ping went out in clear under a rule without fallbackToClear:\n%s", out)
		}
		// A fresh rule name, so that the first failure is not remembered.
		r.Name += "-soft"
	}
}

// Strict reverse path filtering drops what comes in on a device that does not
// lead back to its source, as a TUN never does by the main table.
func TestStrictReversePathFilter(t *testing.T) {
	l := newLab(t)
	for _, n := range []*node{l.a, l.b} {
		n.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
		n.startWorker(Config{})
	}
	p := pair{ipsec.ModeTunnel, true, false, false, "aes128gcm16"}
	l.protect(p)
	l.a.run("ping", "-c", "2", "-i", "0.1", "-W", "10", "-I", l.a.in4.String(), l.b.in4.String())
}

// Killed, a worker leaves the host such that nothing goes out in clear; the next
// one takes over, and clean-up removes everything.
func TestKillLeavesNoWayInClear(t *testing.T) {
	l := newLab(t)
	before := l.a.hostState()
	l.a.startWorker(Config{})
	l.b.startWorker(Config{})
	p := pair{ipsec.ModeTransport, true, false, false, "aes128gcm16"}
	l.protect(p)
	ping := func(wait string) error {
		_, err := l.a.try("ping", "-c", "1", "-W", wait, l.b.v4.String())
		return err
	}
	if err := ping("10"); err != nil {
		t.Fatal(err)
	}
	stop := l.a.sniff()
	l.a.worker.kill()
	if ping("0.3") == nil {
		t.Error("a ping was answered without a worker")
	}
	if seen := stop(); seen["other-1"] != 0 {
		t.Errorf("%d ICMP packets went out in clear: %v", seen["other-1"], seen)
	}
	l.a.startWorker(Config{})
	if ping("0.3") == nil {
		t.Error("a ping was answered before the worker had policy and SAs")
	}
	_, local := p.ends(l.a)
	_, remote := p.ends(l.b)
	l.a.worker.do("policy", l.a.policy(ipsec.ActionPermit, secureRule(p.mode, local, remote)))
	specs := p.specs(l.a)
	l.a.worker.do("install", specs)
	// A new incarnation's numbers would come from a fresh lease; here the peer
	// forgets the old ones instead.
	l.b.worker.kill()
	l.b.startWorker(Config{})
	l.b.worker.do("policy", l.b.policy(ipsec.ActionPermit, secureRule(p.mode, remote, local)))
	l.b.worker.do("install", p.specs(l.b))
	if err := ping("10"); err != nil {
		t.Error("no ping after the worker was started again:", err)
	}
	l.a.worker.kill()
	c := l.a.child("worker")
	c.do("cleanup", Config{})
	c.do("cleanup", Config{}) // again: nothing to do is no error
	l.a.sameState(before)
}

func (c *child) kill() {
	c.t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	_ = c.cmd.Wait()
}

func TestFailClosedStaysClosedAfterAStop(t *testing.T) {
	l := newLab(t)
	l.a.startWorker(Config{FailClosed: true})
	l.a.worker.do("policy", l.a.policy(ipsec.ActionPermit, secureRule(ipsec.ModeTransport, l.a.v4, l.b.v4)))
	l.a.worker.do("close", nil)
	stop := l.b.sniff()
	if out, err := l.a.try("ping", "-c", "1", "-W", "0.3", l.b.v4.String()); err == nil {
		t.Errorf("a ping was answered after a fail-closed stop:\n%s", out)
	}
	if seen := stop(); seen["other-1"] != 0 {
		t.Errorf("ICMP in clear: %v", seen)
	}
}

// A worker that stops before it had a policy cannot say whether the one of its
// predecessor, or of "workerd block", was fail-closed: it leaves what it took over.
func TestAStopBeforeAnyPolicyLeavesWhatWasTakenOver(t *testing.T) {
	l := newLab(t)
	before := l.a.hostState()
	p := l.a.policy(ipsec.ActionPermit, secureRule(ipsec.ModeTransport, l.a.v4, l.b.v4))
	p.FailClosed = true
	l.a.startWorker(Config{})
	l.a.worker.do("policy", p)
	l.a.worker.do("close", nil)
	l.a.startWorker(Config{})
	l.a.worker.do("close", nil)
	stop := l.b.sniff()
	if out, err := l.a.try("ping", "-c", "1", "-W", "0.3", l.b.v4.String()); err == nil {
		t.Errorf("a ping was answered after a stop without a policy:\n%s", out)
	}
	if seen := stop(); seen["other-1"] != 0 {
		t.Errorf("ICMP in clear: %v", seen)
	}
	c := l.a.child("worker")
	c.do("cleanup", Config{})
	l.a.sameState(before)
}

// A policy that is refused opens no port.
func TestARefusedPolicyDoesNotListen(t *testing.T) {
	l := newLab(t)
	l.a.startWorker(Config{})
	p := l.a.policy(ipsec.ActionSecure) // no default
	p.Peers = []ipsec.Peer{{Name: "b", TCP: ipsec.TCPAlways}}
	if _, err := l.a.worker.ask("policy", p); err == nil {
		t.Fatal("a policy without a default was taken")
	}
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		if got := l.a.run("cat", file); strings.Contains(got, fmt.Sprintf(":%04X", 4500)) {
			t.Errorf("%s: the worker listens:\n%s", file, got)
		}
	}
}

func TestAFailedStartLeavesNothing(t *testing.T) {
	l := newLab(t)
	l.b.startWorker(Config{})
	before := l.b.hostState()
	second := l.b.child("worker")
	if _, err := second.ask("start", Config{Name: "second", Device: "tst1", Table: 7500, Priority: 7500}); err == nil {
		t.Fatal("a second worker started on the same UDP ports")
	} else if !strings.Contains(err.Error(), "UDP port 500") {
		t.Errorf("the error does not name the port: %v", err)
	}
	l.b.sameState(before)
}

// The gateway's case: packets that are forwarded, from a subnet behind it.
func TestAGatewayProtectsASubnet(t *testing.T) {
	l := newLab(t)
	hostA, hostB := l.hostsBehind()
	for _, n := range []*node{l.a, l.b} {
		n.startWorker(Config{})
		r := secureRule(ipsec.ModeTunnel, n.v4, n.peer().v4)
		local, remote := "10.1.9.0/24", "10.2.9.0/24"
		if n == l.b {
			local, remote = remote, local
		}
		sel := ipsec.Selector{Local: subnet(local), Remote: subnet(remote)}
		r.Selector = sel
		n.worker.do("policy", n.policy(ipsec.ActionPermit, r))
		specs := pair{ipsec.ModeTunnel, false, false, false, "aes128gcm16"}.specs(n)
		for i := range specs {
			specs[i].Selector = sel
		}
		n.worker.do("install", specs)
	}
	stop := l.a.sniff()
	hostA.run("ping", "-c", "3", "-i", "0.1", "-W", "10", "10.2.9.2")
	s := hostB.child("serve", "10.2.9.2:5001")
	s.must()
	d := hostA.child("dial", "10.2.9.2:5001", "")
	d.must()
	s.must()
	if seen := stop(); seen["cleartext"] != 0 || seen["other-1"] != 0 || seen["other-6"] != 0 || seen["esp"] < 100 {
		t.Errorf("on the wire between the gateways: %v, want ESP only", seen)
	}
	// In clear from the other side: dropped.
	l.b.worker.do("close", nil)
	if out, err := hostB.try("ping", "-c", "1", "-W", "0.3", "10.1.9.2"); err == nil {
		t.Errorf("a ping in clear passed the gateway:\n%s", out)
	}
	l.a.worker.wantWhy(packet.WhyClear, 1)
}

// hostsBehind puts a host behind each node: 10.1.9.2 and 2001:db8:19::2 behind a,
// 10.2.9.2 and 2001:db8:29::2 behind b.
func (l *lab) hostsBehind() (a, b *node) {
	var hosts []*node
	for i, n := range []*node{l.a, l.b} {
		host := &node{l: l, ns: n.ns + "h"}
		run(l.t, "ip", "netns", "add", host.ns)
		l.t.Cleanup(func() { run(l.t, "ip", "netns", "del", host.ns) })
		host.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
		run(l.t, "ip", "link", "add", "lan", "netns", n.ns, "type", "veth", "peer", "name", "eth0", "netns", host.ns)
		n.run("ip", "addr", "add", fmt.Sprintf("10.%d.9.1/24", i+1), "dev", "lan")
		n.run("ip", "-6", "addr", "add", fmt.Sprintf("2001:db8:%d9::1/64", i+1), "dev", "lan", "nodad")
		n.run("ip", "-6", "addr", "add", "fe80::1/64", "dev", "lan", "nodad") // to look for neighbours from
		n.run("ip", "link", "set", "lan", "up")
		n.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
		n.run("ip", "route", "add", fmt.Sprintf("10.%d.9.0/24", 2-i), "via", n.peer().v4.String())
		n.run("ip", "-6", "route", "add", fmt.Sprintf("2001:db8:%d9::/64", 2-i), "via", n.peer().v6.String())
		host.run("ip", "link", "set", "lo", "up")
		host.run("ip", "addr", "add", fmt.Sprintf("10.%d.9.2/24", i+1), "dev", "eth0")
		host.run("ip", "-6", "addr", "add", fmt.Sprintf("2001:db8:%d9::2/64", i+1), "dev", "eth0", "nodad")
		host.run("ip", "link", "set", "eth0", "up")
		host.run("ip", "route", "add", "default", "via", fmt.Sprintf("10.%d.9.1", i+1))
		host.run("ip", "-6", "route", "add", "default", "via", fmt.Sprintf("2001:db8:%d9::1", i+1))
		hosts = append(hosts, host)
	}
	return hosts[0], hosts[1]
}

// Fragments have no ports: a gateway makes them whole to find their rule, and the
// other one must not hand on what routers behind it cannot.
func TestFragmentsThroughAGatewayFindTheirRule(t *testing.T) {
	l := newLab(t)
	hostA, hostB := l.hostsBehind()
	for _, v := range []struct{ a, b, to string }{
		{"10.1.9.0/24", "10.2.9.0/24", "10.2.9.2:5353"}, {"2001:db8:19::/64", "2001:db8:29::/64", "[2001:db8:29::2]:5353"},
	} {
		for _, n := range []*node{l.a, l.b} {
			n.startWorker(Config{})
			sel := ipsec.Selector{Local: subnet(v.a), Remote: subnet(v.b)}
			sel.Local.Protocol, sel.Remote.Protocol = unix.IPPROTO_UDP, unix.IPPROTO_UDP
			sel.Remote.PortFirst, sel.Remote.PortLast = 5353, 5353
			if n == l.b {
				sel.Local, sel.Remote = subnet(v.b), subnet(v.a)
				sel.Local.Protocol, sel.Remote.Protocol = unix.IPPROTO_UDP, unix.IPPROTO_UDP
				sel.Local.PortFirst, sel.Local.PortLast = 5353, 5353
			}
			r := secureRule(ipsec.ModeTunnel, n.v4, n.peer().v4)
			r.Selector = sel
			n.worker.do("policy", n.policy(ipsec.ActionPermit, r))
			specs := pair{ipsec.ModeTunnel, false, false, false, "aes128gcm16"}.specs(n)
			for i := range specs {
				specs[i].Selector = sel
			}
			n.worker.do("install", specs)
		}
		stop := l.a.sniff()
		hostB.child("udp-serve", v.to).must()
		hostA.child("udp-dial", v.to).must()
		if seen := stop(); seen["cleartext"] != 0 || seen["esp"] == 0 {
			t.Errorf("%s: on the wire between the gateways: %v, want ESP only", v.to, seen)
		}
		for _, n := range []*node{l.a, l.b} {
			n.worker.do("close", nil)
		}
	}
}

// A user namespace gives an unprivileged user all that the backend needs.
func TestInsideAUserNamespace(t *testing.T) {
	l := newLab(t) // for its checks of root and tools
	_ = l
	c := startChild(t, "worker", []string{"unshare", "-Urnm"})
	c.do("start", Config{})
	n := &node{l: l, ns: "user", v4: addr("192.0.2.1"), v6: addr("2001:db8::1"), in4: addr("10.1.0.1"), in6: addr("2001:db8:1::1")}
	n.l.b = n // its own peer: only addresses are looked at
	c.do("policy", n.policy(ipsec.ActionPermit, secureRule(ipsec.ModeTunnel, n.v4, n.in4)))
	c.do("close", nil)
}
