package linkserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	dataplane "github.com/testudo-ipsec/testudo/dataplane/engine"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/netio/netiotest"
	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	"github.com/testudo-ipsec/testudo/services/internal/config"
	"github.com/testudo-ipsec/testudo/services/internal/linkclient"
	"github.com/testudo-ipsec/testudo/services/internal/linkserver"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	here  = netip.MustParseAddr("192.0.2.1")
	there = netip.MustParseAddr("192.0.2.2")
)

// keyOctets are in every key that a script makes, and so must be in no log.
const keyOctets = "KEYOCTETS"

// Rules of the node's policy. Initiating one makes the script do what is said.
const (
	rulePair   = "pair"   // install a CHILD SA
	ruleBad    = "bad"    // install one whose second half no worker takes
	ruleMany   = "many"   // install manyPairs CHILD SAs
	ruleRemove = "remove" // remove everything
)

const manyPairs = 5000

// script is an IKE machine that asks for what the rule says.
type script struct {
	env     ike.Env
	info    ike.Info
	events  chan<- ike.Event
	sas     []ipsec.SAID
	rule    string // being negotiated
	pending int
}

type machines struct{ events chan ike.Event }

func (m machines) Initiator(env ike.Env, _ *ipsec.NodePolicy, peer string, path ike.Path) (ike.Machine, error) {
	return &script{env: env, events: m.events, info: ike.Info{Peer: peer, Path: path, Initiator: true, LocalSPI: env.NextID()}}, nil
}

func (m machines) Responder(ike.Env, *ipsec.NodePolicy, []string, ike.Path) (ike.Machine, error) {
	return nil, errors.New("nobody calls")
}

func (m machines) Wake(ike.Env, *ipsec.NodePolicy, []string, []byte) (ike.Machine, error) {
	return nil, errors.New("nothing rests")
}

func (m machines) Restore(ike.Env, []byte) (ike.Machine, error) {
	return nil, errors.New("nothing was saved")
}

func (s *script) Deadline() time.Time { return time.Time{} }
func (s *script) Info() ike.Info      { return s.info }

func (s *script) Rest(dst []byte) ([]byte, bool) { return dst, false }

func (s *script) Save(dst []byte) ([]byte, bool) { return dst, false }

func (s *script) Handle(_ time.Time, ev ike.Event) []ike.Effect {
	switch ev := ev.(type) {
	case ike.CreateChild:
		return append([]ike.Effect{ike.Established{}}, s.create(ev.Rule)...)
	case ike.Installed:
		if ev.Err != nil {
			return []ike.Effect{ike.Failed{Failure: ike.Failure{Rule: s.rule, Why: "NOT_INSTALLED", Detail: ev.Err.Error()}}}
		}
		if s.pending--; s.pending == 0 {
			child := ike.Child{ID: ev.ID, Rule: s.rule, Since: time.Now(), In: s.sas[len(s.sas)-2], Out: s.sas[len(s.sas)-1]}
			return []ike.Effect{ike.ChildUp{Child: child}}
		}
	case ike.ChildExpired, ike.RekeyChild:
		s.events <- ev
	}
	return nil
}

func (s *script) create(rule string) []ike.Effect {
	s.rule = rule
	if rule == ruleRemove {
		sas := s.sas
		s.sas = nil
		return []ike.Effect{ike.Remove{SAs: sas}, ike.Failed{Failure: ike.Failure{Rule: rule, Why: "REMOVED"}}}
	}
	s.pending = 1
	if rule == ruleMany {
		s.pending = manyPairs
	}
	var out []ike.Effect
	for range s.pending {
		id := s.env.NextID()
		in, o := s.sa(id, ipsec.Inbound), s.sa(id, ipsec.Outbound)
		if rule == ruleBad {
			o.EncrKey = ipsec.NewSecret([]byte(keyOctets)) // too short for its cipher
		} else {
			s.sas = append(s.sas, in.ID, o.ID)
		}
		out = append(out, ike.Install{ID: id, SAs: []ipsec.SA{in, o}})
	}
	return out
}

// sa makes half a CHILD SA: AES-128-GCM with ESN.
func (s *script) sa(child uint64, d ipsec.Direction) ipsec.SA {
	id := s.env.NextID()
	any4 := ipsec.PrefixSelector(netip.MustParsePrefix("10.0.0.0/8"))
	return ipsec.SA{
		ID: ipsec.SAID(id), Direction: d, Protocol: ipsec.ProtocolESP, SPI: s.env.AllocSPI(), Mode: ipsec.ModeTunnel, Local: here, Remote: there,
		Encap:     &ipsec.Encap{LocalPort: 4500, RemotePort: 4500},
		Suite:     ipsec.Suite{Protocol: ipsec.ProtocolESP, Encr: ipsec.Transform{Type: ipsec.TransformENCR, ID: ipsec.EncrAESGCM16, KeyBits: 128}, ESN: true},
		EncrKey:   ipsec.CopySecret(fmt.Appendf(nil, "%s%011x", keyOctets, id&0xfffffffffff)), // 16 of key and 4 of salt
		Selectors: []ipsec.Selector{{Local: any4, Remote: any4}}, ReplayWindow: 64,
		Lifetime: ipsec.Lifetime{TimeSoft: 50 * time.Minute, TimeHard: time.Hour}, Rule: rulePair, Peer: "p", Child: child,
	}
}

type noSecrets struct{}

func (noSecrets) PSK(context.Context, string) ([]ipsec.Secret, error) {
	return nil, errors.New("no secrets here")
}

