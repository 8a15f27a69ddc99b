package model

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Node is a host.
type Node struct {
	Meta
	Unit      string       // place in the tree, such as /corp/eu/web; "" for none
	Addresses []netip.Addr // in order of preference; never empty
	Identity  ipsec.Identity
	Protects  []netip.Prefix // subnets behind it
	External  bool           // runs no Testudo worker: only its peers get rules for it
	BehindNAT bool           // others see another address: it starts IKE, and they know it by its identity
}

func readNode(v value, m Meta) *Node {
	n := &Node{Meta: m}
	v.mapping(
		key{"unit", false, func(v value) { n.Unit = readUnit(v) }},
		key{"addresses", true, func(v value) {
			v.list("addresses", func(_ int, v value) {
				a, ok := readAddr(v)
				if ok && slices.Contains(n.Addresses, a) {
					v.fail("the address %s is given twice; keep one", a)
				} else if ok {
					n.Addresses = append(n.Addresses, a)
				}
			})
			if len(v.node.Content) == 0 {
				v.want("at least one address")
			}
		}},
		key{"identity", false, func(v value) { n.Identity = readIdentity(v) }},
		key{"protects", false, func(v value) {
			v.list("subnets", func(_ int, v value) {
				p, ok := readPrefix(v)
				if ok && slices.Contains(n.Protects, p) {
					v.fail("the subnet %s is given twice; keep one", p)
				} else if ok {
					n.Protects = append(n.Protects, p)
				}
			})
		}},
		key{"behindNAT", false, func(v value) { n.BehindNAT = v.boolean() }},
		key{"external", false, func(v value) { n.External = v.boolean() }},
	)
	if n.Identity.IsZero() && n.Name != "" {
		n.Identity = ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: n.Name}
	}
	return n
}

func readIdentity(v value) ipsec.Identity {
	s := v.text("an identity: a domain name, an address, user@domain, a distinguished name or keyid:octets")
	if s == "" {
		return ipsec.Identity{}
	}
	id, err := ipsec.ParseIdentity(s)
	if err != nil || id.Data == "" || len(id.Data) > 1024 {
		v.want("an identity of 1 to 1024 octets: a domain name, an address, user@domain, a distinguished name such as C=DE, O=Fleet, CN=web-1, or keyid:octets")
		return ipsec.Identity{}
	}
	return id
}

// readAddr reads one host address in its own family and without a zone, so
// that comparing addresses is comparing hosts.
func readAddr(v value) (netip.Addr, bool) {
	s := v.text("an IPv4 or IPv6 address")
	if s == "" {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() {
		v.want("a unicast IPv4 or IPv6 address, without a zone")
		return netip.Addr{}, false
	}
	return a, true
}

func readPrefix(v value) (netip.Prefix, bool) {
	s := v.text("a subnet such as 10.20.0.0/16")
	if s == "" {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		v.want("a subnet such as 10.20.0.0/16 or 2001:db8:1::/48")
		return netip.Prefix{}, false
	}
	if p != p.Masked() {
		v.fail("got %s, which has bits set behind its mask; did you mean %s?", v.got(), p.Masked())
		return netip.Prefix{}, false
	}
	return p, true
}

func readUnit(v value) string {
	s := v.text("a unit such as /corp/eu/web")
	if s != "" && !validUnit(s) {
		v.want("a unit: a path such as /corp/eu/web, its parts of small letters, digits, '-' and '.'")
		return ""
	}
	return s
}

func validUnit(s string) bool {
	parts := strings.Split(s, "/")
	return parts[0] == "" && len(parts) > 1 && !slices.ContainsFunc(parts[1:], func(p string) bool { return !nameForm.MatchString(p) })
}

// InUnit reports whether the node is in the unit or in one below it.
func (n *Node) InUnit(unit string) bool {
	return n.Unit == unit || strings.HasPrefix(n.Unit, unit) && n.Unit[len(unit)] == '/'
}

// HasLabels reports whether the node carries all of these labels.
func (n *Node) HasLabels(want map[string]string) bool {
	for k, v := range want {
		if got, ok := n.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
