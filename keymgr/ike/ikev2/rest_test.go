package ikev2

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/archive/archivetest"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// notRested are the fields that a responder at rest does not have, or has in another
// form. A field that is new is added to archiveResting or stands here, with the reason.
var notRested = map[string]string{
	"Machine.env":        "given to Wake",
	"Machine.policy":     "given to Wake",
	"Machine.candidates": "given to Wake",
	"Path.Node":          "that of the policy",
	"Machine.state":      "one of the two in which a machine may rest: TestRefusalIsRepeatedAfterRest",
	"Machine.initiator":  "responders rest",
	"Machine.spiI":       "in the response",
	"Machine.spiR":       "in the response",
	"Machine.suite":      "in the response",
	"Machine.keys":       "derived from skeyseed",
	"Machine.prf":        "derived from skeyseed",
	"Machine.tx":         "derived from skeyseed",
	"Machine.rx":         "derived from skeyseed",
	"Machine.peer":       "found in IKE_AUTH",
	"Machine.secret":     "initiators only",
	"Machine.kind":       "set within IKE_AUTH",
	"Machine.localAuth":  "set within IKE_AUTH",
	"Machine.remoteAuth": "set within IKE_AUTH",
	"Machine.ppk":        "set within IKE_AUTH",
	"Machine.localID":    "set within IKE_AUTH",
	"Machine.remoteID":   "set within IKE_AUTH",
	"Machine.peerToken":  "set within IKE_AUTH",
	"Machine.restored":   "established IKE SAs only",
	"Machine.task":       "one that has something to do does not rest",
	"Machine.flight":     "one that has something to do does not rest",
	"Machine.queue":      "one that has something to do does not rest",
	"Machine.serve":      "one that has something to do does not rest",
	"Machine.followUps":  "established IKE SAs only",
	"Machine.children":   "established IKE SAs only",
	"Machine.drains":     "established IKE SAs only",
	"Machine.since":      "established IKE SAs only",
	"Machine.heard":      "established IKE SAs only",
	"Machine.rekeyAt":    "established IKE SAs only",
	"Machine.reauthAt":   "established IKE SAs only",
	"Machine.proveBy":    "established IKE SAs only",
	"Machine.endAt":      "established IKE SAs only",
	"Machine.now":        "set by each event",
	"Machine.effects":    "of the event at hand",

	"mobility.on":            "set within IKE_AUTH",
	"mobility.deciding":      "set within IKE_AUTH",
	"mobility.remote":        "set within IKE_AUTH",
	"mobility.told":          "set within IKE_AUTH",
	"mobility.children":      "set within IKE_AUTH",
	"mobility.refused":       "established IKE SAs only",
	"mobility.seen":          "established IKE SAs only",
	"fragmentation.requests": "one that has fragments does not rest",
	"window.next":            "0 until IKE_AUTH",
	"window.granted":         "set within IKE_AUTH",
	"window.size":            "set within IKE_AUTH",
	"window.rx":              "made from ske and ska",
	"window.older":           "established IKE SAs only",
	"window.early":           "established IKE SAs only",

	"firstContact.ni":        "in the request",
	"firstContact.nr":        "in the response",
	"firstContact.request":   "TestRest: it has to be one",
	"firstContact.response":  "TestRest: it has to be one",
	"firstContact.answer":    "used up by the response",
	"firstContact.cookie":    "initiators only",
	"firstContact.cookies":   "initiators only",
	"firstContact.methods":   "initiators only",
	"firstContact.reply":     "used up by the response",
	"firstContact.childless": "initiators only",
	"firstContact.public":    "used up by the response",
	"firstContact.secrets":   "set within IKE_AUTH",
	"firstContact.judged":    "set within IKE_AUTH",
	"firstContact.missing":   "set within IKE_AUTH",
	"intermediate.methods":   "the suite's, without those that are done",
	"intermediate.done":      "TestRest: it counts methods",
	"intermediate.ske":       "TestRest: it is as long as the suite wants",
	"intermediate.ska":       "TestRest: it is as long as the suite wants",
	"authOffer.hashes":       "in the request",
	"authOffer.announced":    "in the request",
	"authOffer.announces":    "in the request",
	"authOffer.asked":        "in the request",
	"authOffer.wanted":       "in the request",
	"authOffer.authorities":  "used up by the response",
	"ppkUse.asked":           "used up by the response",
	"ppkUse.without":         "set within IKE_AUTH",
	"ppkUse.applied":         "set within IKE_AUTH",
	"ppkUse.secret":          "initiators only",
}

