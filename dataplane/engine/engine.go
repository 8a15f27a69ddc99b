package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/dataplane/sad"
	"github.com/testudo-ipsec/testudo/dataplane/spd"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Socket is one socket of the engine and what comes in on it.
type Socket struct {
	Conn  netio.Conn
	IPv6  bool
	Port  uint16 // UDP port; 0 for raw ESP and AH
	Encap bool   // ESP and IKE share the port (RFC 3948); otherwise only IKE
	AH    bool   // AH, in messages that begin with the IP header
	TCP   bool   // TCP connections (RFC 9329), of any local port; Encap is set too

	// Queue tells apart sockets that are alike otherwise and share what comes in. The
	// first, which is 0, receives IKE.
	Queue int
}

// Config is what an engine runs on. The engine closes what it is given.
type Config struct {
	Tun     []netio.Tun // queues of one device
	Sockets []Socket

	// Clear injects whole IP packets past the policy, for rules that fall back
	// to clear; by family, IPv4 first. A nil one drops such packets.
	Clear [2]netio.Conn

	// Emit takes events. It is called on the packet path and must not block.
	Emit func(backend.Event)

	// Now is the clock; nil for time.Now.
	Now func() time.Time

	// TrainUDP allows UDP trains on the TUN.
	TrainUDP bool

	// FallbackFor is how long a rule that may fall back to clear does so after
	// a failed negotiation. 0 for one minute.
	FallbackFor time.Duration
}

// Engine moves packets. Make one with New, then Start it.
type Engine struct {
	cfg   Config
	sad   *sad.SAD
	state atomic.Pointer[state]

	mu         sync.Mutex // the control side; guards what follows
	outs       map[ipsec.SAID]*outSA
	ins        map[ipsec.SAID]*inSA
	policy     *ipsec.NodePolicy
	number     map[string]int // of a rule in the table, by name
	stamps     uint64
	ctl        *outWorker // sends what waited for an SA
	relays     *relays
	relayw     []*outWorker // by TUN queue; made when a policy first relays
	closed     bool
	keepalives keepalives

	esp, ah  inTable // ins by SPI; mu is for writing
	acquires acquires
	outw     []*outWorker
	inw      []*inWorker
	ident    atomic.Uint32 // of the last IPv4 header made for AH, and the last packet cut up
	mtu      atomic.Int32  // of the TUN
	panicAt  atomic.Int64  // when a panic was last told of (Unix seconds)
	stop     chan struct{}
	wg       sync.WaitGroup
}

// state is what the packet path reads: one policy, and the outbound SAs of each
// of its rules, the newest first. It is immutable but for the counters.
type state struct {
	stamp uint64
	table *spd.Table
	outs  ruleSAs
	hits  []hit // by rule number

	relays *relays
}

type hit struct{ packets, bytes atomic.Uint64 }

