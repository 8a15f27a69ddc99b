package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/testudo-ipsec/testudo/services/internal/pki"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

func pkiCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pki",
		Short: "Make certificates: for IKE between hosts, for mutual TLS between the services",
		Long: `pki makes certificates of two kinds, each with an authority of its own.

For IKE, by which hosts prove themselves to each other (certificate
authentication in policy): ike-ca, ike, ike-crl.

For mutual TLS between policyd, keymgrd, workers and operators, when they do not
share a host: init, issue.

Both are for development and small installations. Larger ones have an authority
already, or use Vault's PKI (vault: references).`,
	}
	cmd.AddCommand(pkiIKECA(), pkiIKE(), pkiIKECRL(), pkiInit(), pkiIssue())
	return cmd
}

func pkiInit() *cobra.Command {
	var dir string
	var workers []string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a certificate authority, and certificates for policyd, keymgrd, an operator and workers",
		Long: `init makes a certificate authority in a folder, if there is none, and one
certificate each for policyd, keymgrd, the operator and the workers named.
Certificates that are there already are kept.

The authority's private key (ca-key.pem) lies in the folder: keep the folder on
one machine, and copy to each host only ca.pem and that host's own pair.`,
		Example: "  testudo pki init --dir pki --worker web-1 --worker web-2",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ca, made, err := pki.Open(dir)
			if err != nil {
				return err
			}
			if made {
				fmt.Fprintln(cmd.OutOrStdout(), "made", filepath.Join(dir, "ca.pem"))
			}
			callers := map[string]rpc.Caller{
				"policyd":  {Role: rpc.RolePolicyd, Name: "policyd"},
				"keymgrd":  {Role: rpc.RoleKeymgrd, Name: "keymgrd"},
				"operator": {Role: rpc.RoleOperator, Name: "operator"},
			}
			names := []string{"policyd", "keymgrd", "operator"}
			for _, w := range workers {
				callers["worker-"+w] = rpc.Caller{Role: rpc.RoleWorker, Name: w}
				names = append(names, "worker-"+w)
			}
			for _, n := range names {
				if _, err := os.Stat(filepath.Join(dir, n+".pem")); err == nil {
					continue
				}
				if err := ca.Issue(n, callers[n]); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), "made", filepath.Join(dir, n+".pem"))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "pki", "folder for certificates and keys")
	cmd.Flags().StringSliceVar(&workers, "worker", nil, "node name to make a worker's certificate for")
	return cmd
}

func pkiIssue() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "issue ROLE NAME",
		Short:   "Make one more certificate: for a worker, operator, keymgrd or policyd",
		Example: "  testudo pki issue worker web-3",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := rpc.Caller{Role: rpc.Role(args[0]), Name: args[1]}
			if !slices.Contains(rpc.Roles, c.Role) {
				return fmt.Errorf("role: got %q, want one of %v", args[0], rpc.Roles)
			}
			if _, err := os.Stat(filepath.Join(dir, "ca.pem")); err != nil {
				return fmt.Errorf("%s holds no certificate authority; make one with `testudo pki init --dir %s`", dir, dir)
			}
			ca, _, err := pki.Open(dir)
			if err != nil {
				return err
			}
			file := args[0] + "-" + args[1]
			if err := ca.Issue(file, c); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "made", filepath.Join(dir, file+".pem"))
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "pki", "folder of the certificate authority")
	return cmd
}
