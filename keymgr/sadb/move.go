package sadb

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// Move changes where an SA goes, and returns the operation that tells the worker. It
// is to be Reinstalled.
func (n *Node) Move(now time.Time, id ipsec.SAID, to netip.AddrPort) (push.Install, error) {
	e := n.sas[id]
	if e == nil {
		return push.Install{}, fmt.Errorf("%s was removed before it was moved to %s", id, to)
	}
	e.sa.Remote = to.Addr()
	if e.sa.Encap != nil {
		e.sa.Encap = &ipsec.UDPEncap{LocalPort: e.sa.Encap.LocalPort, RemotePort: to.Port()}
	}
	n.setInstalled(e, false)
	return e.reinstall(now)
}
