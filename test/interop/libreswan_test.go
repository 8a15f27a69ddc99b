package interop

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// TestLibreswan has Libreswan as the peer, in a virtual machine whose kernel does its
// ESP.
func TestLibreswan(t *testing.T) {
	for _, s := range libreswans() {
		t.Run(s.fullName(), func(t *testing.T) {
			t.Parallel()
			t.Cleanup(func() { results.add(s, t.Failed()) })
			s.run(t)
		})
	}
}

func libreswans() []scenario {
	const hybrid = "aes256gcm16-prfsha256-x25519-ke1_mlkem768"
	with := func(settings ...string) func(*bed) { return func(b *bed) { b.withPluto(settings...) } }
	chain := func(kind string) func(*lab.CA) (lab.Cert, lab.Cert) { return keyed(kind, kind) }
	rows := twice(
		scenario{name: "defaults", shows: "the defaults of both ends, tunnel mode: it takes our proposal without ML-KEM, and wants PFS", at: sites,
			ours: policy{defaults: true}, steps: with()},
		scenario{name: "transport", shows: "transport mode, extended sequence numbers only", at: pair,
			ours: policy{mode: "transport"}, steps: with("esn=yes")},
		scenario{name: "ecdsa", shows: "ECDSA certificates below an intermediate CA", at: sites,
			ours: policy{auth: byCertificate}, certs: chain("p256"), steps: with("authby=ecdsa")},
		scenario{name: "rsa", shows: "RSA certificates below an intermediate CA, RSASSA-PSS by both ends, IKE in fragments", at: pair,
			ours: policy{auth: byCertificate, mode: "transport"}, certs: chain("rsa"), steps: func(b *bed) {
				b.withPluto("fragmentation=force")
				if n := b.wire[0].Count(lab.IKEFragment); n < 4 {
					b.Errorf("%d fragments of IKE on the wire, want two for each half of IKE_AUTH", n)
				}
			}},
	)
	rows = append(rows,
		scenario{name: "transport-ipv6", shows: "transport mode over IPv6, AES-CBC, no extended sequence numbers, PFS with a MODP group", role: responder, at: pair, v6: true,
			ours:  policy{mode: "transport", esp: []string{"aes256-sha512"}, suites: []string{"aes256-sha512-prfsha512-modp2048"}, pfs: "modp2048"},
			steps: with("esn=no", "ike=aes256-sha2_512-dh14", "esp=aes256-sha2_512-dh14")},
		scenario{name: "tunnel-ipv6", shows: "tunnel mode over IPv6, ChaCha20-Poly1305, without PFS", role: initiator, at: sites, v6: true,
			ours:  policy{esp: []string{"chacha20poly1305"}, suites: []string{"chacha20poly1305-prfsha256-ecp256"}},
			steps: with("pfs=no", "ike=chacha20_poly1305-sha2_256-dh19", "esp=chacha20_poly1305")},
		scenario{name: "nat", shows: "we are behind a NAT, ESP in UDP by its kernel", role: initiator, at: sitesNAT, steps: with()},
	)
	rows = append(rows, twice(
		scenario{name: "wrong-psk", shows: "different secrets: no SA, and we say why", at: pair, steps: func(b *bed) {
			c := b.plutoConn()
			c.PSK = "another"
			b.refusedByPluto(c, "AUTHENTICATION_FAILED", "PEER_NOT_AUTHENTICATED")
		}},
		scenario{name: "hybrid-required", shows: "policy wants ML-KEM, it does not do that: no SA, and we say why", at: pair,
			ours: policy{suites: []string{hybrid}}, steps: func(b *bed) { b.refusedByPluto(b.plutoConn(), "NO_PROPOSAL_CHOSEN") }},
	)...)
	rows = append(rows, scenario{name: "crash", shows: "it is killed under traffic and comes back: its INITIAL_CONTACT ends what we had", role: responder, at: pair,
		ours: policy{mode: "transport"}, steps: func(b *bed) {
			pluto := b.them.Node.StartLibreswan(b.plutoConn())
			b.must(pluto.Initiate())
			ours := b.kernelUp(0)
			b.ping()
			pluto.Kill()
			b.them.Node.IP("xfrm", "state", "flush")
			b.them.Node.IP("xfrm", "policy", "flush")
			pluto = b.them.Node.StartLibreswan(b.plutoConn("initial-contact=yes"))
			b.must(pluto.Initiate())
			if now := b.kernelUp(ours.GetChildren()[0].GetSpiIn()); now.GetLocalSpi() == ours.GetLocalSpi() {
				b.Errorf("the IKE SA is the old one: %v", now)
			}
			b.ping()
			b.noFailures()
		}})
	for i := range rows {
		rows[i].name, rows[i].kernel, rows[i].other = "libreswan-"+rows[i].name, true, "Libreswan"
	}
	return rows
}

