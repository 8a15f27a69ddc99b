package e2e

import (
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/test/fleet"
)

// clampMSS from the policy file to the host: with false TCP finds out what an SA
// carries, and gets through; by default it is told.
func TestClampMSS(t *testing.T) {
	b := newPair(t, pairPolicy("", "clampMSS: false"), fleet.Options{})
	says := func(kept bool, word string) {
		t.Helper()
		if shown := string(b.CLI("policy", "effective", "a")); !strings.Contains(shown, "TCP's MSS: "+word) {
			t.Errorf("policy effective does not say that the MSS is %s:\n%s", word, shown)
		}
		if rules := b.A.Node.Run("nft", "list", "ruleset"); strings.Contains(rules, "maxseg") == kept {
			t.Errorf("the MSS is to be %s; the host's rules are\n%s", word, rules)
		}
		for _, v6 := range []bool{false, true} {
			b.A.Node.Transfer(b.B, v6, 1<<20)
		}
	}
	says(true, "kept")
	b.Apply(pairPolicy("", ""))
	b.WaitInSync()
	says(false, "clamped")
}
