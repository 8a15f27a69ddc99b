package engine

import (
	"crypto/sha256"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// cookieLife is how long a secret makes cookies; for as long again it is
// accepted, so that an initiator in the middle of its retry is not turned away
// (RFC 7296 §2.6).
const cookieLife = time.Minute

// cookies keeps the two generations of the secret behind cookies.
type cookies struct {
	rand io.Reader

	mu    sync.Mutex
	now   ipsec.Secret
	old   ipsec.Secret // empty, or the one before
	since time.Time    // of now
}

func (k *cookies) init(r io.Reader, now time.Time) error {
	b := make([]byte, sha256.Size)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("cookie secret: %w", err)
	}
	k.rand, k.now, k.since = r, ipsec.NewSecret(b), now
	return nil
}

// secrets returns the secret that makes cookies and, behind it, the one that is
// still accepted.
func (k *cookies) secrets(now time.Time) []ipsec.Secret {
	k.mu.Lock()
	defer k.mu.Unlock()
	if age := now.Sub(k.since); age >= cookieLife {
		b := make([]byte, sha256.Size)
		if _, err := io.ReadFull(k.rand, b); err == nil { // without randomness the secret stays
			k.old = ipsec.Secret{}
			if age < 2*cookieLife {
				k.old = k.now
			}
			k.now, k.since = ipsec.NewSecret(b), now
		}
	}
	if k.old.IsZero() {
		return []ipsec.Secret{k.now}
	}
	return []ipsec.Secret{k.now, k.old}
}

// unprotected answers a request outside of any IKE SA with one notify.
func unprotected(h wire.Header, ps ...wire.Payload) []byte {
	h.Flags = wire.FlagResponse | ^h.Flags&wire.FlagInitiator
	return wire.AppendMessage(nil, h, ps)
}
