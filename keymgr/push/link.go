package push

import (
	"errors"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// Link is the way down to one attached worker. Its methods enqueue and return:
// they never wait for the network and never call back into the key manager,
// which may hold locks. They may be called from several goroutines. Batches
// are delivered in the order of the calls. An error means that the link is
// broken (wrap ErrClosed) or that its queue is full (wrap ErrFull); the link
// takes ownership of what it is given either way.
type Link interface {
	Apply(Batch) error
	SendIKE(path ike.Path, data []byte) error
	AcquireFailed(id uint64, why string) error
	// Close ends the link, for example because the worker attached again.
	Close(why string)
}

var (
	// ErrClosed: the worker is no longer attached.
	ErrClosed = errors.New("worker link is closed")
	// ErrFull: the worker does not keep up. A datagram is lost (IKE sends it
	// again); for a batch the link counts as broken.
	ErrFull = errors.New("worker link queue is full")
)
