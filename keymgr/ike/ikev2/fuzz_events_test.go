package ikev2_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
)

// FuzzEvents gives two machines with certificates a script of whatever can happen
// to them: commands, lost and repeated messages, answers that nobody asked for,
// answers that fail. Whatever it is, nothing panics, no SA is without an owner, and
// the ends can connect again.
func FuzzEvents(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13})
	f.Add([]byte{0, 9, 0x41, 8, 1, 0x82, 1, 2, 0xc3, 1, 7, 1})
	f.Add([]byte{10, 0, 1, 11, 0, 1, 12, 0, 1, 0x85, 1, 1})
	f.Fuzz(func(t *testing.T, script []byte) {
		n, web, db := certified(t, 1, "p256", "p256", func(w, d *iketest.Side) {
			w.Auth, d.Auth = []ipsec.AuthMethod{byCert, byPSK}, []ipsec.AuthMethod{byCert, byPSK}
		})
		var last iketest.Packet
		lose, wrong := false, ""
		n.Hook = func(p iketest.Packet) []iketest.Packet {
			last = p
			if lose {
				lose = false
				return nil
			}
			return []iketest.Packet{p}
		}
		for _, h := range []*iketest.Host{web, db} {
			h.Answer = func(_ ike.Effect, ev ike.Event) ike.Event {
				if wrong != fmt.Sprintf("%T", ev) {
					return ev
				}
				wrong = ""
				switch x := ev.(type) {
				case ike.Signed:
					return ike.Signed{ID: x.ID, Err: errors.New("no")}
				case ike.Verified:
					return ike.Verified{ID: x.ID, Err: errors.New("no"), Unknown: x.ID%2 == 0}
				case ike.Authorities:
					return ike.Authorities{ID: x.ID, Err: errors.New("no")}
				}
				return ev
			}
		}
		for i, op := range script[:min(len(script), 64)] {
			h := web
			if op&0x40 != 0 {
				h = db
			}
			m := h.Machine()
			tell := func(ev ike.Event) {
				if m != nil {
					h.Tell(m, ev)
				}
			}
			switch id := uint64(op) * uint64(i); op & 0x3f {
			case 0:
				h.Connect("rule", nil)
			case 1:
				n.Run(time.Second)
			case 2:
				tell(ike.RekeyIKE{})
			case 3:
				for _, c := range h.Children() {
					tell(ike.RekeyChild{Child: c.ID})
				}
			case 4:
				tell(ike.Terminate{Why: "fuzz"})
			case 5:
				tell(ike.PolicyChanged{Policy: h.Policy})
			case 6:
				tell(ike.CheckPeer{})
			case 7:
				tell(ike.Signed{ID: id, Auth: [][]byte{{1}}})
			case 8:
				tell(ike.Verified{ID: id})
			case 9:
				tell(ike.Authorities{ID: id, Keys: make([][20]byte, 3)})
			case 10:
				wrong = "ike.Signed"
			case 11:
				wrong = "ike.Verified"
			case 12:
				wrong = "ike.Authorities"
			case 13:
				lose = true
			case 14:
				if last.Data != nil {
					n.Inject(last)
				}
			default:
				n.Run(time.Duration(op) * time.Millisecond)
			}
		}
		lose, wrong = false, ""
		n.Run(3 * time.Minute)
		for _, h := range []*iketest.Host{web, db} {
			owned := map[ipsec.SAID]bool{}
			for _, c := range h.Children() {
				owned[c.In], owned[c.Out] = true, true
			}
			for _, sa := range h.SAs {
				if !owned[sa.ID] {
					t.Fatalf("%s: SA %s has no owner\n%s", h.Name, sa.SPI, n.LadderText(0))
				}
			}
		}
		m := web.Connect("rule", nil)
		n.Run(time.Minute)
		if got := m.Info().State; got != "established" {
			t.Fatalf("the next connection is %s: %+v\n%s", got, web.Failure(), n.LadderText(30))
		}
	})
}
