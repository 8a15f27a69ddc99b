package linkserver_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	"github.com/testudo-ipsec/testudo/services/internal/config"
	"github.com/testudo-ipsec/testudo/services/internal/linkserver"
	"github.com/testudo-ipsec/testudo/services/internal/pki"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

func TestSAsGoDownAndAcknowledgementsComeUp(t *testing.T) {
	r, w := newRig(t), newWorker(t)
	r.serve()
	c, _ := r.attach(w)
	eventually(t, "attached", r.attached)
	// There is nothing to send, and the worker knows all the same.
	eventually(t, "connected", c.Connected)
	if s := r.Workers()[0]; s.Node != "a" || s.Software != "test" || len(s.Addresses) != 1 || s.Addresses[0] != here {
		t.Errorf("hello arrived as %+v", s)
	}

	child := r.install()
	held := w.Inventory()
	if len(held) != 2 || held[0].ID != child.In || held[1].ID != child.Out || held[1].Lease.First != 1 || held[1].Lease.Last == 0 {
		t.Fatalf("the worker holds %+v, want %+v", held, child)
	}
	if s := r.Workers()[0]; s.Desired != 2 || s.Installed != 2 || s.LastNack != "" {
		t.Errorf("got %+v", s)
	}
	// The keys work: a packet goes out protected. It is one only: another, still on
	// its way when the SA goes, would ask for a new one.
	w.send()
	eventually(t, "the packet leaves", func() bool { return w.Engine.Counters().SAs[1].Packets > 0 })

	if _, err := r.initiate(ruleRemove); err == nil || !strings.Contains(err.Error(), "REMOVED") {
		t.Fatal(err)
	}
	eventually(t, "the worker holds nothing", func() bool { return len(w.Inventory()) == 0 })
	if log := r.logged.String(); strings.Contains(log, keyOctets) || strings.Contains(log, fmt.Sprintf("%x", keyOctets)) {
		t.Errorf("keys in the log:\n%s", log)
	}
}

func TestARefusalNamesTheOperation(t *testing.T) {
	r, w := newRig(t), newWorker(t)
	r.serve()
	r.attach(w)
	eventually(t, "attached", r.attached)
	_, err := r.initiate(ruleBad)
	if err == nil || !strings.Contains(err.Error(), "takes 20 octets of key and salt, got 9") {
		t.Fatalf("got %v", err)
	}
	s := r.Workers()[0]
	if !strings.HasPrefix(s.LastNack, "operation 1 of batch 1:") || s.Desired != 0 || s.Installed != 0 {
		t.Errorf("got %+v", s)
	}
	if held := w.Inventory(); len(held) != 0 {
		t.Errorf("half of the batch is in place: %+v", held)
	}
	r.install() // and the link goes on
	if log := r.logged.String(); strings.Contains(log, keyOctets) || !strings.Contains(log, "batch of SA operations refused") {
		t.Errorf("log:\n%s", log)
	}
}

func TestWhatTheWorkerStillHasIsNotSentAgain(t *testing.T) {
	r, w := newRig(t), newWorker(t)
	r.serve()
	c, _ := r.attach(w)
	eventually(t, "attached", r.attached)
	r.install()
	before, installs := w.Inventory(), r.Stats().Installs
	for range 3 {
		r.stopServer()
		eventually(t, "detached", func() bool { return !r.attached() && !c.Connected() })
		r.serve()
		eventually(t, "attached again", r.attached)
	}
	after := w.Inventory()
	if len(after) != 2 || after[0].ID != before[0].ID || after[1].ID != before[1].ID || after[1].Lease != before[1].Lease {
		t.Errorf("got  %+v\nwant %+v", after, before)
	}
	if n := r.Stats().Installs; n != installs {
		t.Errorf("%d SAs were installed again", n-installs)
	}
}

