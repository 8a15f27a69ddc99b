package policyapi_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/feed"
	"github.com/testudo-ipsec/testudo/policyd/store"
	"github.com/testudo-ipsec/testudo/policyd/store/memory"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
	"github.com/testudo-ipsec/testudo/services/internal/config"
	"github.com/testudo-ipsec/testudo/services/internal/feedclient"
	"github.com/testudo-ipsec/testudo/services/internal/policyapi"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// base is two hosts that secure what they send to each other.
const base = `apiVersion: testudo/v1
kind: Node
metadata: {name: red}
spec: {addresses: [10.77.0.1]}
---
kind: Node
metadata: {name: blue}
spec: {addresses: [10.77.0.2]}
---
kind: FilterList
metadata: {name: between}
spec: {filters: [{from: {node: red}, to: {node: blue}}]}
---
kind: FilterAction
metadata: {name: require}
spec: {action: secure, mode: transport, security: [{esp: {encryption: aes128gcm16}}]}
---
kind: Authentication
metadata: {name: psk}
spec: {methods: [{psk: {secret: "file:demo.psk"}}]}
---
kind: Policy
metadata: {name: p}
spec: {rules: [{name: all, filters: between, action: require, authentication: psk}]}
---
kind: Assignment
metadata: {name: red}
spec: {policy: p, to: red}
---
kind: Assignment
metadata: {name: blue}
spec: {policy: p, to: blue}
`

// blocking is a node with the address 10.78.0.n that blocks 192.0.2.n, all named
// alike.
func blocking(name string, n int) string {
	return fmt.Sprintf(`apiVersion: testudo/v1
kind: Node
metadata: {name: %[1]s}
spec: {addresses: [10.78.0.%[2]d]}
---
kind: FilterList
metadata: {name: %[1]s}
spec: {filters: [{from: me, to: 192.0.2.%[2]d}]}
---
kind: FilterAction
metadata: {name: %[1]s}
spec: {action: block}
---
kind: Policy
metadata: {name: %[1]s}
spec: {rules: [{name: r, filters: %[1]s, action: %[1]s}]}
---
kind: Assignment
metadata: {name: %[1]s}
spec: {policy: %[1]s, to: %[1]s}
`, name, n)
}

// rig is a policyd on a unix socket, with a store in memory.
type rig struct {
	t      *testing.T
	socket string
	log    *slog.Logger
	store  *memory.Store
	keeper *policyapi.Keeper
	conn   *grpc.ClientConn
	policyv1.PolicyServiceClient
	stop func()
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, socket: "unix://" + filepath.Join(t.TempDir(), "s"), log: slog.New(slog.DiscardHandler), store: memory.New()}
	var err error
	if r.conn, err = rpc.Dial(r.socket, rpc.RolePolicyd, config.TLS{}); err != nil {
		t.Fatal(err)
	}
	r.PolicyServiceClient = policyv1.NewPolicyServiceClient(r.conn)
	r.start()
	t.Cleanup(func() {
		r.stop()
		_ = r.conn.Close()
	})
	return r
}

// start runs a policyd over the store, as after a restart.
func (r *rig) start() {
	r.t.Helper()
	hub := &feed.Hub{}
	keeper := &policyapi.Keeper{Store: r.store, Hub: hub, Log: r.log}
	s, err := rpc.Listen(r.log, []string{r.socket}, config.TLS{}, rpc.PolicydAllow, func(reg grpc.ServiceRegistrar) {
		policyv1.RegisterPolicyServiceServer(reg, &policyapi.Service{Keeper: keeper})
		policyv1.RegisterPolicyFeedServer(reg, &policyapi.Feed{Hub: hub})
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := keeper.Run(ctx); err != nil {
			r.t.Error(err)
		}
	})
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			r.t.Error(err)
		}
	})
	r.keeper = keeper
	r.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		hub.Close()
	})
}

func (r *rig) ctx() context.Context { return r.t.Context() }

func files(texts ...string) []*policyv1.File {
	var out []*policyv1.File
	for i, x := range texts {
		out = append(out, &policyv1.File{Name: fmt.Sprintf("f%d.yaml", i), Content: []byte(x)})
	}
	return out
}

