package ikev2_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
)

// alwaysDeliverable checks after every single event that a packet sent now, in
// either direction, would be received: no packet is lost at a rekey.
func alwaysDeliverable(t *testing.T, n *iketest.Net, web, db *iketest.Host) {
	n.Step = func() {
		for _, p := range [][2]*iketest.Host{{web, db}, {db, web}} {
			if err := iketest.Deliverable(p[0], p[1]); err != nil && !t.Failed() {
				t.Errorf("after\n%s%v", n.LadderText(0), err)
			}
		}
	}
}

// once checks that exactly one CHILD SA is left, after a number of rekeys.
func once(t *testing.T, n *iketest.Net, web, db *iketest.Host, rekeyed uint32) {
	t.Helper()
	mustBeUp(t, n, web, db)
	for _, h := range []*iketest.Host{web, db} {
		c := h.Children()
		if len(c) != 1 || c[0].Rekeyed != rekeyed || len(h.SAs) != 2 || len(h.Machines) != 1 || len(h.Failures) != 0 {
			t.Errorf("%s: %d IKE SAs, %d SAs, failures %+v, children %+v\n%s", h.Name, len(h.Machines), len(h.SAs), h.Failures, c, n.LadderText(0))
		}
	}
}

// RFC 7296 §2.8: the new CHILD SA first, then the delete of the old one; the
// responder changes over when the delete arrives.
func TestRekeyChild(t *testing.T) {
	for _, who := range []string{"web", "db"} {
		for _, pfs := range []uint16{ipsec.KENone, ipsec.KEX25519, ipsec.KEMODP2048} {
			t.Run(fmt.Sprintf("by %s, pfs %d", who, pfs), func(t *testing.T) {
				n, web, db := connected(t, 1, func(w, d *iketest.Side) { w.PFS, d.PFS = pfs, pfs })
				alwaysDeliverable(t, n, web, db)
				initiator, responder := web, db
				if who == "db" {
					initiator, responder = db, web
				}
				initiator.Log, responder.Log = nil, nil
				initiator.Do(ike.RekeyChild{Child: initiator.Children()[0].ID})
				n.Run(20 * time.Second)
				once(t, n, web, db, 1)
				want := "install in, install out, remove out, remove in"
				for _, h := range []*iketest.Host{initiator, responder} {
					var got []string
					for _, l := range h.Log {
						got = append(got, l[:strings.LastIndexByte(l, ' ')])
					}
					if strings.Join(got, ", ") != want {
						t.Errorf("%s: %v, want %s", h.Name, h.Log, want)
					}
				}
			})
		}
	}
}

// A peer that wants PFS where our policy does not ask for it gets it, with the
// method of the IKE SA: else the CHILD SA would work until its first rekey. Where we
// begin we learn of it from a refusal, and only once (RFC 7296 §1.3.3, §3.3.6).
func TestRekeyWithMorePFSThanAskedFor(t *testing.T) {
	for _, who := range []string{"web", "db"} {
		for _, ke := range []string{"x25519", "modp2048"} {
			t.Run("by "+who+", "+ke, func(t *testing.T) {
				n, web, db := connected(t, 1, func(w, d *iketest.Side) {
					w.IKE = []string{"aes128gcm16-prfsha256-" + ke}
					d.IKE, w.PFS = w.IKE, parseKE(t, ke)
				})
				alwaysDeliverable(t, n, web, db)
				h, refusals := web, 0
				if who == "db" {
					h, refusals = db, 1
				}
				for rekeyed := range uint32(3) {
					h.Do(rekeyChild(h))
					n.Run(20 * time.Second)
					if len(web.Failures) != refusals {
						t.Errorf("rekey %d: web has failures %+v, want %d of them in all", rekeyed+1, web.Failures, refusals)
					}
					refused := web.Failures
					web.Failures = nil
					once(t, n, web, db, rekeyed+1)
					web.Failures = refused
					if got := db.Children()[0].Suite.KE.ID; got != parseKE(t, ke) {
						t.Errorf("rekey %d: %+v", rekeyed+1, db.Children())
					}
				}
			})
		}
	}
}