// New makes an engine that blocks everything until SetPolicy.
func New(cfg Config) (*Engine, error) {
	if cfg.Emit == nil || len(cfg.Tun) == 0 {
		return nil, errors.New("engine: want a TUN queue and a receiver of events")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.FallbackFor == 0 {
		cfg.FallbackFor = time.Minute
	}
	e := &Engine{
		cfg:  cfg,
		sad:  sad.New(),
		outs: map[ipsec.SAID]*outSA{},
		ins:  map[ipsec.SAID]*inSA{},
		stop: make(chan struct{}),
	}
	e.mtu.Store(defaultMTU)
	e.ident.Store(rand.Uint32())
	e.acquires.init(e)
	table, err := spd.Compile(nil, ipsec.ActionBlock)
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	e.publish(table, nil, nil)
	for _, t := range cfg.Tun {
		e.outw = append(e.outw, newOutWorker(e, len(e.outw), t))
	}
	e.ctl = newOutWorker(e, len(e.outw), cfg.Tun[0])
	for i := range cfg.Sockets {
		s := &cfg.Sockets[i]
		e.inw = append(e.inw, newInWorker(e, s, cfg.Tun[s.Queue%len(cfg.Tun)]))
	}
	return e, nil
}

// publish makes a new state current. The caller holds mu (or is New).
func (e *Engine) publish(table *spd.Table, outs ruleSAs, hits []hit) {
	e.stamps++
	e.state.Store(&state{stamp: e.stamps, table: table, outs: outs, hits: hits, relays: e.relays})
}

// Start runs the goroutines.
func (e *Engine) Start() {
	for i, w := range e.outw {
		e.run(func() error { return w.loop(e.cfg.Tun[i]) })
	}
	for _, w := range e.inw {
		e.run(w.loop)
	}
	e.wg.Go(e.tick)
}

// run runs one packet goroutine. When it ends for another reason than Close the
// backend is no longer whole, and says so.
func (e *Engine) run(loop func() error) {
	e.wg.Go(func() {
		err := loop()
		select {
		case <-e.stop:
		default:
			e.cfg.Emit(backend.Failed{Err: err})
		}
	})
}

// Close stops the goroutines and waits for them. SAs are removed.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	close(e.stop)
	e.mu.Unlock()
	var errs []error
	for _, t := range e.cfg.Tun {
		errs = append(errs, t.Close())
	}
	for _, s := range e.cfg.Sockets {
		errs = append(errs, s.Conn.Close())
	}
	for _, c := range e.cfg.Clear {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	e.wg.Wait()
	return errors.Join(errs...)
}

// gone reports an error that ends a goroutine.
func gone(err error) bool { return errors.Is(err, os.ErrClosed) }

// SendIKE sends an IKE message from the socket of path.Local's port and family.
func (e *Engine) SendIKE(path backend.Path, data []byte) error {
	s := e.socket(path.Local.Addr().Is6(), path.Local.Port(), false, path.TCP)
	if s < 0 || path.Local.Port() == 0 {
		return fmt.Errorf("send IKE from %s: no socket on this port and family", path.Local)
	}
	if path.Local.Addr().Is4() != path.Remote.Addr().Is4() {
		return fmt.Errorf("send IKE from %s to %s: two address families", path.Local, path.Remote)
	}
	sock := &e.cfg.Sockets[s]
	if sock.Encap {
		data = append(make([]byte, 4, 4+len(data)), data...) // the non-ESP marker (RFC 3948 §2.2)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return backend.ErrClosed
	}
	_, err := e.ctl.senders[s].Send([]netio.Message{{Data: data, Local: path.Local, Remote: path.Remote}})
	if err != nil {
		return fmt.Errorf("send IKE from %s to %s: %w", path.Local, path.Remote, err)
	}
	return nil
}

// socket is the number of the socket with a port, or of the one for AH or TCP, or
// -1; of several the first.
func (e *Engine) socket(ipv6 bool, port uint16, ah, tcp bool) int {
	for i := range e.cfg.Sockets {
		if s := &e.cfg.Sockets[i]; s.IPv6 == ipv6 && s.AH == ah && s.TCP == tcp && (s.Port == port || tcp) {
			return i
		}
	}
	return -1
}

// sender is for a worker to send on a socket, or on one like it, so that workers do
// not write to one socket where there are several.
func (e *Engine) sender(socket, worker int) netio.Sender {
	first := e.cfg.Sockets[socket]
	var like []netio.Conn
	for _, s := range e.cfg.Sockets {
		if s.IPv6 == first.IPv6 && s.Port == first.Port && s.AH == first.AH && s.TCP == first.TCP {
			like = append(like, s.Conn)
		}
	}
	return like[worker%len(like)].Sender()
}

// PathMTU takes what ICMP says of the path to an address. ICMP is not
// authenticated: it only ever lowers the MTU, to no less than the family's
// minimum, and is forgotten after pathMTULife (RFC 4301 §8.2, RFC 1191 §6.3).
func (e *Engine) PathMTU(remote netip.Addr, mtu int) {
	least := packet.MinMTU4
	if remote.Is6() {
		least = packet.MinMTU6
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, o := range e.outs {
		if p := o.path.Load(); p.remote.Addr() == remote {
			p.learn(max(mtu, least), e.cfg.Now().UnixNano())
		}
	}
}

// tickEvery is how often time limits are looked at.
const tickEvery = 200 * time.Millisecond

// tick reports expiries and drops what waited too long.
func (e *Engine) tick() {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-e.stop:
			return
		case <-t.C:
			e.sad.Advance(e.cfg.Now())
			e.acquires.expire(e.cfg.Now())
			e.keepalive(e.cfg.Now())
		case <-e.sad.Wake():
		}
		for _, x := range e.sad.Expiries() {
			e.expired(x)
		}
	}
}

func (e *Engine) expired(x ipsec.Expiry) {
	if x.Hard {
		e.restamp() // cached routes point at an SA that sends no more
	}
	if x.Cause != "lease" {
		e.cfg.Emit(backend.Expire{Expiry: x})
		return
	}
	if out := e.sad.Outbound(x.ID); out != nil {
		e.cfg.Emit(backend.NeedLease{ID: x.ID, Used: out.Counters().Top})
	}
}

// restamp makes cached decisions stale.
func (e *Engine) restamp() {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.state.Load()
	e.publish(s.table, s.outs, s.hits)
}
