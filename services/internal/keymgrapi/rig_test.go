package keymgrapi_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
	"github.com/testudo-ipsec/testudo/keymgr/push"
	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	"github.com/testudo-ipsec/testudo/services/internal/config"
	"github.com/testudo-ipsec/testudo/services/internal/keymgrapi"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pskOctets are in the preshared key, and so must be in no answer.
const pskOctets = "thirty-two octets of a preshared key"

type secrets struct{}

func (secrets) PSK(context.Context, string) ([]ipsec.Secret, error) {
	return []ipsec.Secret{ipsec.CopySecret([]byte(pskOctets))}, nil
}

// worker is a node's worker: it acknowledges all, and its IKE datagrams go to the
// worker that has the address.
type worker struct {
	rig     *rig
	session *engine.Session
	work    chan func()
}

func (w *worker) Apply(b push.Batch) error {
	w.work <- func() { w.session.Handle(push.Ack{Nonce: b.Nonce}) }
	return nil
}

func (w *worker) SendIKE(p ike.Path, data []byte) error {
	to := w.rig.workers[p.Remote.Addr()]
	if to != nil {
		to.work <- func() {
			to.session.Handle(push.Datagram{Path: ike.Path{Local: p.Remote, Remote: p.Local}, Data: slices.Clone(data)})
		}
	}
	return nil
}

func (w *worker) AcquireFailed(uint64, string) error { return nil }
func (w *worker) Close(string)                       {}

// rig is an engine with two nodes, a and b, served on a socket.
type rig struct {
	keymgrv1.KeyManagerServiceClient
	engine  *engine.Engine
	workers map[netip.Addr]*worker
}

var addresses = map[string]netip.Addr{"a": netip.MustParseAddr("192.0.2.1"), "b": netip.MustParseAddr("192.0.2.2")}

func newRig(t *testing.T) *rig {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	e, err := engine.New(engine.Config{Machines: ikev2.Machines{}, Secrets: secrets{}, Log: log, Drain: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{engine: e, workers: make(map[netip.Addr]*worker)}
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	for node, addr := range addresses {
		w := &worker{rig: r, work: make(chan func(), 1024)}
		r.workers[addr] = w
		e.SetPolicy(node, policy(t, node, "aes256gcm16-prfsha256-x25519"))
		if w.session, err = e.Attach(push.Hello{Node: node, Incarnation: 1, Addresses: []netip.Addr{addr}, Software: "test"}, w); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for {
				select {
				case fn := <-w.work:
					fn()
				case <-ctx.Done():
					return
				}
			}
		})
	}
	address := "unix://" + filepath.Join(t.TempDir(), "keymgrd.sock")
	server, err := rpc.Listen(log, []string{address}, config.TLS{}, rpc.KeymgrdAllow, func(s grpc.ServiceRegistrar) {
		keymgrv1.RegisterKeyManagerServiceServer(s, &keymgrapi.Server{Engine: e})
	})
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		if err := server.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	conn, err := rpc.Dial(address, rpc.RoleKeymgrd, config.TLS{})
	if err != nil {
		t.Fatal(err)
	}
	r.KeyManagerServiceClient = keymgrv1.NewKeyManagerServiceClient(conn)
	t.Cleanup(func() {
		_ = conn.Close()
		e.Close()
		stop()
		wg.Wait()
	})
	return r
}

// policy is one rule "rule" between a and b, with an IKE suite.
func policy(t *testing.T, node, suite string) *ipsec.NodePolicy {
	t.Helper()
	other := map[string]string{"a": "b", "b": "a"}[node]
	id := func(s string) ipsec.Identity { return ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: s + ".example"} }
	proposal := func(p ipsec.Protocol, s string) []ipsec.Proposal {
		x, err := ipsec.ParseProposal(p, s)
		if err != nil {
			t.Fatal(err)
		}
		return []ipsec.Proposal{x}
	}
	return &ipsec.NodePolicy{
		Node: node, Addresses: []netip.Addr{addresses[node]}, Default: ipsec.ActionPermit,
		Peers: []ipsec.Peer{{Name: other, Local: []netip.Addr{addresses[node]}, Remote: []netip.Addr{addresses[other]}, LocalID: id(node), RemoteID: id(other),
			Auth: []ipsec.AuthMethod{{PSK: "file:psk"}}, Proposals: proposal(ipsec.ProtocolIKE, suite), Lifetime: 4 * time.Hour}},
		Rules: []ipsec.Rule{{Name: "rule", Weight: 1, Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: other,
			Selector: ipsec.Selector{Local: ipsec.AddrSelector(addresses[node]), Remote: ipsec.AddrSelector(addresses[other])},
			Template: &ipsec.Template{Mode: ipsec.ModeTunnel, Proposals: proposal(ipsec.ProtocolESP, "aes128gcm16"), ReplayWindow: 64,
				Lifetime: ipsec.Lifetime{TimeSoft: 50 * time.Minute, TimeHard: time.Hour}}}},
	}
}

// waitFor asks until cond is nil.
func waitFor(t *testing.T, what string, cond func() error) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	var err error
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); <-tick.C {
		if err = cond(); err == nil {
			return
		}
	}
	t.Fatalf("waited for %s: %v", what, err)
}

func (r *rig) initiate(t *testing.T) *keymgrv1.ChildSa {
	t.Helper()
	resp, err := r.Initiate(t.Context(), &keymgrv1.InitiateRequest{Node: "a", Rule: "rule"})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetChild()
}

// sas are the IKE SAs of node a.
func (r *rig) sas(t *testing.T) []*keymgrv1.IkeSa {
	t.Helper()
	resp, err := r.ListSas(t.Context(), &keymgrv1.ListSasRequest{Node: "a"})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetIkeSas()
}

func errNow(format string, args ...any) error { return fmt.Errorf("now "+format, args...) }
