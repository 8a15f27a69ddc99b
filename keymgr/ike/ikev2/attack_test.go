package ikev2_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Attacks that have worked against other IKE daemons. docs/threat-model.md lists
// the classes, with these tests and those that stand elsewhere.

var (
	web4, db4 = netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	six       = netip.MustParsePrefix("2001:db8::/64")
	zero32    [32]byte
)

func addrPort(h *iketest.Host) netip.AddrPort { return netip.AddrPortFrom(h.Addr, 500) }

// forge puts a message on the wire from web's address to db and lets it arrive.
func forge(n *iketest.Net, web, db *iketest.Host, b []byte) {
	p := web.Machine().Info().Path
	n.Inject(iketest.Packet{From: web, To: db, Src: p.Local, Dst: p.Remote, Data: b})
	n.Run(50 * time.Millisecond)
}

// mustAddUp checks that what is in the workers belongs to CHILD SAs, and that the
// CHILD SAs are in the workers.
func mustAddUp(t *testing.T, what string, hosts ...*iketest.Host) {
	t.Helper()
	for _, h := range hosts {
		left := map[ipsec.SAID]bool{}
		for _, sa := range h.SAs {
			left[sa.ID] = true
		}
		for _, c := range h.Children() {
			if !left[c.In] {
				t.Errorf("%s: %s: CHILD SA %d has no inbound SA", what, h.Name, c.ID)
			}
			delete(left, c.In)
			delete(left, c.Out)
		}
		if len(left) > 0 {
			t.Errorf("%s: %s: the worker has SAs of nobody: %v", what, h.Name, left)
		}
	}
}

// mustBeginAgain checks that a new IKE SA comes up and carries packets.
func mustBeginAgain(t *testing.T, what string, n *iketest.Net, web, db *iketest.Host) {
	t.Helper()
	n.Hook = nil
	web.Connect("rule", nil)
	n.Run(10 * time.Second)
	if err := iketest.Deliverable(web, db); err != nil {
		t.Errorf("%s: afterwards: %v\n%s", what, err, n.LadderText(8))
	}
}

// rekeyIKE is a well-formed request to replace the IKE SA.
func rekeyIKE(n *iketest.Net) []wire.Payload {
	spi := binary.BigEndian.AppendUint64(nil, n.Rand.Uint64())
	return []wire.Payload{sixteen(spi), &wire.Nonce{Data: make([]byte, 32)}, &wire.KE{Method: ipsec.KEX25519, Data: append([]byte{9}, make([]byte, 31)...)}}
}

// sixteen is the SA payload of aes128gcm16-prfsha256-x25519.
func sixteen(spi []byte) *wire.SA {
	tr := func(typ ipsec.TransformType, id, bits uint16) wire.Transform {
		return wire.Transform{Transform: ipsec.Transform{Type: typ, ID: id, KeyBits: bits}}
	}
	return &wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: wire.ProtocolID(ipsec.ProtocolIKE), SPI: spi, Transforms: []wire.Transform{
		tr(ipsec.TransformENCR, ipsec.EncrAESGCM16, 128), tr(ipsec.TransformPRF, ipsec.PRFHMACSHA2256, 0), tr(ipsec.TransformKE, ipsec.KEX25519, 0)}}}}
}

