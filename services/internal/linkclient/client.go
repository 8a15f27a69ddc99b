// Package linkclient is the worker's side of WorkerLink: it keeps a stream to
// the key manager, puts batches into the backend and carries the backend's
// events up. When the key manager is away the backend goes on with the SAs it
// has; what must not be forgotten meanwhile (expiries, lease requests) waits.
package linkclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/ipsec"
	ipsecv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/ipsec/v1"
	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	"github.com/testudo-ipsec/testudo/services/internal/convert"
)

// Client attaches one backend to a key manager.
type Client struct {
	Conn      grpc.ClientConnInterface
	Node      string
	Software  string
	Addresses func() []netip.Addr
	Backend   backend.Backend
	Log       *slog.Logger
	Report    time.Duration // between counter reports

	incarnation uint64
	connected   atomic.Bool
	sending     sync.Mutex // a stream's sender
	up          chan *keymgrv1.AttachRequest

	mu      sync.Mutex
	stream  bool
	expired map[ipsec.SAID]*request // until the SA is removed
	leases  map[ipsec.SAID]*request // until a lease comes or the SA is removed
	waiting map[uint64]string       // acquires without an answer, and their rules

	sent map[ipsec.SAID]ipsec.SACounters // the sending goroutine's
	held map[ipsec.SAID]bool             // SAs in place; the receiving goroutine's
}

// request is something that the key manager must learn. A stream may end with
// it on the way, so it is said again on each new stream until the key manager
// has done something about it.
type request struct {
	message *keymgrv1.AttachRequest
	told    bool // on this stream
}

// Connected reports whether the stream is up.
func (c *Client) Connected() bool { return c.connected.Load() }

// queue is how many messages may wait for the stream: mostly IKE datagrams in
// a burst. Beyond it they are dropped, as a full socket would drop them.
const queue = 4096

const (
	minWait = 50 * time.Millisecond
	maxWait = 2 * time.Second
)

// Run keeps the stream until ctx ends or the backend fails.
func (c *Client) Run(ctx context.Context) error {
	for c.incarnation == 0 {
		c.incarnation = rand.Uint64()
	}
	c.up = make(chan *keymgrv1.AttachRequest, queue)
	c.expired = map[ipsec.SAID]*request{}
	c.leases = map[ipsec.SAID]*request{}
	c.waiting = map[uint64]string{}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { cancel(c.events(ctx)) })
	for wait := minWait; ; {
		start := time.Now()
		err := c.attach(ctx)
		if ctx.Err() != nil {
			if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
				return cause
			}
			return nil
		}
		if c.connected.Swap(false) || time.Since(start) > maxWait {
			wait = minWait
		}
		c.Log.Warn("key manager is away; keeping the SAs in place", "error", err, "retry_in", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait + rand.N(wait)):
		}
		wait = min(2*wait, maxWait)
	}
}

func (c *Client) attach(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := keymgrv1.NewWorkerLinkClient(c.Conn).Attach(ctx)
	if err != nil {
		return err
	}
	if err := st.Send(&keymgrv1.AttachRequest{Hello: c.hello()}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	c.startStream()
	defer c.endStream()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		c.send(ctx, st)
	})
	defer wg.Wait()
	defer cancel()
	if md, err := st.Header(); err == nil && md != nil {
		c.connected.Store(true)
		c.Log.Info("key manager is there")
	}
	for {
		m, err := st.Recv()
		if err != nil {
			return err
		}
		if err := c.handle(st, m); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
}

func (c *Client) hello() *keymgrv1.Hello {
	h := &keymgrv1.Hello{
		Node: c.Node, Incarnation: c.incarnation, Software: c.Software,
		Addresses:    convert.ToAddrs(c.Addresses()),
		Capabilities: []string{"esp", "esn", "udp-encap", "raw-esp", "ah"},
	}
	c.held = map[ipsec.SAID]bool{}
	for _, i := range c.Backend.Inventory() {
		c.held[i.ID] = true
		h.Inventory = append(h.Inventory, &keymgrv1.InventoryItem{
			Id: uint64(i.ID), Spi: uint32(i.SPI), Direction: ipsecv1.Direction(i.Direction), Rule: i.Rule,
			Child: i.Child, Top: i.Counters.Top, LeaseLast: i.Lease.Last,
		})
	}
	return h
}

