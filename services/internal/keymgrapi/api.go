// Package keymgrapi serves KeyManagerService: what operators ask a key manager.
package keymgrapi

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	ipsecv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/ipsec/v1"
	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	"github.com/testudo-ipsec/testudo/services/internal/convert"
)

// Server implements keymgrv1.KeyManagerServiceServer.
type Server struct {
	keymgrv1.UnimplementedKeyManagerServiceServer
	Engine *engine.Engine
}

// ListSas lists IKE SAs with their CHILD SAs.
func (s *Server) ListSas(ctx context.Context, r *keymgrv1.ListSasRequest) (*keymgrv1.ListSasResponse, error) {
	sas, err := s.Engine.List(ctx, engine.Filter{Node: r.GetNode(), Peer: r.GetPeer()})
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	out := &keymgrv1.ListSasResponse{}
	for i := range sas {
		out.IkeSas = append(out.IkeSas, toIKESA(&sas[i]))
	}
	return out, nil
}

func toIKESA(sa *engine.IKESA) *keymgrv1.IkeSa {
	m := &keymgrv1.IkeSa{
		Node: sa.Node, Peer: sa.Peer, Version: uint32(sa.Version), Initiator: sa.Initiator, State: sa.State,
		LocalSpi: sa.LocalSPI, RemoteSpi: sa.RemoteSPI, Local: sa.Path.Local.String(), Remote: sa.Path.Remote.String(),
		LocalId: sa.LocalID, RemoteId: sa.RemoteID, Suite: sa.Suite.String(), Nat: sa.NAT, Tcp: sa.Path.TCP,
		LocalAuth: sa.LocalAuth, RemoteAuth: sa.RemoteAuth, PpkId: sa.PPK,
		Since: convert.Time(sa.Since), RekeyAt: convert.Time(sa.RekeyAt), ReauthAt: convert.Time(sa.ReauthAt),
	}
	for i, c := range sa.Children {
		cm := toChild(c)
		if i < len(sa.Traffic) {
			t := sa.Traffic[i]
			cm.In, cm.Out = convert.ToCounters(t.In), convert.ToCounters(t.Out)
			cm.InBps, cm.OutBps = 8*t.InRate, 8*t.OutRate
		}
		m.Children = append(m.Children, cm)
	}
	return m
}

func toChild(c ike.Child) *keymgrv1.ChildSa {
	m := &keymgrv1.ChildSa{
		Id: c.ID, Rule: c.Rule, Suite: c.Suite.String(), Mode: ipsecv1.Mode(c.Mode), Encap: c.Encap,
		Protocol: uint32(c.Suite.Protocol), Resource: c.Resource, PadTo: uint32(c.PadTo),
		SpiIn: uint32(c.SPIIn), SpiOut: uint32(c.SPIOut), Since: convert.Time(c.Since), Rekeyed: c.Rekeyed,
	}
	for _, sel := range c.Selectors {
		m.Selectors = append(m.Selectors, sel.String())
	}
	return m
}

// ListWorkers lists the workers that are or were attached.
func (s *Server) ListWorkers(context.Context, *keymgrv1.ListWorkersRequest) (*keymgrv1.ListWorkersResponse, error) {
	out := &keymgrv1.ListWorkersResponse{}
	for _, w := range s.Engine.Workers() {
		m := &keymgrv1.Worker{
			Node: w.Node, Attached: w.Attached, Since: convert.Time(w.Since), SasDesired: uint32(w.Desired),
			SasInstalled: uint32(w.Installed), Software: w.Software, LastNack: w.LastNack,
		}
		for _, a := range w.Addresses {
			m.Addresses = append(m.Addresses, a.String())
		}
		out.Workers = append(out.Workers, m)
	}
	return out, nil
}

const defaultInitiateTimeout = 10 * time.Second