// halfOpen is a responder that has answered the first message, and that message's
// sender. Both have the suite.
func halfOpen(t testing.TB, suite string) (responder, initiator *Machine) {
	t.Helper()
	p, err := ipsec.ParseProposal(ipsec.ProtocolIKE, suite)
	if err != nil {
		t.Fatal(err)
	}
	policy := &ipsec.NodePolicy{Node: "n", Peers: []ipsec.Peer{{Name: "p", Proposals: []ipsec.Proposal{p}, Auth: []ipsec.AuthMethod{{PSK: "file:psk"}}}}}
	env, now := ike.Env{NextID: func() uint64 { return 1 }}, time.Unix(1_700_000_000, 0)
	path := ike.Path{Node: "n", Local: netip.MustParseAddrPort("192.0.2.1:500"), Remote: netip.MustParseAddrPort("192.0.2.2:500")}
	initiator = NewInitiator(env, policy, policy.Peers[0], ike.Path{Local: path.Remote, Remote: path.Local})
	responder = NewResponder(env, policy, policy.Peers, path)
	responder.Handle(now, ike.Addresses{Local: []netip.Addr{path.Local.Addr()}})
	pass(now, responder, path, initiator.Handle(now, ike.Connect{}))
	return responder, initiator
}

// pass gives a machine what another one has sent.
func pass(now time.Time, to *Machine, path ike.Path, effects []ike.Effect) (answer []ike.Effect) {
	for _, f := range effects {
		if s, ok := f.(ike.Send); ok {
			answer = append(answer, to.Handle(now, ike.Datagram{Path: path, Data: s.Data})...)
		}
	}
	return answer
}

func afterRest(m *Machine) (*Machine, error) {
	b, ok := m.Rest(nil)
	if !ok {
		return nil, errors.New("it does not rest")
	}
	return Wake(m.env, m.policy, m.candidates, b)
}

func TestEveryFieldRestsOrIsExplained(t *testing.T) {
	fresh := func() *Machine {
		m, _ := halfOpen(t, "aes128gcm16-prfsha256-x25519-ke1_mlkem768")
		if err := m.deriveKeys(); err != nil {
			t.Fatal(err)
		}
		m.first.more.done, m.first.more.ske = 1, m.keys.SKei.Clone()
		return m
	}
	archivetest.EveryField(t, fresh, afterRest, notRested)
}

