package e2e

import (
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// AH from policy: packets stay readable and are authenticated, so the wire carries
// protocol 51 and nothing else (RFC 4302).
func TestAHFromPolicy(t *testing.T) {
	for _, mode := range []string{"transport", "tunnel"} {
		t.Run(mode, func(t *testing.T) {
			b := newPair(t, protectPair(", mode: "+mode+", security: [{ah: {integrity: sha256}}]"), fleet.Options{})
			b.min = 1000
			exchange(t, b.A, b.B, traffic{})
			exchange(t, b.A, b.B, traffic{v6: true, small: true})
			if n := b.wire.Count(lab.ESP); n != 0 {
				t.Errorf("%d packets of ESP; want AH", n)
			}
			b.RekeyChild("a", b.Children("a")[0].GetId())
			exchange(t, b.A, b.B, traffic{small: true})
			for _, c := range b.Children("a") {
				if c.GetProtocol() != uint32(ipsec.ProtocolAH) || c.GetSuite() != "sha256-esn" || c.GetEncap() {
					t.Errorf("CHILD SA %v; want AH with sha256 and ESN", c)
				}
			}
			if fs := b.Failures(""); len(fs) != 0 {
				t.Errorf("failures: %v; want none", fs)
			}
		})
	}
}

// The ends see that there is a NAT and take what works through it (RFC 3715 §2.1).
func TestAHGivesWayToESPBehindNAT(t *testing.T) {
	behind := func(p string) string {
		return strings.Replace(p, "addresses: ["+gwA4+"]", "behindNAT: true, addresses: ["+gwA4+"]", 1)
	}
	p := gateways(gwA4, gwB4, ", security: [{ah: {integrity: sha256}}, {esp: {encryption: aes128gcm16}}]")
	s, b := newSites(t, lab.SitesOptions{NAT: true}, behind(p))
	s.HostA.Node.Ping(s.HostB.V4.Addr(), lab.PingOptions{Count: 3})
	for _, c := range b.Children("gwa") {
		if c.GetProtocol() != uint32(ipsec.ProtocolESP) || !c.GetEncap() {
			t.Errorf("CHILD SA %v; want ESP in UDP", c)
		}
	}
	err := b.TryApply(behind(gateways(gwA4, gwB4, ", security: [{ah: {integrity: sha256}}]")))
	if err == nil || !strings.Contains(err.Error(), "behind a NAT") {
		t.Errorf("AH alone: got %v; want a refusal that names the NAT", err)
	}
}
