package ikev2_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

const (
	hybridIKE = "aes128gcm16-prfsha256-x25519-ke1_mlkem768"
	hybridESP = "aes128gcm16-x25519-ke1_mlkem768"
	threeIKE  = "aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke4_ecp256-ke7_mlkem1024"
)

func hybrid(w, d *iketest.Side) {
	w.IKE, w.ESP = []string{hybridIKE, "aes128gcm16-prfsha256-x25519"}, []string{hybridESP}
	d.IKE, d.ESP = w.IKE, w.ESP
}

// RFC 9370 §2.2.2 and Appendix A.1: an IKE_INTERMEDIATE for each additional key
// exchange, in fragments where it is large, then IKE_AUTH.
func TestAdditionalKeyExchangesComeBeforeIKEAuth(t *testing.T) {
	n, web, db := connected(t, 1, func(w, d *iketest.Side) { w.IKE = []string{threeIKE}; d.IKE = w.IKE })
	// db cannot read its own responses any more: the keys have gone on.
	want := `web -> db IKE_INTERMEDIATE request 1 { SKF(1/2, 1212) }
web -> db IKE_INTERMEDIATE request 1 { SKF(2/2, 30) }
db -> web IKE_INTERMEDIATE response 1 { SK(1121) }
web -> db IKE_INTERMEDIATE request 2 { KE(ecp256) }
db -> web IKE_INTERMEDIATE response 2 { SK(97) }
web -> db IKE_INTERMEDIATE request 3 { SKF(1/2, 1212) }
web -> db IKE_INTERMEDIATE request 3 { SKF(2/2, 414) }
db -> web IKE_INTERMEDIATE response 3 { SKF(1/2, 1212) }
db -> web IKE_INTERMEDIATE response 3 { SKF(2/2, 414) }
web -> db IKE_AUTH request 4 { IDi(web) `
	if got := n.LadderText(0); !strings.Contains(got, want) || strings.Count(got, "N(INTERMEDIATE_EXCHANGE_SUPPORTED)") != 2 {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for _, h := range []*iketest.Host{web, db} {
		if i := h.Machine().Info(); i.Suite.String() != threeIKE || len(i.Children) != 1 || len(h.Failures) != 0 {
			t.Errorf("%s: %+v %+v", h.Name, i, h.Failures)
		}
	}
}

// RFC 9370 §2.2.1: a peer that does not know additional key exchanges takes the
// proposal without them, in either role.
func TestHybridFallsBackToThePlainProposal(t *testing.T) {
	for _, plain := range []string{"web", "db"} {
		t.Run(plain, func(t *testing.T) {
			n, web, db := connected(t, 1, func(w, d *iketest.Side) {
				hybrid(w, d)
				for name, s := range map[string]*iketest.Side{"web": w, "db": d} {
					if name == plain {
						s.IKE, s.ESP = []string{"aes128gcm16-prfsha256-x25519"}, []string{"aes128gcm16"}
					} else {
						s.ESP = []string{"aes128gcm16"}
					}
				}
			})
			if s := web.Machine().Info().Suite; s.String() != "aes128gcm16-prfsha256-x25519" || len(web.Failures)+len(db.Failures) != 0 {
				t.Errorf("%s\n%s", s, n.LadderText(0))
			}
		})
	}
}

// The policy of one end wants post-quantum key exchange and nothing else: the
// other one is refused, and the report says why.
func TestPostQuantumRequired(t *testing.T) {
	for _, strict := range []string{"web", "db"} {
		t.Run(strict, func(t *testing.T) {
			n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) {
				s := w
				if strict == "db" {
					s = d
				}
				s.IKE = []string{hybridIKE}
			})
			web.Connect("rule", nil)
			n.Run(10 * time.Second)
			mustBeEmpty(t, web, db)
			h := web
			if strict == "db" {
				h = db
			}
			if f := h.Failure(); f.Why != "NO_PROPOSAL_CHOSEN" || !strings.Contains(f.Detail+f.Advice, "post-quantum") {
				t.Errorf("%+v", f)
			}
		})
	}
}

