package model

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// FilterList is a named list of filters, shared by any number of policies.
type FilterList struct {
	Meta
	Filters []Filter
}

// Filter describes traffic from one set of hosts to another, not from the view
// of one host. Filters of a list have no order.
type Filter struct {
	Pos       Pos
	Name      string // optional; keeps rule names when the list is edited
	From, To  Endpoint
	Protocol  uint8 // 0 is any
	FromPorts PortRange
	ToPorts   PortRange // for ICMP both hold type<<8|code
	Mirrored  bool      // the answers are meant too; the default
}

// PortRange is inclusive; AnyPort is all of it.
type PortRange struct{ First, Last uint16 }

// AnyPort is every port, and what a packet without ports matches.
var AnyPort = PortRange{0, 65535}

// EndpointKind says how one side of a filter names its hosts.
type EndpointKind uint8

const (
	EndpointMe     EndpointKind = iota + 1 // the node that has the policy: its own addresses
	EndpointAny                            // every address of both families
	EndpointRange                          // an address, a subnet or a range of addresses
	EndpointNode                           // one node's addresses
	EndpointLabels                         // the addresses of the nodes that carry all the labels
	EndpointUnit                           // the addresses of the nodes in or below a unit
)

// Endpoint is one side of a filter.
type Endpoint struct {
	Kind        EndpointKind
	Pos         Pos
	First, Last netip.Addr        // EndpointRange
	Name        string            // EndpointNode, EndpointUnit
	Labels      map[string]string // EndpointLabels
}

func (e Endpoint) String() string {
	switch e.Kind {
	case EndpointMe:
		return "me"
	case EndpointAny:
		return "any"
	case EndpointNode:
		return "node " + e.Name
	case EndpointUnit:
		return "unit " + e.Name
	case EndpointLabels:
		return "labels " + LabelsString(e.Labels)
	}
	return AddrRange(e.First, e.Last)
}

