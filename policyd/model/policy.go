package model

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Policy is the whole of what one node enforces. A node has one policy or
// none; policies are never merged.
type Policy struct {
	Meta
	KeyExchange KeyExchange
	Rules       []Rule
	Default     ipsec.Action // for what no rule matches: permit (the default) or block
	FailClosed  bool         // what is secured stays blocked while no worker runs
	KeepMSS     bool         // TCP is not told to stay below what SAs carry
}

// KeyExchange is how IKE SAs are made.
type KeyExchange struct {
	Suites   []ipsec.Proposal // in order of preference
	Legacy   []string         // legacy algorithms in Suites, for warnings
	Lifetime time.Duration
	Reauth   time.Duration // 0 for never
	DPD      time.Duration // 0 for never
	Mobike   bool          // RFC 4555, with peers of tunnel-mode rules
	TCP      ipsec.TCPUse
}

// DefaultKeyExchange is what a policy has that says nothing of IKE. The first suite
// keeps what is recorded today from the quantum computers of tomorrow; the second
// is for peers that do not do RFC 9370; the third has what RFC 8247 makes mandatory
// or nearly so, for peers of any make.
var DefaultKeyExchange = KeyExchange{
	Suites: []ipsec.Proposal{
		mustIKE("aes256gcm16-prfsha256-x25519-ke1_mlkem768"),
		mustIKE("aes256gcm16-prfsha256-x25519"),
		mustIKE("aes256-sha256-prfsha256-ecp256-modp2048"),
	},
	Lifetime: 4 * time.Hour,
	DPD:      30 * time.Second,
	Mobike:   true,
}

// Rule applies an action to the traffic of a filter list.
type Rule struct {
	Pos            Pos
	Name           string
	Filters        string
	Action         string
	Authentication string     // "" unless the action is secure
	TunnelNode     string     // the gateway as a node
	TunnelAddr     netip.Addr // or as an address; neither for none
}

// HasTunnel reports a rule that names its gateway.
func (r Rule) HasTunnel() bool { return r.TunnelNode != "" || r.TunnelAddr.IsValid() }

// exemptions pass before all rules.
var exemptions = []string{"ike", "neighborDiscovery"}

// exemptName is what the compiler names its own rules after.
const exemptName = "exempt"

func readPolicy(v value, m Meta) *Policy {
	p := &Policy{Meta: m, KeyExchange: DefaultKeyExchange, Default: ipsec.ActionPermit}
	v.mapping(
		key{"keyExchange", false, func(v value) { p.KeyExchange = readKeyExchange(v) }},
		key{"rules", true, func(v value) {
			taken := map[string]bool{}
			v.list("rules", func(_ int, v value) {
				r := readRule(v)
				if r.Name != "" && taken[r.Name] {
					v.in.errs.Add(r.Pos, v.path+".name", "the name %q is taken by another rule of this policy; want another one", r.Name)
				}
				taken[r.Name] = true
				p.Rules = append(p.Rules, r)
			})
		}},
		key{"exempt", false, func(v value) {
			// A worker that filtered these could not get its own keys and neighbours,
			// so the list cannot be shortened; it is there to be read.
			listed := map[string]bool{}
			v.list("exemptions: ike, neighborDiscovery", func(_ int, v value) {
				s := v.text("ike or neighborDiscovery")
				if s != "" && !slices.Contains(exemptions, s) {
					v.fail("got %s, want ike or neighborDiscovery%s", v.got(), suggest(s, exemptions))
				}
				listed[s] = true
			})
			for _, e := range exemptions {
				if !listed[e] {
					v.fail("%s is not in the list, but is always exempt; want [ike, neighborDiscovery] or no list", e)
				}
			}
		}},
		key{"default", false, func(v value) {
			switch s := v.text("permit or block"); s {
			case "":
			case "permit":
				p.Default = ipsec.ActionPermit
			case "block":
				p.Default = ipsec.ActionBlock
			default:
				v.want("permit or block")
			}
		}},
		key{"clampMSS", false, func(v value) { p.KeepMSS = !v.boolean() }},
		key{"failClosed", false, func(v value) { p.FailClosed = v.boolean() }},
		key{"defaultResponse", false, func(v value) {
			if v.boolean() {
				v.fail("answering IKE from peers that no rule names (the default response rule) is not enforced yet; leave it out: a node always answers the peers its rules name")
			}
		}},
	)
	return p
}

