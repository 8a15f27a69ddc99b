package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/testudo-ipsec/testudo/dataplane/backend/userspace"
	"github.com/testudo-ipsec/testudo/services/internal/config"
	"github.com/testudo-ipsec/testudo/services/internal/feedclient"
)

// policyFile is where the last-known-good policy is.
func policyFile(o *options) string { return filepath.Join(o.State, "policy") }

// block is for the time between boot and the worker's start.
func block() *cobra.Command {
	o := defaults(hostname())
	cmd := &cobra.Command{
		Use:   "block",
		Short: "Block what policy secures until the worker starts; for boot, before the network is up",
		Long: `block puts on the host what a killed worker leaves there, from the policy that the
last worker kept: what policy secures or blocks is dropped, everything else passes. It does
so if the policy says failClosed, or the configuration fail-closed. The worker takes over
when it starts; "workerd cleanup" takes it away.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := config.Load("workerd", cmd.Flags(), o); err != nil {
				return err
			}
			if err := o.Validate(); err != nil {
				return err
			}
			say := func(format string, args ...any) { fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...) }
			p, err := feedclient.ReadFile(policyFile(o), o.Node)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				say("nothing blocked: no worker has kept a policy in %s yet", o.State)
				return nil
			case err != nil:
				return fmt.Errorf("the policy kept by the last worker: %w", err)
			case p == nil || !p.FailClosed && !o.FailClosed:
				say("nothing blocked: neither the policy of node %s says failClosed nor the configuration fail-closed", o.Node)
				return nil
			}
			if err := userspace.Block(backendConfig(o, slog.Default()), p); err != nil {
				return err
			}
			say("blocked until the worker starts: what revision %d secures or blocks, %d rules", p.Version.Revision, len(p.Rules))
			return nil
		},
	}
	config.Bind(cmd.Flags(), o)
	return cmd
}