// IntAuth recomputed from what was sent, by the formula of RFC 9242 §3.3.2.
func TestIntAuthByHand(t *testing.T) {
	n, web, _ := iketest.Pair(t, 1, func(w, d *iketest.Side) { w.IKE = []string{threeIKE}; d.IKE = w.IKE })
	prf := func(key []byte, parts ...[]byte) []byte {
		h := hmac.New(sha256.New, key)
		for _, p := range parts {
			h.Write(p)
		}
		return h.Sum(nil)
	}
	var intI, intR, parts []byte
	var first wire.PayloadType
	rounds, compared := 0, false
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		h, _ := wire.ParseHeader(p.Data)
		m := web.Machine()
		switch h.Exchange {
		case wire.IKEIntermediate:
			typ, part := m.OpenForTest(p.Data, p.From == web)
			if typ != 0 {
				first = typ
			}
			parts = append(parts, part...)
			if h.Next == wire.TypeSKF && binary.BigEndian.Uint16(p.Data[32:]) < binary.BigEndian.Uint16(p.Data[34:]) {
				break // not the last fragment
			}
			// IntAuth_A: the IKE header with SK as its next payload and the adjusted
			// length, and the header of SK with the adjusted length.
			a := bytes.Clone(p.Data[:28])
			a[16] = 46
			binary.BigEndian.PutUint32(a[24:], uint32(28+4+len(parts)))
			a = append(a, byte(first), 0)
			a = binary.BigEndian.AppendUint16(a, uint16(4+len(parts)))
			ski, skr := m.AuthKeysForTest()
			if p.From == web {
				intI = prf(ski, intI, a, parts)
			} else {
				intR = prf(skr, intR, a, parts)
				rounds++
			}
			parts = nil
		case wire.IKEAuth:
			if want := append(append(bytes.Clone(intI), intR...), 0, 0, 0, 4); !compared && !bytes.Equal(m.IntAuthForTest(), want) {
				t.Errorf("IntAuth is %x, want %x", m.IntAuthForTest(), want)
			}
			compared = true
		}
		return []iketest.Packet{p}
	}
	web.Connect("rule", nil)
	n.Run(time.Second)
	if rounds != 3 || !compared {
		t.Errorf("%d exchanges, compared: %v\n%s", rounds, compared, n.LadderText(0))
	}
}

// Messages of IKE_INTERMEDIATE that are lost or repeated, also across a change of
// keys, where the request that comes again is protected with keys of before.
func TestIntermediateLostAndRepeated(t *testing.T) {
	for every := 2; every <= 9; every++ {
		for first := range every {
			t.Run(fmt.Sprintf("%d of %d", first, every), func(t *testing.T) {
				n, web, db := iketest.Pair(t, uint64(every), func(w, d *iketest.Side) { w.IKE = []string{threeIKE}; d.IKE = w.IKE })
				count := 0
				n.Hook = func(p iketest.Packet) []iketest.Packet {
					if count++; count%every == first && count < 12 {
						return nil
					}
					late := p
					late.At = p.At.Add(30 * time.Millisecond)
					return []iketest.Packet{p, p, late}
				}
				web.Connect("rule", nil)
				n.Run(60 * time.Second)
				mustBeUp(t, n, web, db)
				if len(web.Failures)+len(db.Failures) != 0 || len(web.Up) != 1 || len(db.Up) != 1 {
					t.Errorf("%+v %+v", web.Failures, db.Failures)
				}
			})
		}
	}
}

// RFC 9242 §3.2, §5: there are as many exchanges as agreed, and IKE_AUTH does not
// come before the last one.
func TestIntermediateCannotBeSkipped(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, hybrid)
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if h, _ := wire.ParseHeader(p.Data); h.Exchange == wire.IKEIntermediate {
			return nil
		}
		return []iketest.Packet{p}
	}
	web.Connect("rule", nil)
	n.Run(100 * time.Millisecond)
	send(n, web, db, web.Machine().SealForTest(wire.IKEAuth, 1, false, []wire.Payload{&wire.Nonce{Data: make([]byte, 32)}}))
	if db.Drops["not-in-this-state"] != 1 {
		t.Errorf("%v", db.Drops)
	}

	n, web, db = connected(t, 1, hybrid)
	send(n, web, db, web.Machine().SendForTest(wire.IKEIntermediate, &wire.KE{Method: ipsec.KEMLKEM768, Data: make([]byte, 8)}))
	if db.Drops["not-in-this-state"] != 1 || db.Machine().Info().State != "established" {
		t.Errorf("%v", db.Drops)
	}
}

// RFC 9370 §2.2.4: rekeys do the additional key exchanges too, by either end.
func TestFollowUpKeyExchanges(t *testing.T) {
	for _, name := range []string{"web", "db"} {
		t.Run(name, func(t *testing.T) {
			n, web, db := connected(t, 1, hybrid)
			h := map[string]*iketest.Host{"web": web, "db": db}[name]
			before := len(n.Ladder)
			h.Do(ike.RekeyChild{Child: h.Children()[0].ID})
			n.Run(10 * time.Second)
			mustBeUp(t, n, web, db)
			if c := web.Children(); len(c) != 1 || c[0].Suite.ADDKE[0].ID != ipsec.KEMLKEM768 || c[0].Rekeyed != 1 {
				t.Errorf("%+v", c)
			}
			h.Do(ike.RekeyIKE{})
			n.Run(10 * time.Second)
			mustBeUp(t, n, web, db)
			if s := web.Machine().Info().Suite.String(); s != hybridIKE {
				t.Errorf("the new IKE SA has %s", s)
			}
			text := n.LadderText(len(n.Ladder) - before)
			if strings.Count(text, "N(ADDITIONAL_KEY_EXCHANGE)") < 2 || strings.Count(text, "IKE_FOLLOWUP_KE response") < 2 || len(web.Failures)+len(db.Failures) != 0 {
				t.Errorf("%+v %+v\n%s", web.Failures, db.Failures, text)
			}
		})
	}
}

