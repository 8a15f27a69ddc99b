package userspace

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/engine"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Backend is the backend. Make one with Start.
type Backend struct {
	*engine.Engine
	cfg    Config
	link   netlink.Link
	events chan backend.Event
	lost   atomic.Uint64

	addresses *addressWatch
	streams   []*netio.Streams
	adopted   bool // a predecessor's rules were there

	mu     sync.Mutex
	policy *ipsec.NodePolicy
	warned bool
	once   sync.Once
	err    error // of Close

	// emitMu keeps Close from closing events while something is sent there.
	emitMu sync.RWMutex
	closed bool
}

var _ backend.Backend = (*Backend)(nil)

// eventRoom is how many events may wait for their reader.
const eventRoom = 4096

// Start sets the host up and begins to move packets. Until SetPolicy no traffic
// is captured, unless a predecessor that was killed left its table behind: then
// that stays in force. When Start fails, the host is as it was.
func Start(ctx context.Context, cfg Config) (*Backend, error) {
	if err := cfg.fill(); err != nil {
		return nil, fmt.Errorf("user-space backend: %w", err)
	}
	b := &Backend{cfg: cfg, events: make(chan backend.Event, eventRoom)}
	var undo []func() error
	fail := func(err error) (*Backend, error) {
		errs := []error{err}
		for _, f := range slices.Backward(undo) {
			errs = append(errs, f())
		}
		return nil, fmt.Errorf("user-space backend: %w", errors.Join(errs...))
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	var err error
	if b.adopted, err = leftover(&b.cfg); err != nil {
		return fail(err)
	}
	if b.adopted {
		cfg.Log.Info("took over what a predecessor left on the host", "device", cfg.Device, "table", cfg.nftTable())
	}
	queues, tunFeatures, err := netio.OpenTun(cfg.Device, cfg.Queues)
	if err != nil {
		return fail(err)
	}
	undo = append(undo, func() error { return closeAll(queues) })
	sockets, clear, features, err := b.openSockets(len(queues))
	if err != nil {
		return fail(err)
	}
	undo = append(undo, func() error { return errors.Join(closeSockets(sockets), closeAll(clear[:])) })
	b.reportFeatures(len(queues), tunFeatures, features)
	if err := setSlices(); err != nil {
		b.cfg.Log.Warn("readers of packets do not get the processor before us; floods of small packets lose more", "why", err)
	}
	if b.link, err = setUpLink(&b.cfg, defaultMTU-100); err != nil {
		return fail(err)
	}
	undo = append(undo, func() error {
		if b.adopted {
			return nil // as it was
		}
		return removeRouting(&b.cfg)
	})
	if err := addBlackholes(&b.cfg); err != nil {
		return fail(err)
	}
	if err := routeIntoTun(&b.cfg, b.link); err != nil {
		return fail(err)
	}
	if b.addresses, err = watchAddresses(cfg.Device, b.addressesChanged); err != nil {
		return fail(err)
	}
	undo = append(undo, func() error { b.addresses.close(); return nil })
	ec := engine.Config{Sockets: sockets, Emit: b.emit, TrainUDP: tunFeatures.USO, FallbackFor: cfg.FallbackFor}
	for i, c := range clear {
		if c != nil {
			ec.Clear[i] = c
		}
	}
	for _, q := range queues {
		ec.Tun = append(ec.Tun, q)
	}
	if b.Engine, err = engine.New(ec); err != nil {
		return fail(err)
	}
	b.Engine.Start()
	return b, nil
}

// leftover reports whether a predecessor left rules behind, and removes a TUN
// device of ours that nobody holds.
func leftover(c *Config) (bool, error) {
	if err := removeLink(c); err != nil {
		return false, err
	}
	for _, f := range usableFamilies() {
		rules, err := netlink.RuleList(f)
		if err != nil {
			return false, fmt.Errorf("list ip rules: %w", err)
		}
		for _, r := range rules {
			if r.Table == c.Table {
				return true, nil
			}
		}
	}
	return false, nil
}

// openSockets opens IKE, ESP in UDP, raw ESP and AH for each family, and the
// sockets for packets that fall back to clear. Of those for ESP there is one for
// each queue.
func (b *Backend) openSockets(queues int) (out []engine.Socket, clear [2]*netio.Socket, features []netio.SocketFeatures, err error) {
	undo := func(err error) ([]engine.Socket, [2]*netio.Socket, []netio.SocketFeatures, error) {
		return nil, [2]*netio.Socket{}, nil, errors.Join(err, closeSockets(out), closeAll(clear[:]))
	}
	for i, f := range usableFamilies() {
		v6 := f == unix.AF_INET6
		for _, s := range []engine.Socket{{Port: b.cfg.IKEPort}, {Port: b.cfg.NATTPort, Encap: true}, {}, {AH: true}} {
			s.IPv6 = v6
			count := 1
			if s.Encap || s.Port == 0 && !s.AH {
				count = queues
			}
			for s.Queue = 0; s.Queue < count; s.Queue++ {
				conn, have, err := netio.OpenSocket(netio.SocketConfig{
					IPv6: v6, Port: s.Port, Raw: s.Port == 0 && !s.AH, AH: s.AH, Queue: s.Queue, Queues: count, Mark: b.cfg.OwnMark, PathMTU: b.pathMTU,
				})
				if err != nil {
					return undo(err)
				}
				s.Conn = conn
				out = append(out, s)
				if s.Encap {
					features = append(features, have)
				}
				if !have.Steered {
					break
				}
			}
		}
		streams := netio.NewStreams(netio.StreamConfig{IPv6: v6, Port: b.cfg.NATTPort, Mark: b.cfg.OwnMark})
		b.streams = append(b.streams, streams)
		out = append(out, engine.Socket{Conn: streams, IPv6: v6, Port: b.cfg.NATTPort, Encap: true, TCP: true})
		if clear[i], _, err = netio.OpenSocket(netio.SocketConfig{IPv6: v6, Whole: true, Mark: b.cfg.OwnMark}); err != nil {
			return undo(err)
		}
	}
	return out, clear, features, nil
}

// reportFeatures says once what the kernel lacks: everything works without, but
// slower.
func (b *Backend) reportFeatures(queues int, t netio.TunFeatures, sockets []netio.SocketFeatures) {
	var missing []string
	if queues < b.cfg.Queues {
		missing = append(missing, fmt.Sprintf("%d of %d TUN queues", b.cfg.Queues-queues, b.cfg.Queues))
	}
	if !t.TSO {
		missing = append(missing, "TUN TCP segmentation")
	}
	if !t.USO {
		missing = append(missing, "TUN UDP segmentation")
	}
	for _, s := range sockets {
		if !s.GSO && !slices.Contains(missing, "UDP_SEGMENT") {
			missing = append(missing, "UDP_SEGMENT")
		}
		if !s.GRO && !slices.Contains(missing, "UDP_GRO") {
			missing = append(missing, "UDP_GRO")
		}
		if queues > 1 && !s.Steered && !slices.Contains(missing, "SO_ATTACH_REUSEPORT_CBPF") {
			missing = append(missing, "SO_ATTACH_REUSEPORT_CBPF")
		}
	}
	if len(missing) > 0 {
		b.cfg.Log.Warn("the kernel lacks offloads; packets move one by one there", "missing", missing)
	}
}

func closeAll[T interface {
	comparable
	Close() error
}](list []T) error {
	var errs []error
	var none T
	for _, x := range list {
		if x != none {
			errs = append(errs, x.Close())
		}
	}
	return errors.Join(errs...)
}

func closeSockets(list []engine.Socket) error {
	var errs []error
	for _, s := range list {
		errs = append(errs, s.Conn.Close())
	}
	return errors.Join(errs...)
}

// pathMTU passes on what ICMP says. Sockets first receive when the engine runs.
func (b *Backend) pathMTU(remote netip.Addr, mtu int) { b.Engine.PathMTU(remote, mtu) }

// emit hands an event to the reader, or counts it as lost. IKE retransmits,
// acquires time out and are raised again, limits are in the counters: nothing
// depends on one event.
func (b *Backend) emit(e backend.Event) {
	b.emitMu.RLock()
	defer b.emitMu.RUnlock()
	if b.closed {
		return
	}
	select {
	case b.events <- e:
	default:
		b.lost.Add(1)
	}
}

// Events implements backend.Backend.
func (b *Backend) Events() <-chan backend.Event { return b.events }

// SetPolicy implements backend.Backend. The engine changes first: for a moment
// it may get packets that only the old capture rules lead to it, never the other
// way round in clear.
func (b *Backend) SetPolicy(ctx context.Context, p *ipsec.NodePolicy) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	underlay := b.cfg.MTU
	if underlay == 0 {
		var err error
		if underlay, err = underlayMTU(p.Addresses); err != nil {
			return fmt.Errorf("policy %s: %w", p.Version, err)
		}
	}
	sizes := mtusOf(p, underlay)
	start := time.Now()
	listened := b.policy != nil && usesTCP(b.policy)
	if err := b.listen(usesTCP(p)); err != nil {
		err = fmt.Errorf("policy %s of node %s has peers that may come over TCP: %w", p.Version, p.Node, err)
		return errors.Join(err, b.listen(listened))
	}
	if err := b.Engine.SetPolicy(ctx, p); err != nil {
		return errors.Join(err, b.listen(listened))
	}
	err := netlink.LinkSetMTU(b.link, sizes.device)
	b.Engine.SetMTU(sizes.device)
	if err == nil {
		err = applyRuleset(&b.cfg, p, sizes)
	}
	if err != nil {
		err = fmt.Errorf("policy %s of node %s: %w", p.Version, p.Node, err)
		if b.policy != nil {
			err = errors.Join(err, b.Engine.SetPolicy(ctx, b.policy), b.listen(listened))
		}
		return err
	}
	b.policy = p
	b.warnForwarding(p)
	b.cfg.Log.Info("policy in force", "revision", p.Version.String(), "rules", len(p.Rules), "mtu", sizes.device, "took", time.Since(start).Round(time.Millisecond))
	return nil
}

