package ikev2_test

import (
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// RFC 4478 §2: the responder tells its time in IKE_AUTH, and the initiator repeats
// the initial exchanges within it. Rekeys do not start the time again.
func TestAuthLifetimeOfTheResponderIsObeyed(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { w.Lifetime, d.Lifetime = 20*time.Minute, 0 })
	db.Policy.Peers[0].Reauth = time.Hour
	web.Connect("rule", nil)
	n.Run(5 * time.Second)
	mustBeUp(t, n, web, db)
	n.Run(53 * time.Minute)
	if web.Reauths != 0 {
		t.Fatalf("after 53 minutes: %d", web.Reauths)
	}
	n.Run(2 * time.Minute)
	if web.Reauths == 0 || db.Reauths != 0 {
		t.Errorf("after 55 minutes the initiator has asked %d times, the responder %d; want the initiator alone", web.Reauths, db.Reauths)
	}
	n.Run(12 * time.Minute)
	if db.Reauths == 0 {
		t.Error("an initiator that does not obey is not followed up")
	}
}

// The policy's own time, at the initiator.
func TestReauthenticationByPolicy(t *testing.T) {
	n, web, _ := iketest.Pair(t, 1, nil)
	web.Policy.Peers[0].Reauth = time.Hour
	web.Connect("rule", nil)
	n.Run(5 * time.Second)
	if at := web.Machine().Info().ReauthAt; at.Before(n.Now.Add(53*time.Minute)) || at.After(n.Now.Add(time.Hour)) {
		t.Errorf("it is due at %s", at)
	}
	n.Run(time.Hour)
	if web.Reauths == 0 {
		t.Errorf("asked %d times", web.Reauths)
	}
}

// RFC 4478 §2: in an INFORMATIONAL request, zero means now. A peer that says so all
// the time does not make us do it all the time.
func TestAuthLifetimeOfZeroIsBounded(t *testing.T) {
	n, web, db := connected(t, 1, nil)
	tell := func(id uint32, d time.Duration) {
		p := db.Machine().Info().Path
		b := db.Machine().SealForTest(wire.Informational, id, false, []wire.Payload{wire.LifetimeNotify(d)})
		n.Inject(iketest.Packet{From: db, To: web, Src: p.Local, Dst: p.Remote, Data: b})
		n.Run(time.Second)
	}
	tell(0, time.Hour)
	first := web.Machine().Info().ReauthAt
	tell(1, 2*time.Hour) // no sooner: no change
	if at := web.Machine().Info().ReauthAt; first.IsZero() || !at.Equal(first) {
		t.Errorf("due at %s, then at %s", first, at)
	}
	for id := range uint32(5) {
		tell(2+id, 0)
	}
	if since := web.Machine().Info().Since; web.Machine().Info().ReauthAt.Before(since.Add(10 * time.Second)) {
		t.Errorf("due at %s, established at %s", web.Machine().Info().ReauthAt, since)
	}
	n.Run(20 * time.Second)
	if web.Reauths != 1 {
		t.Errorf("asked %d times", web.Reauths)
	}
	web.Do(ike.Terminate{Why: "test"})
}
