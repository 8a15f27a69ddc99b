package ikev2

import "github.com/testudo-ipsec/testudo/keymgr/ike/wire"

// SealForTest makes a message with this machine's keys.
func (m *Machine) SealForTest(x wire.ExchangeType, id uint32, response bool, ps []wire.Payload) []byte {
	return m.seal(x, id, response, ps)
}

// SealRawForTest makes a request with any octets inside of SK.
func (m *Machine) SealRawForTest(x wire.ExchangeType, id uint32, first wire.PayloadType, inner []byte) []byte {
	return m.sealRaw(x, id, false, first, inner)
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
	return m.sealRaw(h.Exchange, h.MessageID, h.Response(), first, inner)
}
