package ikev2_test

import (
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Features that meet.

// The peer's rekey of the IKE SA, with a follow-up to come, crosses ours; instead of
// the follow-up it deletes the IKE SA.
func TestIKESADeletedBeforeTheFollowUpOfACrossedRekey(t *testing.T) {
	n, web, db := connected(t, 1, hybrid)
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if p.From == db && strings.Contains(p.Text, "CREATE_CHILD_SA response") || strings.Contains(p.Text, "IKE_FOLLOWUP_KE") {
			return nil
		}
		return []iketest.Packet{p}
	}
	web.Do(ike.RekeyIKE{})
	db.Do(ike.RekeyIKE{})
	n.Run(100 * time.Millisecond)
	p := db.Machine().Info().Path
	b := db.Machine().SealForTest(wire.Informational, 1, false, []wire.Payload{&wire.Delete{Protocol: wire.ProtocolID(ipsec.ProtocolIKE)}})
	n.Inject(iketest.Packet{From: db, To: web, Src: p.Local, Dst: p.Remote, Data: b})
	n.Run(100 * time.Millisecond)
	if web.Machine() != nil || len(web.SAs) != 0 {
		t.Errorf("web still has an IKE SA, and %d SAs\n%s", len(web.SAs), n.LadderText(0))
	}
}

// The initiator moves while the responder rekeys the IKE SA: the update was meant for
// the old IKE SA, and the new one needs it.
func TestMoveThatCrossesAnIKERekey(t *testing.T) {
	for _, pause := range []time.Duration{0, 2 * time.Millisecond, 7 * time.Millisecond} {
		n, web, db := mobile(t, nil)
		db.Do(ike.RekeyIKE{})
		n.Run(pause)
		web.Readdress("10.0.9.1")
		n.Run(time.Minute)
		between(t, n, web, db, "10.0.9.1", "10.0.0.2")
	}
}

// A policy that takes the PPK away in the middle of a handshake that uses it.
func TestPPKThatLeavesThePolicyMeanwhile(t *testing.T) {
	for _, who := range []string{"web", "db"} {
		for _, answers := range []int{1, 2, 3} {
			n, web, db := iketest.Pair(t, 1, nil)
			for _, h := range []*iketest.Host{web, db} {
				h.Policy.Peers[0].PPK = &ipsec.PPK{ID: "a", Secret: "file:ppk"}
				h.Secrets["file:ppk"] = []string{"postquantum"}
			}
			h := map[string]*iketest.Host{"web": web, "db": db}[who]
			count := 0
			h.Answer = func(e ike.Effect, ev ike.Event) ike.Event {
				if _, ok := e.(ike.NeedPSK); ok {
					if count++; count == answers {
						without := *h.Policy
						without.Peers = append([]ipsec.Peer(nil), h.Policy.Peers...)
						without.Peers[0].PPK = nil
						h.Policy = &without
						h.Answer = nil
						m := h.Machine()
						n.AnswerDelay = func() time.Duration { return 10 * time.Millisecond }
						defer h.Tell(m, ike.PolicyChanged{Policy: h.Policy})
					}
				}
				return ev
			}
			web.Connect("rule", nil)
			n.Run(2 * time.Minute)
			if who == "web" { // it begins anew
				mustBeUp(t, n, web, db)
				if got := web.Machine().Info().PPK; count >= answers && got != "" {
					t.Errorf("after %d answers: PPK %q is used", answers, got)
				}
			} else if count >= answers {
				mustBeEmpty(t, web, db)
			}
		}
	}
}

// A rule that goes, or wants another suite, while its CHILD SA is being negotiated.
func TestPolicyThatChangesMeanwhileIsEnforced(t *testing.T) {
	for _, initiator := range []string{"web", "db"} {
		n, web, db := connected(t, 1, func(w, d *iketest.Side) {
			w.ESP, d.ESP = []string{"aes128gcm16-modp2048"}, []string{"aes128gcm16-modp2048"}
		})
		h := map[string]*iketest.Host{"web": web, "db": db}[initiator]
		h.Do(ike.RekeyChild{Child: h.Children()[0].ID})
		n.Run(7 * time.Millisecond)
		without := *web.Policy
		without.Rules = nil
		without.Index()
		web.Policy = &without
		web.Do(ike.PolicyChanged{Policy: web.Policy})
		n.Run(time.Minute)
		if len(web.SAs) != 0 || len(web.Children()) != 0 {
			t.Errorf("%s rekeys: web has %d SAs of a rule that is gone\n%s", initiator, len(web.SAs), n.LadderText(0))
		}
	}
}
