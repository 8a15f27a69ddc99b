package userspace

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Named counters of the table.
const (
	counterBlockedOut = "blocked_out"
	counterBlockedIn  = "blocked_in"
	counterClearIn    = "clear_in"
	counterNoRule     = "no_rule"
)

var counterNames = []string{counterBlockedOut, counterBlockedIn, counterClearIn, counterNoRule}

// ruleset writes the table. One value is used for one transaction.
type ruleset struct {
	c     *Config
	conn  *nftables.Conn
	table *nftables.Table
}

// applyRuleset makes the table say what the policy says, in one transaction.
func applyRuleset(c *Config, p *ipsec.NodePolicy, mtu int) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	r := &ruleset{c: c, conn: conn}
	r.table = conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: c.nftTable()})
	for _, n := range counterNames {
		conn.AddObj(&nftables.CounterObj{Table: r.table, Name: n})
	}
	out := r.chain("output", nftables.ChainTypeRoute, nftables.ChainHookOutput, nftables.ChainPriorityMangle)
	pre := r.chain("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle)
	in := r.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	fwd := r.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	post := r.chain("postrouting", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, nftables.ChainPriorityMangle)
	for _, ch := range []*nftables.Chain{out, pre, in, fwd, post} {
		conn.FlushChain(ch)
	}
	r.output(out, p)
	r.prerouting(pre, p, mtu)
	r.input(in, p)
	r.forward(fwd, p)
	r.postrouting(post, mtu)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", c.nftTable(), err)
	}
	return nil
}

// removeRuleset deletes the table; it need not exist.
func removeRuleset(c *Config) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	// Add, so that deleting cannot fail for want of it.
	t := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: c.nftTable()})
	conn.DelTable(t)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", c.nftTable(), err)
	}
	return nil
}

// rulesetCounters reads the named counters.
func rulesetCounters(c *Config) (map[string]uint64, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: c.nftTable()}
	out := map[string]uint64{}
	for _, n := range counterNames {
		o, err := conn.GetObject(&nftables.CounterObj{Table: t, Name: n})
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read counter %s of table %s: %w", n, t.Name, err)
		}
		if k, ok := o.(*nftables.CounterObj); ok {
			out[n] = k.Packets
		}
	}
	return out, nil
}

func (r *ruleset) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return r.conn.AddChain(&nftables.Chain{Name: name, Table: r.table, Type: kind, Hooknum: hook, Priority: prio, Policy: &accept})
}

func (r *ruleset) add(c *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: all})
}

// output marks what this host sends and a secure rule covers.
func (r *ruleset) output(c *nftables.Chain, p *ipsec.NodePolicy) {
	r.add(c, hasMark(r.c.OwnMark), accept())
	r.add(c, oif("lo"), accept())
	r.exemptAlways(c)
	r.add(c, clearMark(r.c.Mark))
	for i := range p.Rules {
		x := &p.Rules[i]
		if x.Direction&ipsec.Outbound == 0 {
			continue
		}
		for _, m := range matches(x.Selector, outward) {
			switch x.Action {
			case ipsec.ActionPermit:
				r.add(c, m, accept())
			case ipsec.ActionBlock:
				r.add(c, m, count(counterBlockedOut), drop())
			case ipsec.ActionSecure:
				r.add(c, m, setMark(r.c.Mark), accept())
			}
		}
	}
	if p.Default == ipsec.ActionBlock {
		r.add(c, count(counterNoRule), drop())
	}
}

// prerouting marks what this host forwards and a secure rule covers, so that it
// is routed into the TUN. What comes out of the TUN gets the mark for the
// reverse path check only; the ip rules see to that.
func (r *ruleset) prerouting(c *nftables.Chain, p *ipsec.NodePolicy, mtu int) {
	r.add(c, iif(r.c.Device), synOnly(nfproto(unix.NFPROTO_IPV4)), clampMSS(mtu-40))
	r.add(c, iif(r.c.Device), synOnly(nfproto(unix.NFPROTO_IPV6)), clampMSS(mtu-60))
	r.add(c, iif(r.c.Device), setMark(r.c.Mark), accept())
	r.add(c, clearMark(r.c.Mark))
	r.add(c, iif("lo"), accept())
	r.add(c, toThisHost(), accept())
	r.exemptAlways(c)
	for i := range p.Rules {
		x := &p.Rules[i]
		if x.Direction&ipsec.Outbound == 0 {
			continue
		}
		for _, m := range matches(x.Selector, outward) {
			if x.Action == ipsec.ActionSecure {
				r.add(c, m, setMark(r.c.Mark), accept())
			} else {
				r.add(c, m, accept()) // the forward chain blocks
			}
		}
		if x.Action != ipsec.ActionPermit {
			for _, m := range fragmentMatches(x.Selector, outward) {
				r.add(c, m, setMark(r.c.Mark), accept()) // the engine drops it, and counts
			}
		}
	}
}

