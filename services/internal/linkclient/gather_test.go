package linkclient

import (
	"testing"

	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
)

// Datagrams that are ready travel together; what comes behind them is next, and is not
// overtaken.
func TestDatagramsThatAreReadyTravelInOneMessage(t *testing.T) {
	c := &Client{up: make(chan *keymgrv1.AttachRequest, queue)}
	datagram := func() *keymgrv1.AttachRequest {
		return &keymgrv1.AttachRequest{Ike: []*keymgrv1.IkeDatagram{{Data: []byte{1}}}}
	}
	expire := &keymgrv1.AttachRequest{Expire: &keymgrv1.Expire{Id: 1}}
	for _, m := range []*keymgrv1.AttachRequest{datagram(), datagram(), expire, datagram()} {
		c.up <- m
	}
	m, next := c.gather(<-c.up)
	if len(m.GetIke()) != 2 || next != expire {
		t.Errorf("got %d datagrams, and then %v; want 2, and what came behind them", len(m.GetIke()), next)
	}
	if m, next = c.gather(expire); m != expire || next != nil {
		t.Errorf("what is no datagram became %v, and %v", m, next)
	}
	for range gatherMost {
		c.up <- datagram()
	}
	if m, next = c.gather(<-c.up); len(m.GetIke()) != gatherMost || next != nil || len(c.up) != 1 {
		t.Errorf("got %d datagrams, want %d at most", len(m.GetIke()), gatherMost)
	}
}
