package interop

import (
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// TestOpenIKED has OpenIKED as the peer, in a virtual machine whose kernel does its
// ESP.
func TestOpenIKED(t *testing.T) {
	for _, s := range openIKEDs() {
		t.Run(s.fullName(), func(t *testing.T) {
			t.Parallel()
			t.Cleanup(func() { results.add(s, t.Failed()) })
			s.run(t)
		})
	}
}

func openIKEDs() []scenario {
	certificates := func(kind string) func(*lab.CA) (lab.Cert, lab.Cert) {
		return func(ca *lab.CA) (lab.Cert, lab.Cert) { return ca.Issue(kind, ourID), ca.Issue(kind, theirID) }
	}
	// It gives its SAs to the kernel by PF_KEY, for which it knows HMAC-SHA-1 and
	// HMAC-MD5 only on Linux, and no AEAD.
	const child = "enc aes-256 auth hmac-sha1 noesn"
	esp := []string{"aes256-sha1"}
	rows := []scenario{
		{name: "psk-tunnel", shows: "preshared key, tunnel mode; we rekey under traffic", role: initiator, at: sites,
			steps: func(b *bed) { b.withIKED(child, "3h", (*bed).rekeyOurChild) }},
		{name: "psk-transport", shows: "preshared key, transport mode; it rekeys under traffic", role: responder, at: pair,
			ours:  policy{mode: "transport"},
			steps: func(b *bed) { b.withIKED(child, "30", func(*bed, *ikeSA) {}) }},
		{name: "ecdsa", shows: "ECDSA certificates", role: responder, at: sites,
			ours: policy{auth: byCertificate}, certs: certificates("p256"),
			steps: func(b *bed) { b.withIKED(child, "3h", (*bed).rekeyOurChild) }},
		{name: "rsa", shows: "RSA certificates", role: initiator, at: sites,
			ours: policy{auth: byCertificate}, certs: certificates("rsa"),
			steps: func(b *bed) { b.withIKED(child, "3h", (*bed).rekeyOurChild) }},
	}
	for _, r := range bothRoles {
		rows = append(rows, scenario{name: "wrong-psk", shows: "different secrets: no SA, and we say why", role: r, at: pair, steps: func(b *bed) {
			c := b.ikedConn(child, "3h")
			c.PSK = "another"
			b.them.Node.StartOpenIKED(c)
			if r == initiator {
				if err := b.tryStart(); err == nil {
					b.Error("the IKE SA came up")
				}
			}
			b.requireFailure("AUTHENTICATION_FAILED", "PEER_NOT_AUTHENTICATED")
			// A state without keys only keeps an SPI from others.
			if state := b.them.Node.Run("ip", "xfrm", "state"); strings.Contains(state, "auth") {
				b.Errorf("its kernel has SAs: %s", state)
			}
		}})
	}
	for i := range rows {
		rows[i].ours.esp, rows[i].ours.legacy = esp, true
		rows[i].name, rows[i].kernel, rows[i].other = "openiked-"+rows[i].name, true, "OpenIKED"
	}
	return rows
}

// ikedConn is OpenIKED's side of the scenario.
func (b *bed) ikedConn(child, lifetime string) lab.IKEDConn {
	c := lab.IKEDConn{
		Active: b.role == responder, Mode: or(b.ours.mode, "tunnel"), Local: b.conn.Local, Remote: b.conn.Remote, LocalID: theirID, RemoteID: ourID,
		LocalTS: b.conn.LocalTS[0], RemoteTS: b.conn.RemoteTS[0], Child: child, Lifetime: lifetime,
		IKE: "enc aes-256-gcm prf hmac-sha2-256 group curve25519", PSK: string(b.conn.PSK.Reveal()),
	}
	if b.conn.Cert != nil {
		c.PSK, c.Cert, c.CA = "", *b.conn.Cert, b.conn.CAs[0]
	}
	return c
}

// withIKED starts OpenIKED, moves traffic, and has it go on through a rekey.
func (b *bed) withIKED(child, lifetime string, rekey func(*bed, *ikeSA)) {
	b.them.Node.StartOpenIKED(b.ikedConn(child, lifetime))
	if b.role == initiator {
		b.f.Initiate(b.node, b.rule(0))
	}
	ours := b.kernelUp(0)
	b.ping()
	b.transfer(1 << 20)
	probe := b.ourHost.Node.StartProbe(b.theirHost, b.v6, probeInterval)
	b.answered(probe, 20)
	rekey(b, ours)
	now := b.kernelUp(ours.GetChildren()[0].GetSpiIn())
	if now.GetLocalSpi() != ours.GetLocalSpi() {
		b.Errorf("the IKE SA is another: %v, was %v; want the CHILD SA rekeyed", now, ours)
	}
	b.answered(probe, 40)
	// OpenIKED sends on the new SA before its peer can have it (RFC 7296 §2.8), and drops
	// the old one when it asks for that, so a packet or two under way are lost.
	b.Log("probe:", probe.Stop())
	b.noFailures()
}
