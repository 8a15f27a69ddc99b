package spd

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

func ts(prefix string, proto uint8, ports ...uint16) ipsec.TrafficSelector {
	t := ipsec.PrefixSelector(netip.MustParsePrefix(prefix))
	t.Protocol = proto
	if len(ports) == 2 {
		t.PortFirst, t.PortLast = ports[0], ports[1]
	}
	return t
}

func rule(name string, weight uint64, a ipsec.Action, local, remote ipsec.TrafficSelector) ipsec.Rule {
	r := ipsec.Rule{Name: name, Weight: weight, Direction: ipsec.Both, Action: a, Selector: ipsec.Selector{Local: local, Remote: remote}}
	if a == ipsec.ActionSecure {
		r.Template = &ipsec.Template{Mode: ipsec.ModeTransport}
	}
	return r
}

func flow(local, remote string, proto uint8, lport, rport uint16) ipsec.Flow {
	return ipsec.Flow{Local: netip.MustParseAddr(local), Remote: netip.MustParseAddr(remote), Protocol: proto, LocalPort: lport, RemotePort: rport}
}

func TestTheFirstRuleByWeightDecides(t *testing.T) {
	tbl, err := Compile([]ipsec.Rule{
		rule("db", 30, ipsec.ActionSecure, ts("10.0.0.1/32", 6), ts("10.0.1.0/24", 6, 5432, 5432)),
		rule("dbnet", 20, ipsec.ActionBlock, ts("10.0.0.1/32", 0), ts("10.0.1.0/24", 0)),
		rule("rest", 10, ipsec.ActionPermit, ts("0.0.0.0/0", 0), ts("0.0.0.0/0", 0)),
	}, ipsec.ActionBlock)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		f    ipsec.Flow
		want Verdict
	}{
		{flow("10.0.0.1", "10.0.1.9", 6, 40000, 5432), Verdict{ipsec.ActionSecure, packet.WhyOK, 0}},
		{flow("10.0.0.1", "10.0.1.9", 6, 40000, 5433), Verdict{ipsec.ActionBlock, packet.WhyBlocked, 1}},
		{flow("10.0.0.1", "10.0.1.9", 17, 40000, 5432), Verdict{ipsec.ActionBlock, packet.WhyBlocked, 1}},
		{flow("10.0.0.1", "192.0.2.1", 6, 1, 2), Verdict{ipsec.ActionPermit, packet.WhyOK, 2}},
		{flow("2001:db8::1", "2001:db8::2", 6, 1, 2), Verdict{ipsec.ActionBlock, packet.WhyNoRule, NoRule}},
	} {
		for _, dir := range []ipsec.Direction{ipsec.Inbound, ipsec.Outbound} {
			k := FlowKey(c.f, dir)
			if got := tbl.Lookup(&k); got != c.want {
				t.Errorf("%s %s: got %+v, want %+v", dir, c.f, got, c.want)
			}
		}
	}
}

// RFC 4301 §7: a later fragment has no ports, so it cannot be told whether a
// rule with ports covers it.
func TestALaterFragmentIsNotGuessedAbout(t *testing.T) {
	tbl, err := Compile([]ipsec.Rule{
		rule("dns", 30, ipsec.ActionSecure, ts("10.0.0.1/32", 17), ts("10.0.1.0/24", 17, 53, 53)),
		rule("any", 20, ipsec.ActionSecure, ts("10.0.0.1/32", 0), ts("10.0.2.0/24", 0)),
		rule("rest", 10, ipsec.ActionPermit, ts("0.0.0.0/0", 0), ts("0.0.0.0/0", 0)),
	}, ipsec.ActionBlock)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		remote string
		proto  uint8
		want   Verdict
	}{
		{"10.0.1.1", 17, Verdict{ipsec.ActionBlock, packet.WhyFragment, 0}},
		{"10.0.1.1", 6, Verdict{ipsec.ActionPermit, packet.WhyOK, 2}},
		{"10.0.2.1", 17, Verdict{ipsec.ActionSecure, packet.WhyOK, 1}},
	} {
		b := fragment("10.0.0.1", c.remote, c.proto)
		h, why := packet.Parse(b)
		if why != packet.WhyOK {
			t.Fatal(why)
		}
		k := PacketKey(&h, b, ipsec.Outbound)
		if got := tbl.Lookup(&k); got != c.want {
			t.Errorf("fragment to %s protocol %d: got %+v, want %+v", c.remote, c.proto, got, c.want)
		}
	}
}