// apply applies documents that are right, and waits until they are in force.
func (r *rig) apply(req *policyv1.ApplyRequest) *policyv1.ApplyResponse {
	r.t.Helper()
	resp, err := r.Apply(r.ctx(), req, grpc.WaitForReady(true))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range resp.GetProblems() {
		if !p.GetWarning() {
			r.t.Fatalf("problem: %v", p)
		}
	}
	r.inForce(resp.GetVersion().GetRevision())
	return resp
}

func (r *rig) inForce(revision uint64) {
	r.t.Helper()
	eventually(r.t, fmt.Sprintf("revision %d is in force", revision), func() bool {
		v, ok := r.keeper.Hub.Version()
		return ok && v.Revision >= revision
	})
}

func (r *rig) documents() string {
	r.t.Helper()
	snap, err := r.store.Get(r.ctx(), 0)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for _, d := range snap.Documents {
		out = append(out, d.Key.String())
	}
	return strings.Join(out, " ")
}

// put writes into the store past policyd's checks, as another version of it
// or somebody with etcdctl might.
func (r *rig) put(kind, name, text string) {
	r.t.Helper()
	snap, err := r.store.Get(r.ctx(), 0)
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = r.store.Put(r.ctx(), store.Change{Base: snap.Version, Put: []store.Document{{Key: store.Key{Kind: kind, Name: name}, Text: []byte(text)}}})
	if err != nil {
		r.t.Fatal(err)
	}
}

// subscriber is a feed client that records what it is told to use.
type subscriber struct {
	*feedclient.Client
	stop func()

	mu     sync.Mutex
	inUse  map[string]*ipsec.NodePolicy
	calls  []string
	refuse map[string]error // by node
}

func (r *rig) subscribe(role, name, node, file string) *subscriber {
	r.t.Helper()
	s := &subscriber{inUse: map[string]*ipsec.NodePolicy{}, refuse: map[string]error{}}
	return s.run(r, role, name, node, file)
}

func (s *subscriber) run(r *rig, role, name, node, file string) *subscriber {
	r.t.Helper()
	conn, err := rpc.Dial(r.socket, rpc.RolePolicyd, config.TLS{})
	if err != nil {
		r.t.Fatal(err)
	}
	s.Client = &feedclient.Client{Conn: conn, Subscriber: name, Role: role, Node: node, File: file, Log: r.log, Use: s.use}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		_ = conn.Close()
	})
	r.t.Cleanup(s.stop)
	return s
}

func (s *subscriber) use(_ context.Context, node string, p *ipsec.NodePolicy) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuse[node]; err != nil && p != nil {
		return err
	}
	s.inUse[node] = p
	s.calls = append(s.calls, node)
	return nil
}

// rules lists the rules in use for a node; "-" when it has no policy.
func (s *subscriber) rules(node string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.inUse[node]
	if p == nil {
		return "-"
	}
	var out []string
	for _, r := range p.Rules {
		out = append(out, r.Name)
	}
	return strings.Join(out, " ")
}

func (s *subscriber) refuses(node string, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse[node] = errors.New(why); why == "" {
		delete(s.refuse, node)
	}
}

// at waits until a revision is in use.
func (s *subscriber) at(t *testing.T, revision uint64) {
	t.Helper()
	eventually(t, fmt.Sprintf("the subscriber has revision %d", revision), func() bool { got, _ := s.Revision(); return got >= revision })
}

// answers waits until the connection has noticed that policyd is back.
func (r *rig) answers() {
	r.t.Helper()
	eventually(r.t, "policyd answers", func() bool {
		_, err := r.Get(r.ctx(), &policyv1.GetRequest{}, grpc.WaitForReady(true))
		return err == nil
	})
}

// status is what policyd says of a subscriber; nil when it does not know it.
func (r *rig) status(name string) *policyv1.SubscriberStatus {
	r.t.Helper()
	r.answers()
	resp, err := r.Status(r.ctx(), &policyv1.StatusRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	all := resp.GetSubscribers()
	for _, n := range resp.GetNodes() {
		all = append(all, n.GetSubscriber())
	}
	for _, s := range all {
		if s.GetName() == name {
			return s
		}
	}
	return nil
}

// eventually asks again, at most for ten seconds.
func eventually(t *testing.T, what string, ok func() bool) {
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
