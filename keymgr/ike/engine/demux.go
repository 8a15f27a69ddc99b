package engine

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// datagram finds the machine that a datagram is for. It looks at the fixed
// header only, except for cookies, and never blocks.
func (n *node) datagram(path ike.Path, data []byte) {
	e := n.e
	e.stats.received.Add(1)
	path = n.plain(path)
	if why := n.route(path, data); why != "" {
		e.stats.drop(why)
	}
}

// plain is a path as machines have it.
func (n *node) plain(p ike.Path) ike.Path {
	p.Node = n.name
	p.Local = netip.AddrPortFrom(p.Local.Addr().Unmap(), p.Local.Port())
	p.Remote = netip.AddrPortFrom(p.Remote.Addr().Unmap(), p.Remote.Port())
	return p
}

func (n *node) route(path ike.Path, data []byte) (why string) {
	e := n.e
	if len(data) < wire.HeaderLen {
		return whyShort
	}
	switch major := data[17] >> 4; {
	case major == 0:
		return whyVersion0
	case major == 1:
		return whyIKEv1
	case major > 2:
		n.refuseVersion(path, data)
		return whyMajorVersion
	}
	h, err := wire.ParseHeader(data)
	switch {
	case err != nil && h.SPIi == 0:
		return whyZeroSPI
	case err != nil:
		return whyLength
	}
	// The I flag tells that the sender is the original initiator, so that the
	// responder's SPI is ours (RFC 7296 §3.1).
	own := h.SPIi
	if h.FromInitiator() {
		own = h.SPIr
	}
	if own == 0 {
		return n.initRequest(path, h, data)
	}
	c := e.index.find(own)
	switch {
	case c == nil:
		n.unknown(path, h)
		return whyUnknownSPI
	case c.node != n:
		return whyWrongNode
	case e.durable != nil && e.durable.behind.Load():
		return whyBehind // the peer sends it again
	}
	return c.datagram(path, data)
}

func (c *cell) datagram(path ike.Path, data []byte) (why string) {
	if !c.shard.inbox.postDatagram(item{cell: c, event: ike.Datagram{Path: path, Data: data}}) {
		c.shard.e.stats.inboxFull.Add(1)
		return whyInboxFull
	}
	return ""
}

// initRequest takes a message without a responder's SPI: an IKE_SA_INIT request
// or nothing of interest.
func (n *node) initRequest(path ike.Path, h wire.Header, data []byte) (why string) {
	e := n.e
	if h.Exchange != wire.IKESAInit || h.Response() || !h.FromInitiator() || h.MessageID != 0 {
		return whyNotInit
	}
	key := e.half.key(n, path.Remote, h.SPIi)
	if c := e.half.find(key); c != nil {
		return c.datagram(path, data)
	}
	policy, candidates := n.candidates(path.Remote.Addr())
	switch {
	case policy == nil:
		return whyNoPolicy
	case len(candidates) == 0:
		e.failures.add(n.name, ike.Failure{Time: time.Now(), Peer: path.Remote.Addr().String(), Remote: path.Remote.String(),
			Role: "responder", Exchange: "IKE_SA_INIT", Why: whyNoPeer,
			Detail: "no peer profile of " + n.name + " lists this remote address or is open to any",
			Advice: "add the address to a peer of the node's policy"})
		return whyNoPeer
	}
	if why := n.admit(path, data); why != "" {
		return why
	}
	c := &cell{shard: e.pickShard(), node: n, remote: path.Remote.Addr(), began: time.Since(e.started), initKey: key, slot: -1}
	c.make = func() (ike.Machine, error) { return e.cfg.Machines.Responder(n.env, policy, candidates, path) }
	if old := e.half.add(c); old != c {
		return old.datagram(path, data)
	}
	if why := n.addCell(c, policy, path, data); why != "" {
		e.half.remove(c)
		return why
	}
	return ""
}

// admit applies the bounds on half-open machines: above the lower ones a
// request must carry a cookie, above the higher ones it is dropped.
func (n *node) admit(path ike.Path, data []byte) (why string) {
	e := n.e
	all, prefix := e.half.load(path.Remote.Addr())
	switch {
	case all >= e.cfg.HalfOpenMax:
		return whyHalfOpen
	case prefix >= e.cfg.HalfOpenPrefixMax:
		return whyPrefix
	case path.TCP: // the connection has proved the address (RFC 9329 §6.3)
		return ""
	case all < e.cfg.HalfOpenCookie && prefix < e.cfg.HalfOpenPrefixCookie:
		return ""
	}
	challenge, ok := ikev2.CheckCookie(e.cookies.secrets(time.Now()), ike.Datagram{Path: path, Data: data})
	if ok {
		return ""
	}
	if challenge != nil {
		e.stats.cookiesSent.Add(1)
		n.send(nil, path, challenge)
	}
	return whyNoCookie
}

// refuseVersion answers a request of a later major version with the one spoken
// here (RFC 7296 §2.5), a bounded number of times a second. The fixed header is
// taken to be the same in later versions, as §2.5 promises.
func (n *node) refuseVersion(path ike.Path, data []byte) {
	h := wire.Header{SPIi: binary.BigEndian.Uint64(data), SPIr: binary.BigEndian.Uint64(data[8:]), Exchange: wire.ExchangeType(data[18]),
		Flags: wire.Flags(data[19]), MessageID: binary.BigEndian.Uint32(data[20:])}
	if !h.Response() && n.e.unasked.allow(time.Now()) {
		n.send(nil, path, unprotected(h, &wire.Notify{Message: wire.InvalidMajorVersion, Data: []byte{wire.Version >> 4}}))
	}
}

// send hands a datagram to the node's worker. A lost one is sent again by the
// machine's retransmission.
// c is the machine that sends, nil for the engine.
func (n *node) send(c *cell, path ike.Path, data []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sendNow(c, path, data)
}

func (n *node) sendNow(c *cell, path ike.Path, data []byte) {
	if c != nil && c.barred {
		n.e.stats.drop(whyTooOld)
		return
	}
	if n.session == nil {
		n.e.stats.drop(whyNoWorker)
		return
	}
	path.Node = n.name
	if err := n.session.link.SendIKE(path, data); err != nil {
		n.e.stats.drop(whySendFailed)
		return
	}
	n.e.stats.sent.Add(1)
}

// candidates are the peer profiles that may be behind a remote address: those
// that list it, and those open to any address.
func (n *node) candidates(remote netip.Addr) (*ipsec.NodePolicy, []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.policy == nil {
		return nil, nil
	}
	exact := n.byRemote[remote]
	if len(n.anyRemote) == 0 {
		return n.policy, exact
	}
	return n.policy, append(exact[:len(exact):len(exact)], n.anyRemote...)
}

func (e *Engine) pickShard() *shard { return e.shards[int(e.next.Add(1))%len(e.shards)] }

// replyLimit bounds answers to strangers: 100 a second.
type replyLimit struct {
	mu     sync.Mutex
	second int64
	n      int
}

func (l *replyLimit) allow(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := now.Unix(); s != l.second {
		l.second, l.n = s, 0
	}
	l.n++
	return l.n <= 100
}

// logLimit lets one line per key and minute through.
type logLimit struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (l *logLimit) allow(key string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t, ok := l.last[key]; ok && now.Sub(t) < time.Minute {
		return false
	}
	if len(l.last) >= 1024 || l.last == nil {
		l.last = make(map[string]time.Time) // forgetting early costs a line of log
	}
	l.last[key] = now
	return true
}