func fragment(src, dst string, proto uint8) []byte {
	b := make([]byte, 60)
	b[0], b[3], b[9] = 0x45, 60, proto
	b[7] = 5 // offset 40
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	return b
}

func TestWhatCompileRefuses(t *testing.T) {
	good := rule("a", 1, ipsec.ActionPermit, ts("10.0.0.0/8", 0), ts("10.0.0.0/8", 0))
	for name, breakIt := range map[string]func([]ipsec.Rule){
		"rising weight":   func(r []ipsec.Rule) { r[1].Weight = 2 },
		"no template":     func(r []ipsec.Rule) { r[0].Action = ipsec.ActionSecure },
		"unknown action":  func(r []ipsec.Rule) { r[0].Action = 9 },
		"no direction":    func(r []ipsec.Rule) { r[0].Direction = 0 },
		"two families":    func(r []ipsec.Rule) { r[0].Selector.Remote = ts("2001:db8::/32", 0) },
		"two protocols":   func(r []ipsec.Rule) { r[0].Selector.Remote.Protocol = 6 },
		"unordered range": func(r []ipsec.Rule) { r[0].Selector.Local.First = netip.MustParseAddr("11.0.0.0") },
	} {
		rules := []ipsec.Rule{good, good}
		breakIt(rules)
		if _, err := Compile(rules, ipsec.ActionPermit); err == nil {
			t.Errorf("%s: compiled, want an error", name)
		}
	}
	if _, err := Compile([]ipsec.Rule{good}, 0); err == nil {
		t.Error("no default action: compiled, want an error")
	}
}

// scan is the definition of a lookup: the first rule that matches.
func scan(rules []ipsec.Rule, f ipsec.Flow, dir ipsec.Direction) int32 {
	for i, r := range rules {
		if r.Direction&dir != 0 && r.Selector.Matches(f) {
			return int32(i)
		}
	}
	return NoRule
}

func randomRules(r *rand.Rand, n int) []ipsec.Rule {
	rules := make([]ipsec.Rule, n)
	protos := []uint8{0, 6, 17, 6}
	for i := range rules {
		side := func(narrow bool) ipsec.TrafficSelector {
			bits := []int{0, 8, 16, 20, 24, 24, 28, 30, 32, 32, 32}[r.IntN(11)]
			var p netip.Prefix
			if i%4 == 3 {
				a := [16]byte{0x20, 1, 0xd, 0xb8, 15: byte(r.IntN(256))}
				a[14], a[13], a[8] = byte(r.IntN(4)), byte(r.IntN(2)), byte(r.IntN(2))
				p = netip.PrefixFrom(netip.AddrFrom16(a), 96+bits)
			} else {
				p = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(3)), byte(r.IntN(8)), byte(r.IntN(256))}), bits)
			}
			s := ipsec.PrefixSelector(p)
			if narrow {
				s.PortFirst = uint16(r.IntN(1000))
				s.PortLast = s.PortFirst + uint16(r.IntN(3)*r.IntN(400))
			}
			return s
		}
		l, m := side(r.IntN(6) == 0), side(r.IntN(2) == 0)
		l.Protocol = protos[r.IntN(4)]
		m.Protocol = l.Protocol
		rules[i] = rule(fmt.Sprint(i), uint64(n-i), ipsec.Action(1+r.IntN(3)), l, m)
		rules[i].Direction = ipsec.Direction(1 + r.IntN(3))
	}
	return rules
}

// near makes a flow that has a good chance of meeting a rule.
func near(r *rand.Rand, rules []ipsec.Rule) ipsec.Flow {
	s := rules[r.IntN(len(rules))].Selector
	pick := func(t ipsec.TrafficSelector) (netip.Addr, uint16) {
		a := []netip.Addr{t.First, t.Last, t.First.Next(), t.Last.Next(), t.First.Prev()}[r.IntN(5)]
		if !a.IsValid() {
			a = t.First
		}
		return a, []uint16{t.PortFirst, t.PortLast, t.PortFirst - 1, t.PortLast + 1, uint16(r.IntN(65536))}[r.IntN(5)]
	}
	f := ipsec.Flow{Protocol: []uint8{6, 17}[r.IntN(2)]}
	f.Local, f.LocalPort = pick(s.Local)
	f.Remote, f.RemotePort = pick(s.Remote)
	if f.Local.Is4() != f.Remote.Is4() {
		f.Remote = f.Local
	}
	return f
}