// startStream lets messages be queued, first those that must not be lost.
func (c *Client) startStream() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stream = true
	c.sent = map[ipsec.SAID]ipsec.SACounters{}
	for _, all := range []map[ipsec.SAID]*request{c.expired, c.leases} {
		for id, r := range all {
			if r.told = false; !c.held[id] {
				delete(all, id) // it came late, for an SA that was removed
			}
		}
	}
	c.retell()
}

// endStream drops what was queued. The packets of an acquire that nobody will
// answer do not wait for it.
func (c *Client) endStream() {
	c.mu.Lock()
	c.stream = false
	waiting := c.waiting
	c.waiting = map[uint64]string{}
	c.mu.Unlock()
	// Nobody queues now.
	for len(c.up) > 0 {
		<-c.up
	}
	// The next packet asks again. An acquire left open would hold the rule's
	// packets for as long as the backend waits for an answer.
	for id := range waiting {
		c.Backend.AcquireFailed(id, whyAway)
	}
}

// acquire asks for an SA; false when nobody can be asked.
func (c *Client) acquire(a backend.Acquire) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ok := c.queue(&keymgrv1.AttachRequest{Acquire: &keymgrv1.Acquire{Id: a.ID, Flow: convert.ToFlow(a.Flow), Rule: a.Rule}})
	if ok {
		c.waiting[a.ID] = a.Rule
	}
	return ok
}

const whyAway = "the key manager is not connected"

// retell queues the requests that this stream has not carried. It is called
// with mu held.
func (c *Client) retell() {
	for _, all := range []map[ipsec.SAID]*request{c.expired, c.leases} {
		for _, r := range all {
			r.told = r.told || c.queue(r.message)
		}
	}
}

// request keeps a request until it is settled, and queues it.
func (c *Client) request(all map[ipsec.SAID]*request, id ipsec.SAID, m *keymgrv1.AttachRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all[id] = &request{m, c.queue(m)}
}

// settled forgets the requests that a batch has answered.
func (c *Client) settled(ops []backend.Op) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range ops {
		switch o.Kind {
		case backend.OpRemove, backend.OpInstall:
			if o.SA != nil && o.SA.Direction == ipsec.Outbound {
				maps.DeleteFunc(c.waiting, func(_ uint64, rule string) bool { return rule == o.SA.Rule })
			}
			delete(c.expired, o.Target())
			delete(c.leases, o.Target())
		case backend.OpLease:
			delete(c.leases, o.Target())
		}
	}
}

// queue is called with mu held.
func (c *Client) queue(m *keymgrv1.AttachRequest) bool {
	if !c.stream {
		return false
	}
	select {
	case c.up <- m:
		return true
	default:
		return false
	}
}

func (c *Client) tell(m *keymgrv1.AttachRequest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queue(m)
}

// send carries up what is queued.
func (c *Client) send(ctx context.Context, st keymgrv1.WorkerLink_AttachClient) {
	tick := time.NewTicker(c.Report)
	defer tick.Stop()
	for {
		var m *keymgrv1.AttachRequest
		select {
		case <-ctx.Done():
			return
		case m = <-c.up:
		case <-tick.C:
			c.mu.Lock()
			c.retell()
			c.mu.Unlock()
			if m = c.counters(); m == nil {
				continue
			}
		}
		for m != nil {
			var next *keymgrv1.AttachRequest
			if m, next = c.gather(m); c.transmit(st, m) != nil {
				return // Recv says why
			}
			m = next
		}
	}
}

