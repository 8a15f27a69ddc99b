package engine_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lab is an in-memory network of workers.
type lab struct {
	t     testing.TB
	mu    sync.Mutex // held while a worker's goroutine does something
	hosts map[netip.Addr]*host
	// lossless makes every change of an SAD check that both directions work.
	lossless bool
	delay    time.Duration
	late     func() time.Duration // what comes on top
	lose     func(from *host, data []byte) bool
}

// host is one worker: it keeps an SAD as the contract of push says, sends IKE
// datagrams to the host with the address they are for, and does all of it on
// one goroutine, as a worker's stream would.
type host struct {
	lab         *lab
	name        string
	addr        netip.Addr
	incarnation uint64
	session     *engine.Session
	link        *link
	work        chan func()
	done        chan struct{}

	sas     map[ipsec.SAID]ipsec.SA
	granted map[ipsec.SAID]uint64 // end of the last lease, over all incarnations
	refuse  func(push.Op) string
	lag     func() time.Duration // until a batch is applied
	failed  map[uint64]string    // acquires
	applied int
	batches int
}

func newLab(t testing.TB) *lab {
	return &lab{t: t, hosts: make(map[netip.Addr]*host), delay: time.Millisecond}
}

// host adds a worker, not attached yet.
func (l *lab) host(name, addr string) *host {
	h := &host{lab: l, name: name, addr: netip.MustParseAddr(addr), incarnation: 1, work: make(chan func(), 1<<16), done: make(chan struct{}),
		sas: make(map[ipsec.SAID]ipsec.SA), granted: make(map[ipsec.SAID]uint64), failed: make(map[uint64]string)}
	l.hosts[h.addr] = h
	go func() {
		defer close(h.done)
		for fn := range h.work {
			l.mu.Lock()
			fn()
			l.mu.Unlock()
		}
	}()
	return h
}

// give makes an address a host's, or nobody's.
func (l *lab) give(a netip.Addr, h *host) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.hosts, a)
	if h != nil {
		l.hosts[a] = h
	}
}

func (l *lab) close() {
	for _, h := range l.hosts {
		close(h.work)
		<-h.done
	}
}

// do runs fn on the worker's goroutine and waits.
func (h *host) do(fn func()) {
	done := make(chan struct{})
	h.work <- func() { defer close(done); fn() }
	<-done
}

func (h *host) report(r push.Report) {
	h.do(func() { h.session.Handle(r) })
}

func (h *host) attach(e *engine.Engine) {
	h.do(func() {
		hello := push.Hello{Node: h.name, Incarnation: h.incarnation, Addresses: []netip.Addr{h.addr}}
		for id, sa := range h.sas {
			hello.Inventory = append(hello.Inventory, push.Held{ID: id, SPI: sa.SPI, Direction: sa.Direction, Rule: sa.Rule, Child: sa.Child, LeaseLast: h.granted[id] * uint64(sa.Direction/ipsec.Outbound)})
		}
		h.link = &link{h: h}
		s, err := e.Attach(hello, h.link)
		if err != nil {
			h.lab.t.Fatal(err)
		}
		h.session = s
	})
}

// link is one stream of a host.
type link struct {
	h      *host
	closed string
	cut    atomic.Bool
}

// cut ends the present link at once: what is on its way is lost.
func (h *host) cut() { h.do(func() { h.link.cut.Store(true) }) }

func (k *link) Apply(b push.Batch) error {
	apply := func() {
		if !k.cut.Load() && k == k.h.link {
			k.h.apply(b)
		}
	}
	if k.h.lag == nil {
		k.h.work <- apply
		return nil
	}
	time.AfterFunc(k.h.lag(), func() { k.h.work <- apply }) // one batch is under way at a time
	return nil
}

func (k *link) SendIKE(p ike.Path, data []byte) error {
	k.h.work <- func() {
		if !k.cut.Load() {
			k.h.sendIKE(p, data)
		}
	}
	return nil
}

func (k *link) AcquireFailed(id uint64, why string) error {
	k.h.work <- func() { k.h.failed[id] = why }
	return nil
}