// When the peer's policy does not ask for it any more either, it ends.
func TestPFSThatNobodyAsksForAnyMore(t *testing.T) {
	n, web, db := connected(t, 1, func(w, _ *iketest.Side) { w.PFS = ipsec.KEX25519 })
	web.Do(rekeyChild(web))
	n.Run(20 * time.Second)
	once(t, n, web, db, 1)
	p := *web.Policy
	p.Rules = slices.Clone(p.Rules)
	without := *p.Rules[0].Template
	without.PFS, p.Rules[0].Template = ipsec.KENone, &without
	web.Policy = &p
	web.Do(ike.PolicyChanged{Policy: web.Policy})
	alwaysDeliverable(t, n, web, db)
	db.Do(rekeyChild(db)) // with a KE payload, which is not answered by one
	n.Run(20 * time.Second)
	once(t, n, web, db, 2)
	if got := db.Children()[0].Suite.KE.ID; got != ipsec.KENone {
		t.Errorf("%+v", db.Children())
	}
}

// The same in an IKE SA with an additional key exchange: the peer takes it or leaves
// it (RFC 9370 §2.2.1).
func TestRekeyWithMorePFSThanAskedForInAHybridIKESA(t *testing.T) {
	for _, pfs := range []string{"x25519", "x25519-ke1_mlkem768"} {
		t.Run(pfs, func(t *testing.T) {
			n, web, db := connected(t, 1, func(w, d *iketest.Side) {
				w.IKE = []string{"aes128gcm16-prfsha256-x25519-ke1_mlkem768"}
				d.IKE, w.ESP = w.IKE, []string{"aes128gcm16-" + pfs}
			})
			alwaysDeliverable(t, n, web, db)
			db.Do(rekeyChild(db))
			n.Run(20 * time.Second)
			web.Failures = nil // it has refused the first request
			once(t, n, web, db, 1)
			if got := db.Children()[0].Suite.String(); got != "aes128gcm16-"+pfs+"-esn" {
				t.Errorf("the CHILD SA has %s", got)
			}
		})
	}
}

// A peer whose method is neither: the CHILD SA stays, and its operator learns that the
// key exchange may be why.
func TestRekeyWithAnotherPFS(t *testing.T) {
	n, web, db := connected(t, 1, func(w, _ *iketest.Side) { w.PFS = parseKE(t, "ecp256") })
	db.Do(rekeyChild(db))
	n.Run(20 * time.Second)
	mustBeUp(t, n, web, db)
	if f := db.Failure(); f.Why != "NO_PROPOSAL_CHOSEN" || !strings.Contains(f.Advice, "pfs") || !strings.Contains(strings.Join(f.Ours, " "), "x25519") {
		t.Errorf("%+v", f)
	}
	if n := strings.Count(n.LadderText(0), "CREATE_CHILD_SA request"); n != 2 {
		t.Errorf("%d requests, want one without a key exchange and one with", n)
	}
}

func rekeyChild(h *iketest.Host) ike.RekeyChild {
	return ike.RekeyChild{Child: h.Children()[0].ID}
}

func parseKE(t *testing.T, name string) uint16 {
	t.Helper()
	p, err := ipsec.ParseProposal(ipsec.ProtocolESP, "aes128gcm16-"+name)
	if err != nil {
		t.Fatal(err)
	}
	return p.OfType(ipsec.TransformKE)[0].ID
}

// RFC 7296 §2.18: the new IKE SA inherits the CHILD SAs.
func TestRekeyIKE(t *testing.T) {
	for _, who := range []string{"web", "db"} {
		for _, ke := range []string{"x25519", "modp2048"} {
			t.Run("by "+who+", "+ke, func(t *testing.T) {
				n, web, db := connected(t, 1, func(w, d *iketest.Side) {
					w.IKE = []string{"aes128gcm16-prfsha256-" + ke}
					d.IKE = w.IKE
				})
				alwaysDeliverable(t, n, web, db)
				h := web
				if who == "db" {
					h = db
				}
				spi := h.Machine().Info().LocalSPI
				h.Do(ike.RekeyIKE{})
				n.Run(20 * time.Second)
				once(t, n, web, db, 0)
				if i := h.Machine().Info(); i.LocalSPI == spi || i.Initiator != true {
					t.Errorf("%+v", i)
				}
				if len(web.Log) != 2 || len(db.Log) != 2 {
					t.Errorf("the workers noticed: %v %v", web.Log, db.Log)
				}
				// The CHILD SA can be rekeyed on the new IKE SA, by either end.
				web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
				n.Run(20 * time.Second)
				db.Do(ike.RekeyChild{Child: db.Children()[0].ID})
				n.Run(20 * time.Second)
				once(t, n, web, db, 2)
			})
		}
	}
}