func readKeyExchange(v value) KeyExchange {
	k := DefaultKeyExchange
	requirePQ, allowLegacy := false, false
	var at []value // of the suites
	v.mapping(
		key{"version", false, func(v value) {
			if v.number("an IKE version", 1, 2) == 1 {
				v.fail("version 1 (ISAKMP/Oakley) is not enforced yet; want version: 2")
			}
		}},
		key{"suites", false, func(v value) {
			k.Suites = nil
			v.list("IKE suites such as aes256gcm16-prfsha256-x25519", func(_ int, v value) {
				if p, ok := readSuite(v); ok {
					k.Suites, at = append(k.Suites, p), append(at, v)
				}
			})
			if len(v.node.Content) == 0 {
				v.want("at least one IKE suite; leave the key out for the default")
			}
		}},
		key{"lifetime", false, func(v value) { k.Lifetime = v.duration(time.Minute, 30*24*time.Hour) }},
		key{"reauthentication", false, func(v value) { k.Reauth = v.duration(time.Minute, 30*24*time.Hour) }},
		key{"dpd", false, func(v value) { k.DPD = v.duration(0, 24*time.Hour) }},
		key{"mobike", false, func(v value) { k.Mobike = v.boolean() }},
		key{"requirePQ", false, func(v value) { requirePQ = v.boolean() }},
		key{"tcp", false, func(v value) {
			var err error
			if k.TCP, err = ipsec.ParseTCPUse(v.text("when to use TCP")); err != nil {
				v.want("never, fallback or always")
			}
		}},
		key{"allowLegacy", false, func(v value) { allowLegacy = v.boolean() }},
	)
	for i, v := range at {
		names := k.Suites[i].Legacy()
		if len(names) > 0 && !allowLegacy {
			v.fail("%s in suite %s is a legacy algorithm, which RFC 8247 says not to use: want another, or allowLegacy: true beside suites if an old peer needs it", strings.Join(names, " and "), quote(v.node.Value))
		}
		k.Legacy = append(k.Legacy, names...)
	}
	if !requirePQ {
		return k
	}
	for i, v := range at {
		if !k.Suites[i].PostQuantum() {
			v.fail("suite %s has no post-quantum key exchange, and requirePQ is true; want it with -ke1_mlkem768, or without requirePQ", quote(v.node.Value))
		}
	}
	k.Suites = slices.DeleteFunc(slices.Clone(k.Suites), func(p ipsec.Proposal) bool { return !p.PostQuantum() })
	return k
}

func readRule(v value) Rule {
	r := Rule{Pos: v.pos()}
	v.mapping(
		key{"name", true, func(v value) {
			if r.Name = readName(v); r.Name == exemptName {
				v.fail("the name %q is kept for the exemptions; want another one", exemptName)
			}
		}},
		key{"filters", true, func(v value) { r.Filters = v.text("the name of a FilterList") }},
		key{"action", true, func(v value) { r.Action = v.text("the name of a FilterAction") }},
		key{"authentication", false, func(v value) { r.Authentication = v.text("the name of an Authentication") }},
		key{"tunnel", false, func(v value) {
			s := v.text("none, the name of a node or an address")
			if _, err := netip.ParseAddr(s); err == nil {
				r.TunnelAddr, _ = readAddr(v)
			} else if s != "none" {
				r.TunnelNode = s
			}
		}},
		key{"connection", false, func(v value) {
			switch s := v.text("all"); strings.ToLower(s) {
			case "", "all":
			case "lan", "dialup":
				v.refuse("want all")
			default:
				v.want("all")
			}
		}},
	)
	return r
}