func TestTheTreeFindsWhatAScanFinds(t *testing.T) {
	for _, n := range []int{1, 7, 100, 2000} {
		r := rand.New(rand.NewPCG(uint64(n), 1))
		rules := randomRules(r, n)
		tbl, err := Compile(rules, ipsec.ActionPermit)
		if err != nil {
			t.Fatal(err)
		}
		hits := 0
		for range 20000 {
			f, dir := near(r, rules), ipsec.Direction(1+r.IntN(2))
			k := FlowKey(f, dir)
			got, want := tbl.Lookup(&k).Rule, scan(rules, f, dir)
			if got != want {
				t.Fatalf("%d rules, %s %s: tree says %d, scan says %d", n, dir, f, got, want)
			}
			if want != NoRule {
				hits++
			}
		}
		if hits < 500 {
			t.Errorf("%d rules: only %d of 20000 flows met a rule; the test shows little", n, hits)
		}
	}
}

func TestSelectorsAreTheInnerCheck(t *testing.T) {
	s := CompileSelectors([]ipsec.Selector{{Local: ts("10.0.0.1/32", 6), Remote: ts("10.0.1.0/24", 6, 443, 443)}})
	for _, c := range []struct {
		f    ipsec.Flow
		want packet.Why
	}{
		{flow("10.0.0.1", "10.0.1.7", 6, 9, 443), packet.WhyOK},
		{flow("10.0.0.1", "10.0.1.7", 6, 9, 444), packet.WhyInner},
		{flow("10.0.0.2", "10.0.1.7", 6, 9, 443), packet.WhyInner},
		{flow("10.0.0.1", "10.0.1.7", 17, 9, 443), packet.WhyInner},
	} {
		k := FlowKey(c.f, ipsec.Inbound)
		if got := s.Check(&k); got != c.want {
			t.Errorf("%s: got %s, want %s", c.f, got, c.want)
		}
	}
	b := fragment("10.0.1.7", "10.0.0.1", 6)
	h, _ := packet.Parse(b)
	k := PacketKey(&h, b, ipsec.Inbound)
	if got := s.Check(&k); got != packet.WhyFragment {
		t.Errorf("later fragment under a selector with ports: got %s, want %s", got, packet.WhyFragment)
	}
}

// A packet without ports (a later fragment, or of a protocol that has none) matches only
// selectors whose ports are ANY or OPAQUE (RFC 4301 §4.4.1.1, §7).
func TestSelectorsOfAnSA(t *testing.T) {
	sel := func(s string, proto uint8, lo, hi uint16) ipsec.TrafficSelector {
		ts := ipsec.PrefixSelector(netip.MustParsePrefix(s))
		ts.Protocol, ts.PortFirst, ts.PortLast = proto, lo, hi
		return ts
	}
	any16 := []ipsec.Selector{{Local: sel("10.1.0.0/16", 0, 0, 65535), Remote: sel("10.2.0.0/16", 0, 0, 65535)}}
	low := []ipsec.Selector{{Local: sel("10.1.0.0/16", 6, 0, 65535), Remote: sel("10.2.0.0/16", 6, 0, 1023)}}
	opaque := []ipsec.Selector{{Local: sel("10.1.0.0/16", 6, 65535, 0), Remote: sel("10.2.0.0/16", 6, 65535, 0)}}
	six := []ipsec.Selector{{Local: sel("2001:db8:1::/48", 17, 5, 6), Remote: sel("2001:db8:2::/127", 17, 0, 65535)}}
	tcp := func(l, r uint16) ipsec.Flow { return flow("10.1.0.1", "10.2.0.2", 6, l, r) }
	for _, v := range []struct {
		name string
		sel  []ipsec.Selector
		f    ipsec.Flow
		bare bool // without ports
		want bool
	}{
		{"any", any16, tcp(1, 2), false, true},
		{"any, later fragment", any16, tcp(0, 0), true, true},
		{"address outside", any16, flow("10.2.0.2", "10.2.0.2", 6, 0, 0), false, false},
		{"address outside, later fragment", any16, flow("10.1.0.1", "10.1.0.1", 6, 0, 0), true, false},
		{"port inside", low, tcp(5, 1023), false, true},
		{"port outside", low, tcp(5, 1024), false, false},
		{"a range of ports that holds 0, later fragment", low, tcp(0, 0), true, false},
		{"protocol outside", low, flow("10.1.0.1", "10.2.0.2", 17, 0, 7), false, false},
		{"OPAQUE, later fragment", opaque, tcp(0, 0), true, true},
		{"OPAQUE, ports present", opaque, tcp(1, 2), false, false},
		{"second of two", append(low, any16...), tcp(1, 5000), false, true},
		{"IPv6", six, flow("2001:db8:1::9", "2001:db8:2::1", 17, 5, 7), false, true},
		{"IPv6, address outside", six, flow("2001:db8:1::9", "2001:db8:2::2", 17, 5, 7), false, false},
		{"the other family", six, tcp(5, 7), false, false},
	} {
		s := CompileSelectors(v.sel)
		k := FlowKey(v.f, ipsec.Inbound)
		if v.bare {
			k.meta = k.meta&^flagPorts | flagFrag
		}
		if got := s.Check(&k); (got == packet.WhyOK) != v.want {
			t.Errorf("%s: %s, want it to pass: %v", v.name, got, v.want)
		}
		if got := s.List(); !slices.Equal(got, v.sel) {
			t.Errorf("%s: %v comes back as %v", v.name, v.sel, got)
		}
	}
}

