package ikev2_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// windowed is web as a peer that uses the whole window of db: send makes a request
// of its own with a message ID, and answers are the IDs of db's responses, in order.
type windowed struct {
	n       *iketest.Net
	web, db *iketest.Host
	answers []uint32
	seen    map[uint32][]byte // the first response to each
}

func inWindow(t *testing.T) *windowed {
	n, web, db := connected(t, 1, nil)
	w := &windowed{n: n, web: web, db: db, seen: map[uint32][]byte{}}
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		if h, err := wire.ParseHeader(p.Data); err == nil && p.From == db && h.Response() {
			w.answers = append(w.answers, h.MessageID)
			if first := w.seen[h.MessageID]; first == nil {
				w.seen[h.MessageID] = bytes.Clone(p.Data)
			} else if !bytes.Equal(first, p.Data) {
				t.Errorf("the response to %d is not the one of before, bit by bit (RFC 7296 §2.1)", h.MessageID)
			}
			return nil // web knows nothing of these requests
		}
		return []iketest.Packet{p}
	}
	return w
}

func (w *windowed) request(id uint32, ps ...wire.Payload) []byte {
	return w.web.Machine().SealForTest(wire.Informational, id, false, ps)
}

func (w *windowed) send(datagrams ...[]byte) {
	path := w.web.Machine().Info().Path
	for i, d := range datagrams {
		w.n.Inject(iketest.Packet{From: w.web, To: w.db, Src: path.Local, Dst: path.Remote, Data: d, At: w.n.Now.Add(time.Duration(i+1) * time.Millisecond)})
	}
	w.n.Run(time.Second)
}

func (w *windowed) want(t *testing.T, ids ...uint32) {
	t.Helper()
	if !slices.Equal(w.answers, ids) {
		t.Errorf("answers to %v, want %v; drops %v", w.answers, ids, w.db.Drops)
	}
	w.answers = nil
}

// RFC 7296 §2.3: both ends tell their window, and requests that come out of order
// within it are served, in order.
func TestRequestsOfAWindowAreServedInOrder(t *testing.T) {
	w := inWindow(t)
	if s := w.n.LadderText(0); strings.Count(s, "N(SET_WINDOW_SIZE)") != 2 {
		t.Fatalf("want SET_WINDOW_SIZE in both IKE_AUTH messages:\n%s", s)
	}
	w.send(w.request(4), w.request(3), w.request(5), w.request(2))
	w.want(t, 2, 3, 4, 5)
	// Responses of the window are kept, of what is before it not (§2.3).
	w.send(w.request(2), w.request(3), w.request(4), w.request(5), w.request(1))
	w.want(t, 2, 3, 4, 5)
}

// What is beyond the window, comes twice, or is no message of the peer's is dropped,
// and memory stays bounded.
func TestTheWindowIsBounded(t *testing.T) {
	w := inWindow(t)
	forged := w.request(3)
	forged[len(forged)-1] ^= 1
	w.send(w.request(6), w.request(7), forged, w.request(3), w.request(3), w.request(4), w.request(5))
	w.want(t)
	for why, n := range map[string]int{"message-id-out-of-window": 2, "integrity": 1, "request-in-progress": 1} {
		if w.db.Drops[why] != n {
			t.Errorf("%d dropped as %s, want %d: %v", w.db.Drops[why], why, n, w.db.Drops)
		}
	}
	w.send(w.request(2))
	w.want(t, 2, 3, 4, 5)
	for id := uint32(6); id < 40; id++ {
		w.send(w.request(id))
	}
	w.answers = nil
	w.send(w.request(35), w.request(36), w.request(39))
	w.want(t, 36, 39)
}

// Requests that depend on one another come out of order: the second deletes what the
// first would rekey. In order of message IDs both ends agree on what is left.
func TestADeleteThatOvertakesIsServedAfterwards(t *testing.T) {
	w := inWindow(t)
	spi := w.web.Children()[0].SPIIn
	w.send(w.request(3), w.request(2, &wire.Delete{Protocol: wire.ProtocolID(ipsec.ProtocolESP), SPIs: []ipsec.SPI{spi}}))
	w.want(t, 2, 3)
	if c := w.db.Children(); len(c) != 0 || len(w.db.SAs) != 0 {
		t.Errorf("children %+v, SAs %v; want none", c, w.db.SAs)
	}
}

// The IKE SA ends while requests wait: they are forgotten.
func TestEarlyRequestsEndWithTheIKESA(t *testing.T) {
	w := inWindow(t)
	w.send(w.request(3), w.request(4), w.request(2, &wire.Delete{Protocol: wire.ProtocolID(ipsec.ProtocolIKE)}))
	w.want(t, 2)
	if len(w.db.Machines) != 0 || len(w.db.SAs) != 0 {
		t.Errorf("%d machines, SAs %v; want none", len(w.db.Machines), w.db.SAs)
	}
}

