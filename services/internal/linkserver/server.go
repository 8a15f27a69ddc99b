// Package linkserver serves WorkerLink: it carries push's values between the
// engine and the workers' streams.
package linkserver

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/push"
	ipsecv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/ipsec/v1"
	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	"github.com/testudo-ipsec/testudo/services/internal/convert"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

// Server implements keymgrv1.WorkerLinkServer.
type Server struct {
	keymgrv1.UnimplementedWorkerLinkServer
	Engine *engine.Engine
	Log    *slog.Logger
}

// Attach is one worker's session.
func (s *Server) Attach(st keymgrv1.WorkerLink_AttachServer) error {
	caller, err := rpc.CallerOf(st.Context())
	if err != nil {
		return err
	}
	first, err := st.Recv()
	if err != nil {
		return err
	}
	m := first.GetHello()
	if m == nil {
		return status.Error(codes.InvalidArgument, "the first message must be hello")
	}
	if !caller.Is(m.GetNode()) {
		return status.Errorf(codes.PermissionDenied, "%s may not attach as node %q", caller, m.GetNode())
	}
	hello, err := fromHello(m)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	l := newLink()
	session, err := s.Engine.Attach(hello, l)
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	defer session.Close()
	defer l.Close("stream ended")
	// The header tells the worker that it is attached, when there is nothing to
	// send for a long time.
	if err := st.SendHeader(nil); err != nil {
		return err
	}
	s.Log.Info("worker attached", "node", hello.Node, "inventory", len(hello.Inventory), "software", hello.Software)
	defer s.Log.Info("worker detached", "node", hello.Node)

	recvErr := make(chan error, 1)
	go func() {
		for {
			m, err := st.Recv()
			if err != nil {
				recvErr <- err
				return
			}
			if err := eachReport(m, session.Handle); err != nil {
				recvErr <- status.Error(codes.InvalidArgument, err.Error())
				return
			}
		}
	}()
	for {
		select {
		case first := <-l.down:
			m := l.gather(first)
			if err := st.Send(m); err != nil {
				return err
			}
			forget(m)
		case why := <-l.closed:
			return status.Error(codes.Aborted, why)
		case err := <-recvErr:
			return err
		}
	}
}

// forget takes the keys out of a message that was sent, so that it does not keep
// them alive. The octets are the engine's, which may install the SA again.
func forget(m *keymgrv1.AttachResponse) {
	for _, op := range m.GetApply().GetOperations() {
		if sa := op.GetInstall(); sa != nil {
			sa.EncrKey, sa.IntegKey = nil, nil
		}
	}
}

// link is push.Link over a stream: a bounded queue that the stream's goroutine
// empties.
type link struct {
	down   chan *keymgrv1.AttachResponse
	closed chan string
	once   sync.Once
	done   chan struct{}
}

// queue is how many messages may wait for one stream. Batches are one
// outstanding at a time, so nearly all of it is IKE datagrams.
const queue = 1024

func newLink() *link {
	return &link{down: make(chan *keymgrv1.AttachResponse, queue), closed: make(chan string, 1), done: make(chan struct{})}
}

func (l *link) send(m *keymgrv1.AttachResponse) error {
	select {
	case <-l.done:
		return push.ErrClosed
	default:
	}
	select {
	case l.down <- m:
		return nil
	default:
		return push.ErrFull
	}
}

// gather joins a message with those that wait behind it, as far as one can hold them:
// datagrams come before operations in it, and there is one of each other kind.
func (l *link) gather(m *keymgrv1.AttachResponse) *keymgrv1.AttachResponse {
	for len(m.GetIke()) < gatherMost && m.Apply == nil && m.AcquireFailed == nil {
		select {
		case next := <-l.down:
			m.Ike = append(m.Ike, next.GetIke()...)
			m.Apply, m.AcquireFailed = next.GetApply(), next.GetAcquireFailed()
		default:
			return m
		}
	}
	return m
}

// gatherMost bounds the datagrams of one message.
const gatherMost = 64

func (l *link) Apply(b push.Batch) error {
	m := &keymgrv1.Apply{Nonce: b.Nonce, Operations: make([]*keymgrv1.Operation, len(b.Ops))}
	for i, op := range b.Ops {
		switch o := op.(type) {
		case push.Install:
			m.Operations[i] = &keymgrv1.Operation{Operation: &keymgrv1.Operation_Install{Install: convert.ToSA(&o.SA)}}
		case push.Remove:
			m.Operations[i] = &keymgrv1.Operation{Operation: &keymgrv1.Operation_Remove{Remove: uint64(o.ID)}}
		case push.Grant:
			m.Operations[i] = &keymgrv1.Operation{Operation: &keymgrv1.Operation_Grant{Grant: &keymgrv1.Grant{
				Id: uint64(o.ID), Lease: &ipsecv1.Lease{First: o.Lease.First, Last: o.Lease.Last},
			}}}
		}
	}
	return l.send(&keymgrv1.AttachResponse{Apply: m})
}