// input drops what arrives in clear and should not have.
func (r *ruleset) input(c *nftables.Chain, p *ipsec.NodePolicy) {
	r.add(c, iif(r.c.Device), clearMark(r.c.Mark), accept())
	r.add(c, iif("lo"), accept())
	r.exemptAlways(c)
	for _, port := range []uint16{r.c.IKEPort, r.c.NATTPort} {
		r.add(c, l4proto(unix.IPPROTO_UDP), dport(port), accept())
	}
	// IPv6 is filtered here before reassembly, IPv4 after it. The first
	// fragment has the ports and is judged by them; without it the others never
	// become a packet (RFC 8200 §4.5).
	r.add(c, nfproto(unix.NFPROTO_IPV6), laterFragment(false), accept())
	for i := range p.Rules {
		r.inbound(c, &p.Rules[i])
	}
	if p.Default == ipsec.ActionBlock {
		r.add(c, count(counterNoRule), drop())
	}
}

// forward does the same for what passes through: clear packets towards what
// this host protects, and packets that a block rule covers either way.
func (r *ruleset) forward(c *nftables.Chain, p *ipsec.NodePolicy) {
	r.add(c, iif(r.c.Device), accept())
	r.add(c, oif(r.c.Device), accept())
	r.exemptAlways(c)
	for i := range p.Rules {
		x := &p.Rules[i]
		r.inbound(c, x)
		if !passesClear(x) && x.Direction&ipsec.Inbound != 0 {
			for _, m := range fragmentMatches(x.Selector, inward) {
				r.add(c, m, count(counterBlockedIn), drop())
			}
		}
		if x.Direction&ipsec.Outbound == 0 {
			continue
		}
		for _, m := range matches(x.Selector, outward) {
			if x.Action == ipsec.ActionPermit {
				r.add(c, m, accept())
			} else {
				r.add(c, m, count(counterBlockedOut), drop())
			}
		}
	}
	if p.Default == ipsec.ActionBlock {
		r.add(c, count(counterNoRule), drop())
	}
}

// inbound is one rule seen from a packet that arrives in clear.
func (r *ruleset) inbound(c *nftables.Chain, x *ipsec.Rule) {
	if x.Direction&ipsec.Inbound == 0 {
		return
	}
	counter := counterBlockedIn
	if x.Action == ipsec.ActionSecure {
		counter = counterClearIn
	}
	for _, m := range matches(x.Selector, inward) {
		if passesClear(x) {
			r.add(c, m, accept())
		} else {
			r.add(c, m, count(counter), drop())
		}
	}
}

// passesClear reports a rule under which packets may arrive in clear. Where we
// fall back to clear the peer's answers come that way too.
func passesClear(x *ipsec.Rule) bool {
	return x.Action == ipsec.ActionPermit || x.Action == ipsec.ActionSecure && (x.Template.AcceptClear || x.Template.FallbackClear)
}

// postrouting keeps TCP below the MTU of the TUN from the start.
func (r *ruleset) postrouting(c *nftables.Chain, mtu int) {
	r.add(c, oif(r.c.Device), synOnly(nfproto(unix.NFPROTO_IPV4)), clampMSS(mtu-40))
	r.add(c, oif(r.c.Device), synOnly(nfproto(unix.NFPROTO_IPV6)), clampMSS(mtu-60))
}

// exemptAlways passes what IPsec itself and the link below it run on: ESP, AH,
// and ICMPv6 neighbour and listener discovery (RFC 4301 §4.4.1 has the reason:
// what must work before any SA exists needs a BYPASS entry).
func (r *ruleset) exemptAlways(c *nftables.Chain) {
	r.add(c, l4proto(unix.IPPROTO_ESP), accept())
	r.add(c, l4proto(unix.IPPROTO_AH), accept())
	for _, t := range [][2]byte{{130, 137}, {143, 143}} {
		r.add(c, nfproto(unix.NFPROTO_IPV6), l4proto(unix.IPPROTO_ICMPV6), []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{t[0]}, ToData: []byte{t[1]}},
		}, accept())
	}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any   { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

func count(name string) []expr.Any {
	return []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: name}}
}

func hasMark(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bit), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func setMark(bit uint32) []expr.Any   { return changeMark(^bit, bit) }
func clearMark(bit uint32) []expr.Any { return changeMark(^bit, 0) }

func changeMark(keep, set uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(keep), Xor: binaryutil.NativeEndian.PutUint32(set)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
}

func iif(name string) []expr.Any { return device(expr.MetaKeyIIFNAME, name) }
func oif(name string) []expr.Any { return device(expr.MetaKeyOIFNAME, name) }

func device(key expr.MetaKey, name string) []expr.Any {
	var b [unix.IFNAMSIZ]byte
	copy(b[:], name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b[:]},
	}
}

func nfproto(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
	}
}

func l4proto(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
	}
}

func dport(p uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(p)},
	}
}

func toThisHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// synOnly adds "TCP with SYN set" to a match.
func synOnly(m []expr.Any) []expr.Any {
	m = append(m, l4proto(unix.IPPROTO_TCP)...)
	return append(m,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x02}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0}},
	)
}

// clampMSS lowers the MSS option; the kernel never raises it.
func clampMSS(mss int) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(uint16(mss))},
		&expr.Exthdr{SourceRegister: 1, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	}
}
