package ikev2

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/archive/archivetest"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// notSaved are the fields that need not survive a restart, or survive in another
// form. A field that is new is saved in saved.go or stands here, with the reason.
var notSaved = map[string]string{
	"Machine.env":        "given to Restore",
	"Machine.policy":     "comes anew, as PolicyChanged",
	"Machine.candidates": "until IKE_AUTH only",
	"Machine.prf":        "made from keys",
	"Machine.tx":         "made from keys; its IV counter is saved and goes on far ahead",
	"Machine.rx":         "made from keys",
	"Machine.first":      "until IKE_AUTH only",
	"Machine.restored":   "set by Restore",
	"Machine.serve":      "the peer sends its request again",
	"Machine.followUps":  "the peer is told STATE_NOT_FOUND, and starts over",
	"window.early":       "the peer sends it again",
	"window.rx":          "until IKE_AUTH only; the one of now otherwise",
	"Machine.heard":      "resume sets it, spread in time",
	"Machine.now":        "set by each event",
	"Machine.task":       "between events none is",
	"Machine.effects":    "of the event at hand; performed after the write",

	"fragmentation.requests": "the peer sends its message again",

	"child.rekey": "the engine asks again, when the worker still does not take an SA of it",

	"task.response": "the peer sends its message again",
	"task.phase":    "checked by TestPhases",
	"task.sent":     "the request is sent anew",
	"task.sendAt":   "resume sets it",
	"task.refused":  "IKE_SA_INIT only",
	"half.pair":     "made from State",

	"negotiation.sa":  "made from proposals",
	"task.crossed":    "only child, ni, nr and void of it, which is what is compared",
	"choice.proposal": "the responder's, used up when the machine is made",
}

// whole is a machine in which everything is set.
func whole() *Machine {
	suites, err := ipsec.ParseProposal(ipsec.ProtocolIKE, "aes128gcm16-prfsha256-x25519")
	if err != nil {
		panic(err)
	}
	m := &Machine{state: stateEstablished, initiator: true, spiI: 1, spiR: 2, path: ike.Path{Node: "n"}}
	m.created = time.Unix(1_700_000_000, 0)
	m.keys = suite.IKEKeys{}
	s := ipsec.Suite{Protocol: ipsec.ProtocolIKE, Encr: suites.OfType(ipsec.TransformENCR)[0], PRF: suites.OfType(ipsec.TransformPRF)[0], KE: suites.OfType(ipsec.TransformKE)[0]}
	if err := m.keyIKE(s, ipsec.CopySecret(bytes.Repeat([]byte{7}, 32)), []byte("ni"), []byte("nr")); err != nil {
		panic(err)
	}
	a, b := &child{Child: ike.Child{ID: 10}}, &child{Child: ike.Child{ID: 20}, out: &ipsec.SA{}}
	m.children = []*child{a, b}
	k, _ := suite.LookupKE(ipsec.KEX25519)
	pair, err := k.Generate(zeroes{})
	if err != nil {
		panic(err)
	}
	next := *m
	next.children = nil
	m.flight = []*task{{kind: taskRekeyChild, child: 10, phase: phaseSent, exchange: wire.CreateChildSA,
		half:    half{Method: ipsec.KEX25519, Public: pair.Public, State: pair.Private, pair: &pair},
		nego:    &negotiation{initiator: true, proposals: []ipsec.Proposal{suites}, child: b},
		ike:     &ikeNegotiation{},
		crossed: &negotiation{child: a}, crossIKE: &ikeNegotiation{machine: &next}}}
	return m
}

type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(i) + 1
	}
	return len(b), nil
}

func again(m *Machine) (*Machine, error) {
	b, ok := m.Save(nil)
	if !ok {
		return nil, errors.New("it is not saved")
	}
	return Restore(m.env, b)
}

// notChanged are the fields that are not saved, and those that changed alone make a
// machine that cannot be, which Restore refuses.
func notChanged() map[string]string {
	out := maps.Clone(notSaved)
	for _, f := range []string{"Suite.Protocol", "Suite.Encr", "Suite.Integ", "Suite.PRF", "half.Method", "half.State",
		"IKEKeys.SKei", "IKEKeys.SKai", "IKEKeys.SKar", "Machine.state", "task.kind", "task.exchange"} {
		out[f] = "together with others only"
	}
	return out
}

