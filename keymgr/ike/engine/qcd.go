package engine

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// maxCrashSecrets: a peer looks at no more tokens (RFC 6290 §4.5).
const maxCrashSecrets = 4

// tokens are those of an IKE SA of the node, by the newest secret first (RFC 6290
// §5.1). Any key manager with the secret can make them. The node's name is part of
// them: a key manager that does not serve the node, and is asked about an IKE SA that
// it cannot know, must not give away the token of one that lives (§9.2).
func (n *node) tokens(spiI, spiR uint64) [][]byte {
	var out [][]byte
	for _, s := range n.e.cfg.CrashSecrets[:min(len(n.e.cfg.CrashSecrets), maxCrashSecrets)] {
		m := hmac.New(sha256.New, s.Reveal())
		m.Write([]byte("testudo quick crash detection\x00" + n.name + "\x00"))
		m.Write(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, spiI), spiR))
		out = append(out, m.Sum(nil))
	}
	return out
}

// newSPI is an IKE SPI, random but for its last two octets: these tell whether it was
// made since the store is there, so whether its IKE SA may have been lost with an earlier
// one. It is never zero but once in 2^64, and then another.
func (e *Engine) newSPI() uint64 {
	var b [8]byte
	for {
		if _, err := io.ReadFull(e.cfg.Rand, b[:6]); err != nil {
			panic("no randomness: " + err.Error()) // ends this machine only
		}
		copy(b[6:], e.spiTag(b[:6]))
		if spi := binary.BigEndian.Uint64(b[:]); spi != 0 {
			return spi
		}
	}
}

func (e *Engine) spiTag(b []byte) []byte {
	m := hmac.New(sha256.New, binary.BigEndian.AppendUint64([]byte("testudo IKE SPI"), uint64(e.firstID)))
	m.Write(b)
	return m.Sum(nil)[:2]
}

// ownSPI reports an IKE SPI that was made since the store is there. Of such an IKE SA
// nothing was lost: it ended, and the peer will learn or has learned so within it; or it
// is about to begin, when the peer has it already and our half of a rekey is on its way.
// A token that is shown for it would end it later (RFC 6290 §9.2).
func (e *Engine) ownSPI(spi uint64) bool {
	b := binary.BigEndian.AppendUint64(nil, spi)
	return hmac.Equal(e.spiTag(b[:6]), b[6:])
}

// unknown answers a request under an IKE SA that is not here (RFC 7296 §1.5, §2.21.4),
// with the tokens that prove it (RFC 6290 §4.5), a bounded number of times a second.
// Responses are not answered: two ends could go on for ever.
func (n *node) unknown(path ike.Path, h wire.Header) {
	own := h.SPIi
	if h.FromInitiator() {
		own = h.SPIr
	}
	// Both SPIs: who turns the I flag around names an IKE SA that lives by the peer's.
	lives := n.e.lost[own] != n && (n.e.ownSPI(h.SPIi) || n.e.ownSPI(h.SPIr))
	if h.Response() || h.Next != wire.TypeSK && h.Next != wire.TypeSKF || lives || !n.e.unasked.allow(time.Now()) {
		return
	}
	ps := []wire.Payload{&wire.Notify{Message: wire.InvalidIKESPI}}
	for _, t := range n.tokens(h.SPIi, h.SPIr) {
		const ikeSA = 1
		ps = append(ps, &wire.Notify{Protocol: ikeSA, Message: wire.QuickCrashDetection, Data: t})
	}
	n.send(nil, path, unprotected(h, ps...))
}
