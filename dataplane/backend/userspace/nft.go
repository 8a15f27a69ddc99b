package userspace

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
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

// ruleset writes the table of one policy revision.
//
// The rules of a policy stand in chains of their own, which the base chains jump
// to. New ones are filled first, where nothing leads to them; a transaction of its
// own turns the base chains over to them, so that a revision comes into force as a
// whole; then the old ones go. More than one transaction is needed because the
// kernel makes the elements of a map visible a moment after the rules that look for
// them, and takes them away a moment before: a packet in between would pass as one
// that no rule covers.
type ruleset struct {
	c       *Config
	conn    *nftables.Conn
	table   *nftables.Table
	version string // suffix of the chains and maps of this revision
	err     error

	octets, parts int // what a transaction may have
	used, queued  int // what this one has, in octets at most and in parts
}

func newRuleset(c *Config) (*ruleset, error) {
	r := &ruleset{c: c, table: &nftables.Table{Family: nftables.TableFamilyINet, Name: c.nftTable()}}
	return r, r.open()
}

func (r *ruleset) open() (err error) {
	r.conn, r.octets, r.parts, err = openNft()
	return err
}

// applyRuleset makes the table say what the policy says.
func applyRuleset(c *Config, p *ipsec.NodePolicy, sizes mtus) error {
	r, err := newRuleset(c)
	if err != nil {
		return err
	}
	defer func() { _ = r.conn.CloseLasting() }()
	old, err := r.others()
	if err != nil {
		return fmt.Errorf("read nftables table %s: %w", c.nftTable(), err)
	}
	r.version = old.next
	r.part(func() { r.conn.AddTable(r.table) })
	for _, n := range counterNames {
		r.part(func() { r.conn.AddObj(&nftables.CounterObj{Table: r.table, Name: n}) })
	}
	out, in := r.rules(p, outward), r.rules(p, inward)
	r.flush()
	r.base(p, out, in, sizes)
	r.flush()
	if r.err == nil {
		gracePeriod() // packets may still be in the old chains
		r.remove(old)
		if r.flush(); r.err != nil {
			// The next revision tries again.
			c.Log.Warn("rules of an older policy cannot be removed from nftables", "table", c.nftTable(), "why", r.err)
		}
		return nil
	}
	err = fmt.Errorf("write nftables table %s: %w", c.nftTable(), r.err)
	// What was filled in vain leads nowhere; take it away again.
	_ = r.conn.CloseLasting() // answers to what was refused may be in it
	if r.err = r.open(); r.err == nil {
		rest, restErr := r.others()
		rest.keep(old)
		r.remove(rest)
		r.flush()
		err = errors.Join(err, restErr)
	}
	return errors.Join(err, r.err)
}

// base fills the base chains.
func (r *ruleset) base(p *ipsec.NodePolicy, out, in chains, sizes mtus) {
	hooks := []struct {
		name string
		kind nftables.ChainType
		hook *nftables.ChainHook
		prio *nftables.ChainPriority
		fill func(*nftables.Chain)
	}{
		{"output", nftables.ChainTypeRoute, nftables.ChainHookOutput, nftables.ChainPriorityMangle, func(c *nftables.Chain) { r.output(c, p, out) }},
		{"prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle, func(c *nftables.Chain) { r.prerouting(c, p, out, sizes) }},
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, func(c *nftables.Chain) { r.input(c, p, in) }},
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, func(c *nftables.Chain) { r.forward(c, p, out, in) }},
		{"relay", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityRef(*nftables.ChainPriorityFilter + 1), r.relay},
		{"postrouting", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, nftables.ChainPriorityMangle, func(c *nftables.Chain) { r.clamp(c, p, oif(r.c.Device), sizes) }},
	}
	pass := nftables.ChainPolicyAccept
	for _, h := range hooks {
		c := &nftables.Chain{Name: h.name, Table: r.table, Type: h.kind, Hooknum: h.hook, Priority: h.prio, Policy: &pass}
		r.part(func() { r.conn.AddChain(c) })
		r.part(func() { r.conn.FlushChain(c) })
		h.fill(c)
	}
}

// output marks what this host sends and a secure rule covers. What the worker sends
// is exempt, unless a rule for packets of IPsec nests it.
func (r *ruleset) output(c *nftables.Chain, p *ipsec.NodePolicy, rules chains) {
	r.jump(c, rules.ipsec)
	r.add(c, hasMark(r.c.OwnMark), accept())
	r.add(c, oif("lo"), accept())
	r.exemptAlways(c)
	r.add(c, clearMark(r.c.Mark))
	r.jump(c, rules.others)
	r.fallback(c, p)
}

