package ikev2_test

import (
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// RFC 6023: IKE_AUTH without SA, TSi and TSr; CHILD SAs come with CREATE_CHILD_SA.
func TestChildless(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	web.Connect("", nil)
	n.Run(time.Second)
	for _, h := range []*iketest.Host{web, db} {
		if len(h.Machines) != 1 || h.Machine().Info().State != "established" || len(h.SAs) != 0 || len(h.Failures) != 0 {
			t.Fatalf("%s: %+v\n%s", h.Name, h.Failures, n.LadderText(0))
		}
	}
	if l := n.LadderText(2); strings.Contains(l, "SA(") || strings.Contains(l, "TSi") || !strings.Contains(n.LadderText(0), "CHILDLESS_IKEV2_SUPPORTED") {
		t.Errorf("%s", n.LadderText(0))
	}
	db.Do(ike.CreateChild{Rule: "rule"}) // either end may go on
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	web.Do(ike.RekeyIKE{})
	n.Run(10 * time.Second)
	once(t, n, web, db, 0)
}

// §3: "The initiator MUST NOT send the modified IKE_AUTH request if the notification
// was not present."
func TestChildlessNeedsThePeer(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if h, ps, err := wire.Parse(p.Data); err == nil && h.Exchange == wire.IKESAInit && h.Response() {
			var rest []wire.Payload
			for _, x := range ps {
				if n, ok := x.(*wire.Notify); !ok || n.Message != wire.ChildlessSupported {
					rest = append(rest, x)
				}
			}
			p.Data = wire.AppendMessage(nil, h, rest)
		}
		return []iketest.Packet{p}
	}
	web.Connect("", nil)
	n.Run(time.Second)
	if f := web.Failure(); f.Why != "NOT_SUPPORTED" || !strings.Contains(f.Detail, "CHILDLESS_IKEV2_SUPPORTED") || len(web.Machines) != 0 {
		t.Errorf("%+v", f)
	}
	if strings.Contains(n.LadderText(0), "IKE_AUTH request") {
		t.Errorf("%s", n.LadderText(0))
	}
	n.Run(time.Minute)
	mustBeEmpty(t, web, db)
}

// A request with half of a CHILD SA is not a childless one: INVALID_SYNTAX.
func TestHalfAChildIsNotChildless(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if strings.HasPrefix(p.Text, "IKE_AUTH request") {
			m := web.Machine()
			p.Data = m.ResealForTest(p.Data, func(first wire.PayloadType, inner []byte) (wire.PayloadType, []byte) {
				ps, err := wire.ParsePayloads(first, inner)
				if err != nil {
					t.Fatal(err)
				}
				for i, x := range ps {
					if x.Type() == wire.TypeTSr {
						ps = append(ps[:i:i], ps[i+1:]...)
						break
					}
				}
				return wire.First(ps), wire.AppendPayloads(nil, ps)
			})
		}
		return []iketest.Packet{p}
	}
	web.Connect("rule", nil)
	n.Run(time.Second)
	if f := db.Failure(); f.Why != "INVALID_SYNTAX" || len(db.Machines) != 0 {
		t.Errorf("%+v\n%s", f, n.LadderText(0))
	}
}
