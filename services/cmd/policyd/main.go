// Command policyd owns policy: it validates documents, keeps them in etcd,
// compiles them for each node and feeds the result to workers and key managers.
package main

import (
	"context"
	"fmt"
	"log/slog"

	"google.golang.org/grpc"

	"github.com/testudo-ipsec/testudo/policyd/feed"
	"github.com/testudo-ipsec/testudo/policyd/store/etcd"
	"github.com/testudo-ipsec/testudo/policyd/store/etcd/embedded"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
	"github.com/testudo-ipsec/testudo/services/internal/daemon"
	"github.com/testudo-ipsec/testudo/services/internal/obs"
	"github.com/testudo-ipsec/testudo/services/internal/policyapi"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

func main() {
	o := defaults()
	daemon.Execute((&daemon.Daemon{
		Name:  "policyd",
		Short: "Keep, compile and distribute IPsec policy",
		Long: `policyd owns policy. It validates documents, keeps them in etcd (its own, in a
folder, or a cluster), compiles them for each node, and feeds workers and key
managers what changes. When it is down they go on with what they have.

It serves PolicyService to operators and PolicyFeed to the other services, on
unix sockets (root or the same user) or over mutual TLS.`,
		Config: o,
		Run:    func(ctx context.Context, log *slog.Logger) error { return run(ctx, log, o) },
	}).Command())
}

func run(ctx context.Context, log *slog.Logger, o *options) error {
	st, stop, failed, err := openStore(ctx, log, o)
	if err != nil {
		return err
	}
	defer stop()
	hub := &feed.Hub{}
	defer hub.Close()
	keeper := &policyapi.Keeper{Store: st, Hub: hub, Log: log}
	server, err := rpc.Listen(log, o.Listen, o.TLS, rpc.PolicydAllow, func(r grpc.ServiceRegistrar) {
		policyv1.RegisterPolicyServiceServer(r, &policyapi.Service{Keeper: keeper})
		policyv1.RegisterPolicyFeedServer(r, &policyapi.Feed{Hub: hub})
	})
	if err != nil {
		return err
	}
	log.Info("policyd serves", "addresses", server.Addresses(), "version", daemon.Version)
	reg := obs.Registry()
	reg.MustRegister(policyapi.Metrics{Hub: hub})
	return daemon.RunAll(ctx, keeper.Run, server.Run,
		func(ctx context.Context) error { return obs.ServeHTTP(ctx, o.Metrics, reg, keeper.Healthy) },
		func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return nil
			case err := <-failed:
				return fmt.Errorf("embedded etcd: %w", err)
			}
		})
}

// openStore connects to the cluster, or starts the embedded server.
func openStore(ctx context.Context, log *slog.Logger, o *options) (st *etcd.Store, stop func(), failed <-chan error, err error) {
	if len(o.Etcd.Endpoints) > 0 {
		client, err := etcd.Dial(etcd.Cluster{Endpoints: o.Etcd.Endpoints, CA: o.Etcd.CA, Cert: o.Etcd.Cert, Key: o.Etcd.Key})
		if err != nil {
			return nil, nil, nil, err
		}
		stop = func() { _ = client.Close() }
		st, err = etcd.Open(ctx, client, o.Etcd.Prefix)
		if err != nil {
			stop()
		}
		return st, stop, nil, err
	}
	server, err := embedded.Start(ctx, embedded.Config{Dir: o.Data, Logger: log})
	if err != nil {
		return nil, nil, nil, err
	}
	stop = func() { _ = server.Close() }
	st, err = etcd.Open(ctx, server.Client(), o.Etcd.Prefix)
	if err != nil {
		stop()
	}
	return st, stop, server.Err(), err
}
