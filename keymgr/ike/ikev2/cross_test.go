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
