package ikev2

import (
	"fmt"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/archive"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// A responder that has answered and waits for the peer's next message is what a
// stranger can make us keep, so it is kept small: it rests, as one string of octets,
// and is made anew when something happens to it. What IKE_SA_INIT said is read from
// its messages again, which AUTH needs anyway, and the keys are derived again.
//
// A responder that has refused its peer rests too. One that has fragments of a message
// does not.

// Rest implements ike.Machine. It takes over what is secret.
func (m *Machine) Rest(dst []byte) ([]byte, bool) {
	answered := (m.state == stateConnecting || m.state == stateRefused) && !m.initiator && m.serve == nil
	if !answered || len(m.frag.requests) > 0 || len(m.queue) > 0 {
		return dst, false
	}
	c := archive.Writer(dst)
	if m.archiveResting(c); c.Err() != nil {
		return c.Octets(), false // more addresses than Wake reads, for one
	}
	m.keys.Wipe()
	m.first.wipe()
	return c.Octets(), true
}

// Wake makes the machine of what Rest has left. The policy and the candidates are
// those of now.
func Wake(env ike.Env, policy *ipsec.NodePolicy, candidates []ipsec.Peer, b []byte) (*Machine, error) {
	m := &Machine{env: defaults(env), policy: policy, candidates: candidates, first: &firstContact{}}
	c := archive.Reader(b)
	m.archiveResting(c)
	if err := c.Done(); err != nil {
		return nil, err
	}
	m.path.Node = policy.Node
	m.acceptTCP()
	if err := m.readInit(); err != nil {
		return nil, fmt.Errorf("IKE_SA_INIT of a machine at rest: %w", err)
	}
	return m, nil
}

// archiveResting goes through all that a machine at rest is.
func (m *Machine) archiveResting(c *archive.Coder) {
	f := m.first
	archive.Num(c, &m.state)
	c.AddrPort(&m.path.Local)
	c.AddrPort(&m.path.Remote)
	c.Bool(&m.path.TCP)
	archive.Slice(c, &m.mob.local, maxChildren, (*archive.Coder).Addr)
	for _, b := range []*bool{&m.nat.local, &m.nat.remote, &m.nat.forced, &m.frag.agreed, &f.ppk.agreed, &f.offer.ours} {
		c.Bool(b)
	}
	c.Time(&m.created)
	archive.Int(c, &m.frag.limit)
	archive.Num(c, &m.window.expected)
	archiveDatagrams(c, &m.window.reply)
	c.Bytes(&f.request)
	c.Bytes(&f.response)
	c.Secret(&f.skeyseed)
	if archive.Num(c, &f.more.done); f.more.done == 0 {
		return
	}
	c.Bytes(&f.more.intI)
	c.Bytes(&f.more.intR)
	c.Secret(&f.more.ske)
	c.Secret(&f.more.ska)
}

// readInit reads what the machine needs of IKE_SA_INIT.
func (m *Machine) readInit() error {
	f := m.first
	request, err := initRequest.read(f.request)
	if err != nil {
		return err
	}
	response, err := initResponse.read(f.response)
	if err != nil {
		return err
	}
	m.spiI, m.spiR = response.SPIi, response.SPIr
	m.suite.Protocol = ipsec.ProtocolIKE
	for _, t := range response.sa.Proposals[0].Transforms { // what we chose
		if t.ID != 0 {
			put(&m.suite, t.Transform)
		}
	}
	f.ni, f.nr = request.nonce.Data, response.nonce.Data
	f.offer.read(request)
	f.more.methods = methodsOf(m.suite)[f.more.done:]
	if f.more.done == 0 {
		return nil
	}
	m.window.rx, err = suite.NewCipher(m.suite.Encr, m.suite.Integ, f.more.ske, f.more.ska)
	return err
}

// read reads a message of IKE_SA_INIT.
func (r row) read(raw []byte) (*message, error) {
	h, ps, err := wire.Parse(raw)
	if err != nil {
		return nil, err
	}
	msg, bad := r.index(h, ps)
	if bad != nil {
		return nil, bad
	}
	msg.raw = raw
	return msg, nil
}

// deriveKeys makes the keys of a responder, when there is a message to open.
func (m *Machine) deriveKeys() error {
	if m.rx != nil || m.first == nil || m.first.skeyseed.IsZero() {
		return nil
	}
	return m.keyIKE(m.suite, m.first.skeyseed.Clone(), m.first.ni, m.first.nr)
}

// Wake is Wake for profiles of the policy.
func (Machines) Wake(env ike.Env, policy *ipsec.NodePolicy, candidates []string, b []byte) (ike.Machine, error) {
	return Wake(env, policy, peersByName(policy, candidates), b)
}
