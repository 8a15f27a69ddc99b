package model

import (
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

func TestTrafficFlowConfidentiality(t *testing.T) {
	parse := func(text string) (uint16, error) {
		docs, err := Parse("action.yaml", []byte("apiVersion: testudo/v1\nkind: FilterAction\nmetadata: {name: a}\nspec: {action: secure, "+text+"}\n"))
		if err != nil {
			return 0, err
		}
		return docs[0].Spec.(*FilterAction).Template.PadTo, nil
	}
	for text, want := range map[string]uint16{
		"mode: tunnel": 0, "mode: tunnel, tfc: {padTo: 1200}": 1200, "mode: tunnel, tfc: {padTo: mtu}": ipsec.PadToMTU,
	} {
		if got, err := parse(text); got != want || err != nil {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"mode: tunnel, tfc: {}":                                                   "padTo",
		"mode: tunnel, tfc: {padTo: 63}":                                          "mtu or a number of octets",
		"mode: tunnel, tfc: {padTo: 9001}":                                        "mtu or a number of octets",
		"mode: tunnel, tfc: {padTo: MTU}":                                         "mtu or a number of octets",
		"mode: transport, tfc: {padTo: 1200}":                                     "want mode: tunnel",
		"mode: tunnel, tfc: {padTo: 1200}, security: [{ah: {integrity: sha256}}]": "ah hides nothing",
	} {
		if _, err := parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", text, err, want)
		}
	}
}
