package userspace

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nftables takes a transaction as one netlink message, and a socket sends none that
// is larger than its buffer. Each transaction takes its time, however small it is. So
// transactions are as large as the socket's buffer may be: root of the first user
// namespace may have any, others what net.core.wmem_max says.
var (
	// sendRoom is asked for: a policy of 10,000 rules takes 1 to 40 MiB.
	sendRoom = 64 << 20
	// answerRoom is for the answers to a transaction, one for each part of it.
	answerRoom = 128 << 20
)

// answerSize is what one answer takes of the receive buffer, with what the kernel
// adds to each, and a new rule, which it tells as well.
const answerSize = 2048

// openNft opens a connection and says how many octets and how many parts a
// transaction may have.
func openNft() (conn *nftables.Conn, octets, parts int, err error) {
	conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		var optErr error
		err = raw.Control(func(fd uintptr) {
			if octets, optErr = grow(int(fd), unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendRoom); optErr != nil {
				return
			}
			parts, optErr = grow(int(fd), unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, answerRoom)
		})
		if err == nil {
			err = optErr
		}
		return err
	}))
	if err != nil {
		return nil, 0, 0, fmt.Errorf("nftables: %w", err)
	}
	// The kernel keeps 32 octets of the send buffer for itself.
	return conn, octets - 64, max(parts/answerSize, 1), nil
}

// grow makes a buffer as large as it may be, and returns how large that is.
func grow(fd, force, plain, size int) (int, error) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size); err != nil {
			return 0, err
		}
	}
	return unix.GetsockoptInt(fd, unix.SOL_SOCKET, plain)
}

// gracePeriod waits until the kernel has done with every packet that it is handling
// now: membarrier waits for a grace period of RCU. Where it cannot, time has to do.
func gracePeriod() {
	const cmdGlobal = 1
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, cmdGlobal, 0, 0); errno != 0 {
		<-time.After(100 * time.Millisecond)
	}
}

// partSize and exprSize bound the length of a part of a transaction and of one
// expression in it: no name of ours is longer than 48 octets, no constant longer
// than an IPv6 address, of which an expression has at most two.
const (
	partSize = 160
	exprSize = 112
)

// flush sends what is queued. After an error nothing more is sent.
func (r *ruleset) flush() {
	r.used, r.queued = 0, 0
	if r.err == nil {
		r.err = r.conn.Flush()
	}
}

// queue adds something of a size to the transaction.
func (r *ruleset) queue(size int, add func()) {
	if r.err != nil {
		return
	}
	if r.used+size > r.octets || r.queued == r.parts {
		r.flush()
	}
	r.used += size
	r.queued++
	add()
}

// part queues something small.
func (r *ruleset) part(add func()) { r.queue(partSize, add) }

// add queues one rule.
func (r *ruleset) add(c *nftables.Chain, parts ...[]expr.Any) {
	all := slices.Concat(parts...)
	r.queue(partSize+exprSize*len(all), func() {
		r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: all})
	})
}
