// Command keymgrd owns keys: it speaks IKE through the workers, takes preshared
// keys from Vault or files, and pushes SAs to the workers.
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"google.golang.org/grpc"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	"github.com/testudo-ipsec/testudo/services/internal/daemon"
	"github.com/testudo-ipsec/testudo/services/internal/feedclient"
	"github.com/testudo-ipsec/testudo/services/internal/keymgrapi"
	"github.com/testudo-ipsec/testudo/services/internal/linkserver"
	"github.com/testudo-ipsec/testudo/services/internal/obs"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

func main() {
	o := defaults()
	daemon.Execute((&daemon.Daemon{
		Name:  "keymgrd",
		Short: "Negotiate keys with IKE and push SAs to workers",
		Long: `keymgrd owns keys. It learns from policyd who talks to whom and how, takes
preshared keys from Vault or from files, speaks IKE with every peer through the
workers, and pushes the resulting SAs to them. When it is down the workers go on
with the SAs they have; when it comes back it goes on too, with the IKE SAs that it
kept, sealed, in state.dir.

It serves WorkerLink to workers and KeyManagerService to operators, on unix
sockets (root or the same user) or over mutual TLS.`,
		Config: o,
		Run:    func(ctx context.Context, log *slog.Logger) error { return run(ctx, log, o) },
	}).Command())
}

func run(ctx context.Context, log *slog.Logger, o *options) error {
	reg := obs.Registry()
	stores, err := openStores(log, o, reg)
	if err != nil {
		return err
	}
	kept, err := openState(ctx, log, o.State, stores.secrets)
	if err != nil {
		return err
	}
	crashSecrets, err := openCrashSecrets(ctx, log, o, stores.secrets)
	if err != nil {
		return err
	}
	eng, err := engine.New(engine.Config{Machines: ikev2.Machines{}, Secrets: stores.secrets, Certificates: stores.certificates, Store: kept, CrashSecrets: crashSecrets, Log: log})
	if err != nil {
		return err
	}
	defer eng.Close()
	conn, err := rpc.Dial(o.Policyd, rpc.RolePolicyd, o.TLS)
	if err != nil {
		return err
	}
	defer conn.Close()
	name, err := subscriber(o)
	if err != nil {
		return err
	}
	feed := &feedclient.Client{
		Conn: conn, Subscriber: name, Role: "keymgr", Log: log,
		Use: func(_ context.Context, node string, p *ipsec.NodePolicy) error {
			eng.SetPolicy(node, p)
			return nil
		},
	}
	if o.State.Dir != "" {
		feed.File = filepath.Join(o.State.Dir, policyFile)
	}
	server, err := rpc.Listen(log, o.Listen, o.TLS, rpc.KeymgrdAllow, func(r grpc.ServiceRegistrar) {
		keymgrv1.RegisterWorkerLinkServer(r, &linkserver.Server{Engine: eng, Log: log})
		keymgrv1.RegisterKeyManagerServiceServer(r, &keymgrapi.Server{Engine: eng})
	})
	if err != nil {
		return err
	}
	log.Info("keymgrd serves", "addresses", server.Addresses(), "version", daemon.Version)
	reg.MustRegister(keymgrapi.Metrics{Engine: eng})
	healthy := func() error {
		if !feed.Connected() {
			return errors.New("policyd is away; the policy in force stays")
		}
		if eng.Stats().StateFailing {
			return errors.New("state.dir cannot be written: IKE waits, traffic goes on")
		}
		return nil
	}
	return daemon.RunAll(ctx, append(stores.background, feed.Run, server.Run,
		func(ctx context.Context) error { return obs.ServeHTTP(ctx, o.Metrics, reg, healthy) })...)
}

// subscriber is the name in policyd's status: the certificate's, or the host's.
func subscriber(o *options) (string, error) {
	if o.TLS.Cert != "" {
		c, err := rpc.CallerOfFile(o.TLS.Cert)
		return c.Name, err
	}
	return os.Hostname()
}