// What is read from the messages again, or made from what is kept, is what it was;
// and the memory is what docs/threat-model.md says.
func TestRest(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for _, c := range []struct {
		suite string
		most  int
	}{
		{"aes256gcm16-prfsha256-x25519", 512},
		{"aes256-sha256-prfsha256-x25519", 576},
		{"aes256gcm16-prfsha256-x25519-ke1_mlkem768", 576},
	} {
		m, i := halfOpen(t, c.suite)
		compare := func(stage string, most int) {
			t.Helper()
			was := *m
			first := *m.first
			b, ok := m.Rest(nil)
			if !ok || len(b) > most {
				t.Fatalf("%s, %s: rests: %t, in %d octets; want at most %d", c.suite, stage, ok, len(b), most)
			}
			if !first.skeyseed.Equal(ipsec.NewSecret(make([]byte, 32))) {
				t.Errorf("%s, %s: SKEYSEED is left in the machine that rests", c.suite, stage)
			}
			again, err := Wake(was.env, was.policy, was.candidates, b)
			if err != nil {
				t.Fatalf("%s, %s: %v", c.suite, stage, err)
			}
			f := again.first
			if again.state != was.state || again.spiI != was.spiI || again.spiR != was.spiR || again.suite != was.suite || again.path != was.path ||
				string(f.ni) != string(first.ni) || string(f.nr) != string(first.nr) || string(f.request) != string(first.request) ||
				string(f.response) != string(first.response) || len(f.more.methods) != len(first.more.methods) {
				t.Errorf("%s, %s: it came back different", c.suite, stage)
			}
			m = again
		}
		compare("after IKE_SA_INIT", c.most)
		at, back := m.path, i.path
		request := pass(now, i, back, []ike.Effect{ike.Send{Data: m.first.response}})
		for len(i.first.more.methods) > 0 {
			answer := pass(now, m, at, request)
			compare("after IKE_INTERMEDIATE", 2048)
			if repeated := pass(now, m, at, request[:1]); len(answer) == 0 || len(repeated) == 0 {
				t.Fatalf("%s: IKE_INTERMEDIATE has no answer, or a repeated one has none", c.suite)
			}
			request = pass(now, i, back, answer)
		}
		if err := m.deriveKeys(); err != nil || !m.keys.SKpi.Equal(i.keys.SKpi) || !m.keys.SKer.Equal(i.keys.SKer) {
			t.Errorf("%s: the keys are not those of the initiator: %v", c.suite, err)
		}
	}
}

// A profile that must not be used over TCP is none after rest either.
func TestProfilesWithoutTCPStayOutAfterRest(t *testing.T) {
	m, _ := halfOpen(t, "aes256gcm16-prfsha256-x25519")
	m.path.TCP = true
	never := m.candidates[0]
	never.Name = "never"
	m.candidates[0].TCP = ipsec.TCPFallback
	b, ok := m.Rest(nil)
	if !ok {
		t.Fatal("it does not rest")
	}
	again, err := Wake(m.env, m.policy, []ipsec.Peer{m.candidates[0], never}, b)
	if err != nil || len(again.candidates) != 1 || again.candidates[0].Name != "p" {
		t.Errorf("candidates %+v, %v; want p alone", again.candidates, err)
	}
}

// A refusal is repeated to whoever repeats the request, rest or no rest.
func TestRefusalIsRepeatedAfterRest(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	m, i := halfOpen(t, "aes256gcm16-prfsha256-x25519")
	i.peer.LocalID = ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: "i"}
	i.localID = i.peer.LocalID
	m.candidates[0].RemoteID = ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: "somebody-else"}
	need := pass(now, i, i.path, []ike.Effect{ike.Send{Data: m.first.response}})
	request := i.Handle(now, ike.PSKs{ID: need[0].(ike.NeedPSK).ID, Secrets: []ipsec.Secret{ipsec.NewSecret([]byte("psk"))}})
	refusal := pass(now, m, m.path, request)
	if m.state != stateRefused {
		t.Fatalf("state %d, want that of one that refused: %v", m.state, refusal)
	}
	m, err := afterRest(m)
	if err != nil || m.state != stateRefused {
		t.Fatalf("it does not rest as one that refused: %v", err)
	}
	var sent, again []byte
	for _, f := range refusal {
		if s, ok := f.(ike.Send); ok {
			sent = s.Data
		}
	}
	for _, f := range pass(now, m, m.path, request) {
		if s, ok := f.(ike.Send); ok {
			again = s.Data
		}
	}
	if sent == nil || string(sent) != string(again) {
		t.Errorf("the refusal was %x, and repeated it is %x", sent, again)
	}
}

// One that has more than rests is not spent: it goes on as it is.
func TestWhatDoesNotRestIsNotSpent(t *testing.T) {
	m, _ := halfOpen(t, "aes256gcm16-prfsha256-x25519")
	m.Handle(m.now, ike.Addresses{Local: make([]netip.Addr, maxChildren+1)})
	if _, ok := m.Rest(nil); ok {
		t.Fatal("it rests, with more addresses than Wake reads")
	}
	if m.first.skeyseed.Equal(ipsec.NewSecret(make([]byte, 32))) {
		t.Error("SKEYSEED is gone")
	}
}
