package engine

import (
	"net/netip"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Two rekeys that cross leave as many as four inbound SAs of one CHILD SA until the
// deletes have arrived (RFC 7296 §2.8.1): all must open what the peer still sends.
func TestFourInboundSAsOfOneChild(t *testing.T) {
	a, b := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	a.policy(t, ipsec.ModeTunnel, an, bn)
	b.policy(t, ipsec.ModeTunnel, bn, an)
	p := udp(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), pattern(100))
	const sas = 4
	for id := range ipsec.SAID(sas) {
		out, in := simplex(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, id+1, a, b, an, bn)
		out.SA.Child, in.SA.Child = 1, 1
		for h, op := range map[*host]backend.Op{a: out, b: in} {
			if err := h.Apply([]backend.Op{op}); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The newest outbound SA is taken; when it goes, the one before it.
	for id := ipsec.SAID(sas); id > 0; id-- {
		a.tun.ToEngine <- netio.Packet{Data: p}
		b.arrived(t)
		if err := a.Apply([]backend.Op{{Kind: backend.OpRemove, ID: id}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range b.Counters().SAs {
		if c.Packets != 1 {
			t.Errorf("%s has opened %d packets, want 1", c.ID, c.Packets)
		}
	}
}

// A train is larger than what is left of the SA's lifetime: what fits is sent, and
// not one octet or packet more.
func TestATrainDoesNotOverrunAHardLimit(t *testing.T) {
	for _, limit := range []ipsec.Lifetime{{Packets: ipsec.Limit{Soft: 5, Hard: 7}}, {Bytes: ipsec.Limit{Soft: 3000, Hard: 7*1428 + 100}}} {
		a, b := twoHosts(t, false)
		an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
		a.policy(t, ipsec.ModeTunnel, an, bn)
		b.policy(t, ipsec.ModeTunnel, bn, an)
		out, in := simplex(t, saSpec{mode: ipsec.ModeTunnel, encap: true, suite: "aes128gcm16"}, 1, a, b, an, bn)
		out.SA.Lifetime = limit
		for h, op := range map[*host]backend.Op{a: out, b: in} {
			if err := h.Apply([]backend.Op{op}); err != nil {
				t.Fatal(err)
			}
		}
		const segments = 40
		a.tun.ToEngine <- tcpTrain(netip.MustParseAddrPort("10.1.0.1:1"), netip.MustParseAddrPort("10.2.0.1:2"), 1, 1388, pattern(segments*1388))
		why := packet.WhyHardPackets
		if limit.Bytes.Hard != 0 {
			why = packet.WhyHardBytes
		}
		waitFor(t, func() bool { return a.why(why) != 0 })
		waitFor(t, func() bool { return b.Counters().SAs[0].Packets == 7 })
		if c := a.Counters().SAs[0]; c.Packets != 7 || c.Bytes != 7*1428 || c.Errors != segments-7 {
			t.Errorf("%+v: sent %d packets of %d octets, %d refused; want 7, %d, %d", limit, c.Packets, c.Bytes, c.Errors, 7*1428, segments-7)
		}
	}
}
