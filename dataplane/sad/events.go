package sad

import (
	"sync"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// events keeps the limits that were met until the control side takes them. It
// is bounded by the number of SAs times the number of limits, as each is raised
// once; so nothing has to be thrown away and the packet path never waits.
type events struct {
	mu      sync.Mutex
	pending []ipsec.Expiry
	begun   []*common // SAs whose limit in use runs since their first packet, each once
	wake    chan struct{}
}

// begin hands an SA to deadlines, which the packet path does not wait for.
func (e *events) begin(c *common) {
	e.mu.Lock()
	e.begun = append(e.begun, c)
	e.mu.Unlock()
}

func (e *events) takeBegun() []*common {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := e.begun
	e.begun = nil
	return out
}

func (e *events) push(x ipsec.Expiry) {
	e.mu.Lock()
	e.pending = append(e.pending, x)
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *events) take() []ipsec.Expiry {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := e.pending
	e.pending = nil
	return out
}
