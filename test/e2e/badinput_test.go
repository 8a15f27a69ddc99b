package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// side is one of two organisations that have agreed badly: what it says about
// itself and about the other.
type side struct {
	identity, other string // IKE identities: its own, and the one it expects
	ike, esp        string // suites
	traffic         string // the rest of the filter
	psk             string
}

// policy is a side's policy; us and them are names and addresses.
func (s side) policy(us, usAddr, them, themAddr string) string {
	return policy(
		document("Node", us, fmt.Sprintf("{addresses: [%s], identity: %s}", usAddr, s.identity)),
		document("Node", them, fmt.Sprintf("{addresses: [%s], identity: %s, external: true}", themAddr, s.other)),
		filters("f", fmt.Sprintf("{from: %s, to: %s, %s}", usAddr, themAddr, s.traffic)),
		action("secure", "action: secure, security: [{esp: {encryption: "+s.esp+"}}]"),
		fleetPSK, rules("p", "keyExchange: {suites: ["+s.ike+"]}", "{name: all, filters: f, action: secure, authentication: psk}"), assign("p", us))
}

func TestDisagreementsAreExplained(t *testing.T) {
	t.Parallel()
	p := lab.NewPair(t, lab.PairOptions{})
	wire := p.A.Sniff()
	a := newBench(t, p.Lab, "", fleet.Options{Hosts: []*lab.Node{p.A.Node}})
	b := newBench(t, p.Lab, "", fleet.Options{Hosts: []*lab.Node{p.B.Node}, Control: "control2"})

	key, suiteName := fleet.RandomPSK(), "aes256gcm16-prfsha256-x25519"
	good := side{identity: "a.example", other: "b.example", ike: suiteName, esp: "aes128gcm16", traffic: "protocol: icmp", psk: key}
	far := good
	far.identity, far.other = good.other, good.identity

	type want struct{ why, advice string } // advice is a part of it
	for _, tc := range []struct {
		name    string
		change  func(far *side)
		atA, at want // what a, which starts, says, and what b says
	}{
		{"wrong PSK", func(s *side) { s.psk = fleet.RandomPSK() }, want{"AUTHENTICATION_FAILED", "pre-shared key"}, want{"PEER_NOT_AUTHENTICATED", "pre-shared key"}},
		{"unknown identity", func(s *side) { s.other = "somebody.example" }, want{"AUTHENTICATION_FAILED", "identit"}, want{"PEER_IDENTITY", "identity"}},
		{"not who was expected", func(s *side) { s.identity = "imposter.example" }, want{"AUTHENTICATION_FAILED", "identity"}, want{"PEER_IDENTITY", "identity"}},
		{"no IKE suite in common", func(s *side) { s.ike = "aes128-sha256-prfsha256-modp2048" }, want{"NO_PROPOSAL_CHOSEN", "suite"}, want{"NO_PROPOSAL_CHOSEN", "suite"}},
		{"no ESP suite in common", func(s *side) { s.esp = "chacha20poly1305" }, want{"NO_PROPOSAL_CHOSEN", "suite"}, want{"NO_PROPOSAL_CHOSEN", "suite"}},
		{"selectors that do not overlap", func(s *side) { s.traffic = "protocol: tcp" }, want{"TS_UNACCEPTABLE", ""}, want{"TS_UNACCEPTABLE", ""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			other := far
			tc.change(&other)
			a.Secret(fleet.PSK, good.psk)
			b.Secret(fleet.PSK, other.psk)
			a.Apply(good.policy("a", "192.0.2.1", "b", "192.0.2.2"))
			b.Apply(other.policy("b", "192.0.2.2", "a", "192.0.2.1"))
			// Failures, counters and back-off start afresh.
			a.Keymgrd.Restart()
			b.Keymgrd.Restart()
			a.WaitInSync()
			b.WaitInSync()
			if _, err := a.TryInitiate("a", a.Rules("a", "all")[0]); err == nil || !strings.Contains(err.Error(), tc.atA.why) {
				t.Errorf("initiate: %v; want an error with %s", err, tc.atA.why)
			}
			for _, at := range []struct {
				*bench
				peer string
				want
			}{{a, "192.0.2.2", tc.atA}, {b, "192.0.2.1", tc.at}} {
				var f *keymgrv1.Failure
				lab.WaitFor(t, limit, "a failure with "+at.peer, func() error {
					fs := at.Failures(at.peer)
					if len(fs) == 0 {
						return errors.New("none")
					}
					f = fs[0]
					return nil
				})
				t.Logf("with %s: %s in %s: %s; %s; ours %q theirs %q", at.peer, f.GetWhy(), f.GetExchange(), f.GetDetail(), f.GetAdvice(), f.GetOurs(), f.GetTheirs())
				if f.GetWhy() != at.why || !strings.Contains(f.GetAdvice(), at.advice) || f.GetAdvice() == "" {
					t.Errorf("failure with %s: %s, advice %q; want %s, and advice with %q", at.peer, f.GetWhy(), f.GetAdvice(), at.why, at.advice)
				}
				if n := metric(at.Keymgrd, fmt.Sprintf("testudo_keymgr_failures_total{why=%q}", f.GetWhy())); n < 1 {
					t.Errorf("counter of %s is %v; want 1 or more", f.GetWhy(), n)
				}
				if out := string(at.CLI("ike", "explain", at.peer)); !strings.Contains(out, f.GetWhy()) || !strings.Contains(out, f.GetAdvice()) {
					t.Errorf("ike explain does not say %s and %q:\n%s", f.GetWhy(), f.GetAdvice(), out)
				}
			}
			for _, at := range []struct {
				*bench
				node string
			}{{a, "a"}, {b, "b"}} {
				at.Terminate(at.node, map[string]string{"a": "b", "b": "a"}[at.node]) // an IKE SA without a CHILD SA
				if c := at.Children(at.node); len(c) != 0 {
					t.Errorf("CHILD SAs of %s are left: %v", at.node, c)
				}
				lab.WaitFor(t, limit, "the worker of "+at.node+" to have no SAs", func() error {
					if n := metric(at.Worker(at.node), "testudo_worker_sas"); n != 0 {
						return fmt.Errorf("%v are left", n)
					}
					return nil
				})
			}
		})
	}
	for _, v := range wire.Violations() {
		t.Error(v)
	}

	t.Run("mended", func(t *testing.T) {
		b.Secret(fleet.PSK, key)
		b.Apply(far.policy("b", "192.0.2.2", "a", "192.0.2.1"))
		b.WaitInSync()
		p.A.Node.WaitPing(p.B.V4.Addr(), 2*limit)
		wire.RequireProtected(2)
	})
}

