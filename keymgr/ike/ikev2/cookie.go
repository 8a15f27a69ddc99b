package ikev2

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Cookie is the stateless proof that an initiator receives at its address
// (RFC 7296 §2.6): a keyed hash, with a secret of the whole key manager, of
// Ni, IPi and SPIi.
func Cookie(secret ipsec.Secret, spiI uint64, remote netip.Addr, ni []byte) []byte {
	mac := hmac.New(sha256.New, secret.Reveal())
	mac.Write(binary.BigEndian.AppendUint64(nil, spiI))
	a := remote.Unmap().As16()
	mac.Write(a[:])
	mac.Write(ni)
	return mac.Sum(nil)
}

// CheckCookie decides on an IKE_SA_INIT request while cookies are asked for,
// without keeping anything. It is ok when the request carries a cookie made
// with one of the secrets; the first makes new cookies, the others are older
// and still accepted. Otherwise challenge is the response to send, nil when the
// datagram is not a request that deserves one.
func CheckCookie(secrets []ipsec.Secret, ev ike.Datagram) (challenge []byte, ok bool) {
	h, ps, err := wire.Parse(ev.Data)
	if err != nil || !isInitRequest(h) || len(secrets) == 0 {
		return nil, false
	}
	var ni, cookie []byte
	for _, p := range ps {
		switch p := p.(type) {
		case *wire.Nonce:
			ni = p.Data
		case *wire.Notify:
			if p.Message == wire.Cookie {
				cookie = p.Data
			}
		}
	}
	if ni == nil {
		return nil, false
	}
	addr := ev.Path.Remote.Addr()
	for _, s := range secrets {
		if hmac.Equal(cookie, Cookie(s, h.SPIi, addr, ni)) {
			return nil, true
		}
	}
	answer := wire.Header{SPIi: h.SPIi, Exchange: wire.IKESAInit, Flags: wire.FlagResponse}
	return wire.AppendMessage(nil, answer, []wire.Payload{
		&wire.Notify{Message: wire.Cookie, Data: Cookie(secrets[0], h.SPIi, addr, ni)},
	}), false
}

// isInitRequest reports the header of a first message (RFC 7296 §3.1).
func isInitRequest(h wire.Header) bool {
	return h.Exchange == wire.IKESAInit && h.SPIr == 0 && h.MessageID == 0 && h.FromInitiator() && !h.Response()
}