// While a slow request is served, the next ones wait for it.
func TestEarlyRequestsWaitForASlowOne(t *testing.T) {
	n, web, db := connected(t, 1, func(w, d *iketest.Side) {
		w.IKE = []string{"aes128gcm16-prfsha256-modp2048"}
		d.IKE = w.IKE
	})
	var held ike.Event
	db.Answer = func(f ike.Effect, ev ike.Event) ike.Event {
		if _, slow := f.(ike.NeedKE); slow && held == nil {
			held = ev
			return nil
		}
		return ev
	}
	path, m := web.Machine().Info().Path, db.Machine()
	later := web.Machine().SealForTest(wire.Informational, 3, false, nil)
	web.Do(ike.RekeyIKE{}) // request 2
	n.Run(100 * time.Millisecond)
	n.Inject(iketest.Packet{From: web, To: db, Src: path.Local, Dst: path.Remote, Data: later})
	n.Run(100 * time.Millisecond)
	n.Ladder = nil
	if held == nil {
		t.Fatal("db does not compute anything")
	}
	db.Tell(m, held)
	s := n.LadderText(0)
	first, second := strings.Index(s, "CREATE_CHILD_SA response 2"), strings.Index(s, "INFORMATIONAL response 3")
	if first < 0 || second < first {
		t.Errorf("want the responses to 2 and then to 3:\n%s", s)
	}
}

// rekeyAll rekeys every CHILD SA of a host.
func rekeyAll(h *iketest.Host) {
	for _, c := range h.Children() {
		h.Do(ike.RekeyChild{Child: c.ID})
	}
}

// mustBeRekeyed checks that each CHILD SA was replaced so many times, without a
// failure; withResources has checked that at each moment each end could send.
func mustBeRekeyed(t *testing.T, n *iketest.Net, times uint32, hosts ...*iketest.Host) {
	t.Helper()
	for _, h := range hosts {
		for _, c := range h.Children() {
			if c.Rekeyed != times {
				t.Errorf("%s: CHILD SA of resource %d was rekeyed %d times, want %d", h.Name, c.Resource, c.Rekeyed, times)
			}
		}
		if len(h.Failures) != 0 {
			t.Errorf("%s: %+v", h.Name, h.Failures)
		}
	}
	if t.Failed() {
		t.Log(n.LadderText(0))
	}
}

// RFC 7296 §2.3: within the window that the peer grants, requests that concern
// different CHILD SAs are under way together. That no request is beyond the window is
// checked by iketest, in all tests.
func TestRequestsAreUnderWayTogether(t *testing.T) {
	n, web, db := withResources(t, 7, 7)
	if web.InFlight != 4 { // resources are asked for by the initiator
		t.Errorf("at most %d requests were under way, want 4", web.InFlight)
	}
	web.InFlight = 0
	rekeyAll(web)
	n.Run(10 * time.Second)
	mustHave(t, n, web, 0, 1, 2, 3, 4, 5, 6, 7)
	mustBeRekeyed(t, n, 1, web, db)
	if web.InFlight != 4 {
		t.Errorf("at most %d requests were under way, want 4", web.InFlight)
	}
	// Both ends at once: the rekeys of the same CHILD SA collide, eight times.
	rekeyAll(web)
	rekeyAll(db)
	n.Run(20 * time.Second)
	mustHave(t, n, web, 0, 1, 2, 3, 4, 5, 6, 7)
	mustHave(t, n, db, 0, 1, 2, 3, 4, 5, 6, 7)
	mustBeRekeyed(t, n, 2, web, db)
}

// "An IKE endpoint MUST wait for a response to each of its messages before sending a
// subsequent message unless it has received a SET_WINDOW_SIZE" (RFC 7296 §2.3).
func TestAPeerWithoutAWindowGetsOneRequestAtATime(t *testing.T) {
	n, web, db := withResources(t, 3, 3)
	web.Machine().ForgetWindowForTest()
	web.InFlight = 0
	rekeyAll(web)
	n.Run(10 * time.Second)
	mustBeRekeyed(t, n, 1, web, db)
	if web.InFlight != 1 {
		t.Errorf("%d requests were under way, want 1", web.InFlight)
	}
}

