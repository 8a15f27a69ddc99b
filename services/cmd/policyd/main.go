// Command policyd owns policy: it validates documents, keeps them in etcd,
// compiles them for each node and feeds the result to workers and key managers.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
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
	client, stop, failed, err := openEtcd(ctx, log, o)
	if err != nil {
		return err
	}
	defer stop()
	st, err := etcd.Open(ctx, client, o.Etcd.Prefix)
	if err != nil {
		return err
	}
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
	reg.MustRegister(obs.Policy{Hub: hub})
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

// openEtcd connects to the cluster, or starts the embedded server.
func openEtcd(ctx context.Context, log *slog.Logger, o *options) (c *clientv3.Client, stop func(), failed <-chan error, err error) {
	if len(o.Etcd.Endpoints) == 0 {
		s, err := embedded.Start(ctx, embedded.Config{Dir: o.Data, Logger: log})
		if err != nil {
			return nil, nil, nil, fmt.Errorf("embedded etcd in %s: %w", o.Data, err)
		}
		return s.Client(), func() { _ = s.Close() }, s.Err(), nil
	}
	cfg := clientv3.Config{Endpoints: o.Etcd.Endpoints, DialTimeout: 5 * time.Second, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second}
	if cfg.TLS, err = etcdTLS(o.Etcd); err != nil {
		return nil, nil, nil, err
	}
	if c, err = clientv3.New(cfg); err != nil {
		return nil, nil, nil, fmt.Errorf("etcd cluster %v: %w", o.Etcd.Endpoints, err)
	}
	return c, func() { _ = c.Close() }, nil, nil
}

func etcdTLS(e cluster) (*tls.Config, error) {
	if e.CA == "" && e.Cert == "" {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.CA != "" {
		pem, err := os.ReadFile(e.CA)
		if err != nil {
			return nil, fmt.Errorf("etcd.ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("etcd.ca: " + e.CA + " holds no PEM certificate")
		}
	}
	if e.Cert != "" {
		pair, err := tls.LoadX509KeyPair(e.Cert, e.Key)
		if err != nil {
			return nil, fmt.Errorf("etcd.cert: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