// prerouting marks what this host forwards and a secure rule covers, so that it
// is routed into the TUN. What comes out of the TUN gets the mark for the
// reverse path check only; the ip rules see to that.
func (r *ruleset) prerouting(c *nftables.Chain, p *ipsec.NodePolicy, rules chains, sizes mtus) {
	r.clamp(c, p, iif(r.c.Device), sizes)
	r.add(c, iif(r.c.Device), setMark(r.c.Mark), accept())
	r.add(c, clearMark(r.c.Mark))
	r.add(c, iif("lo"), accept())
	r.add(c, toThisHost(), accept())
	r.jump(c, rules.ipsec)
	r.exemptAlways(c)
	r.jump(c, rules.others)
}

// input drops what arrives in clear and should not have.
func (r *ruleset) input(c *nftables.Chain, p *ipsec.NodePolicy, rules chains) {
	r.add(c, iif(r.c.Device), clearMark(r.c.Mark), accept())
	r.add(c, iif("lo"), accept())
	r.jump(c, rules.ipsec)
	r.exemptAlways(c)
	for _, port := range []uint16{r.c.IKEPort, r.c.NATTPort} {
		r.add(c, l4proto(unix.IPPROTO_UDP), dport(port), accept())
	}
	if usesTCP(p) {
		// What others open, and what this host has opened: a connection that is being
		// accepted has no mark yet.
		r.add(c, l4proto(unix.IPPROTO_TCP), dport(r.c.NATTPort), accept())
		r.add(c, l4proto(unix.IPPROTO_TCP), ofSocketWithMark(r.c.OwnMark), accept())
	}
	// IPv6 is filtered here before reassembly, IPv4 after it. The first
	// fragment has the ports and is judged by them; without it the others never
	// become a packet (RFC 8200 §4.5).
	r.add(c, nfproto(unix.NFPROTO_IPV6), laterFragment(false), accept())
	r.jump(c, rules.others)
	r.fallback(c, p)
}

// forward does the same for what passes through: clear packets towards what
// this host protects, and packets that a block rule covers either way.
func (r *ruleset) forward(c *nftables.Chain, p *ipsec.NodePolicy, out, in chains) {
	r.add(c, iif(r.c.Device), clearMark(r.c.Mark))
	// What a secure rule expects of a peer does not go to another one when it comes in clear.
	r.jump(c, in.ipsec, oif(r.c.Device)...)
	r.jump(c, in.others, oif(r.c.Device)...)
	r.add(c, oif(r.c.Device), accept())
	r.jump(c, out.ipsec, iif(r.c.Device)...)
	r.jump(c, out.others, iif(r.c.Device)...)
	r.add(c, iif(r.c.Device), accept())
	r.jump(c, in.ipsec)
	r.jump(c, out.ipsec)
	r.exemptAlways(c)
	r.jump(c, in.others)
	r.jump(c, out.others)
	r.fallback(c, p)
}

// relay drops what came in an SA and a rule secures: what the worker relays from one
// peer to the next does not come here, and the rest does not go back into the TUN, and
// must not go on in clear. It has its mark from forward.
func (r *ruleset) relay(c *nftables.Chain) {
	r.add(c, iif(r.c.Device), hasMark(r.c.Mark), count(counterBlockedOut), drop())
}

// jump leads what matches to the rules of both families; a packet that none decides
// returns.
func (r *ruleset) jump(c *nftables.Chain, rules [2]*nftables.Chain, match ...expr.Any) {
	for i, p := range []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		if rules[i] != nil {
			r.add(c, match, nfproto(p), []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: rules[i].Name}})
		}
	}
}

// fallback is the default action.
func (r *ruleset) fallback(c *nftables.Chain, p *ipsec.NodePolicy) {
	if p.Default == ipsec.ActionBlock {
		r.add(c, count(counterNoRule), drop())
	}
}

// clamp keeps TCP below the MTU of the TUN from the start, unless policy leaves it to
// path MTU discovery.
func (r *ruleset) clamp(c *nftables.Chain, p *ipsec.NodePolicy, device []expr.Any, sizes mtus) {
	if p.KeepMSS {
		return
	}
	r.add(c, device, synOnly(nfproto(unix.NFPROTO_IPV4)), clampMSS(sizes.nested-40))
	r.add(c, device, synOnly(nfproto(unix.NFPROTO_IPV6)), clampMSS(sizes.nested-60))
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

// exemptAlways passes what IPsec itself and the link below it run on: ESP and AH
// for which there is no rule, and ICMPv6 neighbour and listener discovery (RFC 4301 §4.4.1 has the reason:
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
