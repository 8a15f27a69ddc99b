package ikev2

import (
	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Quick crash detection (RFC 6290). Each end gives the other a token within the IKE
// SA. Whoever has lost the IKE SA can make the same token again, from a secret that
// outlives it, and show it: in the clear, and once. Then the other end knows at once
// that its IKE SA is of no use, instead of after a minute of silence.
//
//	HDR, SK {...}  -->
//	                    <--  HDR, N(INVALID_IKE_SPI), N(QCD_TOKEN)+

// WhyLost is a peer that has proven to have lost the IKE SA.
const WhyLost = "PEER_LOST_STATE"

// Bounds of a token (§5), and how many of one message are looked at (§4.5).
const (
	minToken  = 16
	maxToken  = 128
	maxTokens = 4
)

// tokenPayload is our token of an IKE SA, none when the engine makes none.
func (m *Machine) tokenPayload(spiI, spiR uint64) []wire.Payload {
	if m.env.Tokens == nil {
		return nil
	}
	const ikeSA = 1 // "Protocol ID (1 octet) MUST be 1"
	for _, t := range m.env.Tokens(spiI, spiR) {
		return []wire.Payload{&wire.Notify{Protocol: ikeSA, Message: wire.QuickCrashDetection, Data: t}}
	}
	return nil
}

// token is the peer's, in a message that is known to be the peer's.
func (msg *message) token() ipsec.Secret {
	n := msg.notify(wire.QuickCrashDetection)
	if n == nil || len(n.Data) < minToken || len(n.Data) > maxToken {
		return ipsec.Secret{}
	}
	return ipsec.CopySecret(n.Data)
}

// takeToken keeps the peer's token; a newer one takes the place of an older one (§4.4).
func (m *Machine) takeToken(msg *message) {
	if t := msg.token(); !t.IsZero() {
		m.peerToken = t
	}
}

// unprotected is a response in the clear. Anyone can send one, so nothing but the
// right token has an effect; without one the request under way is sent again until it
// is answered or given up (RFC 7296 §2.21.4). Comparing costs less than the integrity
// check that any other datagram costs, so it is not limited further (§8.1).
func (m *Machine) unprotected(h wire.Header, ev ike.Datagram) {
	_, ps, err := wire.Parse(ev.Data)
	if err != nil {
		m.drop(WhyMalformed)
		return
	}
	lost, proven, seen := false, false, 0
	for _, p := range ps {
		n, ok := p.(*wire.Notify)
		if !ok {
			continue
		}
		switch n.Message {
		case wire.InvalidIKESPI:
			lost = true
		case wire.QuickCrashDetection:
			if seen++; seen <= maxTokens && !m.peerToken.IsZero() && m.peerToken.Equal(ipsec.CopySecret(n.Data)) {
				proven = true
			}
		}
	}
	if !lost || !proven || m.state == stateConnecting {
		m.drop(WhyUnprotected)
		return
	}
	m.fail(m.failure(h.Exchange, WhyLost, "the peer has lost the IKE SA, and proves it with the token it gave",
		"nothing: a new IKE SA is made; look at the peer's log for why it was lost"))
}
