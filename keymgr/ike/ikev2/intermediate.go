package ikev2

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// IKE_INTERMEDIATE (RFC 9242), which carries the additional key exchanges of a
// first contact, one each (RFC 9370 §2.2.2):
//
//	HDR, SK {KEi(n)}  -->
//	                    <--  HDR, SK {KEr(n)}
//
// Each is protected with the keys that the one before it has led to. How many
// there are and of what methods is agreed in IKE_SA_INIT; none other is served.
// IKE_AUTH then signs what both ends have sent.
var intermediateRows = []row{
	{exchange: wire.IKEIntermediate,
		required: []wire.PayloadType{wire.TypeKE}, optional: []wire.PayloadType{wire.TypeNotify},
		handle: (*Machine).intermediateRequest},
	{exchange: wire.IKEIntermediate, response: true,
		required: []wire.PayloadType{wire.TypeKE}, optional: []wire.PayloadType{wire.TypeNotify},
		handle: (*Machine).intermediateResponse},
}

// intermediate is how far the exchanges of a first contact have come.
type intermediate struct {
	methods []uint16 // still to do
	done    uint32
	intI    []byte // IntAuth_i and IntAuth_r of the last exchange (RFC 9242 §3.3.2)
	intR    []byte
	ske     ipsec.Secret // responder: SK_ei and SK_ai of the last exchange, whose request may come again
	ska     ipsec.Secret
}

// methodsOf are the additional key exchanges of a suite, in order.
func methodsOf(s ipsec.Suite) []uint16 {
	var out []uint16
	for _, t := range s.Additional() {
		out = append(out, t.ID)
	}
	return out
}

// intermediateSupported is the announcement for IKE_SA_INIT (RFC 9242 §3.1).
var intermediateSupported = &wire.Notify{Message: wire.IntermediateExchangeSupported}

// nextIntermediate is the initiator's next step before IKE_AUTH.
func (m *Machine) nextIntermediate() {
	if x := &m.first.more; len(x.methods) > 0 {
		m.generate(x.methods[0])
		return
	}
	m.startAuth()
}

func (m *Machine) sendIntermediate(err error) {
	if err != nil {
		m.fail(m.failure(wire.IKEIntermediate, WhyUnsupported, err.Error(), "choose another additional key exchange in the peer's suites"))
		return
	}
	t, x := m.task, &m.first.more
	m.request(wire.IKEIntermediate, &wire.KE{Method: t.half.Method, Data: t.half.Public})
	x.intI = m.intAuth(m.keys.SKpi, x.intI, m.header(wire.IKEIntermediate, t.id, false), content{first: t.plain.first, inner: t.plain.octets})
}

// intermediateRequest is the responder's side.
func (m *Machine) intermediateRequest(msg *message) {
	x := &m.first.more
	if msg.ke.Method != x.methods[0] {
		m.badKE(msg.Exchange, fmt.Errorf("got key exchange %s, want %s", keName(msg.ke.Method), keName(x.methods[0])))
		return
	}
	x.intI = m.intAuth(m.keys.SKpi, x.intI, msg.Header, msg.content)
	m.serve.first = true
	m.respond(msg.ke.Method, msg.ke.Data)
}

func (m *Machine) answerIntermediate(a ike.KeyExchanged) {
	if a.Err != nil {
		m.badKE(wire.IKEIntermediate, a.Err)
		return
	}
	x, s := &m.first.more, m.serve
	p := plainOf(wire.IKEIntermediate, s.id, true, []wire.Payload{&wire.KE{Method: x.methods[0], Data: a.Public}})
	x.intR = m.intAuth(m.keys.SKpr, x.intR, m.header(p.exchange, p.id, true), content{first: p.first, inner: p.octets})
	m.answer(p)
	m.advance(a.Shared)
}