// CVE-2014-2338 and its like: an exchange in a state that has no place for it,
// such as the rekey of an IKE SA that is not authenticated, makes an established
// one.
func TestAttackStateConfusion(t *testing.T) {
	t.Run("before IKE_AUTH", func(t *testing.T) {
		n, web, db := iketest.Pair(t, 1, nil)
		n.Hook = func(p iketest.Packet) []iketest.Packet {
			if h, _ := wire.ParseHeader(p.Data); h.Exchange == wire.IKEAuth {
				return nil
			}
			return []iketest.Packet{p}
		}
		web.Connect("rule", nil)
		n.Run(100 * time.Millisecond)
		for name, b := range map[string][]byte{
			"rekey of the IKE SA": web.Machine().SealForTest(wire.CreateChildSA, 1, false, rekeyIKE(n)),
			"delete":              web.Machine().SealForTest(wire.Informational, 1, false, []wire.Payload{&wire.Delete{Protocol: wire.ProtocolID(ipsec.ProtocolIKE)}}),
			"liveness":            web.Machine().SealForTest(wire.Informational, 1, false, nil),
			"an answer":           web.Machine().SealForTest(wire.IKEAuth, 1, true, nil),
		} {
			before := db.Drops[ikev2.WhyState] + db.Drops[ikev2.WhyNoRequest]
			sent := len(n.Ladder)
			forge(n, web, db, b)
			if now := db.Drops[ikev2.WhyState] + db.Drops[ikev2.WhyNoRequest]; now != before+1 || len(n.Ladder) != sent || db.Installed != 0 || len(db.Up) != 0 ||
				db.Machine().Info().State != "connecting" {
				t.Errorf("%s: %d drops more, drops %v, state %s; want one more, and nothing else", name, now-before, db.Drops, db.Machine().Info().State)
			}
		}
		n.Hook = nil
		n.Run(10 * time.Second)
		mustBeUp(t, n, web, db)
	})
	t.Run("IKE_AUTH again", func(t *testing.T) {
		n, web, db := connected(t, 1, nil)
		forge(n, web, db, web.Machine().SealForTest(wire.IKEAuth, 2, false, []wire.Payload{&wire.ID{PayloadType: wire.TypeIDi, Identity: ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: "web"}}}))
		if db.Drops[ikev2.WhyState] != 1 || len(db.Failures) != 0 {
			t.Errorf("drops %v, failures %+v", db.Drops, db.Failures)
		}
		mustBeUp(t, n, web, db)
	})
	t.Run("reflected", func(t *testing.T) {
		n, web, db := connected(t, 1, nil)
		forge(n, web, db, db.Machine().SealForTest(wire.Informational, 0, false, []wire.Payload{&wire.Delete{Protocol: wire.ProtocolID(ipsec.ProtocolIKE)}}))
		mustBeUp(t, n, web, db)
		if len(db.Machines) != 1 {
			t.Error("its own message ended the IKE SA")
		}
	})
}

// CVE-2019-10155 (of IKEv1) and its like: a delete or an error that anyone can
// send is acted on.
func TestAttackUnprotectedMessages(t *testing.T) {
	n, web, db := connected(t, 1, nil)
	i := db.Machine().Info()
	h := wire.Header{SPIi: i.RemoteSPI, SPIr: i.LocalSPI, Exchange: wire.Informational, Flags: wire.FlagInitiator, MessageID: 2}
	for _, p := range []wire.Payload{
		&wire.Delete{Protocol: wire.ProtocolID(ipsec.ProtocolIKE)},
		&wire.Notify{Message: wire.AuthenticationFailed},
		&wire.Notify{Message: wire.InitialContact},
		&wire.Notify{Message: wire.InvalidSyntax},
	} {
		before := db.Drops[ikev2.WhyUnprotected]
		forge(n, web, db, wire.AppendMessage(nil, h, []wire.Payload{p}))
		if db.Drops[ikev2.WhyUnprotected] != before+1 {
			t.Errorf("%v: drops %v; want one more as %s", p, db.Drops, ikev2.WhyUnprotected)
		}
	}
	mustBeUp(t, n, web, db)
}

// chain is the payloads of a message as they are on the wire.
type chain struct {
	types  []wire.PayloadType
	bodies [][]byte // with their headers
}

func split(first wire.PayloadType, b []byte) (c chain) {
	for t := first; t != 0 && len(b) >= 4; {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if n < 4 || n > len(b) {
			break
		}
		c.types, c.bodies = append(c.types, t), append(c.bodies, slices.Clone(b[:n]))
		t, b = wire.PayloadType(b[0]), b[n:]
	}
	return c
}

