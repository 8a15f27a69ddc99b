package e2e

import (
	"fmt"
	"slices"
	"testing"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// perResource makes CHILD SAs for the queues of a worker beside the first one, on both
// ends (RFC 9611). They come, carry, are replaced, and go with the policy.
func TestPerResourceChildSAs(t *testing.T) {
	b := newPair(t, protectPair(", perResource: 2"), fleet.Options{})
	b.min = 1000
	b.A.Node.Ping(b.B.V4.Addr(), lab.PingOptions{Count: 3})
	have := func(want ...uint32) {
		t.Helper()
		lab.WaitFor(t, limit, fmt.Sprintf("CHILD SAs for the queues %v", want), func() error {
			for _, node := range []string{"a", "b"} {
				var got []uint32
				for _, c := range b.Children(node) {
					got = append(got, c.GetResource())
				}
				if slices.Sort(got); !slices.Equal(got, want) {
					return fmt.Errorf("%s has %v", node, got)
				}
			}
			return nil
		})
	}
	have(0, 1, 2)
	exchange(t, b.A, b.B, traffic{})
	for _, c := range b.Children("a") {
		b.RekeyChild("a", c.GetId())
	}
	exchange(t, b.A, b.B, traffic{small: true})
	have(0, 1, 2)
	b.Apply(protectPair(", perResource: 1"))
	b.WaitInSync()
	have(0, 1)
	exchange(t, b.A, b.B, traffic{small: true})
	if fs := b.Failures(""); len(fs) != 0 {
		t.Errorf("failures: %v; want none", fs)
	}
}