// warnForwarding says once that a gateway's policy needs forwarding, which is
// the operator's to switch on.
func (b *Backend) warnForwarding(p *ipsec.NodePolicy) {
	own := map[netip.Addr]bool{}
	for _, a := range p.Addresses {
		own[a] = true
	}
	for i := range p.Rules {
		x := &p.Rules[i]
		if x.Action != ipsec.ActionSecure || x.Template.Mode != ipsec.ModeTunnel {
			continue
		}
		l := x.Selector.Local
		if l.First == l.Last && own[l.First] {
			continue
		}
		family, name := unix.AF_INET, "net.ipv4.ip_forward"
		if l.First.Is6() {
			family, name = unix.AF_INET6, "net.ipv6.conf.all.forwarding"
		}
		if !forwards(family) && !b.warned {
			b.warned = true
			b.cfg.Log.Warn("policy protects a subnet behind this host, but the host does not forward; set the sysctl", "rule", x.Name, "subnet", l.String(), "sysctl", name)
		}
	}
}

// Counters implements backend.Backend: the engine's, and what the capture rules
// dropped.
func (b *Backend) Counters() backend.Counters {
	c := b.Engine.Counters()
	host, err := rulesetCounters(&b.cfg)
	if err != nil {
		b.cfg.Log.Warn("counters of the host's rules cannot be read", "why", err)
	}
	add := func(why string, n uint64) {
		if n == 0 {
			return
		}
		for i := range c.Whys {
			if c.Whys[i].Why == why {
				c.Whys[i].Packets += n
				return
			}
		}
		c.Whys = append(c.Whys, backend.WhyCount{Why: why, Packets: n})
	}
	add(packet.WhyBlocked.String(), host[counterBlockedOut]+host[counterBlockedIn])
	add(packet.WhyClear.String(), host[counterClearIn])
	add(packet.WhyNoRule.String(), host[counterNoRule])
	add(backend.WhyEventsLost, b.lost.Load())
	for _, s := range b.streams {
		n := s.Counts()
		add(whyTCPRefused, n.Refused)
		add(whyTCPDropped, n.Dropped)
	}
	slices.SortFunc(c.Whys, func(x, y backend.WhyCount) int {
		if x.Why < y.Why {
			return -1
		}
		return 1
	})
	return c
}