// Several additional key exchanges, each linked to the one before it.
func TestFollowUpsAreLinked(t *testing.T) {
	n, web, db := connected(t, 1, func(w, d *iketest.Side) {
		w.IKE, w.ESP = []string{threeIKE}, []string{"aes128gcm16-x25519-ke2_mlkem1024-ke3_ecp256"}
		d.IKE, d.ESP = w.IKE, w.ESP
	})
	web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
	n.Run(10 * time.Second)
	db.Do(ike.RekeyIKE{})
	n.Run(10 * time.Second)
	mustBeUp(t, n, web, db)
	if web.Machine().Info().Suite.String() != threeIKE || web.Children()[0].Rekeyed != 1 || len(web.Failures)+len(db.Failures) != 0 {
		t.Errorf("%+v %+v\n%s", web.Failures, db.Failures, n.LadderText(0))
	}
}

// RFC 9370 §2.2.4: a link that is not known gets STATE_NOT_FOUND. What is left
// unfinished is forgotten, and refuses the next one until then only.
func TestFollowUpUnknownAndUnfinished(t *testing.T) {
	n, web, db := connected(t, 1, hybrid)
	send(n, web, db, web.Machine().SendForTest(wire.IKEFollowUpKE, &wire.KE{Method: ipsec.KEMLKEM768, Data: make([]byte, 8)},
		&wire.Notify{Message: wire.AdditionalKeyExchange, Data: []byte("nothing")}))
	if !strings.Contains(n.LadderText(2), "N(STATE_NOT_FOUND)") {
		t.Errorf("%s", n.LadderText(2))
	}

	n, web, db = connected(t, 1, hybrid)
	lose := true
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if h, _ := wire.ParseHeader(p.Data); lose && h.Exchange == wire.IKEFollowUpKE {
			return nil
		}
		return []iketest.Packet{p}
	}
	web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
	n.Run(3 * time.Second)
	db.Tell(db.Machine(), ike.PolicyChanged{Policy: db.Policy}) // forgets what is unfinished
	lose = false
	n.Run(40 * time.Second)
	mustBeUp(t, n, web, db)
	if c := web.Children(); len(c) != 1 || c[0].Rekeyed != 1 || len(web.Failures)+len(db.Failures) != 0 {
		t.Errorf("%+v %+v %+v\n%s", c, web.Failures, db.Failures, n.LadderText(0))
	}
}

// Both ends rekey at the same time, and their follow-ups cross, at any distance in
// time (RFC 7296 §2.8.1, §2.8.2).
func TestFollowUpsThatCross(t *testing.T) {
	for seed := range uint64(60) {
		for _, what := range []string{"child", "ike"} {
			t.Run(fmt.Sprint(what, seed), func(t *testing.T) {
				n, web, db := connected(t, seed, hybrid)
				n.Hook = func(p iketest.Packet) []iketest.Packet {
					p.At = p.At.Add(time.Duration(n.Rand.IntN(40)) * time.Millisecond)
					return []iketest.Packet{p}
				}
				for _, h := range []*iketest.Host{web, db} {
					if what == "ike" {
						h.Do(ike.RekeyIKE{})
					} else {
						h.Do(ike.RekeyChild{Child: h.Children()[0].ID})
					}
					n.Run(time.Duration(n.Rand.IntN(60)) * time.Millisecond)
				}
				n.Run(3 * time.Minute)
				mustBeUp(t, n, web, db)
				if len(web.Children()) != 1 || len(web.Machines) != 1 || len(db.Machines) != 1 {
					t.Errorf("%d CHILD SAs, %d and %d IKE SAs\n%s", len(web.Children()), len(web.Machines), len(db.Machines), n.LadderText(0))
				}
			})
		}
	}
}

func TestEachParameterSetOfMLKEM(t *testing.T) {
	for _, set := range []string{"mlkem512", "mlkem768", "mlkem1024"} {
		want := "aes128gcm16-prfsha256-x25519-ke1_" + set
		n, web, db := connected(t, 1, func(w, d *iketest.Side) { w.IKE = []string{want}; d.IKE = w.IKE })
		web.Do(ike.RekeyIKE{})
		n.Run(10 * time.Second)
		mustBeUp(t, n, web, db)
		if got := web.Machine().Info().Suite.String(); got != want || len(web.Failures)+len(db.Failures) != 0 {
			t.Errorf("got %s, want %s; failures %+v", got, want, web.Failures)
		}
	}
}

// A responder of IKE_FOLLOWUP_KE is free again afterwards: it rekeys the IKE SA itself.
func TestTheResponderOfAFollowUpRekeysTheIKESA(t *testing.T) {
	n, web, db := connected(t, 1, func(w, d *iketest.Side) { w.ESP, d.ESP = []string{hybridESP}, []string{hybridESP} })
	web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
	n.Run(5 * time.Second)
	spi := db.Machine().Info().LocalSPI
	db.Do(ike.RekeyIKE{})
	n.Run(5 * time.Second)
	mustBeUp(t, n, web, db)
	if db.Machine().Info().LocalSPI == spi {
		t.Errorf("the IKE SA was not rekeyed\n%s", n.LadderText(0))
	}
}