// Rubbish on the IKE ports ends in counters, and traffic goes on. It comes from the address of
// a peer, and so gets as far as anything from outside can.
func TestGarbageFlood(t *testing.T) {
	b := newPair(t, protectPair(""), fleet.Options{})
	probe := b.A.Node.StartProbe(b.B, false, pace)
	moving(t, probe)
	const each = 5000
	var c net.PacketConn
	if err := b.B.Node.Do(func() (err error) {
		c, err = net.ListenPacket("udp4", "192.0.2.2:4999")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	r := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 1400)
	for i := range each {
		for j := range buf {
			buf[j] = byte(r.Uint32())
		}
		d := buf[:r.IntN(len(buf))]
		for _, port := range []uint16{500, 4500} {
			if len(d) > 40 && i%2 == 0 {
				// A header of IKE_SA_INIT with the right length, and rubbish behind it.
				head := []byte{8: 0, 15: 0, 16: 33, 17: 0x20, 18: 34, 19: 0x08, 20: 0, 27: 0}
				copy(head, buf[:8])
				head[26], head[27] = byte(len(d)>>8), byte(len(d))
				copy(d, head)
				if port == 4500 {
					d = append(make([]byte, 4), d...)
				}
			}
			_, _ = c.WriteTo(d, net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.A.V4.Addr(), port)))
		}
	}
	moving(t, probe)
	res := probe.Stop()
	m := b.Keymgrd.Metrics()
	var drops float64
	for name, v := range m {
		if strings.HasPrefix(name, "testudo_keymgr_ike_drops_total") {
			drops += v
			t.Log(name, v)
		}
	}
	t.Logf("%d datagrams of rubbish: %v; %v dropped by the key manager", 2*each, res, drops)
	if drops == 0 {
		t.Error("no drops counted; want some")
	}
	// The flood came as fast as this machine sends, through the sockets that the probe
	// uses too. What it cost then depends on the machine; now it must cost nothing.
	probe = b.A.Node.StartProbe(b.B, false, pace)
	moving(t, probe)
	if res := probe.Stop(); res.Lost != 0 {
		t.Errorf("after the flood: %v; want none lost", res)
	}
	lab.WaitFor(t, 3*limit, "half-open SAs to go", func() error {
		if n := metric(b.Keymgrd, "testudo_keymgr_half_open"); n != 0 {
			return fmt.Errorf("%v half-open", n)
		}
		return nil
	})
}

// The peer's IKE_AUTH never arrives: both ends give up, and say so.
func TestPeerStopsMidway(t *testing.T) {
	t.Parallel()
	b := newPair(t, protectPair(""), fleet.Options{})
	b.min = 0
	// Octet 18 of the IKE header is the exchange: 35 is IKE_AUTH.
	b.A.Node.Nft("table inet stop { chain input { type filter hook input priority -300; udp dport 500 @th,208,8 35 drop; }; }\n")
	start := time.Now()
	if err := b.B.Node.TryPing(b.A.V4.Addr(), lab.PingOptions{}); err == nil {
		t.Error("a ping passes without an SA")
	}
	for node, why := range map[string]string{"a": "HALF_OPEN_EXPIRED", "b": "TIMEOUT"} {
		lab.WaitFor(t, 4*limit, node+" to give up", func() error {
			for _, f := range b.Failures("") {
				if f.GetNode() == node && f.GetWhy() == why {
					t.Logf("%s after %v: %s in %s: %s; %s", node, time.Since(start).Round(time.Second), f.GetWhy(), f.GetExchange(), f.GetDetail(), f.GetAdvice())
					return nil
				}
			}
			return fmt.Errorf("failures %v; want %s", b.Failures(""), why)
		})
	}
	b.A.Node.Run("nft", "delete", "table", "inet", "stop")
}