func (l *link) SendIKE(p ike.Path, data []byte) error {
	return l.send(&keymgrv1.AttachResponse{Ike: []*keymgrv1.IkeDatagram{{
		Local: p.Local.Addr().AsSlice(), LocalPort: uint32(p.Local.Port()),
		Remote: p.Remote.Addr().AsSlice(), RemotePort: uint32(p.Remote.Port()), Data: data, Tcp: p.TCP,
	}}})
}

func (l *link) AcquireFailed(id uint64, why string) error {
	return l.send(&keymgrv1.AttachResponse{AcquireFailed: &keymgrv1.AcquireFailed{Id: id, Why: why}})
}

func (l *link) Close(why string) {
	l.once.Do(func() {
		close(l.done)
		l.closed <- why
	})
}

func fromHello(m *keymgrv1.Hello) (push.Hello, error) {
	h := push.Hello{Node: m.GetNode(), Incarnation: m.GetIncarnation(), Software: m.GetSoftware()}
	if h.Node == "" || h.Incarnation == 0 {
		return h, fmt.Errorf("hello needs a node and an incarnation that is not 0")
	}
	var err error
	if h.Addresses, err = convert.FromAddrs(m.GetAddresses()); err != nil {
		return h, fmt.Errorf("hello: %w", err)
	}
	for _, i := range m.GetInventory() {
		h.Inventory = append(h.Inventory, push.Held{
			ID: ipsec.SAID(i.GetId()), SPI: ipsec.SPI(i.GetSpi()), Direction: ipsec.Direction(i.GetDirection()),
			Rule: i.GetRule(), Child: i.GetChild(), Top: i.GetTop(), LeaseLast: i.GetLeaseLast(),
		})
	}
	return h, nil
}

// eachReport calls fn with the reports of a message, in the order of its fields.
func eachReport(m *keymgrv1.AttachRequest, fn func(push.Report)) error {
	known := false
	report := func(r push.Report) {
		known = true
		fn(r)
	}
	if x := m.GetAck(); x != nil {
		report(push.Ack{Nonce: x.GetNonce()})
	}
	if x := m.GetNack(); x != nil {
		report(push.Nack{Nonce: x.GetNonce(), Op: int(x.GetOperation()), Why: x.GetWhy()})
	}
	if x := m.GetAcquire(); x != nil {
		f, err := convert.FromFlow(x.GetFlow())
		if err != nil {
			return err
		}
		report(push.Acquire{ID: x.GetId(), Flow: f, Rule: x.GetRule()})
	}
	for _, x := range m.GetIke() {
		local, err := addrPort(x.GetLocal(), x.GetLocalPort())
		if err != nil {
			return err
		}
		remote, err := addrPort(x.GetRemote(), x.GetRemotePort())
		if err != nil {
			return err
		}
		report(push.Datagram{Path: ike.Path{Local: local, Remote: remote, TCP: x.GetTcp()}, Data: x.GetData()})
	}
	if x := m.GetExpire(); x != nil {
		report(push.Expire{Expiry: ipsec.Expiry{ID: ipsec.SAID(x.GetId()), Hard: x.GetHard(), Cause: x.GetCause()}})
	}
	if x := m.GetCounters(); x != nil {
		c := push.Counters{SAs: make([]ipsec.SACounters, len(x.GetItems()))}
		for i, item := range x.GetItems() {
			c.SAs[i] = convert.FromCounters(item)
		}
		report(c)
	}
	if x := m.GetLeaseRequest(); x != nil {
		report(push.LeaseRequest{ID: ipsec.SAID(x.GetId()), Used: x.GetUsed()})
	}
	if x := m.GetAddresses(); x != nil {
		as, err := convert.FromAddrs(x.GetAddresses())
		if err != nil {
			return err
		}
		report(push.Addresses{Local: as})
	}
	if x := m.GetPeerMoved(); x != nil {
		local, err := addrPort(x.GetLocal(), x.GetLocalPort())
		if err != nil {
			return err
		}
		remote, err := addrPort(x.GetRemote(), x.GetRemotePort())
		if err != nil {
			return err
		}
		report(push.PeerMoved{ID: ipsec.SAID(x.GetId()), Path: ike.Path{Local: local, Remote: remote}})
	}
	if !known {
		return fmt.Errorf("a message of a kind that this software does not know")
	}
	return nil
}

func addrPort(b []byte, port uint32) (netip.AddrPort, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok || port > 65535 {
		return netip.AddrPort{}, fmt.Errorf("address of %d octets and port %d, want 4 or 16 octets and a port below 65536", len(b), port)
	}
	return netip.AddrPortFrom(a, uint16(port)), nil
}