// Close implements backend.Backend.
func (b *Backend) Close() error {
	b.once.Do(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		var errs []error
		if !b.staysClosed() {
			// The capture rules go before the TUN, so that nothing is dropped
			// that would go in clear a moment later anyway.
			errs = append(errs, removeRuleset(&b.cfg), removeRouting(&b.cfg))
		}
		b.addresses.close()
		errs = append(errs, b.Engine.Close())
		b.emitMu.Lock()
		b.closed = true
		close(b.events)
		b.emitMu.Unlock()
		b.err = errors.Join(errs...)
	})
	return b.err
}

// staysClosed reports whether Close leaves the rules: where policy or the
// configuration wants it, and where no policy came that could say whether the one of
// the rules that were taken over does.
func (b *Backend) staysClosed() bool {
	if b.policy == nil {
		return b.cfg.FailClosed || b.adopted
	}
	return b.cfg.FailClosed || b.policy.FailClosed
}

// Block puts on the host what a worker that was killed leaves there: what the policy
// secures is dropped, what it blocks too, until a backend of this configuration
// starts and takes over. It needs no device, and none of the node's addresses.
func Block(cfg Config, p *ipsec.NodePolicy) error {
	if err := cfg.fill(); err != nil {
		return fmt.Errorf("block: %w", err)
	}
	underlay := cfg.MTU
	if underlay == 0 {
		underlay = defaultMTU
	}
	// The blackhole is there before anything is marked for it.
	err := addBlackholes(&cfg)
	if err == nil {
		err = applyRuleset(&cfg, p, mtusOf(p, underlay))
	}
	if err != nil {
		return fmt.Errorf("block: %w", err)
	}
	return nil
}

// Cleanup removes from the host what a backend of this configuration may have
// left. It is for when none is running.
func Cleanup(cfg Config) error {
	if err := cfg.fill(); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	if err := errors.Join(removeRuleset(&cfg), removeRouting(&cfg), removeLink(&cfg)); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}