// counters reports the SAs whose counters changed since the last report.
func (c *Client) counters() *keymgrv1.AttachRequest {
	out := &keymgrv1.Counters{}
	now := map[ipsec.SAID]ipsec.SACounters{}
	for _, sa := range c.Backend.Counters().SAs {
		now[sa.ID] = sa
		if c.sent[sa.ID] != sa {
			out.Items = append(out.Items, convert.ToCounters(sa))
		}
	}
	c.sent = now
	if len(out.Items) == 0 {
		return nil
	}
	return &keymgrv1.AttachRequest{Counters: out}
}

func (c *Client) handle(st keymgrv1.WorkerLink_AttachClient, m *keymgrv1.AttachResponse) error {
	for _, d := range m.GetIke() {
		c.sendIKE(d)
	}
	if x := m.GetAcquireFailed(); x != nil {
		c.mu.Lock()
		delete(c.waiting, x.GetId())
		c.mu.Unlock()
		c.Backend.AcquireFailed(x.GetId(), x.GetWhy())
	}
	if x := m.GetApply(); x != nil {
		return c.transmit(st, c.apply(x))
	}
	return nil
}

func (c *Client) sendIKE(d *keymgrv1.IkeDatagram) {
	local, ok1 := netip.AddrFromSlice(d.GetLocal())
	remote, ok2 := netip.AddrFromSlice(d.GetRemote())
	if !ok1 || !ok2 || d.GetLocalPort() > 65535 || d.GetRemotePort() > 65535 {
		c.Log.Error("key manager sent an IKE datagram with a bad address")
		return
	}
	p := backend.Path{
		Local:  netip.AddrPortFrom(local, uint16(d.GetLocalPort())),
		Remote: netip.AddrPortFrom(remote, uint16(d.GetRemotePort())),
		TCP:    d.GetTcp(),
	}
	if err := c.Backend.SendIKE(p, d.GetData()); err != nil {
		c.Log.Warn("IKE datagram not sent", "local", p.Local, "remote", p.Remote, "error", err)
	}
}

// transmit sends one message. The goroutine that applies a batch answers it by
// itself: that saves a wake-up.
func (c *Client) transmit(st keymgrv1.WorkerLink_AttachClient, m *keymgrv1.AttachRequest) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	return st.Send(m)
}

// gather joins a datagram with those that wait behind it. What comes behind them
// and is none is next.
func (c *Client) gather(m *keymgrv1.AttachRequest) (*keymgrv1.AttachRequest, *keymgrv1.AttachRequest) {
	for len(m.GetIke()) > 0 && len(m.GetIke()) < gatherMost {
		select {
		case next := <-c.up:
			if len(next.GetIke()) == 0 {
				return m, next
			}
			m.Ike = append(m.Ike, next.GetIke()...)
		default:
			return m, nil
		}
	}
	return m, nil
}

// gatherMost bounds the datagrams of one message.
const gatherMost = 64

func (c *Client) apply(a *keymgrv1.Apply) *keymgrv1.AttachRequest {
	ops, index, err := c.operations(a)
	if err == nil {
		if err = c.Backend.Apply(ops); err == nil {
			for _, o := range ops {
				if o.Kind == backend.OpRemove {
					delete(c.held, o.ID)
				} else {
					c.held[o.Target()] = true
				}
			}
			c.settled(ops)
			return &keymgrv1.AttachRequest{Ack: &keymgrv1.Ack{Nonce: a.GetNonce()}}
		}
	}
	nack := &keymgrv1.Nack{Nonce: a.GetNonce(), Why: err.Error()}
	if oe := (*backend.OpError)(nil); errors.As(err, &oe) && oe.Index < len(index) {
		nack.Operation = uint32(index[oe.Index])
	} else if be := (*badOperation)(nil); errors.As(err, &be) {
		nack.Operation = uint32(be.index)
	}
	c.Log.Error("batch of SA operations refused", "nonce", a.GetNonce(), "error", err)
	return &keymgrv1.AttachRequest{Nack: nack}
}

type badOperation struct {
	index int
	err   error
}

func (b *badOperation) Error() string { return fmt.Sprintf("operation %d: %v", b.index, b.err) }
func (b *badOperation) Unwrap() error { return b.err }