func (k *link) Close(why string) { k.closed = why }

func (h *host) apply(b push.Batch) {
	h.batches++
	if h.refuse != nil {
		for i, op := range b.Ops {
			if why := h.refuse(op); why != "" {
				h.session.Handle(push.Nack{Nonce: b.Nonce, Op: i, Why: why})
				return
			}
		}
	}
	for _, op := range b.Ops {
		switch op := op.(type) {
		case push.Install:
			if op.SA.Direction == ipsec.Outbound {
				h.grant(op.SA.ID, op.SA.Lease)
			}
			h.sas[op.SA.ID] = op.SA
			h.applied++
		case push.Remove:
			delete(h.sas, op.ID)
		case push.Grant:
			h.grant(op.ID, op.Lease)
		}
		if h.lab.lossless {
			h.lab.mustForward()
		}
	}
	h.session.Handle(push.Ack{Nonce: b.Nonce})
}

func (h *host) grant(id ipsec.SAID, l ipsec.Lease) {
	if l.First < max(h.granted[id], 1) || l.Last <= l.First {
		h.lab.t.Errorf("%s: %s got lease %v after numbers up to %d were granted", h.name, id, l, h.granted[id])
	}
	h.granted[id] = l.Last
}

func (h *host) sendIKE(p ike.Path, data []byte) {
	if h.lab.lose != nil && h.lab.lose(h, data) {
		return
	}
	to := h.lab.hosts[p.Remote.Addr()]
	if to == nil {
		return
	}
	data = slices.Clone(data)
	delay := h.lab.delay
	if h.lab.late != nil {
		delay += h.lab.late()
	}
	time.AfterFunc(delay, func() {
		to.work <- func() {
			if to.session != nil {
				to.session.Handle(push.Datagram{Path: ike.Path{Local: p.Remote, Remote: p.Local}, Data: data})
			}
		}
	})
}

// newest is the SA that a worker would send rule 0's packets on: the one made last.
func (h *host) newest() (ipsec.SA, bool) {
	var best ipsec.SA
	for _, sa := range h.sas {
		if sa.Direction == ipsec.Outbound && sa.Rule == "rule-0" && sa.ID > best.ID {
			best = sa
		}
	}
	return best, best.ID != 0
}

// forwards reports whether what h sends arrives at to.
func (h *host) forwards(to *host) error {
	out, ok := h.newest()
	if !ok {
		return fmt.Errorf("%s has no outbound SA", h.name)
	}
	for _, in := range to.sas {
		if in.Direction == ipsec.Inbound && in.SPI == out.SPI && in.EncrKey.Equal(out.EncrKey) && !in.EncrKey.IsZero() {
			return nil
		}
	}
	return fmt.Errorf("%s sends on SPI %s and %s has no such inbound SA", h.name, out.SPI, to.name)
}

// mustForward is for labs of two hosts.
func (l *lab) mustForward() {
	l.t.Helper()
	for _, a := range l.hosts {
		for _, b := range l.hosts {
			if a != b {
				if err := a.forwards(b); err != nil {
					l.t.Errorf("packets are lost: %v", err)
				}
			}
		}
	}
}

// secrets answers every reference alike; slow makes it wait.
type secrets struct{ slow time.Duration }