// RFC 7296 §2.8.1 and §2.8.2: both ends rekey at the same time; "the SA created
// with the lowest of the four nonces SHOULD be closed by the endpoint that
// created it". Many seeds, so that each end wins, and loss on top.
func TestSimultaneousRekeys(t *testing.T) {
	for _, what := range []string{"child", "ike", "child and ike", "ike and child"} {
		t.Run(what, func(t *testing.T) {
			both := 0
			for seed := range uint64(60) {
				n, web, db := connected(t, seed, nil)
				if seed%3 != 0 {
					lost := int(seed) % 7
					count := 0
					n.Hook = func(p iketest.Packet) []iketest.Packet {
						if count++; count == lost {
							return nil
						}
						return []iketest.Packet{p}
					}
				}
				if !strings.Contains(what, "and") {
					alwaysDeliverable(t, n, web, db)
				}
				start := len(n.Ladder)
				do := func(h *iketest.Host, w string) {
					if w == "child" {
						h.Do(ike.RekeyChild{Child: h.Children()[0].ID})
					} else {
						h.Do(ike.RekeyIKE{})
					}
				}
				first, second, _ := strings.Cut(what, " and ")
				if second == "" {
					second = first
				}
				do(web, first)
				do(db, second)
				n.Run(3 * time.Minute)
				mustBeUp(t, n, web, db)
				for _, h := range []*iketest.Host{web, db} {
					if len(h.Children()) != 1 || len(h.SAs) != 2 || len(h.Machines) != 1 || len(h.Failures) != 0 {
						t.Fatalf("seed %d: %s: %d IKE SAs, %d SAs, children %+v, failures %+v\n%s", seed, h.Name, len(h.Machines), len(h.SAs), h.Children(), h.Failures, n.LadderText(0))
					}
				}
				if strings.Count(strings.Join(n.Ladder[start:], "\n"), "CREATE_CHILD_SA response") > 1 {
					both++
				}
			}
			if both < 20 {
				t.Errorf("the rekeys crossed in %d of 60 runs only", both)
			}
		})
	}
}

// RFC 7296 §1.4.1: deletes that cross are both answered, without a Delete payload.
func TestDeletesCross(t *testing.T) {
	t.Run("child", func(t *testing.T) {
		n, web, db := connected(t, 1, nil)
		web.Do(ike.DeleteChild{Child: web.Children()[0].ID})
		db.Do(ike.DeleteChild{Child: db.Children()[0].ID})
		n.Run(time.Second)
		if len(web.SAs)+len(db.SAs)+len(web.Children())+len(db.Children()) != 0 || len(web.Machines) != 1 || len(web.Down) != 1 || len(db.Down) != 1 {
			t.Errorf("%v %v", web.Log, db.Log)
		}
		if tail := n.LadderText(2); strings.Contains(tail, "D(") {
			t.Errorf("a crossed delete was answered with a Delete payload:\n%s", tail)
		}
	})
	t.Run("ike", func(t *testing.T) {
		n, web, db := connected(t, 1, nil)
		web.Do(ike.Terminate{Why: "test"})
		db.Do(ike.Terminate{Why: "test"})
		n.Run(20 * time.Second)
		mustBeEmpty(t, web, db)
	})
	t.Run("a delete crosses a rekey", func(t *testing.T) {
		for seed := range uint64(20) {
			n, web, db := connected(t, seed, nil)
			web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
			if seed%2 == 1 {
				n.Run(time.Duration(seed) * time.Millisecond)
			}
			for _, c := range db.Children() {
				db.Do(ike.DeleteChild{Child: c.ID})
			}
			n.Run(time.Minute)
			if err := iketest.Agree(web, db); err != nil {
				t.Fatalf("seed %d: %v\n%s", seed, err, n.LadderText(0))
			}
		}
	})
}

