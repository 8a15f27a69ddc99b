package ipsec

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// A secret stays one in every verb, at every depth, exported or not.
func TestSecretIsNeverPrinted(t *testing.T) {
	type holder struct {
		Open   Secret
		hidden Secret
		list   []Secret
		ptr    *Secret
	}
	s := NewSecret([]byte("swordfish"))
	h := holder{Open: s, hidden: s, list: []Secret{s}, ptr: &s}
	leaks := []string{"swordfish", "73776f7264", "73 77 6f", "115 119 111", "c3dvcmQ"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p", "%o"} {
		for _, v := range []any{s, &s, h, &h, []any{h}, map[string]holder{"a": h}} {
			out := strings.ToLower(fmt.Sprintf(verb, v))
			for _, l := range leaks {
				if strings.Contains(out, l) {
					t.Errorf("%s of %T prints the octets: %s", verb, v, out)
				}
			}
		}
	}
	b, err := json.Marshal(h.Open)
	if err != nil || string(b) != `"[secret 9 bytes]"` {
		t.Errorf("JSON is %s, %v", b, err)
	}
}

func TestSecretZeroEqualWipe(t *testing.T) {
	var zero Secret
	if !zero.IsZero() || zero.Len() != 0 || !zero.Equal(NewSecret(nil)) {
		t.Error("the zero secret is not empty")
	}
	a, b := CopySecret([]byte{1, 2}), CopySecret([]byte{1, 2})
	if !a.Equal(b) || a.Equal(zero) {
		t.Error("Equal is wrong")
	}
	c := a.Clone()
	a.Wipe()
	if a.Equal(b) || !c.Equal(b) {
		t.Error("Wipe did not overwrite the octets, or Clone shares them")
	}
}
