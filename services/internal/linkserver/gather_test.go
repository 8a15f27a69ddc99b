package linkserver

import (
	"testing"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// What is ready travels together as far as one message keeps its order.
func TestWhatIsReadyTravelsInOneMessage(t *testing.T) {
	l := newLink()
	say := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	datagram := func(b byte) error { return l.SendIKE(ike.Path{}, []byte{b}) }
	say(datagram(1), datagram(2), l.Apply(push.Batch{Nonce: 1}), datagram(3), l.AcquireFailed(7, "why"), l.Apply(push.Batch{Nonce: 2}))
	for range gatherMost + 1 {
		say(datagram(4))
	}
	for i, want := range []struct {
		first     byte
		datagrams int
		nonce, id uint64
	}{{1, 2, 1, 0}, {3, 1, 0, 7}, {0, 0, 2, 0}, {4, gatherMost, 0, 0}, {4, 1, 0, 0}} {
		m := l.gather(<-l.down)
		if len(m.GetIke()) != want.datagrams || m.GetApply().GetNonce() != want.nonce || m.GetAcquireFailed().GetId() != want.id ||
			want.datagrams != 0 && m.GetIke()[0].GetData()[0] != want.first {
			t.Errorf("message %d is %v, want %+v", i, m, want)
		}
	}
	if len(l.down) != 0 {
		t.Errorf("%d messages are left", len(l.down))
	}
}
