package sadb

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// Move changes the outer addresses of an SA, and returns the operation that tells
// the worker. It is to be Reinstalled. The worker gets an outbound SA anew, with a lease
// of its own: after eight moves without a packet in between an ESN SA is at MaxJump and
// is replaced, which costs one exchange.
func (n *Node) Move(now time.Time, id ipsec.SAID, local, remote netip.Addr, encap *ipsec.Encap) (push.Install, error) {
	e := n.sas[id]
	if e == nil {
		return push.Install{}, fmt.Errorf("%s was removed before it was moved to %s", id, remote)
	}
	e.sa.Local, e.sa.Remote, e.sa.Encap = local, remote, encap
	n.setInstalled(e, false)
	n.change(id)
	op, err := e.reinstall(now)
	if err == nil {
		e.mending++
	}
	return op, err
}