// operations translates a batch; index[i] is the message's operation behind
// ops[i]. An SA that is in place already is replaced: an outbound one as a
// whole, since it comes with a lease of its own; of an inbound one only the
// addresses, so that its replay window is kept.
func (c *Client) operations(a *keymgrv1.Apply) (ops []backend.Op, index []int, err error) {
	add := func(i int, o backend.Op) {
		ops = append(ops, o)
		index = append(index, i)
	}
	for i, m := range a.GetOperations() {
		switch o := m.GetOperation().(type) {
		case *keymgrv1.Operation_Install:
			sa, err := convert.FromSA(o.Install)
			if err != nil {
				return nil, nil, &badOperation{i, err}
			}
			switch {
			case c.held[sa.ID] && sa.Direction == ipsec.Inbound:
				add(i, backend.Op{Kind: backend.OpReplace, SA: sa})
			case c.held[sa.ID]:
				add(i, backend.Op{Kind: backend.OpRemove, ID: sa.ID})
				fallthrough
			default:
				add(i, backend.Op{Kind: backend.OpInstall, SA: sa})
			}
		case *keymgrv1.Operation_Remove:
			add(i, backend.Op{Kind: backend.OpRemove, ID: ipsec.SAID(o.Remove)})
		case *keymgrv1.Operation_Grant:
			add(i, backend.Op{Kind: backend.OpLease, ID: ipsec.SAID(o.Grant.GetId()), Lease: convert.FromLease(o.Grant.GetLease())})
		default:
			return nil, nil, &badOperation{i, fmt.Errorf("a kind that this software does not know")}
		}
	}
	return ops, index, nil
}

// events carries the backend's events up until ctx ends or the backend fails.
func (c *Client) events(ctx context.Context) error {
	for {
		var ev backend.Event
		var ok bool
		select {
		case <-ctx.Done():
			return nil
		case ev, ok = <-c.Backend.Events():
			if !ok {
				return errors.New("the packet path stopped")
			}
		}
		switch e := ev.(type) {
		case backend.IKE:
			c.tell(&keymgrv1.AttachRequest{Ike: []*keymgrv1.IkeDatagram{{
				Local: e.Path.Local.Addr().AsSlice(), LocalPort: uint32(e.Path.Local.Port()),
				Remote: e.Path.Remote.Addr().AsSlice(), RemotePort: uint32(e.Path.Remote.Port()), Data: e.Data, Tcp: e.Path.TCP,
			}}})
		case backend.Acquire:
			if !c.acquire(e) {
				c.Backend.AcquireFailed(e.ID, whyAway)
			}
		case backend.Expire:
			c.request(c.expired, e.ID, &keymgrv1.AttachRequest{Expire: &keymgrv1.Expire{Id: uint64(e.ID), Hard: e.Hard, Cause: e.Cause}})
		case backend.NeedLease:
			c.request(c.leases, e.ID, &keymgrv1.AttachRequest{LeaseRequest: &keymgrv1.LeaseRequest{Id: uint64(e.ID), Used: e.Used}})
		case backend.PeerMoved:
			c.tell(&keymgrv1.AttachRequest{PeerMoved: &keymgrv1.PeerMoved{
				Id: uint64(e.ID), Local: e.Path.Local.Addr().AsSlice(), LocalPort: uint32(e.Path.Local.Port()),
				Remote: e.Path.Remote.Addr().AsSlice(), RemotePort: uint32(e.Path.Remote.Port()),
			}})
		case backend.AddressesChanged:
			c.tell(&keymgrv1.AttachRequest{Addresses: &keymgrv1.Addresses{Addresses: convert.ToAddrs(c.Addresses())}})
		case backend.BadSelectors:
			c.Log.Warn("a peer sent traffic outside its SA's selectors; dropped (RFC 4301 section 5.2)", "sa", e.ID, "flow", e.Flow.String())
		case backend.Panic:
			c.Log.Error("a packet met a mistake in this program; its batch was dropped. Please report it", "panic", e.Value, "stack", e.Stack)
		case backend.Failed:
			return fmt.Errorf("the packet path failed: %w", e.Err)
		}
	}
}
