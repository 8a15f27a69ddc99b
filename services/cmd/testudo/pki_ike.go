package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/services/internal/pki"
)

const (
	ikeDir    = "ike-pki"
	day       = 24 * time.Hour
	ikeCADays = 3650
	ikeDays   = 365
	crlDays   = 30
)

func pkiIKECA() *cobra.Command {
	var dir, name, key string
	var days, crl int
	cmd := &cobra.Command{
		Use:   "ike-ca",
		Short: "Make the authority of the fleet's IKE certificates",
		Long: `ike-ca makes an authority for IKE certificates in a folder:

  ike-ca.pem      its certificate; policy trusts it by "file:ike-ca.pem"
  ike-ca-key.pem  its private key; keep it, and the folder, on one safe machine
  ike-ca.crl      the certificates it has revoked: none yet

It is another authority than that of "testudo pki init": who may speak IPsec has
no say in who may change policy. After it:

  testudo pki ike web-1 db-1 --out /etc/testudo/secrets

and, in the policy,

  kind: Authentication
  spec:
    methods:
    - certificate: {trust: "file:ike-ca.pem", credential: "file:{node}"}`,
		Example: "  testudo pki ike-ca --dir ike-pki",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(positive("days", days), positive("crl-days", crl)); err != nil {
				return err
			}
			if _, err := pki.MakeIKECA(dir, name, key, time.Duration(days)*day, time.Duration(crl)*day); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "made %s; next: testudo pki ike NAME... --dir %s --out SECRETS\n", filepath.Join(dir, "ike-ca.pem"), dir)
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", ikeDir, "folder for the authority")
	cmd.Flags().StringVar(&name, "name", "Testudo IKE CA", "the authority's name")
	cmd.Flags().StringVar(&key, "key", cred.KeyKinds[0], "kind of its private key: "+strings.Join(cred.KeyKinds, ", "))
	cmd.Flags().IntVar(&days, "days", ikeCADays, "how long its certificate is valid")
	cmd.Flags().IntVar(&crl, "crl-days", crlDays, "how long the first CRL is valid")
	return cmd
}

func pkiIKE() *cobra.Command {
	var dir, out, key string
	var sans []string
	var days int
	cmd := &cobra.Command{
		Use:   "ike NAME...",
		Short: "Make IKE keys and certificates for hosts",
		Long: `ike makes a private key and a certificate for each NAME, in the form that
keymgrd reads for "file:NAME":

  NAME.pem      the certificate
  NAME-key.pem  the private key, for its owner only

A certificate must hold the IKE identity that its host shows: the name of its
Node in the policy unless the Node says another. NAME is in it; --san adds more:
domain names, e-mail addresses, addresses. For a peer that is no Testudo host
(strongSwan, a router), give it both files and ike-ca.pem.

With --out the files go to another folder, keymgrd's secrets.dir, with the
authority's certificate and CRL beside them; they are given to that folder's
owner. Files that are there are replaced, and keymgrd uses them at its next
negotiation: that is how a certificate is renewed.`,
		Example: `  testudo pki ike web-1 db-1 --out /etc/testudo/secrets
  testudo pki ike gateway --san gw.fleet.example --san 192.0.2.1 --key rsa3072`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := positive("days", days); err != nil {
				return err
			}
			if len(sans) > 0 && len(args) > 1 {
				return fmt.Errorf("--san: got %d names, want one: the same name in many certificates lets each host be the others", len(args))
			}
			ca, err := pki.OpenIKECA(dir)
			if err != nil {
				return err
			}
			if out == "" {
				out = dir
			}
			for _, n := range args {
				if err := ca.Issue(out, n, append([]string{n}, sans...), key, time.Duration(days)*day); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "made %s: credential \"file:%s\", trust \"file:ike-ca.pem\"\n", filepath.Join(out, n+".pem"), n)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", ikeDir, "folder of the authority")
	cmd.Flags().StringVar(&out, "out", "", "folder for the files; empty for the authority's")
	cmd.Flags().StringSliceVar(&sans, "san", nil, "one more name, e-mail address or address of the host")
	cmd.Flags().StringVar(&key, "key", cred.KeyKinds[0], "kind of private key: "+strings.Join(cred.KeyKinds, ", "))
	cmd.Flags().IntVar(&days, "days", ikeDays, "how long a certificate is valid")
	return cmd
}

func pkiIKECRL() *cobra.Command {
	var dir, out string
	var revoke []string
	var days int
	cmd := &cobra.Command{
		Use:   "ike-crl",
		Short: "Revoke IKE certificates, or make the CRL anew before it ends",
		Long: `ike-crl writes ike-ca.crl anew: with the certificates that were on it, those of
--revoke, and a new end. Keymgrd reads the CRL that lies beside ike-ca.pem when a
policy says revocation: soft or hard. With hard, peers are refused when the CRL has
ended: run this from a timer.`,
		Example: `  testudo pki ike-crl --revoke ike-pki/web-1.pem --out /etc/testudo/secrets
  testudo pki ike-crl --out /etc/testudo/secrets`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := positive("days", days); err != nil {
				return err
			}
			ca, err := pki.OpenIKECA(dir)
			if err != nil {
				return err
			}
			n, err := ca.Revoke(time.Duration(days)*day, revoke...)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "made %s: %d revoked, valid for %d days\n", filepath.Join(dir, "ike-ca.crl"), n, days)
			if out == "" {
				return nil
			}
			return ca.Publish(out)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", ikeDir, "folder of the authority")
	cmd.Flags().StringVar(&out, "out", "", "folder to copy the CRL to, keymgrd's secrets.dir; empty for none")
	cmd.Flags().StringSliceVar(&revoke, "revoke", nil, "PEM file of a certificate to revoke")
	cmd.Flags().IntVar(&days, "days", crlDays, "how long the CRL is valid")
	return cmd
}

func positive(flag string, n int) error {
	if n < 1 || n > 36500 {
		return fmt.Errorf("--%s: got %d, want 1 to 36500", flag, n)
	}
	return nil
}
