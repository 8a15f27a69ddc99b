package ikev2_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// large makes both IKE_AUTH messages larger than 1280 octets.
func large(w, d *iketest.Side) {
	w.IKE, d.IKE = []string{"aes256-sha512-prfsha512-x25519"}, []string{"aes256-sha512-prfsha512-x25519"}
	w.LocalID, d.LocalID = "keyid:"+strings.Repeat("w", 1024), "keyid:"+strings.Repeat("d", 1024)
	w.RemoteID, d.RemoteID = d.LocalID, w.LocalID
}

func isFragment(p iketest.Packet) bool {
	h, err := wire.ParseHeader(p.Data)
	return err == nil && h.Next == wire.TypeSKF
}

// udpAndIPv4 is what is around an IKE message, with the non-ESP marker.
const udpAndIPv4 = 20 + 8 + 4

// RFC 7383 §2.5.1: no datagram is larger than 1280 octets, and §2.2: messages of
// IKE_SA_INIT stay whole.
func TestLargeMessagesAreFragmented(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, large)
	fragments := map[string]int{}
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if len(p.Data)+udpAndIPv4 > 1280 {
			t.Errorf("a message of %d octets: %s", len(p.Data), p.Text)
		}
		if isFragment(p) {
			fragments[p.From.Name]++
		}
		return []iketest.Packet{p}
	}
	web.Connect("rule", nil)
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	if fragments["web"] != 2 || fragments["db"] != 2 {
		t.Errorf("fragments: %v, want two of each\n%s", fragments, n.LadderText(0))
	}
	// Small messages stay whole (§2.4).
	before := len(n.Ladder)
	web.Do(ike.CheckPeer{})
	n.Run(time.Second)
	if got := n.LadderText(len(n.Ladder) - before); strings.Contains(got, "SKF") {
		t.Errorf("a liveness check was fragmented:\n%s", got)
	}
}

// RFC 7383 §2.4: "IKE fragmentation MUST NOT be used unless both peers have
// indicated their support".
func TestFragmentsNeedAgreement(t *testing.T) {
	n, web, db := connected(t, 1, nil)
	db.Machine().ForgetFragmentsForTest()
	send(n, web, db, web.Machine().SealFragmentForTest(wire.Informational, 2, 0, 1, 1, nil))
	if db.Drops["fragment-not-agreed"] != 1 {
		t.Errorf("%v", db.Drops)
	}
}

// send puts a datagram of one host's on the wire.
func send(n *iketest.Net, from, to *iketest.Host, b []byte) {
	p := from.Machine().Info().Path
	n.Inject(iketest.Packet{From: from, To: to, Src: p.Local, Dst: p.Remote, Data: b})
	n.Run(20 * time.Millisecond)
}

// Any fragment may be lost, come twice, or come in another order: a message is
// whole when all of it is there, and done once.
func TestFragmentsLostRepeatedAndReordered(t *testing.T) {
	for lost := range 4 {
		for _, shuffle := range []bool{false, true} {
			t.Run(fmt.Sprint(lost, shuffle), func(t *testing.T) {
				n, web, db := iketest.Pair(t, uint64(lost), large)
				count := -1
				n.Hook = func(p iketest.Packet) []iketest.Packet {
					if !isFragment(p) {
						return []iketest.Packet{p}
					}
					if count++; count == lost {
						return nil
					}
					if shuffle && count%2 == 0 {
						p.At = p.At.Add(time.Millisecond)
					}
					return []iketest.Packet{p, p}
				}
				web.Connect("rule", nil)
				n.Run(20 * time.Second)
				mustBeUp(t, n, web, db)
				if len(web.Up) != 1 || len(db.Up) != 1 || len(web.Failures)+len(db.Failures) != 0 {
					t.Errorf("up %d %d, failures %+v %+v", len(web.Up), len(db.Up), web.Failures, db.Failures)
				}
			})
		}
	}
}

// RFC 7383 §2.6.1: of a request that was answered, only the first fragment
// triggers the response again.
func TestOnlyTheFirstFragmentTriggersTheResponseAgain(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, large)
	var requests []iketest.Packet
	answers := 0
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if isFragment(p) && p.From == web {
			requests = append(requests, p)
		}
		if isFragment(p) && p.From == db {
			answers++
		}
		return []iketest.Packet{p}
	}
	web.Connect("rule", nil)
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	for i, want := range []int{2, 0} {
		answers = 0
		again := requests[i]
		again.At = time.Time{}
		n.Inject(again)
		n.Run(time.Second)
		if answers != want {
			t.Errorf("fragment %d was answered with %d fragments, want %d", i+1, answers, want)
		}
	}
}

// RFC 7383 §2.5.2: a path that loses 1280 octets is found out, and both sides go
// down to 576; a total that grows starts the reassembly over (§2.6).
func TestSmallerFragmentsAfterTimeouts(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, large)
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if len(p.Data)+udpAndIPv4 > 1240 {
			return nil // the second fragment of two is smaller, and arrives
		}
		return []iketest.Packet{p}
	}
	web.Connect("rule", nil)
	n.Run(20 * time.Second)
	mustBeUp(t, n, web, db)
	if len(web.Failures)+len(db.Failures) != 0 {
		t.Errorf("%+v %+v", web.Failures, db.Failures)
	}
	if text := n.LadderText(0); !strings.Contains(text, "request 1 { SKF(2/2, 1152) }") || !strings.Contains(text, "request 1 { SKF(1/6, 496) }") ||
		!strings.Contains(text, "response 1 { SKF(1/3, 496) }") {
		t.Error(text)
	}
	for _, h := range []*iketest.Host{web, db} {
		if o, c := h.Machine().HeldFragmentsForTest(); o != 0 || c != 0 {
			t.Errorf("%s still holds %d octets of %d messages", h.Name, o, c)
		}
	}
}

