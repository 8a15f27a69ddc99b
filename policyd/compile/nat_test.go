package compile

import (
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/policyd/model"
)

// A node behind a NAT is known by its identity: others cannot say which address
// it comes from, and only it can start IKE (RFC 7296 §2.23).
func TestBehindNAT(t *testing.T) {
	set := natSet(t, "", "")
	all, err := All(set)
	if err != nil {
		t.Fatal(err)
	}
	hub, branch := all["hub"].Peers, all["branch"].Peers
	if len(hub) != 1 || hub[0].Name != "branch" || len(hub[0].Remote) != 0 || hub[0].RemoteID.String() != "branch.example" {
		t.Errorf("the hub's peers are %+v; want branch.example from any address", hub)
	}
	if len(branch) != 1 || len(branch[0].Remote) != 1 || branch[0].Remote[0].String() != "203.0.113.1" {
		t.Errorf("the branch's peers are %+v; want the hub at its address", branch)
	}
}

// RFC 3715 §2.1: AH and NAT are incompatible.
func TestAHBehindNATIsRefused(t *testing.T) {
	_, err := All(natSet(t, ", security: [{ah: {integrity: sha256}}]", ""))
	if err == nil || !strings.Contains(err.Error(), `rule "all" protects with ah only, and node "branch" is behind a NAT`) {
		t.Errorf("got %v", err)
	}
	if _, err := All(natSet(t, ", security: [{ah: {integrity: sha256}}, {esp: {encryption: aes128gcm16}}]", "")); err != nil {
		t.Errorf("with esp to choose: %v", err)
	}
}

// RFC 9329 carries ESP and IKE, and nothing else.
func TestAHOverTCPIsRefused(t *testing.T) {
	docs := func(security string) *model.Set {
		return natSet(t, ", security: ["+security+"]", "keyExchange: {tcp: always}, ")
	}
	_, err := All(docs("{ah: {integrity: sha256}}"))
	if err == nil || !strings.Contains(err.Error(), `rule "all" protects with ah only, which cannot travel in TCP`) {
		t.Errorf("got %v", err)
	}
	if _, err := All(docs("{ah: {integrity: sha256}}, {esp: {encryption: aes128gcm16}}")); err != nil {
		t.Errorf("with esp to choose: %v", err)
	}
}

func natSet(t *testing.T, more, exchange string) *model.Set {
	t.Helper()
	docs := `apiVersion: testudo/v1
kind: Node
metadata: {name: branch}
spec: {addresses: [192.168.1.2], identity: branch.example, protects: [10.1.0.0/16], behindNAT: true}
---
kind: Node
metadata: {name: hub}
spec: {addresses: [203.0.113.1], identity: hub.example, protects: [10.0.0.0/16]}
---
kind: FilterList
metadata: {name: sites}
spec: {filters: [{from: 10.1.0.0/16, to: 10.0.0.0/16}]}
---
kind: FilterAction
metadata: {name: tunnel}
spec: {action: secure, mode: tunnel` + more + `}
---
kind: Authentication
metadata: {name: psk}
spec: {methods: [{psk: {secret: "file:sites.psk"}}]}
---
kind: Policy
metadata: {name: sites}
spec: {` + exchange + `rules: [{name: all, filters: sites, action: tunnel, authentication: psk}]}
---
kind: Assignment
metadata: {name: branch}
spec: {policy: sites, to: branch}
---
kind: Assignment
metadata: {name: hub}
spec: {policy: sites, to: hub}
`
	parsed, err := model.Parse("nat.yaml", []byte(docs))
	if err != nil {
		t.Fatal(err)
	}
	set, err := model.Load(parsed)
	if err != nil {
		t.Fatal(err)
	}
	return set
}