func TestAWorkerThatLostItsSAsGetsThemWithFreshLeases(t *testing.T) {
	r, w := newRig(t), newWorker(t)
	r.serve()
	_, stop := r.attach(w)
	eventually(t, "attached", r.attached)
	child := r.install()
	old := w.Inventory()[1].Lease
	stop()
	eventually(t, "detached", func() bool { return !r.attached() })

	fresh := newWorker(t)
	r.attach(fresh)
	eventually(t, "reinstalled", func() bool { s := r.Workers()[0]; return s.Attached && s.Installed == 2 })
	held := fresh.Inventory()
	if len(held) != 2 || held[1].ID != child.Out || held[1].Lease.First < old.Last {
		t.Errorf("got %+v, want a lease from %d on", held, old.Last)
	}
}

// A key manager that comes back without memory looks after the SAs that the
// worker has: it neither removes nor replaces them at once.
func TestANewKeyManagerKeepsTheSAsItFinds(t *testing.T) {
	r, w := newRig(t), newWorker(t)
	r.serve()
	r.attach(w)
	eventually(t, "attached", r.attached)
	r.install()
	before := w.Inventory()
	r.stopServer()
	r.Engine.Close()
	r.newEngine()
	r.serve()
	eventually(t, "attached to the new one", func() bool { return r.attached() && r.Workers()[0].Orphans == 2 })
	if after := w.Inventory(); len(after) != 2 || after[1].ID != before[1].ID || after[1].Lease != before[1].Lease {
		t.Errorf("got %+v, want %+v", after, before)
	}
}

func TestExpiriesAreSaidUntilTheyAreDealtWith(t *testing.T) {
	r, w := newRig(t), newWorker(t)
	r.serve()
	_, stop := r.attach(w)
	eventually(t, "attached", r.attached)
	child := r.install()
	want := ike.ChildExpired{Child: w.Inventory()[0].Child, Cause: "bytes"}
	expect := func(when string) {
		t.Helper()
		if got := r.event(); got != want {
			t.Fatalf("%s: got %+v, want %+v", when, got, want)
		}
	}

	// While the key manager is away.
	r.stopServer()
	eventually(t, "detached", func() bool { return !r.attached() })
	w.events <- backend.Expire{Expiry: ipsec.Expiry{ID: child.Out, Cause: "bytes"}}
	eventually(t, "the event is taken", func() bool { return len(w.events) == 0 })
	r.serve()
	expect("after the outage")

	// The stream may have ended before the key manager acted: said again.
	r.stopServer()
	eventually(t, "detached", func() bool { return !r.attached() })
	r.serve()
	expect("on the next stream")

	// Once the SA is gone, no more.
	if _, err := r.initiate(ruleRemove); err == nil {
		t.Fatal("not removed")
	}
	eventually(t, "removed", func() bool { return len(w.Inventory()) == 0 })
	r.stopServer()
	eventually(t, "detached", func() bool { return !r.attached() })
	r.serve()
	eventually(t, "attached", r.attached)
	r.install() // a round trip, behind anything that was said first
	stop()
	if len(r.events) != 0 {
		t.Errorf("an expiry of an SA that is gone: %+v", <-r.events)
	}
}

func TestLeaseRequestsSurviveAnOutage(t *testing.T) {
	r, w := newRig(t), newWorker(t)
	r.serve()
	r.attach(w)
	eventually(t, "attached", r.attached)
	child := r.install()
	first := w.Inventory()[1].Lease
	r.stopServer()
	eventually(t, "detached", func() bool { return !r.attached() })
	w.events <- backend.NeedLease{ID: child.Out, Used: first.Last - 10}
	eventually(t, "the event is taken", func() bool { return len(w.events) == 0 })
	r.serve()
	eventually(t, "the next lease", func() bool { return w.Inventory()[1].Lease.First == first.Last })
	granted := r.Stats().Grants
	r.stopServer()
	eventually(t, "detached", func() bool { return !r.attached() })
	r.serve()
	eventually(t, "attached", r.attached)
	if _, err := r.initiate(ruleRemove); err == nil {
		t.Fatal("not removed")
	}
	if n := r.Stats().Grants; n != granted {
		t.Errorf("a request that was answered was made again: %d more leases", n-granted)
	}
}