// The oldest request is not answered: what is beyond the window waits, also the next
// exchange of a rekey with several key exchanges, and then goes on.
func TestTheWindowWaitsForItsOldestRequest(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) {
		w.ESP, d.ESP = []string{hybridESP}, []string{hybridESP}
		w.Resources, d.Resources = 7, 7
	})
	web.Connect("rule", nil)
	n.Run(5 * time.Second)
	mustHave(t, n, web, 0, 1, 2, 3, 4, 5, 6, 7)
	var first uint32
	lost := true
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		h, _ := wire.ParseHeader(p.Data)
		if first == 0 && p.From == web {
			first = h.MessageID
		}
		if lost && h.MessageID == first {
			return nil
		}
		return []iketest.Packet{p}
	}
	n.Ladder = nil
	rekeyAll(web)
	n.Run(10 * time.Second)
	if s := n.LadderText(0); strings.Count(s, "IKE_FOLLOWUP_KE request") != 0 || web.InFlight != 4 {
		t.Errorf("want four requests and no IKE_FOLLOWUP_KE while the first is lost:\n%s", s)
	}
	lost = false
	n.Run(20 * time.Second)
	mustBeRekeyed(t, n, 1, web, db)
}

// Responses in fragments come mixed with one another: each is put together by itself.
func TestResponsesInFragmentsComeMixed(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) {
		w.ESP = []string{"aes128gcm16-x25519-ke1_mlkem1024"}
		d.ESP = w.ESP
		w.Resources, d.Resources = 3, 3
	})
	web.Connect("rule", nil)
	n.Run(5 * time.Second)
	mustHave(t, n, web, 0, 1, 2, 3)
	sent := 0
	n.Hook = func(p iketest.Packet) []iketest.Packet {
		// First fragments together, then second ones.
		if h, _ := wire.ParseHeader(p.Data); h.Next == wire.TypeSKF && h.Response() {
			if sent++; sent%2 == 0 {
				p.At = p.At.Add(200 * time.Millisecond)
			}
		}
		return []iketest.Packet{p}
	}
	n.Ladder = nil
	rekeyAll(web)
	n.Run(900 * time.Millisecond) // before anything is retransmitted
	mustBeRekeyed(t, n, 1, web, db)
	if sent < 8 {
		t.Errorf("%d fragments of responses, want two for each of 4 CHILD SAs", sent)
	}
}

// A rekey of the IKE SA waits for the others and is not overtaken; the new IKE SA
// starts "with window size 1 until it is explicitly increased" (RFC 7296 §2.3).
func TestTheWindowOfANewIKESA(t *testing.T) {
	n, web, db := withResources(t, 7, 7)
	n.Ladder = nil
	rekeyAll(web)
	web.Do(ike.RekeyIKE{})
	n.Run(10 * time.Second)
	mustBeRekeyed(t, n, 1, web, db)
	s := n.LadderText(0)
	if len(web.Machines) != 1 || strings.Count(s, "N(SET_WINDOW_SIZE)") != 2 {
		t.Fatalf("%d IKE SAs; want a rekey of the IKE SA, and SET_WINDOW_SIZE from both ends:\n%s", len(web.Machines), s)
	}
	web.InFlight = 0
	rekeyAll(web)
	n.Run(10 * time.Second)
	mustBeRekeyed(t, n, 2, web, db)
	if web.InFlight != 4 {
		t.Errorf("at most %d requests were under way, want 4", web.InFlight)
	}
}

// A key manager is killed with the window full, in each step of the exchanges.
func TestRestartsWithAFullWindow(t *testing.T) {
	for wait := range 12 {
		n, web, db := withResources(t, 7, 7)
		rekeyAll(web)
		n.Run(time.Duration(wait) * 4 * time.Millisecond)
		web.Restart(web.Machine())
		n.Run(20 * time.Second)
		mustHave(t, n, web, 0, 1, 2, 3, 4, 5, 6, 7)
		mustHave(t, n, db, 0, 1, 2, 3, 4, 5, 6, 7)
		mustBeRekeyed(t, n, 1, web, db)
	}
}

// A key manager is killed while it computes a shared secret, for longer than the others
// in the window take: its request is sent again, and the peer still has the response.
func TestARestartWhileASecretIsComputed(t *testing.T) {
	n, web, db := iketest.Pair(t, 1, func(w, d *iketest.Side) {
		w.PFS, d.PFS = ipsec.KEMODP2048, ipsec.KEMODP2048
		w.Resources, d.Resources = 11, 11
	})
	web.Connect("rule", nil)
	n.Run(10 * time.Second)
	all := []uint32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
	mustHave(t, n, web, all...)
	held := false
	web.Answer = func(f ike.Effect, ev ike.Event) ike.Event {
		if need, slow := f.(ike.NeedKE); slow && need.Peer != nil && !held {
			held = true
			return nil
		}
		return ev
	}
	rekeyAll(web)
	n.Run(time.Second)
	if !held {
		t.Fatal("web does not compute anything")
	}
	web.Restart(web.Machine())
	n.Run(2 * time.Minute)
	mustHave(t, n, web, all...)
	mustBeRekeyed(t, n, 1, web, db)
}