// RFC 7296 §1.4.1: Terminate closes the IKE SA and all in it, on both ends.
func TestTerminate(t *testing.T) {
	n, web, db := connected(t, 1, nil)
	web.Do(ike.Terminate{Why: "by the operator"})
	n.Run(time.Second)
	mustBeEmpty(t, web, db)
	if web.Done[0] != "by the operator" || db.Done[0] != "deleted by the peer" || len(db.Down) != 1 {
		t.Errorf("%v %v", web.Done, db.Done)
	}
	// A lost answer does not keep anything alive.
	n, web, db = connected(t, 1, nil)
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if p.From == db {
			return nil
		}
		return []iketest.Packet{p}
	}
	web.Do(ike.Terminate{Why: "by the operator"})
	n.Run(20 * time.Second)
	mustBeEmpty(t, web, db)
}

// RFC 7296 §2.4: a silent peer is checked, and given up after retransmissions.
func TestLiveness(t *testing.T) {
	n, web, db := connected(t, 1, func(w, d *iketest.Side) { w.DPD = 30 * time.Second })
	start := len(n.Ladder)
	n.Run(29 * time.Second)
	if len(n.Ladder) != start {
		t.Fatalf("checked too early:\n%s", n.LadderText(0))
	}
	web.Tick() // traffic arrives: proof of liveness
	n.Run(29 * time.Second)
	if len(n.Ladder) != start {
		t.Fatalf("checked in spite of traffic:\n%s", n.LadderText(0))
	}
	n.Run(5 * time.Second)
	if got := n.LadderText(2); got != "web -> db INFORMATIONAL request 2 {  }\ndb -> web INFORMATIONAL response 2 {  }\n" {
		t.Errorf("got %s", got)
	}
	db.Machines = nil // the peer is gone
	n.Run(3 * time.Minute)
	if len(web.Machines)+len(web.SAs) != 0 || web.Failure().Why != "TIMEOUT" {
		t.Errorf("%+v", web.Failure())
	}
}

// RFC 7296 §2.8: SAs are rekeyed before their lifetime ends, by time or by what
// the worker reports, and packets are never lost.
func TestLifetimes(t *testing.T) {
	t.Run("soft expiry reported by the worker", func(t *testing.T) {
		n, web, db := connected(t, 1, nil)
		alwaysDeliverable(t, n, web, db)
		web.Do(ike.ChildExpired{Child: web.Children()[0].ID, Cause: "bytes"})
		web.Do(ike.ChildExpired{Child: web.Children()[0].ID, Cause: "packets"})
		web.Do(ike.ChildExpired{Child: web.Children()[0].ID, Cause: "use"})
		n.Run(20 * time.Second)
		once(t, n, web, db, 1)
	})
	t.Run("hard expiry reported by the worker", func(t *testing.T) {
		n, web, db := connected(t, 1, nil)
		web.Do(ike.ChildExpired{Child: web.Children()[0].ID, Hard: true, Cause: "bytes"})
		n.Run(20 * time.Second)
		if len(web.SAs)+len(db.SAs) != 0 || len(web.Down) != 1 {
			t.Errorf("%v %v", web.SAs, db.SAs)
		}
	})
	t.Run("a day", func(t *testing.T) {
		life := ipsec.Lifetime{TimeSoft: 50 * time.Minute, TimeHard: time.Hour, UseHard: time.Hour}
		n, web, db := connected(t, 1, func(w, d *iketest.Side) {
			w.Lifetime, d.Lifetime, w.Child, d.Child = 4*time.Hour, 4*time.Hour, life, life
		})
		alwaysDeliverable(t, n, web, db)
		n.Run(24 * time.Hour)
		mustBeUp(t, n, web, db)
		if c := web.Children(); len(c) != 1 || c[0].Rekeyed < 27 || len(web.Failures)+len(db.Failures) != 0 {
			t.Errorf("%+v, failures %+v", c, web.Failures)
		}
		if soft := web.SAs[0].Lifetime.TimeSoft; soft > life.TimeSoft || soft < 45*time.Minute {
			t.Errorf("soft lifetime %s", soft)
		}
		if soft := web.SAs[0].Lifetime.UseSoft; soft > 54*time.Minute || soft < 48*time.Minute {
			t.Errorf("soft lifetime in use %s, want up to a fifth less than the hard one", soft)
		}
	})
}

