package sadb

import (
	"errors"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// Sizes of a lease, in sequence numbers.
//
// With ESN numbers are plenty: 2^28 lasts more than 2 minutes at 2 million
// packets a second, so a key manager that is away for a while stops nobody, and
// a lost lease (a worker that dies) costs one 2^36th of the space. It must stay
// well under MaxJump, because the rest of a lost lease is a jump.
//
// Without ESN there are 2^32 numbers for the life of the SA. 2^24 makes 256
// leases of them, so that some restarts do not use the SA up, and still lasts
// 8 seconds at 2 million packets a second.
const (
	SizeESN uint64 = 1 << 28
	Size32  uint64 = 1 << 24
)

// MaxJump is how far past the highest number reported used a lease of an ESN SA
// may begin. ESN sends the low 32 bits only; the receiver infers the high ones
// from its window, rightly for a number less than 2^32 past the window's edge
// (RFC 4303 appendix A2). Half of that leaves room for packets that were lost.
const MaxJump uint64 = 1 << 31

// maxAhead is how many whole leases a worker may hold unused.
const maxAhead = 2

var (
	// ErrExhausted: the sequence numbers of the SA are used up (RFC 4303 §3.3.3).
	ErrExhausted = errors.New("sequence numbers are used up; rekey")
	// ErrJump: a lease would begin more than MaxJump past the last number used.
	ErrJump = errors.New("next lease is too far past the numbers used; rekey")
	// ErrAhead: the worker has enough.
	ErrAhead = errors.New("worker has enough sequence numbers leased")
	// ErrUnknown: no such SA, or not an outbound one.
	ErrUnknown = errors.New("no such outbound SA")
)

// Grant records a further lease for an outbound SA of which used is the highest
// number used.
func (n *Node) Grant(id ipsec.SAID, used uint64) (push.Grant, error) {
	e := n.sas[id]
	if e == nil || e.sa.Direction != ipsec.Outbound {
		return push.Grant{}, ErrUnknown
	}
	e.use(used)
	if e.next > max(e.used+1, e.from) && e.next-max(e.used+1, e.from) >= maxAhead*e.size() {
		return push.Grant{}, ErrAhead
	}
	l, err := e.lease()
	if err != nil {
		return push.Grant{}, err
	}
	n.change(id)
	return push.Grant{ID: id, Lease: l}, nil
}

func (e *entry) size() uint64 {
	if e.sa.Suite.ESN {
		return SizeESN
	}
	return Size32
}

// use takes a worker's word for the highest number used. A number that was not
// granted cannot have been used.
func (e *entry) use(n uint64) {
	if n < e.next {
		e.used = max(e.used, n)
	}
}

// lease takes the next range. The first packet of an SA has the number 1
// (RFC 4303 §2.2).
func (e *entry) lease() (ipsec.Lease, error) {
	if e.unsure {
		return ipsec.Lease{}, ErrExhausted
	}
	first, end := max(e.next, 1), uint64(1)<<32
	if e.sa.Suite.ESN {
		end = 1<<64 - 1
		if first-e.used > MaxJump {
			return ipsec.Lease{}, ErrJump
		}
	}
	if first >= end {
		return ipsec.Lease{}, ErrExhausted
	}
	last := end
	if end-first > e.size() {
		last = first + e.size()
	}
	e.next = last
	return ipsec.Lease{First: first, Last: last}, nil
}