// intermediateResponse is the initiator's side.
func (m *Machine) intermediateResponse(msg *message) {
	x := &m.first.more
	if n := msg.refusal(); n != nil {
		m.fail(m.failure(msg.Exchange, n.Message.String(), "the peer refused "+keName(x.methods[0])+" with "+n.Message.String(), "look at the peer's log"))
		return
	}
	if msg.ke == nil || msg.ke.Method != x.methods[0] {
		m.fail(m.failure(msg.Exchange, wire.InvalidSyntax.String(), "the response's key exchange is not the one asked for", "report this to the maker of the peer's IKE implementation"))
		return
	}
	x.intR = m.intAuth(m.keys.SKpr, x.intR, msg.Header, msg.content)
	m.finish(msg.ke.Data)
}

// intermediateShared goes on to the next exchange with the shared secret.
func (m *Machine) intermediateShared(shared ipsec.Secret, err error) {
	m.task.half.wipe()
	if err != nil {
		m.fail(m.failure(wire.IKEIntermediate, WhyUnsupported, err.Error(), "look at the peer's log"))
		return
	}
	if m.advance(shared) {
		m.nextIntermediate()
	}
}

// advance takes the keys on by one additional key exchange (RFC 9370 §2.2.2):
//
//	SKEYSEED(n) = prf(SK_d(n-1), SK(n) | Ni | Nr)
func (m *Machine) advance(shared ipsec.Secret) bool {
	f := m.first
	f.more.methods = f.more.methods[1:]
	f.more.done++
	old := m.keys
	seed := suite.RekeySKEYSEED(m.prf, old.SKd, shared, f.ni, f.nr)
	shared.Wipe()
	if !m.initiator {
		f.wipe()
		f.skeyseed, f.more.ske, f.more.ska = seed, old.SKei.Clone(), old.SKai.Clone()
		m.keys, m.tx, m.rx = suite.IKEKeys{}, nil, nil // deriveKeys makes the next ones
	} else if err := m.keyIKE(m.suite, seed, f.ni, f.nr); err != nil {
		m.fail(m.failure(wire.IKEIntermediate, WhyUnsupported, err.Error(), "remove this suite from the peer's profile"))
		return false
	}
	old.Wipe()
	return true
}

// intAuth is the IntAuth value of one more message (RFC 9242 §3.3.2):
//
//	IntAuth_n = prf(SK_p, IntAuth_n-1 | A | P)
//
// where P is what is inside of SK, and A is what precedes it, from the IKE header
// to the header of SK, with lengths as if there were no IV, padding and ICV.
func (m *Machine) intAuth(skp ipsec.Secret, previous []byte, h wire.Header, c content) []byte {
	h.Next, h.Version = wire.TypeSK, wire.Version
	h.Length = uint32(wire.HeaderLen + wire.GenericLen + len(c.inner))
	a := append(h.Append(nil), byte(c.first), c.reserved)
	a = binary.BigEndian.AppendUint16(a, uint16(wire.GenericLen+len(c.inner)))
	return m.prf.Sum(skp, previous, a, c.inner)
}

// signed is what AUTH covers after the exchanges: IntAuth of RFC 9242 §3.3.2,
// nothing when there were none.
func (x *intermediate) signed() []byte {
	if x.done == 0 {
		return nil
	}
	out := append(append([]byte(nil), x.intI...), x.intR...)
	return binary.BigEndian.AppendUint32(out, x.done+1) // Message ID of the first IKE_AUTH
}

// badKE refuses a key exchange of a request that is authentic and wrong, and
// ends: RFC 6989 §2.5.
func (m *Machine) badKE(x wire.ExchangeType, err error) {
	m.refuse(wire.InvalidSyntax)
	m.fail(m.failure(x, wire.InvalidSyntax.String(), err.Error(), "report this to the maker of the peer's IKE implementation"))
}

func keName(method uint16) string {
	return ipsec.Transform{Type: ipsec.TransformKE, ID: method}.String()
}

var errNoIntermediate = errors.New("the peer chose an additional key exchange and does not do IKE_INTERMEDIATE")