// A policy change closes the CHILD SAs that it does not allow any more, and the
// IKE SA when the peer is gone.
func TestPolicyChange(t *testing.T) {
	change := func(f func(p *ipsec.NodePolicy)) (*iketest.Net, *iketest.Host, *iketest.Host) {
		n, web, db := connected(t, 1, nil)
		p := *web.Policy
		p.Rules, p.Peers = slices.Clone(p.Rules), slices.Clone(p.Peers)
		f(&p)
		web.Do(ike.PolicyChanged{Policy: &p})
		n.Run(20 * time.Second)
		return n, web, db
	}
	t.Run("nothing that matters", func(t *testing.T) {
		n, web, db := change(func(p *ipsec.NodePolicy) { p.Rules[0].Weight = 7 })
		once(t, n, web, db, 0)
	})
	t.Run("the rule is gone", func(t *testing.T) {
		_, web, db := change(func(p *ipsec.NodePolicy) { p.Rules = nil })
		if len(web.SAs)+len(db.SAs) != 0 || len(web.Machines) != 1 || len(db.Down) != 1 {
			t.Errorf("%v %v", web.SAs, db.SAs)
		}
	})
	t.Run("the rule wants another suite", func(t *testing.T) {
		_, web, db := change(func(p *ipsec.NodePolicy) {
			tmpl := *p.Rules[0].Template
			x, err := ipsec.ParseProposal(ipsec.ProtocolESP, "aes256gcm16")
			if err != nil {
				t.Fatal(err)
			}
			tmpl.Proposals = []ipsec.Proposal{x}
			p.Rules[0].Template = &tmpl
		})
		if len(web.SAs)+len(db.SAs) != 0 {
			t.Errorf("%v %v", web.SAs, db.SAs)
		}
	})
	t.Run("another lifetime of the rule", func(t *testing.T) {
		n, web, db := change(func(p *ipsec.NodePolicy) {
			tmpl := *p.Rules[0].Template
			tmpl.Lifetime = ipsec.Lifetime{Bytes: ipsec.Limit{Soft: 1 << 20, Hard: 1 << 21}}
			p.Rules[0].Template = &tmpl
		})
		n.Run(30 * time.Second)
		mustBeUp(t, n, web, db)
		if c := web.Children(); len(c) != 1 || c[0].Rekeyed != 1 || web.SAs[0].Lifetime.Bytes.Hard != 1<<21 {
			t.Errorf("%+v, %+v", c, web.SAs)
		}
	})
	t.Run("another lifetime of the rule while it is negotiated, or the key manager away", func(t *testing.T) {
		for _, away := range []bool{false, true} {
			n, web, db := connected(t, 1, nil)
			p := *web.Policy
			p.Rules = slices.Clone(p.Rules)
			tmpl := *p.Rules[0].Template
			tmpl.Lifetime = ipsec.Lifetime{Bytes: ipsec.Limit{Soft: 1 << 20, Hard: 1 << 21}}
			p.Rules[0].Template = &tmpl
			web.Policy = &p
			rekeyed := uint32(1)
			if away {
				web.Restart(web.Machine())
			} else {
				web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
				web.Do(ike.PolicyChanged{Policy: &p})
				rekeyed = 2
			}
			n.Run(time.Minute)
			mustBeUp(t, n, web, db)
			if c := web.Children(); len(c) != 1 || c[0].Rekeyed != rekeyed || web.SAs[0].Lifetime.Bytes.Hard != 1<<21 {
				t.Errorf("away %t: %+v, %+v", away, c, web.SAs)
			}
		}
	})
	t.Run("a shorter lifetime of the IKE SA", func(t *testing.T) {
		n, web, db := change(func(p *ipsec.NodePolicy) { p.Peers[0].Lifetime = 10 * time.Minute })
		before := web.Machine().Info().LocalSPI
		n.Run(10 * time.Minute)
		mustBeUp(t, n, web, db)
		if web.Machine().Info().LocalSPI == before {
			t.Error("it was not rekeyed")
		}
	})
	t.Run("a lifetime that is over", func(t *testing.T) {
		n, web, db := connected(t, 1, nil)
		n.Run(time.Hour)
		before := web.Machine().Info().LocalSPI
		p := *web.Policy
		p.Peers = slices.Clone(p.Peers)
		p.Peers[0].Lifetime, p.Peers[0].Reauth = 10*time.Minute, 20*time.Minute
		web.Do(ike.PolicyChanged{Policy: &p})
		n.Run(40 * time.Second)
		mustBeUp(t, n, web, db)
		if web.Machine().Info().LocalSPI == before || web.Reauths != 1 {
			t.Errorf("the IKE SA was not rekeyed, or not reauthenticated: %d", web.Reauths)
		}
	})
	t.Run("another authentication", func(t *testing.T) {
		n, web, db := change(func(p *ipsec.NodePolicy) { p.Peers[0].Auth = []ipsec.AuthMethod{{PSK: "file:other"}} })
		n.Run(20 * time.Second)
		if mustBeUp(t, n, web, db); web.Reauths != 1 {
			t.Errorf("asked %d times for a new IKE SA", web.Reauths)
		}
		web.Do(ike.RekeyIKE{}) // proves nothing
		n.Run(time.Minute)
		mustBeUp(t, n, web, db)
		n.Run(3 * time.Minute)
		mustBeEmpty(t, web, db)
	})
	t.Run("the peer is gone", func(t *testing.T) {
		_, web, db := change(func(p *ipsec.NodePolicy) { p.Peers = nil })
		mustBeEmpty(t, web, db)
	})
}