func nodePolicy() *ipsec.NodePolicy {
	p := &ipsec.NodePolicy{
		Node: "a", Addresses: []netip.Addr{here}, Default: ipsec.ActionPermit,
		Peers: []ipsec.Peer{{Name: "p", Local: []netip.Addr{here}, Remote: []netip.Addr{there}}},
	}
	for i, r := range []string{rulePair, ruleBad, ruleMany, ruleRemove} {
		net := ipsec.PrefixSelector(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16))
		p.Rules = append(p.Rules, ipsec.Rule{
			Name: r, Weight: uint64(10 - i), Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: "p",
			Selector: ipsec.Selector{Local: net, Remote: net}, Template: &ipsec.Template{Mode: ipsec.ModeTunnel},
		})
	}
	return p
}

// worker is a backend: the real packet engine on a TUN device and a wire in
// memory, without a host to configure.
type worker struct {
	*dataplane.Engine
	tun    *netiotest.Tun
	far    *netiotest.Conn // the peer's end of the wire
	events chan backend.Event
	polls  atomic.Uint64 // how often the counters were read
}

func newWorker(t testing.TB) *worker {
	t.Helper()
	near, far := netiotest.NewWire(netip.AddrPortFrom(here, 4500), netip.AddrPortFrom(there, 4500), 512)
	w := &worker{tun: netiotest.NewTun(512), far: far, events: make(chan backend.Event, 1<<14)}
	var err error
	w.Engine, err = dataplane.New(dataplane.Config{
		Tun:     []netio.Tun{w.tun},
		Sockets: []dataplane.Socket{{Conn: near, Port: 4500, Encap: true}},
		Emit:    func(e backend.Event) { w.events <- e },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.SetPolicy(context.Background(), nodePolicy()); err != nil {
		t.Fatal(err)
	}
	w.Start()
	t.Cleanup(func() {
		if err := w.Engine.Close(); err != nil {
			t.Error(err)
		}
		_ = far.Close()
	})
	return w
}

func (w *worker) Events() <-chan backend.Event { return w.events }

func (w *worker) Counters() backend.Counters {
	w.polls.Add(1)
	return w.Engine.Counters()
}

func (w *worker) why(name string) uint64 {
	for _, c := range w.Engine.Counters().Whys {
		if c.Why == name {
			return c.Packets
		}
	}
	return 0
}

// send gives the worker a UDP packet from 10.0.0.1 to 10.0.0.2, which the rule
// "pair" secures.
func (w *worker) send() {
	b := []byte{
		0x45, 0, 0, 36, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4, checksum below
		0, 1, 0, 2, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, // UDP without a checksum
	}
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	sum = ^(sum&0xffff + sum>>16)
	b[10], b[11] = byte(sum>>8), byte(sum)
	w.tun.ToEngine <- netio.Packet{Data: b}
}

// safeBuffer collects a log.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// rig is a key manager, and a socket on which it can be served.
type rig struct {
	t      testing.TB
	socket string
	logged safeBuffer
	log    *slog.Logger
	events chan ike.Event
	report time.Duration
	*engine.Engine
	stopServer func()
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, socket: "unix://" + filepath.Join(t.TempDir(), "s"), events: make(chan ike.Event, 100), report: time.Millisecond, stopServer: func() {}}
	r.log = slog.New(slog.NewTextHandler(&r.logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r.newEngine()
	t.Cleanup(func() {
		r.stopServer()
		r.Engine.Close()
	})
	return r
}

func (r *rig) newEngine() {
	r.t.Helper()
	var err error
	r.Engine, err = engine.New(engine.Config{Machines: machines{r.events}, Secrets: noSecrets{}, Log: r.log})
	if err != nil {
		r.t.Fatal(err)
	}
	r.SetPolicy("a", nodePolicy())
}

// serve serves something as WorkerLink until the function returned is called.
func serve(t testing.TB, log *slog.Logger, address string, files config.TLS, link keymgrv1.WorkerLinkServer) (at string, stop func()) {
	t.Helper()
	s, err := rpc.Listen(log, []string{address}, files, rpc.KeymgrdAllow, func(reg grpc.ServiceRegistrar) { keymgrv1.RegisterWorkerLinkServer(reg, link) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return s.Addresses()[0], sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (r *rig) serve() {
	r.t.Helper()
	_, r.stopServer = serve(r.t, r.log, r.socket, config.TLS{}, &linkserver.Server{Engine: r.Engine, Log: r.log})
}

// attach runs a client for the worker until the function returned is called.
func (r *rig) attach(w backend.Backend) (c *linkclient.Client, stop func()) {
	r.t.Helper()
	conn, err := rpc.Dial(r.socket, rpc.RoleKeymgrd, config.TLS{})
	if err != nil {
		r.t.Fatal(err)
	}
	c = r.client(conn, w)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		_ = conn.Close()
	})
	r.t.Cleanup(stop)
	return c, stop
}

func (r *rig) client(conn grpc.ClientConnInterface, w backend.Backend) *linkclient.Client {
	return &linkclient.Client{
		Conn: conn, Node: "a", Software: "test", Addresses: func() []netip.Addr { return []netip.Addr{here} },
		Backend: w, Log: r.log, Report: r.report,
	}
}

func (r *rig) attached() bool {
	w := r.Workers()
	return len(w) == 1 && w[0].Attached
}

// initiate has the script do what a rule says.
func (r *rig) initiate(rule string) (ike.Child, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return r.Initiate(ctx, "a", rule)
}

func (r *rig) install() ike.Child {
	r.t.Helper()
	c, err := r.initiate(rulePair)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r *rig) event() ike.Event {
	r.t.Helper()
	select {
	case ev := <-r.events:
		return ev
	case <-time.After(30 * time.Second):
		r.t.Fatal("the machine was told nothing within 30 s")
		return nil
	}
}

// eventually asks again, at most for ten seconds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.After(30 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("did not happen within 30 s: %s", what)
		}
	}
}