func (c chain) join() (first wire.PayloadType, b []byte) {
	for i := range c.bodies {
		next := wire.PayloadType(0)
		if i+1 < len(c.types) {
			next = c.types[i+1]
		}
		c.bodies[i][0] = byte(next)
		b = append(b, c.bodies[i]...)
	}
	if len(c.types) > 0 {
		first = c.types[0]
	}
	return first, b
}

// CVE-2013-6467, CVE-2016-5391, CVE-2019-12312 and their like: a message without
// a payload that it must have, with one twice, or in another order, ends the
// daemon. Each payload of each message is left out, doubled and moved to the
// end, by somebody on the way (IKE_SA_INIT) and by the peer itself.
func TestAttackPayloadsLeftOutDoubledAndMoved(t *testing.T) {
	edits := map[string]func(c chain, i int) chain{
		"left out": func(c chain, i int) chain {
			return chain{slices.Delete(slices.Clone(c.types), i, i+1), slices.Delete(slices.Clone(c.bodies), i, i+1)}
		},
		"doubled": func(c chain, i int) chain {
			return chain{slices.Insert(slices.Clone(c.types), i, c.types[i]), slices.Insert(slices.Clone(c.bodies), i, slices.Clone(c.bodies[i]))}
		},
		"moved": func(c chain, i int) chain {
			return chain{append(slices.Delete(slices.Clone(c.types), i, i+1), c.types[i]), append(slices.Delete(slices.Clone(c.bodies), i, i+1), c.bodies[i])}
		},
	}
	const messages = 8 // the handshake, a rekey of each kind
	for name, edit := range edits {
		for which := range messages {
			for i := 0; ; i++ {
				edited, inits := false, false
				n, web, db := iketest.Pair(t, 1, nil)
				count := 0
				n.Hook = func(p iketest.Packet) []iketest.Packet {
					if count++; count != which+1 {
						return []iketest.Packet{p}
					}
					bad := p
					h, _ := wire.ParseHeader(p.Data)
					if inits = h.Exchange == wire.IKESAInit; inits {
						c := split(h.Next, p.Data[wire.HeaderLen:])
						if i >= len(c.types) {
							return []iketest.Packet{p}
						}
						edited = true
						first, b := edit(c, i).join()
						bad.Data = append(slices.Clone(p.Data[:wire.HeaderLen]), b...)
						bad.Data[16] = byte(first)
						binary.BigEndian.PutUint32(bad.Data[24:], uint32(len(bad.Data)))
						return []iketest.Packet{bad}
					}
					bad.Data = p.From.Machine().ResealForTest(p.Data, func(first wire.PayloadType, inner []byte) (wire.PayloadType, []byte) {
						c := split(first, inner)
						if i >= len(c.types) {
							return first, inner
						}
						edited = true
						return edit(c, i).join()
					})
					if bad.Data == nil {
						return []iketest.Packet{p}
					}
					return []iketest.Packet{bad}
				}
				web.Connect("rule", nil)
				n.Run(10 * time.Second)
				if m := web.Machine("established"); m != nil {
					if c := m.Info().Children; len(c) > 0 {
						web.Tell(m, ike.RekeyChild{Child: c[0].ID})
						n.Run(time.Second)
					}
					web.Tell(m, ike.RekeyIKE{})
				}
				n.Run(5 * time.Minute)
				if !edited {
					break // past the last payload
				}
				what := fmt.Sprintf("payload %d of message %d %s", i, which, name)
				mustAddUp(t, what, web, db)
				if inits && name != "moved" && len(web.Children()) == 0 && len(web.Failures) == 0 {
					t.Errorf("%s: nothing came of it, and nobody says why\n%s", what, n.LadderText(12))
				}
				mustBeginAgain(t, what, n, web, db)
			}
		}
	}
}

