// Package workerapi serves WorkerService: what operators ask one worker.
package workerapi

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/ipsec"
	ipsecv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/ipsec/v1"
	workerv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/worker/v1"
	"github.com/testudo-ipsec/testudo/services/internal/convert"
	"github.com/testudo-ipsec/testudo/services/internal/feedclient"
	"github.com/testudo-ipsec/testudo/services/internal/linkclient"
)

// Server implements workerv1.WorkerServiceServer.
type Server struct {
	workerv1.UnimplementedWorkerServiceServer
	Node     string
	Software string
	Since    time.Time
	Backend  backend.Backend
	Features map[string]bool
	Feed     *feedclient.Client
	Link     *linkclient.Client
}

// Status tells what the worker is doing.
func (s *Server) Status(context.Context, *workerv1.StatusRequest) (*workerv1.StatusResponse, error) {
	rev, fromFile := s.Feed.Revision()
	source := "feed"
	if fromFile {
		source = "last-known-good"
	}
	c := s.Backend.Counters()
	r := &workerv1.StatusResponse{
		Node: s.Node, Software: s.Software, Since: convert.Time(s.Since), PolicyRevision: rev, PolicySource: source,
		KeymgrConnected: s.Link.Connected(), PolicydConnected: s.Feed.Connected(),
		Counters: map[string]uint64{}, Features: s.Features,
	}
	for _, sa := range c.SAs {
		r.Sas = append(r.Sas, convert.ToCounters(sa))
	}
	for _, w := range c.Whys {
		r.Counters[w.Why] = w.Packets
	}
	return r, nil
}

// Explain tells what the worker does with a packet now.
func (s *Server) Explain(_ context.Context, r *workerv1.ExplainRequest) (*workerv1.ExplainResponse, error) {
	f, err := convert.FromFlow(r.GetFlow())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return explained(s.Backend.Explain(f, ipsec.Outbound)), nil
}

func explained(e backend.Explanation) *workerv1.ExplainResponse {
	r := &workerv1.ExplainResponse{Action: ipsecv1.Action(e.Action), Rule: e.Rule, Why: e.Why + ": " + e.Detail, SpiOut: uint32(e.SPI)}
	if e.Around != nil {
		r.Around = explained(*e.Around)
	}
	return r
}
