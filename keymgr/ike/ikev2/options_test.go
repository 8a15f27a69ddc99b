package ikev2_test

import (
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// RFC 7296 §2.22, §3.10.1: offers of a CHILD SA that we do not take up are passed
// over: the SA comes up without them, and the answer does not mention them.
func TestOffersOfAChildSAArePassedOver(t *testing.T) {
	offers := []wire.Payload{
		&wire.Notify{Message: wire.IPCompSupported, Data: []byte{0x12, 0x34, 2}}, // a CPI, and DEFLATE
		&wire.Notify{Message: wire.NonFirstFragmentsAlso},
		&wire.Notify{Message: wire.AdditionalTSPossible},
		&wire.Notify{Message: wire.SetWindowSize, Data: []byte{0, 0, 0, 64}},
		&wire.Notify{Message: 40960}, // for private use
	}
	for _, from := range []string{"web", "db"} {
		n, web, db := iketest.Pair(t, 1, nil)
		added := 0
		n.Hook = func(p iketest.Packet) []iketest.Packet {
			if strings.HasPrefix(p.Text, "IKE_AUTH ") && p.From.Name == from {
				p.Data = p.From.Machine().ResealForTest(p.Data, func(first wire.PayloadType, inner []byte) (wire.PayloadType, []byte) {
					ps, err := wire.ParsePayloads(first, inner)
					if err != nil {
						t.Fatal(err)
					}
					ps = append(ps, offers...)
					added++
					return wire.First(ps), wire.AppendPayloads(nil, ps)
				})
			}
			return []iketest.Packet{p}
		}
		web.Connect("rule", nil)
		n.Run(time.Second)
		mustBeUp(t, n, web, db)
		if l := n.LadderText(0); added != 1 || strings.Contains(l, "IPCOMP") || strings.Contains(l, "NON_FIRST") {
			t.Errorf("added %d\n%s", added, l)
		}
	}
}