func TestTheCacheForgetsOnANewStamp(t *testing.T) {
	c := NewCache[int](64)
	r := rand.New(rand.NewPCG(1, 2))
	keys := make([]Key, 40)
	for i := range keys {
		keys[i] = Key{local: u128{0, r.Uint64()}, remote: u128{0, r.Uint64()}, meta: r.Uint64()}
		c.Put(&keys[i], 1, i)
	}
	found := 0
	for i := range keys {
		if v := c.Find(&keys[i], 1); v != nil {
			if found++; *v != i {
				t.Fatalf("key %d: got %d", i, *v)
			}
		}
		if c.Find(&keys[i], 2) != nil {
			t.Fatalf("key %d is found under a stamp it was not stored under", i)
		}
	}
	if found < 30 {
		t.Errorf("%d of 40 flows kept in 64 slots, want most", found)
	}
}

// fleetRules is one host among many: half the rules name a peer and a port, the
// others a peer's subnet, with a few wide ones.
func fleetRules(n int) []ipsec.Rule {
	rules := make([]ipsec.Rule, 0, n)
	for i := range n {
		var remote ipsec.TrafficSelector
		switch a := fmt.Sprintf("10.%d.%d.%d", 1+i>>16, i>>8&255, i&255); {
		case i%100 == 99:
			remote = ts("10.0.0.0/8", 6, uint16(i), uint16(i))
		case i%2 == 0:
			remote = ts(a+"/32", 6, 5432, 5432)
		default:
			remote = ts(a+"/28", 6)
		}
		rules = append(rules, rule(fmt.Sprint(i), uint64(n-i), ipsec.ActionSecure, ts("10.9.9.9/32", 6), remote))
	}
	return rules
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		rules := fleetRules(n)
		tbl, err := Compile(rules, ipsec.ActionBlock)
		if err != nil {
			b.Fatal(err)
		}
		keys := make([]Key, 4096)
		for i := range keys {
			keys[i] = FlowKey(flow("10.9.9.9", fmt.Sprintf("10.1.%d.%d", i>>7&63, i*7&255), 6, 40000, 5432), ipsec.Outbound)
		}
		b.Run(fmt.Sprintf("table/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				tbl.Lookup(&keys[i&4095])
			}
		})
		c := NewCache[Verdict](4096)
		b.Run(fmt.Sprintf("cached/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				k := &keys[i&255]
				if c.Find(k, uint64(tbl.Generation)) == nil {
					c.Put(k, uint64(tbl.Generation), tbl.Lookup(k))
				}
			}
		})
	}
}

func BenchmarkCompile10000(b *testing.B) {
	rules := fleetRules(10000)
	for range b.N {
		if _, err := Compile(rules, ipsec.ActionBlock); err != nil {
			b.Fatal(err)
		}
	}
}