// plutoConn is Libreswan's side of the scenario.
func (b *bed) plutoConn(settings ...string) lab.PlutoConn {
	c := lab.PlutoConn{
		Mode: or(b.ours.mode, "tunnel"), Local: b.conn.Local, Remote: b.conn.Remote, LocalID: theirID, RemoteID: ourID,
		LocalTS: b.conn.LocalTS[0], RemoteTS: b.conn.RemoteTS[0], PSK: string(b.conn.PSK.Reveal()), Settings: settings,
	}
	if b.conn.Cert != nil {
		c.PSK, c.Cert, c.CA = "", *b.conn.Cert, b.conn.CAs[0]
	}
	return c
}

// withPluto starts Libreswan, moves traffic, and has it go on through rekeys of both
// SAs by both ends.
func (b *bed) withPluto(settings ...string) {
	pluto := b.them.Node.StartLibreswan(b.plutoConn(settings...))
	if b.role == initiator {
		b.f.Initiate(b.node, b.rule(0))
	} else {
		b.must(pluto.Initiate())
	}
	ours := b.kernelUp(0)
	b.Logf("IKE %s, ESP %s", ours.GetSuite(), ours.GetChildren()[0].GetSuite())
	b.ping()
	b.transfer(1 << 20)
	probe := b.ourHost.Node.StartProbe(b.theirHost, b.v6, probeInterval)
	b.answered(probe, 20)
	for _, rekey := range []func(){func() { b.rekeyOurChild(ours) }, func() { b.must(pluto.RekeyChild()) }} {
		rekey()
		ours = b.kernelUp(ours.GetChildren()[0].GetSpiIn())
		b.answered(probe, 20)
	}
	for _, rekey := range []func(){func() { b.rekeyOurIKE(ours) }, func() { b.must(pluto.RekeyIKE()) }} {
		rekey()
		before := ours
		lab.WaitFor(b, limit, "the IKE SA to be replaced", func() error {
			if ours = b.kernelUp(0); ours.GetLocalSpi() == before.GetLocalSpi() {
				return errors.New("it is the old one")
			}
			return nil
		})
		b.answered(probe, 20)
	}
	b.requireEarlyLoss(probe)
	b.noFailures()
	if b.role == initiator {
		b.f.Terminate(b.node, ours.GetPeer())
	} else { // what it began itself it begins again when the peer ends it
		b.must(pluto.Terminate())
	}
	lab.WaitFor(b, limit, "both ends to have no SA", func() error {
		if us, them := b.f.SAs(b.node), b.them.Node.Run("ip", "xfrm", "state"); len(us) > 0 || strings.Contains(them, "proto esp") {
			return fmt.Errorf("we have %v, its kernel %s", us, them)
		}
		return nil
	})
}

// requireEarlyLoss is requireKernelLoss for a responder that sends on a new SA when it
// has answered, as RFC 7296 §2.8 lets it: what overtakes our inbound SA is lost, and
// our worker counts it.
func (b *bed) requireEarlyLoss(p *lab.Probe) {
	b.Helper()
	r, dropped := p.Stop(), b.kernelDrops()
	early := uint64(b.f.Worker(b.node).Metrics()[`testudo_worker_packets_total{why="no-sa"}`])
	b.Logf("probe: %v; dropped by the peer's kernel on the way out: %d; before our inbound SA: %d", r, dropped, early)
	if r.Lost > dropped+early {
		b.Errorf("probe: %v; the peer's kernel says it dropped %d, and %d came before our inbound SA", r, dropped, early)
	}
}

// refusedByPluto starts, which must fail with one of these reasons.
func (b *bed) refusedByPluto(c lab.PlutoConn, whys ...string) {
	b.Helper()
	pluto := b.them.Node.StartLibreswan(c)
	start := func() error { return pluto.Initiate() }
	if b.role == initiator {
		start = b.tryStart
	}
	if err := start(); err == nil {
		b.Error("the IKE SA came up")
	} else {
		b.Log(err)
	}
	b.Logf("explained as %v", b.requireFailure(whys...))
	// A state without keys only keeps an SPI from others.
	if state := b.them.Node.Run("ip", "xfrm", "state"); strings.Contains(state, "auth") || strings.Contains(state, "aead") {
		b.Errorf("its kernel has SAs: %s", state)
	}
}