func TestEveryFieldIsSavedOrExplained(t *testing.T) {
	lost := notChanged()
	lost["Machine.queue"] = "TestWaitingTasks"
	archivetest.EveryField(t, whole, again, lost)
	m, err := again(whole())
	if err != nil {
		t.Fatal(err)
	}
	w := whole()
	if m.suite != w.suite || !m.keys.SKei.Equal(w.keys.SKei) || m.state != w.state || m.flight[0].kind != w.flight[0].kind || m.flight[0].exchange != w.flight[0].exchange ||
		m.flight[0].half.Method != w.flight[0].half.Method || !m.flight[0].half.State.Equal(w.flight[0].half.State) || m.flight[0].half.pair == nil {
		t.Errorf("what is saved together came back different")
	}
	if m.flight[0].crossed.child != m.children[0] || m.flight[0].nego.child != m.children[1] || m.flight[0].nego.sa == nil {
		t.Errorf("references to CHILD SAs came back different")
	}
}

func TestLayoutHasAVersion(t *testing.T) {
	archivetest.Layout(t, savedVersion, map[int]string{2: "e1fab5e90c9ec53e"}, whole, func(m *Machine) []byte {
		b, ok := m.Save(nil)
		if !ok {
			t.Fatal("it is not saved")
		}
		return b
	}, notChanged())
}

func TestWaitingTasks(t *testing.T) {
	begun := []string{"begun", "phase", "wait", "half", "nego", "ike", "crossed", "dead", "crossIKE", "more", "secrets", "link", "exchange", "id", "path", "cookie2", "plain", "datagrams", "sent", "sendAt", "refused", "response"}
	lost := make(map[string]string)
	for _, f := range begun {
		lost["task."+f] = "set when it begins"
	}
	archivetest.EveryField(t, func() *task { return new(task) }, func(v *task) (*task, error) {
		m := whole()
		m.queue = []task{{kind: taskLiveness}, *v}
		r, err := again(m)
		if err != nil {
			return nil, err
		}
		return &r.queue[1], nil
	}, lost)
}

// Where a task is taken up again, by what it was waiting for.
func TestPhases(t *testing.T) {
	for p, want := range map[phase]phase{phaseSent: phaseSent, phaseShared: phaseSent, phaseInstallIn: phaseInstallIn, phaseInstallOut: phaseInstallOut} {
		m := whole()
		m.flight[0].phase = p
		if p == phaseInstallIn { // after the last IKE_FOLLOWUP_KE
			m.flight[0].exchange = wire.IKEFollowUpKE
		}
		r, err := again(m)
		if err != nil || len(r.flight) != 1 || r.flight[0].phase != want {
			t.Errorf("phase %d: got %+v, %v; want phase %d", p, r, err, want)
		}
	}
	for _, p := range []phase{phaseNew, phaseKey, phaseTurn} {
		m := whole()
		m.flight[0].phase = p
		r, err := again(m)
		if err != nil || len(r.flight) != 0 || len(r.queue) != 1 || r.queue[0].kind != taskRekeyChild || r.queue[0].child != 10 {
			t.Errorf("phase %d: %v; want the task back in the queue", p, err)
		}
	}
	m := whole()
	m.serve = &serve{child: &negotiation{child: m.children[0]}}
	m.flight = nil
	if r, err := again(m); err != nil || len(r.children) != 1 || r.children[0].ID != 20 {
		t.Errorf("a CHILD SA whose request is not answered yet: %v", err)
	}
	for _, s := range []state{stateIdle, stateConnecting, stateRefused, stateGone} {
		m := whole()
		m.state = s
		if _, ok := m.Save(nil); ok {
			t.Errorf("a machine in state %d was saved", s)
		}
	}
}

// As much as a machine can hold is saved: each CHILD SA with one that replaces it, and a
// full queue with the tasks that begin again.
func TestAMachineThatIsFullIsSaved(t *testing.T) {
	m := whole()
	m.flight = nil
	for i := range uint64(maxChildren) {
		m.children = append(m.children, &child{Child: ike.Child{ID: 100 + i}}, &child{Child: ike.Child{ID: 100 + maxChildren + i}})
	}
	for i := range uint64(maxQueue + windowSize) {
		m.enqueue(task{kind: taskRekeyChild, child: 100 + i})
	}
	for i := range uint64(windowSize) {
		m.flight = append(m.flight, &task{kind: taskDeleteChild, child: 4711 + i, phase: phaseKey})
	}
	m.urgent(taskUpdate)
	r, err := again(m)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.children) != len(m.children) || len(r.queue) != len(m.queue)+windowSize {
		t.Errorf("%d CHILD SAs and %d tasks, want all of %d and %d", len(r.children), len(r.queue), len(m.children), len(m.queue)+windowSize)
	}
}