// CVE-2014-9221 and CVE-2015-3991: numbers that only the daemon itself uses, or
// nobody, come from the wire and are looked up.
func TestAttackNumbersFromTheWire(t *testing.T) {
	tr := func(typ ipsec.TransformType, id, bits uint16) wire.Transform {
		return wire.Transform{Transform: ipsec.Transform{Type: typ, ID: id, KeyBits: bits}}
	}
	for _, x := range []struct {
		name string
		edit func(p *wire.Proposal)
		ke   uint16
		why  string // of a failure; empty when the request is answered without one
	}{
		{"key exchange 1025", nil, 1025, ""},
		{"key exchange 0", nil, 0, ""},
		{"private key exchange 65535", func(p *wire.Proposal) { p.Transforms[2].ID = 65535 }, 65535, "NO_PROPOSAL_CHOSEN"},
		{"cipher 65535", func(p *wire.Proposal) { p.Transforms[0].ID = 65535 }, ipsec.KEX25519, "NO_PROPOSAL_CHOSEN"},
		{"a key of 7 bits", func(p *wire.Proposal) { p.Transforms[0].KeyBits = 7 }, ipsec.KEX25519, "NO_PROPOSAL_CHOSEN"},
		{"transform type 200", func(p *wire.Proposal) { p.Transforms = append(p.Transforms, tr(200, 1, 0)) }, ipsec.KEX25519, "NO_PROPOSAL_CHOSEN"},
		{"protocol 200", func(p *wire.Proposal) { p.Protocol = 200 }, ipsec.KEX25519, "NO_PROPOSAL_CHOSEN"},
		{"a cipher for ESP only", func(p *wire.Proposal) { p.Transforms[0] = tr(ipsec.TransformENCR, 21, 128) }, ipsec.KEX25519, "NO_PROPOSAL_CHOSEN"},
	} {
		n, web, db := iketest.Pair(t, 1, nil)
		sa := sixteen(nil)
		if x.edit != nil {
			x.edit(&sa.Proposals[0])
		}
		h := wire.Header{SPIi: 7, Exchange: wire.IKESAInit, Flags: wire.FlagInitiator}
		b := wire.AppendMessage(nil, h, []wire.Payload{sa, &wire.KE{Method: x.ke, Data: make([]byte, 32)}, &wire.Nonce{Data: make([]byte, 32)}})
		n.Inject(iketest.Packet{From: web, To: db, Src: addrPort(web), Dst: addrPort(db), Data: b})
		n.Run(time.Second)
		if len(db.Machines) != 0 || db.Installed != 0 || db.Failure().Why != x.why {
			t.Errorf("%s: %d machines left, failure %+v; want none, and %q", x.name, len(db.Machines), db.Failure(), x.why)
		}
	}
}

// CVE-2025-9242, CVE-2023-28771 and their like: identities and notifies that are
// too long, or that a log or a shell understands.
func TestAttackHostileText(t *testing.T) {
	for _, id := range []string{
		"$(reboot)`reboot`;reboot", "web\nlevel ERROR msg forged", "\x1b[2J\x1b]0;owned\x07", "%n%s%x", strings.Repeat("a", 20000), "web\x00db",
	} {
		n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { w.LocalID = id })
		web.Connect("rule", nil)
		n.Run(2 * time.Minute)
		mustBeEmpty(t, web, db)
		f := db.Failure()
		if f.Why == "" {
			t.Errorf("identity %.20q: no failure is told", id)
		}
		for _, s := range []string{f.RemoteID, f.Detail, f.Advice, f.Peer, f.Remote} {
			if i := strings.IndexFunc(s, func(r rune) bool { return unicode.IsControl(r) }); i >= 0 {
				t.Errorf("identity %.20q: control character in %.80q", id, s)
			}
		}
	}
}

