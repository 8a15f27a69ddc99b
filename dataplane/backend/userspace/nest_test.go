package userspace

import (
	"encoding/hex"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// espOf makes a rule for the ESP of another rule, protected with AH.
func espOf(r ipsec.Rule) ipsec.Rule {
	p, err := ipsec.ParseProposal(ipsec.ProtocolAH, "sha256")
	if err != nil {
		panic(err)
	}
	r.Name, r.Weight = "outer", r.Weight+10
	r.Selector.Local.Protocol, r.Selector.Remote.Protocol = unix.IPPROTO_ESP, unix.IPPROTO_ESP
	r.Template = &ipsec.Template{Mode: ipsec.ModeTransport, Proposals: []ipsec.Proposal{p}}
	return r
}

// AH around ESP (RFC 4301 §4.3) with a host that is not ours. ESP that comes without
// the AH, over IP or in UDP, does not pass.
func TestAHAroundESPWithScapy(t *testing.T) {
	const python = "/usr/bin/python3" // which has Debian's python3-scapy
	if out, err := exec.Command(python, "-c", "import scapy.layers.ipsec").CombinedOutput(); err != nil {
		t.Skipf("no scapy with %s (Debian: python3-scapy): %v: %s", python, err, out)
	}
	l := newLab(t)
	l.noESN = true
	l.a.startWorker(Config{})
	inner := secureRule(ipsec.ModeTransport, l.a.v4, l.b.v4)
	outer := espOf(inner)
	l.a.worker.do("policy", l.a.policy(ipsec.ActionPermit, outer, inner))
	esp := pair{ipsec.ModeTransport, false, false, false, "aes128gcm16"}.specs(l.a)
	ah := pair{ipsec.ModeTransport, false, false, false, "sha256"}.specs(l.a)
	for i := range ah {
		ah[i].ID, ah[i].SPI, ah[i].Rule, ah[i].Selector = ah[i].ID+2, ah[i].SPI+0x100, outer.Name, outer.Selector
	}
	l.a.worker.do("install", append(esp, ah...))

	key := func(spi ipsec.SPI, n int) string { return hex.EncodeToString(keyOctets(spi, n)) }
	scapy := startCommand(t, "scapy", "ip", "netns", "exec", l.b.ns, python, "testdata/scapy_nested.py", l.b.v4.String(), l.a.v4.String(),
		key(0x102, 20), key(0x202, 32), key(0x101, 20), key(0x201, 32))
	scapy.must()
	for range 3 {
		scapy.do("nested", nil)
	}
	if got := l.a.worker.why(packet.WhyClear); got != 0 {
		t.Errorf("%d packets counted as %s, want none", got, packet.WhyClear)
	}
	for i, how := range []string{"alone", "in-udp"} {
		scapy.do(how, nil)
		for end := time.Now().Add(10 * time.Second); l.a.worker.why(packet.WhyClear) != uint64(i+1); {
			if time.Now().After(end) {
				t.Fatalf("%s: %d packets counted as %s, want %d", how, l.a.worker.why(packet.WhyClear), packet.WhyClear, i+1)
			}
		}
	}
	scapy.do("nested", nil)
}
