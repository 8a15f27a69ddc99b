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