// RFC 7296 §2.8: a rekey that is asked for while the peer rekeys the same CHILD SA is
// not forgotten. Of the new one it is done when that is up; of the old one, when the
// peer's rekey has come to nothing.
func TestARekeyAskedForDuringThePeersRekey(t *testing.T) {
	for _, refused := range []bool{false, true} {
		n, web, db := connected(t, 1, nil)
		old := web.Children()[0].ID
		n.Hook = func(p iketest.Packet) []iketest.Packet {
			if p.From == db && strings.Contains(p.Text, "INFORMATIONAL request") {
				return nil
			}
			return []iketest.Packet{p}
		}
		db.Answer = func(f ike.Effect, answer ike.Event) ike.Event {
			if x, ok := f.(ike.Install); ok && refused && x.SAs[0].Direction == ipsec.Outbound {
				return ike.Installed{ID: x.ID, Err: errors.New("the worker has no room")}
			}
			return answer
		}
		db.Do(ike.RekeyChild{Child: db.Children()[0].ID})
		n.Run(300 * time.Millisecond)
		if c := web.Children(); len(c) != 2 || len(db.Children()) != 2 {
			t.Fatalf("refused %t: web has %+v, want the old one and the new one", refused, c)
		}
		ask := web.Children()[1].ID
		if refused {
			ask = old
		}
		web.Do(ike.RekeyChild{Child: ask})
		n.Hook, db.Answer = nil, nil
		n.Run(2 * time.Minute)
		rekeyed := uint32(2)
		if refused {
			rekeyed = 1
		}
		if c := web.Children(); len(c) != 1 || c[0].Rekeyed != rekeyed {
			t.Errorf("refused %t: web has %+v, want one that was rekeyed %d times\n%s", refused, c, rekeyed, n.LadderText(0))
		}
		mustBeUp(t, n, web, db)
	}
}

// RFC 7296 §2.25.1: a rekey of a CHILD SA that the peer does not have.
func TestChildSANotFound(t *testing.T) {
	n, web, db := connected(t, 1, nil)
	// The peer loses the CHILD SA without a word: its delete never arrives, and
	// its machine is told that it was answered.
	var lost bool
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if p.From == db && strings.Contains(p.Text, "INFORMATIONAL request") {
			lost = true
			answer := web.Machine().SealForTest(37, 0, true, nil)
			n.Inject(iketest.Packet{From: web, To: db, Src: p.Dst, Dst: p.Src, Data: answer})
			return nil
		}
		return []iketest.Packet{p}
	}
	db.Do(ike.DeleteChild{Child: db.Children()[0].ID})
	n.Run(time.Second)
	if !lost || len(db.Children()) != 0 || len(web.Children()) != 1 {
		t.Fatalf("db has %+v", db.Children())
	}
	web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	if !strings.Contains(n.LadderText(0), "N(CHILD_SA_NOT_FOUND 00001001)") {
		t.Errorf("%s", n.LadderText(0))
	}
	if c := web.Children(); len(c) != 1 || c[0].Rekeyed != 0 {
		t.Errorf("%+v", c)
	}
}
