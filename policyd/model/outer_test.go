package model

import (
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

func TestOuterHeader(t *testing.T) {
	for text, want := range map[string]ipsec.OuterHeader{
		"":                               {},
		", outer: {dscp: copy}":          {},
		", outer: {df: auto, dscp: 0}":   {FixedDSCP: true},
		", outer: {df: clear, dscp: 46}": {DF: ipsec.DFClear, FixedDSCP: true, DSCP: 46},
		", outer: {df: set}":             {DF: ipsec.DFSet},
		", outer: {df: copy}":            {DF: ipsec.DFCopy},
		", outer: {flowLabel: auto}":     {},
		", outer: {flowLabel: copy}":     {CopyLabel: true},
	} {
		docs, err := Parse("action.yaml", []byte("apiVersion: testudo/v1\nkind: FilterAction\nmetadata: {name: a}\nspec: {action: secure, mode: tunnel"+text+"}\n"))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := docs[0].Spec.(*FilterAction).Template.Outer; got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}