// Initiate negotiates SAs for a rule now.
func (s *Server) Initiate(ctx context.Context, r *keymgrv1.InitiateRequest) (*keymgrv1.InitiateResponse, error) {
	timeout := defaultInitiateTimeout
	if r.GetTimeout() != nil {
		timeout = r.GetTimeout().AsDuration()
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if (r.GetRule() == "") == (r.GetPeer() == "") {
		return nil, status.Error(codes.InvalidArgument, "name a rule, or a peer for an IKE SA without a CHILD SA; `testudo policy effective` shows both")
	}
	resp, what := &keymgrv1.InitiateResponse{}, "CHILD SA for rule "+r.GetRule()
	var err error
	if r.GetPeer() != "" {
		what = "IKE SA with peer " + r.GetPeer()
		err = s.Engine.Connect(ctx, r.GetNode(), r.GetPeer())
	} else {
		var c ike.Child
		if c, err = s.Engine.Initiate(ctx, r.GetNode(), r.GetRule()); err == nil {
			resp.Child = toChild(c)
		}
	}
	var failed *engine.FailedError
	switch {
	case errors.As(err, &failed):
		text := []string{failed.Why}
		for _, t := range []string{failed.Detail, failed.Advice} {
			if t != "" {
				text = append(text, t)
			}
		}
		return nil, status.Error(codes.FailedPrecondition, strings.Join(text, ": "))
	case errors.Is(err, context.DeadlineExceeded):
		return nil, status.Errorf(codes.DeadlineExceeded, "no %s within %s; `testudo ike explain` may tell why", what, timeout)
	case err != nil:
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return resp, nil
}

// Rekey replaces a CHILD SA or an IKE SA.
func (s *Server) Rekey(ctx context.Context, r *keymgrv1.RekeyRequest) (*keymgrv1.RekeyResponse, error) {
	f := engine.Filter{Node: r.GetNode(), Child: r.GetChild(), SPI: r.GetIkeSpi()}
	if f.Node == "" || f.Child == 0 && f.SPI == 0 {
		return nil, status.Error(codes.InvalidArgument, "name the node and a CHILD SA number or an IKE SPI; `testudo sa list` shows them")
	}
	n, err := s.Engine.Rekey(ctx, f)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	if n == 0 {
		return nil, status.Error(codes.NotFound, "no such SA; `testudo sa list` shows those there are")
	}
	return &keymgrv1.RekeyResponse{}, nil
}

// Terminate closes a CHILD SA or an IKE SA.
func (s *Server) Terminate(ctx context.Context, r *keymgrv1.TerminateRequest) (*keymgrv1.TerminateResponse, error) {
	f := engine.Filter{Node: r.GetNode(), Child: r.GetChild(), SPI: r.GetIkeSpi(), Peer: r.GetPeer()}
	if f.Node == "" || f.Child == 0 && f.SPI == 0 && f.Peer == "" {
		return nil, status.Error(codes.InvalidArgument, "name the node and a CHILD SA number, an IKE SPI or a peer; `testudo sa list` shows them")
	}
	n, err := s.Engine.Terminate(ctx, f, "closed by the operator")
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &keymgrv1.TerminateResponse{Closed: uint32(n)}, nil
}

// Watch streams events.
func (s *Server) Watch(r *keymgrv1.WatchRequest, st grpc.ServerStreamingServer[keymgrv1.WatchResponse]) error {
	for e := range s.Engine.Watch(st.Context()) {
		if r.GetNode() != "" && r.GetNode() != e.Node {
			continue
		}
		m := &keymgrv1.WatchResponse{Time: convert.Time(e.Time), Kind: e.Kind, Node: e.Node, Peer: e.Peer, Detail: e.Detail, Spi: e.SPI}
		if e.Failure != nil {
			m.Failure = toFailure(engine.Failure{Failure: *e.Failure, Node: e.Node, Repeated: 1})
		}
		if err := st.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// ExplainFailures tells why negotiations came to nothing.
func (s *Server) ExplainFailures(_ context.Context, r *keymgrv1.ExplainFailuresRequest) (*keymgrv1.ExplainFailuresResponse, error) {
	out := &keymgrv1.ExplainFailuresResponse{}
	for _, f := range s.Engine.Failures(r.GetNode(), r.GetPeer()) {
		out.Failures = append(out.Failures, toFailure(f))
	}
	return out, nil
}

func toFailure(f engine.Failure) *keymgrv1.Failure {
	m := &keymgrv1.Failure{
		Time: convert.Time(f.Time), Node: f.Node, Peer: f.Peer, Remote: f.Remote, RemoteId: f.RemoteID, Rule: f.Rule, Role: f.Role,
		Exchange: f.Exchange, Why: f.Why, Detail: f.Detail, Advice: f.Advice, Ours: f.Ours, Theirs: f.Theirs, RepeatedCount: f.Repeated,
		Nearest: f.Nearest,
	}
	for _, d := range f.Diff {
		m.Diff = append(m.Diff, &keymgrv1.TransformDiff{Type: d.Type, Ours: d.Ours, Theirs: d.Theirs, Matches: d.Matches})
	}
	return m
}

// Trace tells what is remembered of IKE SAs.
func (s *Server) Trace(_ context.Context, r *keymgrv1.TraceRequest) (*keymgrv1.TraceResponse, error) {
	traces := s.Engine.Traces(r.GetNode(), r.GetPeer())
	if n := int(r.GetLimit()); n > 0 && n < len(traces) {
		traces = traces[len(traces)-n:]
	}
	out := &keymgrv1.TraceResponse{}
	for _, t := range traces {
		m := &keymgrv1.IkeTrace{Id: t.ID, Node: t.Node, Peer: t.Peer, Remote: t.Remote.String()}
		for _, x := range t.Steps {
			m.Steps = append(m.Steps, &keymgrv1.TraceStep{Time: convert.Time(x.Time), Spi: x.SPI, Way: x.Way, What: x.What, Octets: uint32(x.Octets), Detail: x.Detail})
		}
		out.Traces = append(out.Traces, m)
	}
	return out, nil
}
