package ikev2_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
)

func onlyAH(suites ...string) func(w, d *iketest.Side) {
	return func(w, d *iketest.Side) {
		w.ESP, d.ESP, w.AH, d.AH = nil, nil, suites, suites
	}
}

// RFC 7296 §3.3.3: AH has INTEG and ESN, and no ENCR; §2.17: its keys are as long
// as the integrity algorithm's.
func TestAH(t *testing.T) {
	for suite, bits := range map[string]int{"sha256": 256, "sha512": 512, "authaes128gmac": 128 + 32} {
		t.Run(suite, func(t *testing.T) {
			n, web, db := connected(t, 1, onlyAH(suite))
			alwaysDeliverable(t, n, web, db)
			for range 2 {
				for _, sa := range web.SAs {
					if sa.Protocol != ipsec.ProtocolAH || !sa.EncrKey.IsZero() || 8*sa.IntegKey.Len() != bits || !sa.Suite.ESN || sa.Encap != nil {
						t.Errorf("%s", sa.Suite)
					}
				}
				web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
				n.Run(20 * time.Second)
				db.Do(ike.RekeyChild{Child: db.Children()[0].ID})
				n.Run(20 * time.Second)
			}
			once(t, n, web, db, 4)
			if strings.Contains(n.LadderText(0), "ESP_TFC") {
				t.Errorf("AH speaks of ESP:\n%s", n.LadderText(0))
			}
			n.Step = nil
			db.Do(ike.DeleteChild{Child: db.Children()[0].ID})
			n.Run(time.Second)
			if len(web.SAs)+len(db.SAs) != 0 {
				t.Errorf("%v %v", web.SAs, db.SAs)
			}
		})
	}
}

// A list may hold both protocols: the responder's order decides, as for suites.
func TestAHOrESP(t *testing.T) {
	n, web, db := connected(t, 1, func(w, d *iketest.Side) {
		w.AH, d.AH = []string{"sha256"}, []string{"sha256"}
		d.ESP = []string{"aes256gcm16"} // not web's
	})
	if web.SAs[0].Protocol != ipsec.ProtocolAH {
		t.Fatalf("%s", web.SAs[0].Suite)
	}
	web.Do(ike.RekeyChild{Child: web.Children()[0].ID}) // the REKEY_SA notify names AH
	n.Run(20 * time.Second)
	once(t, n, web, db, 1)
}

// RFC 3715 §2.1: a NAT changes addresses that AH covers. Each end sees it, and ESP
// is taken when there is any.
func TestAHThroughNAT(t *testing.T) {
	for _, c := range []struct{ esp, forced bool }{{}, {esp: true}, {forced: true}, {true, true}} {
		n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) {
			onlyAH("sha256")(w, d)
			w.Encap = c.forced
			if d.AnyRemote = true; c.esp {
				w.ESP, d.ESP = []string{"aes128gcm16"}, []string{"aes128gcm16"}
			}
		})
		if !c.forced {
			web.NAT = &iketest.NAT{Public: netip.MustParseAddr("192.0.2.1")}
		}
		web.Connect("rule", nil)
		n.Run(time.Second)
		if c.esp {
			mustBeUp(t, n, web, db)
			if web.SAs[0].Protocol != ipsec.ProtocolESP || web.SAs[0].Encap == nil {
				t.Errorf("%+v", web.SAs[0])
			}
			continue
		}
		if f := web.Failure(); len(web.SAs)+len(db.SAs) != 0 || !strings.Contains(f.Detail, "NAT") || !strings.Contains(f.Advice, "esp") {
			t.Errorf("%+v", f)
		}
	}
}

// One end has AH and the other ESP: the report says so.
func TestAHAgainstESP(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) { w.ESP, w.AH = nil, []string{"sha256"} })
	web.Connect("rule", nil)
	n.Run(time.Second)
	if f := db.Failure(); f.Detail != "the protocols differ: ours is esp, theirs ah" {
		t.Errorf("%+v", f)
	}
}
