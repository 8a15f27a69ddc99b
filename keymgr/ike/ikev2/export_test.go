package ikev2

import (
	"bytes"
	"slices"

	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// SealForTest makes a message with this machine's keys.
func (m *Machine) SealForTest(x wire.ExchangeType, id uint32, response bool, ps []wire.Payload) []byte {
	return m.seal(plainOf(x, id, response, ps))[0]
}

// SealRawForTest makes a request with any octets inside of SK.
func (m *Machine) SealRawForTest(x wire.ExchangeType, id uint32, first wire.PayloadType, inner []byte) []byte {
	return m.seal(plain{exchange: x, id: id, first: first, octets: inner})[0]
}

// ResealForTest changes what is inside of SK of a message this machine has sent.
func (m *Machine) ResealForTest(b []byte, change func(first wire.PayloadType, inner []byte) (wire.PayloadType, []byte)) []byte {
	h, ps, err := wire.Parse(b)
	if err != nil || h.Next != wire.TypeSK || m.tx == nil {
		return nil
	}
	sk := ps[0].(*wire.Encrypted)
	inner, err := m.tx.Open(nil, b[:len(b)-len(sk.Body)], sk.Body)
	if err != nil {
		return nil
	}
	first, inner := change(sk.Inner, inner)
	defer func(agreed bool) { m.frag.agreed = agreed }(m.frag.agreed)
	m.frag.agreed = false // the change may have made it larger
	return m.seal(plain{exchange: h.Exchange, id: h.MessageID, response: h.Response(), first: first, octets: inner})[0]
}

// SealFragmentForTest makes a request's SKF with this machine's keys.
func (m *Machine) SealFragmentForTest(x wire.ExchangeType, id uint32, first wire.PayloadType, number, total uint16, part []byte) []byte {
	return m.sealPart(plain{exchange: x, id: id}, &wire.Encrypted{PayloadType: wire.TypeSKF, Inner: first, Fragment: number, Total: total}, part)
}

// ForgetFragmentsForTest undoes the agreement on fragmentation.
func (m *Machine) ForgetFragmentsForTest() { m.frag.agreed = false }

// ForgetWindowForTest makes a peer of one that has granted no window.
func (m *Machine) ForgetWindowForTest() { m.window.granted = 0 }

// WaitingForTest counts the tasks that wait to begin.
func (m *Machine) WaitingForTest() int { return len(m.queue) }

// HeldFragmentsForTest counts the octets and messages being put together.
func (m *Machine) HeldFragmentsForTest() (octets, messages int) {
	all := slices.Clone(m.frag.requests)
	for _, t := range m.flight {
		all = append(all, t.response)
	}
	for _, r := range all {
		if r != nil {
			octets, messages = octets+r.octets, messages+1
		}
	}
	return octets, messages
}

// WithoutHashesForTest makes an initiator one of before RFC 7427, whose first
// message was b.
func (m *Machine) WithoutHashesForTest(b []byte) {
	m.first.request, m.flight[0].datagrams, m.first.offer.ours = b, [][]byte{b}, false
}

// OpenForTest is what is inside of a message or fragment that this machine has sent
// or is about to receive.
func (m *Machine) OpenForTest(b []byte, sent bool) (first wire.PayloadType, inner []byte) {
	_, ps, err := wire.Parse(b)
	if err != nil {
		return 0, nil
	}
	c := m.rx
	if sent {
		c = m.tx
	}
	sk := ps[0].(*wire.Encrypted)
	if inner, err = c.Open(nil, b[:len(b)-len(sk.Body)], sk.Body); err != nil {
		panic(err)
	}
	return sk.Inner, inner
}

// AuthKeysForTest are SK_pi and SK_pr as they are now.
func (m *Machine) AuthKeysForTest() (i, r []byte) {
	return bytes.Clone(m.keys.SKpi.Reveal()), bytes.Clone(m.keys.SKpr.Reveal())
}

// IntAuthForTest is what AUTH covers besides RFC 7296 §2.15.
func (m *Machine) IntAuthForTest() []byte { return m.first.more.signed() }

// SendForTest makes a request of this machine, as if it had a task for it.
func (m *Machine) SendForTest(x wire.ExchangeType, ps ...wire.Payload) []byte {
	id := m.window.next
	m.window.next++
	return m.seal(plainOf(x, id, false, ps))[0]
}
