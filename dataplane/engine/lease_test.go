package engine

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// A batch with more leases than may wait is refused before any of it is done: what it
// removes is still there, and can be removed.
func TestABatchOfTooManyLeasesDoesNothing(t *testing.T) {
	a, b := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	a.policy(t, ipsec.ModeTunnel, an, bn)
	join(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, a, b, an, bn)
	ops := []backend.Op{{Kind: backend.OpRemove, ID: 2}}
	for i := range uint64(20) {
		first := 1<<40 + i*1000
		ops = append(ops, backend.Op{Kind: backend.OpLease, ID: 1, Lease: ipsec.Lease{First: first, Last: first + 1000}})
	}
	err := a.Apply(ops)
	var op *backend.OpError
	if !errors.As(err, &op) || op.Kind != backend.OpLease {
		t.Fatalf("got %v, want a lease refused", err)
	}
	if in, out := a.sad.Len(); in != 1 || out != 1 {
		t.Errorf("%d inbound and %d outbound SAs after a batch that was refused, want 1 and 1", in, out)
	}
	if err := a.Apply(ops[:op.Index]); err != nil {
		t.Errorf("the batch up to the lease that was refused: %v", err)
	}
}
