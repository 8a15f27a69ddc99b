package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

var errBusy = errors.New("too many slow operations are waiting; the peer may try again")

// lookUp finds the secrets behind all references, in their order. It fails only
// when none is found: one reference that is out of reach does not hide another.
func (e *Engine) lookUp(need ike.NeedPSK) (answer ike.PSKs) {
	answer.ID = need.ID
	defer func() {
		if p := recover(); p != nil {
			e.stats.panics.Add(1)
			answer.Err = errors.New("the secret store failed inside")
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), e.cfg.SecretTimeout)
	defer cancel()
	var errs []error
	for _, ref := range need.Refs {
		found, err := e.cfg.Secrets.PSK(ctx, ref)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		answer.Secrets = append(answer.Secrets, found...)
	}
	if len(answer.Secrets) == 0 {
		if answer.Err = errors.Join(errs...); answer.Err == nil {
			answer.Err = fmt.Errorf("no pre-shared key behind %d references", len(need.Refs))
		}
	}
	return answer
}

// logOptional says that a negotiation goes on without a secret: no failure tells.
func (e *Engine) logOptional(c *cell, need ike.NeedPSK, answer ike.PSKs) ike.PSKs {
	if answer.Err != nil && need.Optional && e.unread.allow(c.node.name+" "+need.Refs[0], time.Now()) {
		e.cfg.Log.Warn("an optional postquantum preshared key cannot be read: the IKE SA is made without it", "node", c.node.name, "remote", c.remote, "error", answer.Err)
	}
	return answer
}