// CVE-2023-38710, -38712, CVE-2023-23009, CVE-2024-3652 and their like: a peer
// that is who it says sends what makes no sense, and takes the daemon down with
// it. It may lose its own SAs, and nothing else.
func TestAttackByAPeer(t *testing.T) {
	esp, ike2 := wire.ProtocolID(ipsec.ProtocolESP), wire.ProtocolID(ipsec.ProtocolIKE)
	nonce := &wire.Nonce{Data: make([]byte, 32)}
	ts := func(typ wire.PayloadType, sel ...ipsec.TrafficSelector) *wire.TS {
		return &wire.TS{PayloadType: typ, Selectors: sel}
	}
	all := ipsec.PrefixSelector(web4)
	child := func(spi []byte) *wire.SA {
		return &wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: esp, SPI: spi, Transforms: []wire.Transform{
			{Transform: ipsec.Transform{Type: ipsec.TransformENCR, ID: ipsec.EncrAESGCM16, KeyBits: 128}}, {Transform: ipsec.Transform{Type: ipsec.TransformESN, ID: ipsec.ESNNo}}}}}}
	}
	spi := []byte{1, 2, 3, 4}
	good := func(more ...wire.Payload) []wire.Payload {
		return append(more, child(spi), nonce, ts(wire.TypeTSi, all), ts(wire.TypeTSr, ipsec.PrefixSelector(db4)))
	}
	many := make([]ipsec.SPI, 2000)
	for i := range many {
		many[i] = ipsec.SPI(i + 1000)
	}
	for name, request := range map[string]func(db *iketest.Host) (wire.ExchangeType, []wire.Payload){
		"rekey of protocol 0": func(*iketest.Host) (wire.ExchangeType, []wire.Payload) {
			return wire.CreateChildSA, good(&wire.Notify{Message: wire.RekeySA, SPI: spi})
		},
		"rekey of protocol IKE": func(*iketest.Host) (wire.ExchangeType, []wire.Payload) {
			return wire.CreateChildSA, good(&wire.Notify{Protocol: ike2, Message: wire.RekeySA, SPI: spi})
		},
		"rekey without an SPI": func(*iketest.Host) (wire.ExchangeType, []wire.Payload) {
			return wire.CreateChildSA, good(&wire.Notify{Protocol: esp, Message: wire.RekeySA})
		},
		"rekey of a long SPI": func(*iketest.Host) (wire.ExchangeType, []wire.Payload) {
			return wire.CreateChildSA, good(&wire.Notify{Protocol: esp, Message: wire.RekeySA, SPI: spi[:3]})
		},
		"rekey of no SA": func(*iketest.Host) (wire.ExchangeType, []wire.Payload) {
			return wire.CreateChildSA, good(&wire.Notify{Protocol: esp, Message: wire.RekeySA, SPI: spi})
		},
		"rekey twice": func(db *iketest.Host) (wire.ExchangeType, []wire.Payload) {
			out := binary.BigEndian.AppendUint32(nil, uint32(db.Children()[0].SPIOut))
			x := &wire.Notify{Protocol: esp, Message: wire.RekeySA, SPI: out}
			return wire.CreateChildSA, good(x, x)
		},
		"delete twice in one message": func(db *iketest.Host) (wire.ExchangeType, []wire.Payload) {
			out := db.Children()[0].SPIOut
			return wire.Informational, []wire.Payload{&wire.Delete{Protocol: esp, SPIs: []ipsec.SPI{out, out}}, &wire.Delete{Protocol: esp, SPIs: []ipsec.SPI{out}}}
		},
		"delete of the wrong half": func(db *iketest.Host) (wire.ExchangeType, []wire.Payload) {
			return wire.Informational, []wire.Payload{&wire.Delete{Protocol: esp, SPIs: []ipsec.SPI{db.Children()[0].SPIIn}}}
		},
		"delete of thousands": func(*iketest.Host) (wire.ExchangeType, []wire.Payload) {
			return wire.Informational, []wire.Payload{&wire.Delete{Protocol: esp, SPIs: many}}
		},
		"delete of all and of the IKE SA": func(db *iketest.Host) (wire.ExchangeType, []wire.Payload) {
			out := db.Children()[0].SPIOut
			return wire.Informational, []wire.Payload{&wire.Delete{Protocol: esp, SPIs: []ipsec.SPI{out}}, &wire.Delete{Protocol: ike2}, &wire.Delete{Protocol: ike2}}
		},
		"selectors of two families": func(*iketest.Host) (wire.ExchangeType, []wire.Payload) {
			return wire.CreateChildSA, []wire.Payload{child(spi), nonce, ts(wire.TypeTSi, all), ts(wire.TypeTSr, ipsec.PrefixSelector(six))}
		},
		"selectors out of order": func(*iketest.Host) (wire.ExchangeType, []wire.Payload) {
			x := all
			x.First, x.Last = x.Last, x.First
			return wire.CreateChildSA, []wire.Payload{child(spi), nonce, ts(wire.TypeTSi, x), ts(wire.TypeTSr, x)}
		},
		"an SPI of zero": func(*iketest.Host) (wire.ExchangeType, []wire.Payload) {
			return wire.CreateChildSA, []wire.Payload{child([]byte{0, 0, 0, 0}), nonce, ts(wire.TypeTSi, all), ts(wire.TypeTSr, ipsec.PrefixSelector(db4))}
		},
		"an SPI of 8 octets": func(*iketest.Host) (wire.ExchangeType, []wire.Payload) {
			return wire.CreateChildSA, []wire.Payload{child(append(spi, spi...)), nonce, ts(wire.TypeTSi, all), ts(wire.TypeTSr, ipsec.PrefixSelector(db4))}
		},
		"a key exchange not offered": func(*iketest.Host) (wire.ExchangeType, []wire.Payload) {
			return wire.CreateChildSA, append(good(), &wire.KE{Method: 31, Data: []byte("short")})
		},
		"IKE rekey with SPI zero": func(*iketest.Host) (wire.ExchangeType, []wire.Payload) {
			return wire.CreateChildSA, []wire.Payload{sixteen(make([]byte, 8)), nonce, &wire.KE{Method: ipsec.KEX25519, Data: spi}}
		},
		"IKE rekey, low order": func(*iketest.Host) (wire.ExchangeType, []wire.Payload) {
			return wire.CreateChildSA, []wire.Payload{sixteen([]byte{1, 2, 3, 4, 5, 6, 7, 8}), nonce, &wire.KE{Method: ipsec.KEX25519, Data: zero32[:]}}
		},
		"two proposals of one number": func(*iketest.Host) (wire.ExchangeType, []wire.Payload) {
			sa := child(spi)
			sa.Proposals = append(sa.Proposals, sa.Proposals[0], sa.Proposals[0])
			return wire.CreateChildSA, []wire.Payload{sa, nonce, ts(wire.TypeTSi, all), ts(wire.TypeTSr, ipsec.PrefixSelector(db4))}
		},
	} {
		n, web, db := connected(t, 1, nil)
		x, ps := request(db)
		forge(n, web, db, web.Machine().SealForTest(x, 2, false, ps))
		n.Run(3 * time.Minute)
		mustAddUp(t, name, web, db)
		mustBeginAgain(t, name, n, web, db)
	}
}

// CVE-2024-2357: a secret that is not found leaves a state behind that a later
// message trips over.
func TestAttackSecretNotFound(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	secrets := db.Secrets
	db.Secrets = nil
	web.Connect("rule", nil)
	n.Run(100 * time.Millisecond)
	if db.Failure().Why != "NO_CREDENTIAL" || web.Failure().Why != "AUTHENTICATION_FAILED" {
		t.Fatalf("db tells %+v, web %+v", db.Failure(), web.Failure())
	}
	n.Run(2 * time.Minute)
	mustBeEmpty(t, web, db)
	db.Secrets = secrets
	web.Connect("rule", nil)
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
}
