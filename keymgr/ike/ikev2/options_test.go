package ikev2_test

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// RFC 7296 §2.22, §3.10.1: offers of a CHILD SA that we do not take up are passed
// over: the SA comes up without them, and the answer does not mention them.
func TestOffersOfAChildSAArePassedOver(t *testing.T) {
	offers := []wire.Payload{
		&wire.Notify{Message: wire.IPCompSupported, Data: []byte{0x12, 0x34, 2}}, // a CPI, and DEFLATE
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
		if l := n.LadderText(0); added != 1 || strings.Contains(l, "IPCOMP") || strings.Contains(l, "ADDITIONAL_TS") {
			t.Errorf("added %d\n%s", added, l)
		}
	}
}

// RFC 7296 §1.3.1: a responder that takes non-first fragments says so when asked.
func TestNonFirstFragmentsAlso(t *testing.T) {
	for _, mode := range []ipsec.Mode{ipsec.ModeTunnel, ipsec.ModeTransport} {
		n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) {
			if w.Mode, d.Mode = mode, mode; mode == ipsec.ModeTransport {
				w.Local, w.Remote, d.Local, d.Remote = "10.0.0.0/24", "10.0.0.0/24", "10.0.0.0/24", "10.0.0.0/24"
			}
		})
		n.Hook = reseal(t, "IKE_AUTH request", func(ps []wire.Payload) []wire.Payload {
			return append(ps, &wire.Notify{Message: wire.NonFirstFragmentsAlso})
		})
		web.Connect("rule", nil)
		n.Run(time.Second)
		mustBeUp(t, n, web, db)
		if got := strings.Contains(n.LadderText(0), "NON_FIRST_FRAGMENTS_ALSO"); got != (mode == ipsec.ModeTunnel) {
			t.Errorf("%s mode: answered %t\n%s", mode, got, n.LadderText(0))
		}
	}
}

// RFC 7296 §2.9: a responder with a rule of its own for each part takes one of them, says
// that there could be more, and gets asked for the next when a packet wants it.
func TestAdditionalTrafficSelectors(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	parts := db.Policy.Rules[:1:1]
	for _, p := range []string{"10.2.0.0/24", "10.2.1.0/24"} {
		r := db.Policy.Rules[0]
		r.Name, r.Selector.Local = p, ipsec.PrefixSelector(netip.MustParsePrefix(p))
		parts = append(parts, r)
	}
	db.Policy.Rules = parts[1:]
	to := func(a string) *ipsec.Flow {
		return &ipsec.Flow{Local: netip.MustParseAddr("10.1.0.5"), Remote: netip.MustParseAddr(a), Protocol: 6, LocalPort: 1000, RemotePort: 80}
	}
	web.Connect("rule", to("10.2.1.9"))
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	if c := web.Children(); len(c) != 1 || c[0].Selectors[0].Remote.String() != "10.2.1.0/24" || !strings.Contains(n.LadderText(0), "N(ADDITIONAL_TS_POSSIBLE)") {
		t.Fatalf("%+v\n%s", c, n.LadderText(0))
	}
	web.Do(ike.CreateChild{Rule: "rule", Packet: to("10.2.1.10")}) // which it carries
	web.Do(ike.CreateChild{Rule: "rule", Packet: to("10.2.0.9")})
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	if c := web.Children(); len(c) != 2 || c[1].Selectors[0].Remote.String() != "10.2.0.0/24" {
		t.Errorf("%+v\n%s", c, n.LadderText(0))
	}
	web.Do(ike.RekeyChild{Child: web.Children()[0].ID}) // stays what it was
	n.Run(20 * time.Second)
	mustBeUp(t, n, web, db)
	if c := web.Children(); len(c) != 2 || c[1].Selectors[0].Remote.String() != "10.2.1.0/24" {
		t.Errorf("%+v", c)
	}
}