// Packets do not wait for a key manager that is not there.
func TestAcquiresWhileAwayAreAnsweredAtOnce(t *testing.T) {
	r, w := newRig(t), newWorker(t)
	r.attach(w) // nobody serves
	w.send()
	eventually(t, "the acquire fails", func() bool { return w.why("acquire-failed") > 0 })
	r.serve()
	eventually(t, "attached", r.attached)
	eventually(t, "the next packet makes an SA", func() bool { w.send(); return len(w.Inventory()) == 2 })
}

func TestTheNewestSessionOfANodeCounts(t *testing.T) {
	r := newRig(t)
	r.serve()
	hello := &keymgrv1.AttachRequest{Hello: &keymgrv1.Hello{Node: "a", Incarnation: 1}}
	conn, err := rpc.Dial(r.socket, rpc.RoleKeymgrd, config.TLS{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var streams []keymgrv1.WorkerLink_AttachClient
	for range 2 {
		st, err := keymgrv1.NewWorkerLinkClient(conn).Attach(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Send(hello); err != nil {
			t.Fatal(err)
		}
		if md, err := st.Header(); err != nil || md == nil {
			t.Fatalf("attached: got header %v, %v", md, err)
		}
		streams = append(streams, st)
	}
	_, err = streams[0].Recv()
	if status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "attached again") {
		t.Errorf("the stale stream: got %v", err)
	}
	if !r.attached() {
		t.Error("closing the stale session took the new one along")
	}
}

func TestAWorkerSpeaksForItsOwnNodeOnly(t *testing.T) {
	dir := t.TempDir()
	ca, _, err := pki.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := func(role rpc.Role, name string) config.TLS {
		if err := ca.Issue(name, rpc.Caller{Role: role, Name: name}); err != nil {
			t.Fatal(err)
		}
		return config.TLS{CA: dir + "/ca.pem", Cert: dir + "/" + name + ".pem", Key: dir + "/" + name + "-key.pem"}
	}
	r := newRig(t)
	address, stop := serve(t, r.log, "127.0.0.1:0", files(rpc.RoleKeymgrd, "keymgrd"), &linkserver.Server{Engine: r.Engine, Log: r.log})
	defer stop()
	conn, err := rpc.Dial(address, rpc.RoleKeymgrd, files(rpc.RoleWorker, "web-1"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	say := func(m *keymgrv1.AttachRequest) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		st, err := keymgrv1.NewWorkerLinkClient(conn).Attach(ctx)
		if err != nil {
			return err
		}
		if err := st.Send(m); err != nil {
			return err
		}
		if md, err := st.Header(); err == nil && md != nil {
			return nil
		}
		_, err = st.Recv()
		return err
	}
	hello := func(h *keymgrv1.Hello) *keymgrv1.AttachRequest {
		return &keymgrv1.AttachRequest{Hello: h}
	}
	for _, tt := range []struct {
		name  string
		m     *keymgrv1.AttachRequest
		code  codes.Code
		words string
	}{
		{"itself", hello(&keymgrv1.Hello{Node: "web-1", Incarnation: 1}), codes.OK, ""},
		{"another node", hello(&keymgrv1.Hello{Node: "web-2", Incarnation: 1}), codes.PermissionDenied, `worker/web-1 may not attach as node "web-2"`},
		{"no node", hello(&keymgrv1.Hello{Incarnation: 1}), codes.PermissionDenied, "may not attach"},
		{"no incarnation", hello(&keymgrv1.Hello{Node: "web-1"}), codes.InvalidArgument, "incarnation"},
		{"a bad address", hello(&keymgrv1.Hello{Node: "web-1", Incarnation: 1, Addresses: [][]byte{{1}}}), codes.InvalidArgument, "address has 1 octets"},
		{"not hello first", &keymgrv1.AttachRequest{Ack: &keymgrv1.Ack{Nonce: 1}}, codes.InvalidArgument, "must be hello"},
		{"nothing", &keymgrv1.AttachRequest{}, codes.InvalidArgument, "must be hello"},
	} {
		err := say(tt.m)
		if status.Code(err) != tt.code || err != nil && !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: got %v, want %s %q", tt.name, err, tt.code, tt.words)
		}
	}
}

func TestMalformedReportsEndTheStream(t *testing.T) {
	r := newRig(t)
	r.serve()
	conn, err := rpc.Dial(r.socket, rpc.RoleKeymgrd, config.TLS{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for name, m := range map[string]*keymgrv1.AttachRequest{
		"unknown kind":         {},
		"acquire without flow": {Acquire: &keymgrv1.Acquire{Id: 1, Rule: rulePair}},
		"IKE without address":  {Ike: []*keymgrv1.IkeDatagram{{Data: []byte("x")}}},
		"IKE from port 65536": {Ike: []*keymgrv1.IkeDatagram{{
			Local: here.AsSlice(), LocalPort: 500, Remote: there.AsSlice(), RemotePort: 65536,
		}}},
	} {
		st, err := keymgrv1.NewWorkerLinkClient(conn).Attach(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []*keymgrv1.AttachRequest{{Hello: &keymgrv1.Hello{Node: "a", Incarnation: 1}}, m} {
			if err := st.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		if _, err = st.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: got %v", name, err)
		}
	}
	eventually(t, "no session is left", func() bool { return !r.attached() })
}

// recorder is a key manager that only listens, until it is told to apply.
type recorder struct {
	keymgrv1.UnimplementedWorkerLinkServer
	apply chan *keymgrv1.Apply
	read  chan struct{} // closed: begin to read
	got   chan *keymgrv1.AttachRequest
}

func newRecorder() *recorder {
	return &recorder{apply: make(chan *keymgrv1.Apply), read: make(chan struct{}), got: make(chan *keymgrv1.AttachRequest)}
}

func (r *recorder) Attach(st keymgrv1.WorkerLink_AttachServer) error {
	ctx := st.Context()
	if err := st.SendHeader(nil); err != nil {
		return err
	}
	go func() {
		for {
			select {
			case a := <-r.apply:
				if st.Send(&keymgrv1.AttachResponse{Apply: a}) != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	select {
	case <-r.read:
	case <-ctx.Done():
	}
	for {
		m, err := st.Recv()
		if err != nil {
			return err
		}
		select {
		case r.got <- m:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// next is the next message, at most ten seconds away.
func (r *recorder) next(t *testing.T) *keymgrv1.AttachRequest {
	t.Helper()
	select {
	case m := <-r.got:
		return m
	case <-time.After(30 * time.Second):
		t.Fatal("no message within 30 s")
		return nil
	}
}

func TestCountersAreReportedWhenTheyChange(t *testing.T) {
	r, w, rec := newRig(t), newWorker(t), newRecorder()
	close(rec.read)
	s := &script{env: ike.Env{NextID: func() func() uint64 { n := uint64(0); return func() uint64 { n++; return n } }(), AllocSPI: func() ipsec.SPI { return 0x1000 }}}
	in, out := s.sa(1, ipsec.Inbound), s.sa(1, ipsec.Outbound)
	out.Lease = ipsec.Lease{First: 1, Last: 100}
	if err := w.Apply([]backend.Op{{Kind: backend.OpInstall, SA: &in}, {Kind: backend.OpInstall, SA: &out}}); err != nil {
		t.Fatal(err)
	}
	_, r.stopServer = serve(t, r.log, r.socket, config.TLS{}, rec)
	r.attach(w)
	hello := rec.next(t).GetHello()
	if len(hello.GetInventory()) != 2 || hello.GetInventory()[1].GetLeaseLast() != 100 || hello.GetInventory()[0].GetSpi() != 0x1000 {
		t.Errorf("inventory: got %v", hello.GetInventory())
	}
	if got := rec.next(t).GetCounters().GetItems(); len(got) != 2 {
		t.Fatalf("the first report: got %v, want both SAs", got)
	}
	polls := w.polls.Load()
	eventually(t, "the counters are looked at often", func() bool { return w.polls.Load() > polls+20 })
	select {
	case m := <-rec.got:
		t.Fatalf("nothing changed, and %v was reported", m)
	default:
	}
	w.send()
	got := rec.next(t).GetCounters().GetItems()
	if len(got) != 1 || got[0].GetId() != uint64(out.ID) || got[0].GetPackets() != 1 || got[0].GetTop() != 1 {
		t.Errorf("after one packet: got %v", got)
	}
}

// The key manager waits for the answer to a batch before it sends another, so
// an answer must not be lost, however many datagrams are waiting.
func TestAnswersAreNotLostInAFlood(t *testing.T) {
	const flood = 12000
	r, w, rec := newRig(t), newWorker(t), newRecorder()
	_, r.stopServer = serve(t, r.log, r.socket, config.TLS{}, rec)
	c, stop := r.attach(w)
	eventually(t, "connected", c.Connected)
	for range flood { // more than the queue and the window of the stream hold
		w.events <- backend.IKE{Path: backend.Path{}, Data: make([]byte, 1000)}
	}
	eventually(t, "the flood is in the queue", func() bool { return len(w.events) == 0 })
	rec.apply <- &keymgrv1.Apply{Nonce: 7, Operations: []*keymgrv1.Operation{{Operation: &keymgrv1.Operation_Remove{Remove: 2}}}}
	w.events <- backend.Expire{Expiry: ipsec.Expiry{ID: 1}}
	eventually(t, "the expiry is taken", func() bool { return len(w.events) == 0 })
	close(rec.read)
	acked, expired, datagrams := false, false, 0
	for !acked || !expired {
		m := rec.next(t)
		acked = acked || m.GetAck().GetNonce() == 7
		expired = expired || m.GetExpire().GetId() == 1
		datagrams += len(m.GetIke())
	}
	if datagrams == flood {
		t.Error("the queue held it all: this test shows nothing")
	}
	stop()
}

func TestABatchThatCannotBeReadIsRefusedAsAWhole(t *testing.T) {
	r, w, rec := newRig(t), newWorker(t), newRecorder()
	close(rec.read)
	_, r.stopServer = serve(t, r.log, r.socket, config.TLS{}, rec)
	r.attach(w)
	rec.next(t)
	remove := &keymgrv1.Operation{Operation: &keymgrv1.Operation_Remove{Remove: 9}}
	for name, op := range map[string]*keymgrv1.Operation{
		"unknown kind": {}, "empty SA": {Operation: &keymgrv1.Operation_Install{}},
		"lease of nothing": {Operation: &keymgrv1.Operation_Grant{Grant: &keymgrv1.Grant{Id: 4}}},
	} {
		rec.apply <- &keymgrv1.Apply{Nonce: 3, Operations: []*keymgrv1.Operation{remove, remove, op, remove}}
		nack := rec.next(t).GetNack()
		if nack.GetNonce() != 3 || nack.GetOperation() != 2 || nack.GetWhy() == "" {
			t.Errorf("%s: got %v", name, nack)
		}
	}
}

func TestABackendThatStopsEndsTheClient(t *testing.T) {
	r, w := newRig(t), newWorker(t)
	conn, err := rpc.Dial(r.socket, rpc.RoleKeymgrd, config.TLS{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := r.client(conn, w)
	w.events <- backend.Failed{Err: errors.New("the device is gone")}
	if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "the device is gone") {
		t.Errorf("got %v", err)
	}
}
