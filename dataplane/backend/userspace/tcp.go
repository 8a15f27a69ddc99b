package userspace

import (
	"errors"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// What became of TCP connections and of what they carry, in Counters.Whys.
const (
	whyTCPRefused = "tcp-connection-refused" // over a bound, or not RFC 9329
	whyTCPDropped = "tcp-send-queue"         // the connection does not keep up, or is gone
)

// usesTCP reports whether any peer may come over TCP (RFC 9329 §5).
func usesTCP(p *ipsec.NodePolicy) bool {
	return slices.ContainsFunc(p.Peers, func(q ipsec.Peer) bool { return q.TCP != ipsec.TCPNever })
}

// listen accepts TCP connections while a policy wants them.
func (b *Backend) listen(on bool) error {
	var errs []error
	for _, s := range b.streams {
		errs = append(errs, s.Listen(on))
	}
	return errors.Join(errs...)
}