func (s secrets) PSK(ctx context.Context, ref string) ([]ipsec.Secret, error) {
	if s.slow > 0 {
		select {
		case <-time.After(s.slow):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return []ipsec.Secret{ipsec.CopySecret([]byte("a secret of enough octets: " + ref))}, nil
}

func newEngine(t testing.TB, change func(*engine.Config)) *engine.Engine {
	cfg := engine.Config{Machines: ikev2.Machines{}, Secrets: secrets{}, Shards: 2, HalfOpenRest: -1}
	if change != nil {
		change(&cfg)
	}
	e, err := engine.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func proposal(t testing.TB, p ipsec.Protocol, s string) []ipsec.Proposal {
	x, err := ipsec.ParseProposal(p, s)
	if err != nil {
		t.Fatal(err)
	}
	return []ipsec.Proposal{x}
}

// policy protects one subnet pair per rule between two nodes: rules "rule-0",
// "rule-1", ... with one peer, named after the other node.
func policy(t testing.TB, node, addr, peer, remote string, rules int) *ipsec.NodePolicy {
	id := func(s string) ipsec.Identity { return ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: s + ".example"} }
	p := &ipsec.NodePolicy{Node: node, Addresses: []netip.Addr{netip.MustParseAddr(addr)}, Default: ipsec.ActionPermit,
		Peers: []ipsec.Peer{{Name: peer, Local: []netip.Addr{netip.MustParseAddr(addr)}, Remote: []netip.Addr{netip.MustParseAddr(remote)},
			LocalID: id(node), RemoteID: id(peer), Auth: []ipsec.AuthMethod{{PSK: "file:psk"}},
			Proposals: proposal(t, ipsec.ProtocolIKE, "aes128gcm16-prfsha256-x25519"), Lifetime: 4 * time.Hour}}}
	for i := range rules {
		local, far := fmt.Sprintf("10.1.%d.0/24", i), fmt.Sprintf("10.2.%d.0/24", i)
		if node > peer {
			local, far = far, local
		}
		p.Rules = append(p.Rules, ipsec.Rule{Name: fmt.Sprint("rule-", i), Weight: uint64(1000 - i), Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: peer,
			Selector: ipsec.Selector{Local: ipsec.PrefixSelector(netip.MustParsePrefix(local)), Remote: ipsec.PrefixSelector(netip.MustParsePrefix(far))},
			Template: &ipsec.Template{Mode: ipsec.ModeTunnel, Proposals: proposal(t, ipsec.ProtocolESP, "aes128gcm16"), ReplayWindow: 1024,
				Lifetime: ipsec.Lifetime{TimeSoft: 50 * time.Minute, TimeHard: time.Hour}}})
	}
	return p
}

// pair is two workers of one key manager, both attached, in a bubble of fake
// time.
type pair struct {
	*lab
	e    *engine.Engine
	a, b *host
}

func inPair(t *testing.T, rules int, change func(*engine.Config), fn func(t *testing.T, p *pair)) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		p := &pair{lab: l, e: newEngine(t, change), a: l.host("a", "192.0.2.1"), b: l.host("b", "192.0.2.2")}
		defer func() {
			p.lossless = false
			p.e.Close()
			l.close()
		}()
		p.setPolicy(rules)
		p.a.attach(p.e)
		p.b.attach(p.e)
		fn(t, p)
	})
}

func (p *pair) setPolicy(rules int) {
	p.e.SetPolicy("a", policy(p.t, "a", "192.0.2.1", "b", "192.0.2.2", rules))
	p.e.SetPolicy("b", policy(p.t, "b", "192.0.2.2", "a", "192.0.2.1", rules))
}

// acquire raises an acquire on a host for rule 0.
func (h *host) acquire(id uint64) { h.report(push.Acquire{ID: id, Rule: "rule-0", Flow: h.flow()}) }

// acquireOf is an acquire for the packet that another host would send.
func (h *host) acquireOf(name string) push.Acquire {
	return push.Acquire{ID: 1, Rule: "rule-0", Flow: (&host{name: name}).flow()}
}

func (h *host) flow() ipsec.Flow {
	f := ipsec.Flow{Local: netip.MustParseAddr("10.1.0.1"), Remote: netip.MustParseAddr("10.2.0.1"), Protocol: 17, LocalPort: 1000, RemotePort: 53}
	if h.name == "b" {
		f.Local, f.Remote = f.Remote, f.Local
	}
	return f
}

// after lets time pass and everything settle.
func (l *lab) after(d time.Duration) {
	l.mu.Lock()   // shows the race detector that what the test did so far came first
	l.mu.Unlock() //nolint:staticcheck // the pair is the point
	time.Sleep(d) // fake: see testing/synctest
	synctest.Wait()
}

func (p *pair) list(t testing.TB, f engine.Filter) []engine.IKESA {
	t.Helper()
	sas, err := p.e.List(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return sas
}
