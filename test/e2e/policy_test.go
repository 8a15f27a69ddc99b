package e2e

import (
	"fmt"
	"strings"

	"github.com/testudo-ipsec/testudo/test/fleet"
)

// policy joins documents into one file.
func policy(documents ...string) string {
	return "apiVersion: testudo/v1\n" + strings.Join(documents, "\n---\n") + "\n"
}

func document(kind, name, spec string) string {
	return fmt.Sprintf("kind: %s\nmetadata: {name: %s}\nspec: %s", kind, name, spec)
}

// node takes the lists as YAML has them between brackets.
func node(name, addresses, protects string) string {
	spec := "{addresses: [" + addresses + "]"
	if protects != "" {
		spec += ", protects: [" + protects + "]"
	}
	return document("Node", name, spec+"}")
}

func filters(name string, filters ...string) string {
	return document("FilterList", name, "{filters: ["+strings.Join(filters, ", ")+"]}")
}

func action(name, spec string) string { return document("FilterAction", name, "{"+spec+"}") }

func psk(name, reference string) string {
	return document("Authentication", name, fmt.Sprintf("{methods: [{psk: {secret: %q}}]}", reference))
}

// rules is a policy of those rules; more is further keys of it, or nothing.
func rules(name, more string, rules ...string) string {
	if more != "" {
		more += ", "
	}
	return document("Policy", name, "{"+more+"rules: ["+strings.Join(rules, ", ")+"]}")
}

func assign(policy, to string) string {
	return document("Assignment", policy+"-"+to, fmt.Sprintf("{policy: %s, to: %s}", policy, to))
}

// The hosts of lab.NewPair.
var (
	hostA    = node("a", `192.0.2.1, "2001:db8::1"`, "")
	hostB    = node("b", `192.0.2.2, "2001:db8::2"`, "")
	both     = filters("both", "{from: {node: a}, to: {node: b}}")
	fleetPSK = psk("psk", "file:"+fleet.PSK)
)

// protectPair secures all traffic of a pair. The action's spec goes on after
// "action: secure".
func protectPair(action string) string { return pairPolicy(action, "") }

// pairPolicy is protectPair with further keys of the policy.
func pairPolicy(secure, keys string) string {
	return policy(hostA, hostB, both, fleetPSK, action("require", "action: secure"+secure),
		rules("p", keys, "{name: all, filters: both, action: require, authentication: psk}"),
		assign("p", "a"), assign("p", "b"))
}
