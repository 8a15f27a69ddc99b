// Command workerd owns packets: it filters, encrypts and decrypts the traffic of
// one host as policy and the key manager say.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/testudo-ipsec/testudo/dataplane/backend/userspace"
	"github.com/testudo-ipsec/testudo/ipsec"
	workerv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/worker/v1"
	"github.com/testudo-ipsec/testudo/services/internal/daemon"
	"github.com/testudo-ipsec/testudo/services/internal/feedclient"
	"github.com/testudo-ipsec/testudo/services/internal/linkclient"
	"github.com/testudo-ipsec/testudo/services/internal/obs"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
	"github.com/testudo-ipsec/testudo/services/internal/workerapi"
)

func main() {
	o := defaults(hostname())
	cmd := (&daemon.Daemon{
		Name:  "workerd",
		Short: "Filter, encrypt and decrypt the traffic of one host",
		Long: `workerd owns packets. It takes policy from policyd and SAs from keymgrd, and
keeps enforcing what it has when they are away. It holds no long-term secret and
no state that they cannot give again: kill it, start it, traffic goes on.

It needs CAP_NET_ADMIN and CAP_NET_RAW, and CAP_NET_BIND_SERVICE for UDP 500. A
clean stop takes away all that it put on the host, unless policy says failClosed.
After a crash what policy protects stays blocked, so that nothing goes out in clear;
the next start takes over, and "workerd cleanup" removes it.`,
		Config: o,
		Run:    func(ctx context.Context, log *slog.Logger) error { return run(ctx, log, o) },
	}).Command()
	cmd.AddCommand(cleanup(), block())
	daemon.Execute(cmd)
}

func hostname() string {
	host, _ := os.Hostname()
	return host
}

// backendConfig is what the options say of the packet path. Two workers on one
// host differ in their device's name.
func backendConfig(o *options, log *slog.Logger) userspace.Config {
	return userspace.Config{Name: o.Device, Device: o.Device, Queues: o.Queues, MTU: o.MTU, FailClosed: o.FailClosed, Log: log}
}

func cleanup() *cobra.Command {
	o := defaults("")
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove what a killed worker left on this host",
		Long:  "cleanup removes the nftables table, routes, rules and device of a worker that is not running. What policy protected then goes in clear.",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return userspace.Cleanup(backendConfig(o, slog.Default()))
		},
	}
	cmd.Flags().StringVar(&o.Device, "device", o.Device, "name of the TUN device that the worker had")
	return cmd
}

func run(ctx context.Context, log *slog.Logger, o *options) (err error) {
	if err := os.MkdirAll(o.State, 0o700); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	policyd, err := rpc.Dial(o.Policyd, rpc.RolePolicyd, o.TLS)
	if err != nil {
		return err
	}
	defer policyd.Close()
	keymgrd, err := rpc.Dial(o.Keymgrd, rpc.RoleKeymgrd, o.TLS)
	if err != nil {
		return err
	}
	defer keymgrd.Close()

	// Below this line the host is touched.
	be, err := userspace.Start(ctx, backendConfig(o, log))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, be.Close()) }()

	feed := &feedclient.Client{
		Conn: policyd, Subscriber: o.Node, Role: "worker", Node: o.Node, Log: log,
		File: policyFile(o),
		Use: func(ctx context.Context, node string, p *ipsec.NodePolicy) error {
			if p == nil {
				p = &ipsec.NodePolicy{Node: node, Default: ipsec.ActionPermit}
			}
			if err := be.SetPolicy(ctx, p); err != nil {
				return err
			}
			log.Info("policy in force", "revision", p.Version.Revision, "rules", len(p.Rules))
			return nil
		},
	}
	link := &linkclient.Client{
		Conn: keymgrd, Node: o.Node, Software: daemon.Version, Backend: be, Log: log, Report: o.Report,
		Addresses: be.Addresses,
	}
	server, err := rpc.Listen(log, []string{o.Admin}, o.TLS, rpc.WorkerAllow, func(r grpc.ServiceRegistrar) {
		workerv1.RegisterWorkerServiceServer(r, &workerapi.Server{
			Node: o.Node, Software: daemon.Version, Since: time.Now(), Backend: be, Feed: feed, Link: link,
		})
	})
	if err != nil {
		return err
	}
	reg := obs.Registry()
	reg.MustRegister(workerapi.Metrics{Backend: be})
	log.Info("workerd runs", "node", o.Node, "admin", o.Admin, "version", daemon.Version)
	return daemon.RunAll(ctx, feed.Run, link.Run, server.Run,
		func(ctx context.Context) error {
			return obs.ServeHTTP(ctx, o.Metrics, reg, func() error {
				if rev, _ := feed.Revision(); rev == 0 {
					return errors.New("no policy yet")
				}
				return nil
			})
		})
}