// RFC 7296 §2.9: on SINGLE_PAIR_REQUIRED "the requestor is expected to respond by
// requesting an SA for only the specific traffic it is trying to forward".
func TestSinglePairRequired(t *testing.T) {
	n, web, _ := iketest.Pair(t, 1, nil)
	refuse := func(mark string) {
		done := false
		n.Hook = reseal(t, mark, func(ps []wire.Payload) []wire.Payload {
			if done {
				return ps
			}
			done = true
			ps = slices.DeleteFunc(ps, func(p wire.Payload) bool {
				return p.Type() == wire.TypeSA || p.Type() == wire.TypeTSi || p.Type() == wire.TypeTSr
			})
			return append(ps, &wire.Notify{Message: wire.SinglePairRequired})
		})
	}
	packet := &ipsec.Flow{Local: netip.MustParseAddr("10.1.0.5"), Remote: netip.MustParseAddr("10.2.0.9"), Protocol: 6, LocalPort: 1000, RemotePort: 80}
	one := ipsec.Selector{Local: ipsec.AddrSelector(packet.Local), Remote: ipsec.AddrSelector(packet.Remote)}
	refuse("IKE_AUTH response")
	web.Connect("rule", packet)
	n.Run(time.Second)
	if c := web.Children(); len(c) != 1 || len(c[0].Selectors) != 1 || c[0].Selectors[0] != one || len(web.Failures) != 0 {
		t.Fatalf("%+v, %+v\n%s", c, web.Failures, n.LadderText(0))
	}
	refuse("CREATE_CHILD_SA response")
	web.Do(ike.RekeyChild{Child: web.Children()[0].ID})
	n.Run(time.Second)
	rekey := regexp.MustCompile(`request 4 \{ N\(REKEY_SA .* TSi\(10\.1\.0\.5\) TSr\(10\.2\.0\.9\)`)
	if !rekey.MatchString(n.LadderText(0)) || len(web.Failures) != 0 { // of a peer that believes the first one to be done
		t.Errorf("%+v\n%s", web.Failures, n.LadderText(0))
	}

	// Without a packet there is no pair to ask for.
	n, web, _ = iketest.Pair(t, 2, nil)
	refuse("IKE_AUTH response")
	web.Connect("rule", nil)
	n.Run(time.Second)
	if f := web.Failure(); f.Why != "SINGLE_PAIR_REQUIRED" || len(web.Children()) != 0 {
		t.Errorf("%+v", web.Failures)
	}
}

// reseal changes what is inside of messages whose text begins so.
func reseal(t *testing.T, mark string, change func([]wire.Payload) []wire.Payload) func(iketest.Packet) []iketest.Packet {
	return func(p iketest.Packet) []iketest.Packet {
		if strings.HasPrefix(p.Text, mark) {
			p.Data = p.From.Machine().ResealForTest(p.Data, func(first wire.PayloadType, inner []byte) (wire.PayloadType, []byte) {
				ps, err := wire.ParsePayloads(first, inner)
				if err != nil {
					t.Fatal(err)
				}
				ps = change(ps)
				return wire.First(ps), wire.AppendPayloads(nil, ps)
			})
		}
		return []iketest.Packet{p}
	}
}

// RFC 7296 §1.3.1: traffic flow confidentiality padding goes to a peer that has not said
// that it does not strip it; we say so in transport mode (RFC 4303 §2.7).
func TestTFCPadding(t *testing.T) {
	for _, tc := range []struct {
		mode    ipsec.Mode
		refused string // whose message gets ESP_TFC_PADDING_NOT_SUPPORTED
		web, db uint16
	}{
		{mode: ipsec.ModeTunnel, web: 1000, db: 1000},
		{mode: ipsec.ModeTunnel, refused: "IKE_AUTH response", db: 1000},
		{mode: ipsec.ModeTunnel, refused: "IKE_AUTH request", web: 1000},
		{mode: ipsec.ModeTransport},
	} {
		n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) {
			if w.Mode, d.Mode = tc.mode, tc.mode; tc.mode == ipsec.ModeTransport {
				w.Local, w.Remote, d.Local, d.Remote = "10.0.0.0/24", "10.0.0.0/24", "10.0.0.0/24", "10.0.0.0/24"
			}
		})
		web.Policy.Rules[0].Template.PadTo, db.Policy.Rules[0].Template.PadTo = 1000, 1000
		if tc.refused != "" {
			n.Hook = reseal(t, tc.refused, func(ps []wire.Payload) []wire.Payload {
				return append(ps, &wire.Notify{Message: wire.ESPTFCPaddingNotSupported})
			})
		}
		web.Connect("rule", nil)
		n.Run(time.Second)
		mustBeUp(t, n, web, db)
		if got := strings.Count(n.LadderText(0), "ESP_TFC_PADDING_NOT_SUPPORTED") == 2; got != (tc.mode == ipsec.ModeTransport) {
			t.Errorf("%s mode: said by both %t\n%s", tc.mode, got, n.LadderText(0))
		}
		for h, want := range map[*iketest.Host]uint16{web: tc.web, db: tc.db} {
			if c := h.Children()[0]; c.PadTo != want {
				t.Errorf("%s, %s: padded to %d, want %d", tc.refused, h.Name, c.PadTo, want)
			}
			for _, sa := range h.SAs {
				if sa.Direction == ipsec.Outbound && sa.PadTo != want || sa.Direction == ipsec.Inbound && sa.PadTo != 0 {
					t.Errorf("%s, %s: SA %s padded to %d", tc.refused, h.Name, sa.Direction, sa.PadTo)
				}
			}
		}
	}
}
