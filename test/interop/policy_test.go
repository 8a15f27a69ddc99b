package interop

import (
	"fmt"
	"net/netip"
	"strings"
)

// policy is our side of a scenario. What is zero has the default in parentheses.
type policy struct {
	suites   []string // of IKE (aes256gcm16-prfsha256-x25519)
	defaults bool     // IKE has the suites of a policy that names none
	esp      []string // in order of preference, such as aes128-sha256 (the model's default)
	ah       string   // integrity of AH, instead of ESP (none)
	pfs      string   // (none)
	mode     string   // (tunnel)
	dpd      string   // (30s)
	legacy   bool     // IKE and ESP may have legacy algorithms
	identity string   // (us.example)
	theirs   string   // identity that we expect (swan.example)
	local    []netip.Prefix
	remote   []netip.Prefix // pairs with local (what the topology says)
	protocol string         // (any)
	port     string         // of the remote side (any)
	auth     string         // spec of the Authentication (the pre-shared key)
	reauth   string         // (never)
	padTo    string         // tfc (none)
	raw      bool           // without UDP where no NAT asks for it, which kernel-libipsec does not know
}

// ends is where both sides are, for the policy's Node documents.
type ends struct {
	node         string
	ours, theirs netip.Addr
}

func (p policy) yaml(e ends) string {
	var b strings.Builder
	doc := func(kind, name, spec string, args ...any) {
		fmt.Fprintf(&b, "---\napiVersion: testudo/v1\nkind: %s\nmetadata: {name: %s}\nspec: %s\n", kind, name, fmt.Sprintf(spec, args...))
	}
	doc("Node", e.node, `{addresses: ["%s"], identity: %q, protects: [%s]}`, e.ours, or(p.identity, ourID), quoted(p.local))
	doc("Node", "swan", `{external: true, addresses: ["%s"], identity: %q, protects: [%s]}`, e.theirs, or(p.theirs, theirID), quoted(p.remote))
	var filters []string
	for i := range p.local {
		port := ""
		if p.port != "" {
			port = ", toPort: " + p.port
		}
		filters = append(filters, fmt.Sprintf(`{name: "%d", from: "%s", to: "%s", protocol: %s%s}`, i, endpoint(p.local[i]), endpoint(p.remote[i]), or(p.protocol, "any"), port))
	}
	doc("FilterList", "between", "{filters: [%s]}", strings.Join(filters, ", "))
	security := ""
	if len(p.esp) > 0 {
		var methods []string
		for _, e := range p.esp {
			encr, integ, has := strings.Cut(e, "-")
			if has {
				integ = ", integrity: " + integ
			}
			methods = append(methods, fmt.Sprintf("{esp: {encryption: %s%s}}", encr, integ))
		}
		security = ", allowLegacy: " + fmt.Sprint(p.legacy) + ", security: [" + strings.Join(methods, ", ") + "]"
	}
	encap := !p.raw
	if p.ah != "" {
		encap, security = false, ", security: [{ah: {integrity: "+p.ah+"}}]"
	}
	if p.padTo != "" {
		security += ", tfc: {padTo: " + p.padTo + "}"
	}
	doc("FilterAction", "protect", "{action: secure, mode: %s, forceEncap: %t, pfs: %s%s}", or(p.mode, "tunnel"), encap, or(p.pfs, "none"), security)
	doc("Authentication", "auth", "%s", or(p.auth, fmt.Sprintf(`{methods: [{psk: {secret: "file:%s"}}]}`, secretFile)))
	suites := p.suites
	if len(suites) == 0 {
		suites = []string{defaultSuite}
	}
	exchange := ""
	if named := fmt.Sprintf("suites: [%s], ", strings.Join(suites, ", ")); !p.defaults {
		exchange = named
	}
	doc("Policy", "interop", "{keyExchange: {%sallowLegacy: %t, dpd: %s}, rules: [{name: swan, filters: between, action: protect, authentication: auth%s}]}",
		exchange, p.legacy, or(p.dpd, "30s")+p.reauthentication(), p.tunnel())
	doc("Assignment", "us", "{policy: interop, to: %s}", e.node)
	return b.String()
}

func (p policy) reauthentication() string {
	if p.reauth == "" {
		return ""
	}
	return ", reauthentication: " + p.reauth
}

func (p policy) tunnel() string {
	if p.mode == "transport" {
		return ""
	}
	return ", tunnel: swan"
}

// endpoint is a host's address without its length.
func endpoint(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// quoted is what a node protects: subnets, not the host itself.
func quoted(ps []netip.Prefix) string {
	var out []string
	for _, p := range ps {
		if s := `"` + p.String() + `"`; !p.IsSingleIP() && !strings.Contains(strings.Join(out, ","), s) {
			out = append(out, s)
		}
	}
	return strings.Join(out, ", ")
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
