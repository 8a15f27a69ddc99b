package ikev2_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
)

// A cookie is bound to the initiator's address, nonce and SPI, and to a secret
// that may be replaced (RFC 7296 §2.6).
func TestCookieIsBoundToTheInitiator(t *testing.T) {
	secret, other := ipsec.NewSecret([]byte("first")), ipsec.NewSecret([]byte("second"))
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	ni := []byte("nonce nonce nonce")
	cookie := string(ikev2.Cookie(secret, 1, a, ni))
	if cookie != string(ikev2.Cookie(secret, 1, a, ni)) || len(cookie) > 64 {
		t.Errorf("cookie %x", cookie)
	}
	for name, c := range map[string][]byte{
		"address": ikev2.Cookie(secret, 1, b, ni), "SPI": ikev2.Cookie(secret, 2, a, ni),
		"nonce": ikev2.Cookie(secret, 1, a, ni[1:]), "secret": ikev2.Cookie(other, 1, a, ni),
	} {
		if string(c) == cookie {
			t.Errorf("the cookie does not depend on the %s", name)
		}
	}

	// The cookie of an older secret is still good; a garbled request gets nothing.
	n, web, db := iketest.Pair(t, 1, nil)
	db.Cookies = secret
	var requests [][]byte
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if p.From == web {
			requests = append(requests, p.Data)
		}
		return []iketest.Packet{p}
	}
	m := web.Connect("rule", nil)
	n.Run(time.Second)
	path := ike.Path{Local: netip.AddrPortFrom(db.Addr, 500), Remote: m.Info().Path.Local}
	check := func(b []byte, secrets ...ipsec.Secret) (bool, bool) {
		challenge, ok := ikev2.CheckCookie(secrets, ike.Datagram{Path: path, Data: b})
		return challenge != nil, ok
	}
	if challenge, ok := check(requests[0], secret); !challenge || ok {
		t.Errorf("a request without a cookie: challenge %v, ok %v", challenge, ok)
	}
	if challenge, ok := check(requests[1], other, secret); challenge || !ok {
		t.Errorf("a cookie of the older secret: challenge %v, ok %v", challenge, ok)
	}
	if challenge, ok := check(requests[1], other); !challenge || ok {
		t.Errorf("a cookie of another secret: challenge %v, ok %v", challenge, ok)
	}
	if challenge, ok := check(requests[0][:40], secret); challenge || ok {
		t.Errorf("a cut request: challenge %v, ok %v", challenge, ok)
	}
}
