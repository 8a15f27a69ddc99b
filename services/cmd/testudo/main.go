// Command testudo is the operator's command: it applies policy, shows SAs and
// tells why a packet goes where it goes.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
	"github.com/testudo-ipsec/testudo/services/internal/config"
	"github.com/testudo-ipsec/testudo/services/internal/daemon"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

func main() {
	if err := newRoot().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "testudo:", message(err))
		os.Exit(1)
	}
}

// message is an error as an operator reads it: without what gRPC puts around it.
func message(err error) string {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return err.Error()
	}
	inner, _ := s.(error)
	return strings.Replace(err.Error(), inner.Error(), s.GRPCStatus().Message(), 1)
}

// cli is what all commands share.
type cli struct {
	policyd, keymgrd string
	tls              config.TLS
	output           string
	conns            []*grpc.ClientConn
}

func env(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

func newRoot() *cobra.Command {
	c := &cli{}
	root := &cobra.Command{
		Use:   "testudo",
		Short: "Fleet IPsec: policy, SAs and explanations",
		Long: `testudo talks to policyd and keymgrd.

Where they are, and the certificate to show them, comes from flags or from
TESTUDO_POLICYD, TESTUDO_KEYMGRD, TESTUDO_CA, TESTUDO_CERT and TESTUDO_KEY.
On the host that runs them the defaults need no certificate: root and the
daemons' own user are known by the kernel.

  testudo policy validate -f policy.yaml     what is wrong with a policy
  testudo policy apply -f policy.yaml        put it in force on all nodes
  testudo status                             who is connected, who has it
  testudo sa list                            IKE and CHILD SAs with rates
  testudo explain 10.0.0.1 10.0.0.2 tcp 443  which rule, which SA, and why
  testudo ike explain web-2                  why a negotiation failed
  testudo ike trace web-2                    the last one, message by message
  testudo demo                               all of it on this machine, in namespaces`,
		Version:       daemon.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return validOutput(c.output)
		},
		PersistentPostRun: func(*cobra.Command, []string) {
			for _, conn := range c.conns {
				_ = conn.Close()
			}
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&c.policyd, "policyd", env("TESTUDO_POLICYD", "unix:///run/testudo/policyd.sock"), "address of policyd: unix:///path or host:port")
	f.StringVar(&c.keymgrd, "keymgrd", env("TESTUDO_KEYMGRD", "unix:///run/testudo/keymgrd.sock"), "address of keymgrd: unix:///path or host:port")
	f.StringVar(&c.tls.CA, "ca", env("TESTUDO_CA", ""), "PEM file with the certificate authority")
	f.StringVar(&c.tls.Cert, "cert", env("TESTUDO_CERT", ""), "PEM file with the operator's certificate")
	f.StringVar(&c.tls.Key, "key", env("TESTUDO_KEY", ""), "PEM file with the operator's private key")
	f.StringVarP(&c.output, "output", "o", "table", "table, json or yaml")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(c.policyCommand(), c.saCommand(), c.ikeCommand(), c.statusCommand(), c.explainCommand(), c.workerCommand(), c.suitesCommand(), c.benchCommand(), pkiCommand(), demoCommand())
	daemon.Strict(root)
	return root
}

func (c *cli) dial(address string, role rpc.Role) (*grpc.ClientConn, error) {
	if err := c.tls.Validate(address); err != nil {
		return nil, err
	}
	away := func(err error) error { return unreachable(err, address, role) }
	conn, err := rpc.Dial(address, role, c.tls,
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return away(call(ctx, method, req, reply, cc, opts...))
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			st, err := open(ctx, d, cc, method, opts...)
			return st, away(err)
		}))
	if err == nil {
		c.conns = append(c.conns, conn)
	}
	return conn, err
}

// unreachable says of a service that does not answer where it was looked for, why it
// did not answer, and what to do.
func unreachable(err error, address string, role rpc.Role) error {
	s, ok := status.FromError(err)
	if err == nil || !ok || s.Code() != codes.Unavailable {
		return err
	}
	why, away := strings.CutPrefix(s.Message(), `connection error: desc = "transport: `)
	if !away {
		return err // it did answer
	}
	why = strings.TrimPrefix(why, "Error while dialing: ")
	program, flag, variable := "policyd", "policyd", "TESTUDO_POLICYD"
	switch role {
	case rpc.RoleKeymgrd:
		program, flag, variable = "keymgrd", "keymgrd", "TESTUDO_KEYMGRD"
	case rpc.RoleWorker:
		program, flag, variable = "workerd", "admin", "TESTUDO_WORKERD"
	}
	return status.Errorf(codes.Unavailable, "%s does not answer at %s: %s; start it, or say where it is with --%s or %s",
		program, address, strings.TrimSuffix(why, `"`), flag, variable)
}

func (c *cli) policy() (policyv1.PolicyServiceClient, error) {
	conn, err := c.dial(c.policyd, rpc.RolePolicyd)
	if err != nil {
		return nil, fmt.Errorf("policyd: %w", err)
	}
	return policyv1.NewPolicyServiceClient(conn), nil
}

func (c *cli) keymgr() (keymgrv1.KeyManagerServiceClient, error) {
	conn, err := c.dial(c.keymgrd, rpc.RoleKeymgrd)
	if err != nil {
		return nil, fmt.Errorf("keymgrd: %w", err)
	}
	return keymgrv1.NewKeyManagerServiceClient(conn), nil
}