// What an exchange under way has computed, and an answer that comes too late for it, is
// overwritten with the IKE SA's end.
func TestNoSecretOutlivesTheMachine(t *testing.T) {
	var secrets []ipsec.Secret
	for range 4 {
		secrets = append(secrets, ipsec.CopySecret([]byte("a secret")))
	}
	m := whole()
	m.flight[0].secrets = secrets[:1]
	m.serve = &serve{followUp: &followUp{secrets: secrets[1:2]}}
	secrets = slices.Concat(secrets, []ipsec.Secret{m.keys.SKd, m.flight[0].half.State})
	m.Handle(time.Unix(1_800_000_000, 0), ike.KeyExchanged{ID: 4711, State: secrets[2], Shared: secrets[3]})
	m.end("test")
	for i, s := range secrets {
		if !bytes.Equal(s.Reveal(), make([]byte, s.Len())) || s.Len() == 0 {
			t.Errorf("secret %d is still there", i)
		}
	}
}

// A restored machine's IV counter is past any that the one before it can have used.
func TestNoIVTwice(t *testing.T) {
	m := whole()
	b, _ := m.Save(nil)
	for range 100 {
		m.seal(plainOf(wire.Informational, 0, false, nil)) // not saved any more
	}
	for range 3 { // the same copy each time, as one rolled back is
		r, err := Restore(m.env, b)
		if err != nil {
			t.Fatal(err)
		}
		if r.tx.NextIV() <= m.tx.NextIV() {
			t.Fatalf("restored with IV %d, and %d was used", r.tx.NextIV(), m.tx.NextIV()-1)
		}
	}
}

// Nothing that is read panics, and what is accepted can be saved and run.
func FuzzRestore(f *testing.F) {
	save := func(m *Machine) []byte { b, _ := m.Save(nil); return b }
	f.Add(save(whole()))
	m := whole()
	m.flight = nil
	f.Add(save(m))
	for _, x := range []wire.ExchangeType{wire.CreateChildSA, wire.IKEFollowUpKE, wire.Informational} {
		for k := range taskIntroduce + 1 {
			m = whole()
			m.flight[0] = &task{kind: k, phase: phaseSent, exchange: x}
			f.Add(save(m))
			m.flight[0].more, m.flight[0].secrets, m.flight[0].ike = []uint16{1}, []ipsec.Secret{ipsec.CopySecret([]byte{1})}, &ikeNegotiation{}
			f.Add(save(m))
		}
	}
	env := ike.Env{Rand: zeroes{}, AllocSPI: func() ipsec.SPI { return 4711 }, NextID: func() uint64 { return 1 << 40 }}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Restore(env, b)
		if err != nil {
			return
		}
		if _, ok := m.Save(nil); !ok {
			t.Fatal("what was restored cannot be saved")
		}
		now := time.Unix(1_800_000_000, 0)
		m.Handle(now, ike.Restored{})
		m.Handle(now, ike.PolicyChanged{Policy: &ipsec.NodePolicy{}})
		for _, t := range slices.Clone(m.flight) {
			if m.state == stateGone {
				break
			}
			x := *m // the peer, that knows the keys
			x.initiator, x.tx = !m.initiator, m.rx
			for _, b := range x.seal(plainOf(t.exchange, t.id, true, []wire.Payload{&wire.Notify{Message: wire.NoProposalChosen}})) {
				m.Handle(now, ike.Datagram{Path: m.path, Data: b})
			}
		}
		for range 20 {
			m.Handle(now, ike.Timer{})
			m.Info()
			now = now.Add(time.Minute)
		}
	})
}

func BenchmarkSave(b *testing.B) {
	m := whole()
	m.flight = nil
	var buf []byte
	for b.Loop() {
		buf, _ = m.Save(buf[:0])
	}
	b.ReportMetric(float64(len(buf)), "octets")
}