// LabelsString writes labels sorted, as {tier: web, zone: a}.
func LabelsString(l map[string]string) string {
	parts := make([]string, 0, len(l))
	for _, k := range slices.Sorted(maps.Keys(l)) {
		parts = append(parts, k+": "+l[k])
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// AddrRange writes a range as an address or a prefix where it is one.
func AddrRange(first, last netip.Addr) string {
	return ipsec.TrafficSelector{First: first, Last: last, PortLast: 65535}.String()
}

// MatchesNode reports whether the endpoint names this node by its name, labels
// or unit. The other kinds name addresses.
func (e Endpoint) MatchesNode(n *Node) bool {
	switch e.Kind {
	case EndpointNode:
		return n.Name == e.Name
	case EndpointLabels:
		return n.HasLabels(e.Labels)
	case EndpointUnit:
		return n.InUnit(e.Name)
	}
	return false
}

func readFilterList(v value, m Meta) *FilterList {
	f := &FilterList{Meta: m}
	v.mapping(key{"filters", true, func(v value) {
		v.list("filters", func(_ int, v value) { f.Filters = append(f.Filters, readFilter(v)) })
		if len(v.node.Content) == 0 {
			v.want("at least one filter")
		}
		named := map[string]bool{}
		for i, x := range f.Filters {
			if x.Name != "" && named[x.Name] {
				v.in.errs.Add(x.Pos, fmt.Sprintf("%s[%d].name", v.path, i), "the name %q is taken by another filter of this list; want another one", x.Name)
			}
			named[x.Name] = true
		}
	}})
	return f
}

func readFilter(v value) Filter {
	f := Filter{Pos: v.pos(), FromPorts: AnyPort, ToPorts: AnyPort, Mirrored: true}
	var ports, icmp *value
	var icmpPorts PortRange
	v.mapping(
		key{"name", false, func(v value) { f.Name = readName(v) }},
		key{"from", true, func(v value) { f.From = readEndpoint(v) }},
		key{"to", true, func(v value) { f.To = readEndpoint(v) }},
		key{"protocol", false, func(v value) { f.Protocol = readProtocol(v) }},
		key{"fromPort", false, func(v value) { f.FromPorts = readPorts(v); ports = &v }},
		key{"toPort", false, func(v value) { f.ToPorts = readPorts(v); ports = &v }},
		key{"icmp", false, func(v value) { icmpPorts = readICMP(v); icmp = &v }},
		key{"mirrored", false, func(v value) { f.Mirrored = v.boolean() }},
	)
	if ports != nil && !hasPorts(f.Protocol) {
		ports.fail("protocol %s has no ports, want protocol: tcp, udp or sctp beside a port", ipsec.ProtocolName(f.Protocol))
	}
	if icmp != nil {
		if f.Protocol != protocolICMP && f.Protocol != protocolICMP6 {
			icmp.fail("protocol is %s, want protocol: icmp or icmp6 beside icmp", ipsec.ProtocolName(f.Protocol))
		}
		f.FromPorts, f.ToPorts = icmpPorts, icmpPorts
	}
	if f.From.Kind == EndpointMe && f.To.Kind == EndpointMe {
		v.fail("from and to are both me: traffic of a host to itself never leaves it; want another host on one side")
	}
	if f.From.Kind == EndpointRange && f.To.Kind == EndpointRange && f.From.First.Is4() != f.To.First.Is4() {
		v.fail("from %s and to %s are of different address families, want one family", f.From, f.To)
	}
	return f
}

const (
	protocolICMP  = 1
	protocolICMP6 = 58
)

func hasPorts(p uint8) bool { return p == 6 || p == 17 || p == 132 }

func readProtocol(v value) uint8 {
	s, ok := v.scalar("a protocol name or number")
	if !ok {
		return 0
	}
	p, err := ipsec.ParseProtocol(s)
	if err != nil {
		v.want("any, tcp, udp, icmp, icmp6, sctp, gre, esp, ah or a number from 0 to 255")
	}
	return p
}

func readPorts(v value) PortRange {
	const what = "a port from 0 to 65535 or a range such as 8000-8099"
	s, ok := v.scalar(what)
	if !ok {
		return AnyPort
	}
	low, high, isRange := strings.Cut(s, "-")
	if !isRange {
		high = low
	}
	a, err1 := strconv.ParseUint(low, 10, 16)
	b, err2 := strconv.ParseUint(high, 10, 16)
	if err1 != nil || err2 != nil || b < a {
		v.want(what)
		return AnyPort
	}
	return PortRange{uint16(a), uint16(b)}
}

// readICMP reads {type, code} into the 16-bit number that RFC 7296 §3.13.1
// makes of them.
func readICMP(v value) PortRange {
	var typ uint64
	low, high := uint64(0), uint64(255)
	v.mapping(
		key{"type", true, func(v value) { typ = v.number("an ICMP type", 0, 255) }},
		key{"code", false, func(v value) { low = v.number("an ICMP code", 0, 255); high = low }},
	)
	return PortRange{uint16(typ<<8 | low), uint16(typ<<8 | high)}
}

const endpointForms = "me, any, an address, a subnet, a range a-b, {labels: {...}}, {node: name} or {unit: /path}"

func readEndpoint(v value) Endpoint {
	e := Endpoint{Pos: v.pos()}
	if !v.isString() {
		return readNodesEndpoint(v, e)
	}
	s := v.node.Value
	switch strings.ToLower(s) {
	case "me":
		e.Kind = EndpointMe
		return e
	case "any":
		e.Kind = EndpointAny
		return e
	case "dns", "wins", "dhcp", "gateway":
		v.refuse("name the addresses")
		return e
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" && !a.Is4In6() {
		e.Kind, e.First, e.Last = EndpointRange, a, a
		return e
	}
	if strings.Contains(s, "/") && !strings.HasPrefix(s, "/") {
		if p, ok := readPrefix(v); ok {
			t := ipsec.PrefixSelector(p)
			e.Kind, e.First, e.Last = EndpointRange, t.First, t.Last
		}
		return e
	}
	if low, high, ok := strings.Cut(s, "-"); ok {
		a, err1 := netip.ParseAddr(low)
		b, err2 := netip.ParseAddr(high)
		if err1 == nil && err2 == nil {
			if a.Is4() != b.Is4() || a.Zone() != "" || b.Zone() != "" || a.Is4In6() || b.Is4In6() || b.Less(a) {
				v.want("a range of one family whose first address is not above its last")
				return e
			}
			e.Kind, e.First, e.Last = EndpointRange, a, b
			return e
		}
	}
	hint := ""
	switch {
	case strings.HasPrefix(s, "/"):
		hint = "; a unit is written {unit: " + s + "}"
	case nameForm.MatchString(s):
		hint = "; a node is written {node: " + s + "}, and a DNS name is not enforced yet"
	}
	v.fail("got %s, want %s%s", v.got(), endpointForms, hint)
	return e
}

func readNodesEndpoint(v value, e Endpoint) Endpoint {
	if v.node.Kind != yaml.MappingNode || len(v.node.Content) != 2 {
		v.want(endpointForms)
		return e
	}
	v.mapping(
		key{"labels", false, func(v value) { e.Kind, e.Labels = EndpointLabels, readLabels(v) }},
		key{"node", false, func(v value) { e.Kind, e.Name = EndpointNode, v.text("a node's name") }},
		key{"unit", false, func(v value) { e.Kind, e.Name = EndpointUnit, readUnit(v) }},
	)
	return e
}

// Label is how the filter is told apart within its list: its name or number.
func (f Filter) Label(index int) string { return cmp.Or(f.Name, strconv.Itoa(index+1)) }