// What a peer can make us hold is bounded: in fragments, in octets, in time, and
// to one message each way.
func TestReassemblyIsBounded(t *testing.T) {
	n, web, db := connected(t, 1, nil)
	m, at := web.Machine(), db.Machine()
	fragment := func(number, total uint16, octets int) {
		send(n, web, db, m.SealFragmentForTest(wire.Informational, 2, wire.TypeNotify, number, total, make([]byte, octets)))
	}
	fragment(1, 200, 10)
	if db.Drops["fragment-bound"] != 1 {
		t.Errorf("200 fragments: %v", db.Drops)
	}
	for i := range uint16(60) {
		fragment(i+1, 100, 1200)
		if o, c := at.HeldFragmentsForTest(); o > 64<<10 || c > 1 {
			t.Fatalf("%d octets of %d messages are held", o, c)
		}
	}
	if db.Drops["fragment-bound"] != 2 {
		t.Errorf("64 KiB: %v", db.Drops)
	}
	fragment(1, 5, 10) // fewer fragments than those that are held
	fragment(60, 100, 10)
	if db.Drops["fragment-superseded"] != 1 || db.Drops["fragment-repeated"] != 1 {
		t.Errorf("%v", db.Drops)
	}
	n.Run(40 * time.Second)
	if o, c := at.HeldFragmentsForTest(); o != 0 || c != 0 || db.Drops["fragment-timeout"] != 1 {
		t.Errorf("after 40 s %d octets of %d messages are held; %v", o, c, db.Drops)
	}
	mustBeUp(t, n, web, db)
}

// Before the peer has authenticated it gets less room.
func TestReassemblyOfAStrangerIsSmall(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, nil)
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if h, _ := wire.ParseHeader(p.Data); h.Exchange == wire.IKEAuth {
			return nil
		}
		return []iketest.Packet{p}
	}
	web.Connect("rule", nil)
	n.Run(100 * time.Millisecond)
	for i := range uint16(40) {
		send(n, web, db, web.Machine().SealFragmentForTest(wire.IKEAuth, 1, wire.TypeIDi, i+1, 100, make([]byte, 1200)))
		if o, _ := db.Machine().HeldFragmentsForTest(); o > 16<<10 {
			t.Fatalf("%d octets are held", o)
		}
	}
	if db.Drops["fragment-bound"] == 0 {
		t.Errorf("%v", db.Drops)
	}
}

// RFC 7383 §2.6: a fragment is stored after its ICV has been checked. Damaged in
// any octet it changes nothing, although it comes first.
func TestDamagedFragmentsAreDropped(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, large)
	sent := 0
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		var out []iketest.Packet
		for i := range p.Data {
			if !isFragment(p) || i > 64 && i%50 != 0 {
				continue
			}
			bad := p
			bad.Data = bytes.Clone(p.Data)
			bad.Data[i] ^= 0x05
			bad.At = p.At.Add(-time.Millisecond)
			out = append(out, bad)
			sent++
		}
		return append(out, p)
	}
	web.Connect("rule", nil)
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	if sent < 100 || len(web.Failures)+len(db.Failures) != 0 {
		t.Errorf("sent %d, failures %+v %+v", sent, web.Failures, db.Failures)
	}
}

// FuzzFragments gives a responder fragments with any numbers and any content, all
// of them sealed with the live keys. It does not panic, keeps to its bounds, and
// is left with no SA without an owner.
func FuzzFragments(f *testing.F) {
	f.Add([]byte{1, 2, 41, 4, 0, 0, 0, 8, 2, 2, 0, 4, 0, 0, 0x40, 0x00})
	f.Add([]byte{2, 2, 0, 1, 9, 1, 2, 42, 2, 9, 9})
	f.Add([]byte{1, 1, 42, 8, 0, 0, 0, 8, 1, 0, 0, 0})
	f.Add([]byte{1, 3, 0, 0, 1, 4, 0, 0, 2, 4, 0, 0, 3, 4, 0, 0, 4, 4, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		n, web, db := connected(t, 1, nil)
		m, at := web.Machine(), db.Machine()
		for len(b) >= 4 { // number, total, type of the first payload, length
			part := b[4:]
			part = part[:min(len(part), int(b[3]))]
			send(n, web, db, m.SealFragmentForTest(wire.Informational, 2, wire.PayloadType(b[2]), uint16(b[0]), uint16(b[1]), part))
			if o, c := at.HeldFragmentsForTest(); o > 64<<10 || c > 1 {
				t.Fatalf("%d octets of %d messages are held", o, c)
			}
			b = b[4+len(part):]
		}
		n.Run(3 * time.Minute)
		for _, h := range []*iketest.Host{web, db} {
			if len(h.SAs) != 2*len(h.Children()) {
				t.Fatalf("%s has %d SAs of %d CHILD SAs\n%s", h.Name, len(h.SAs), len(h.Children()), n.LadderText(0))
			}
		}
	})
}
