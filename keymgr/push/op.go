package push

import "github.com/testudo-ipsec/testudo/ipsec"

// Op is one operation of a batch: Install, Remove or Grant.
type Op interface{ op() }

type (
	// Install puts an SA in place, or replaces the one with the same ID. An
	// outbound SA carries a lease that was never granted before, so one that
	// replaces another drops the old leases and goes on at Lease.First.
	Install struct{ SA ipsec.SA }

	// Remove takes an SA out. An ID that the worker does not hold is no error.
	Remove struct{ ID ipsec.SAID }

	// Grant adds a lease to an outbound SA, to be used after the ones it has.
	Grant struct {
		ID    ipsec.SAID
		Lease ipsec.Lease
	}
)

func (Install) op() {}
func (Remove) op()  {}
func (Grant) op()   {}

// Batch is a list of operations that the worker applies in order, all or none.
// Nonce counts from 1 within a link.
type Batch struct {
	Nonce uint64
	Ops   []Op
}
