package engine

import (
	"net/netip"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// noted keeps the flow labels of what is sent.
type noted struct {
	netio.Sender
	labels []uint32
}

func (n *noted) Send(ms []netio.Message) (int, error) {
	for _, m := range ms {
		n.labels = append(n.labels, m.FlowLabel)
	}
	return len(ms), nil
}

// Packets of two flow labels are not one train, which has one header for all.
func TestATrainHasOneFlowLabel(t *testing.T) {
	a, b := twoHosts(t, true)
	a.policy(t, ipsec.ModeTransport, single(a.addr), single(b.addr))
	b.policy(t, ipsec.ModeTransport, single(b.addr), single(a.addr))
	join(t, saSpec{mode: ipsec.ModeTransport, encap: true, suite: "aes128gcm16"}, a, b, single(a.addr), single(b.addr))
	w, n := a.ctl, &noted{}
	w.senders[0] = n
	w.begin()
	for _, label := range []byte{1, 1, 2} {
		p := udp(netip.AddrPortFrom(a.addr, 1), netip.AddrPortFrom(b.addr, 2), pattern(100))
		p[3] = label
		w.packet(p, netio.Offload{})
	}
	w.flush()
	if len(n.labels) != 2 || n.labels[0] != 1 || n.labels[1] != 2 {
		t.Errorf("messages with the labels %v; want a train of 1 and a packet of 2", n.labels)
	}
}
