package main

import (
	"fmt"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/testudo-ipsec/testudo/services/internal/demo"
)

func demoCommand() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole system on this machine, in namespaces of its own",
		Long: `demo starts policyd, keymgrd and two hosts with a wire between them, applies
a policy, lets the hosts talk, watches the wire, shows what an operator sees,
and takes everything down again.

It needs no root (it uses user namespaces), nothing of this machine's network
is touched, and it ends with one line of figures. The programs policyd, keymgrd
and workerd must lie beside testudo; ip and ping must be installed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Megabytes < 1 || o.Megabytes > 10000 {
				return fmt.Errorf("--megabytes: got %d, want 1 to 10000", o.Megabytes)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			o.Out = cmd.OutOrStdout()
			return demo.Run(ctx, o)
		},
	}
	cmd.Flags().IntVar(&o.Megabytes, "megabytes", 64, "how much TCP data to send each way")
	cmd.Flags().BoolVar(&o.Keep, "keep", false, "leave it running until interrupted")
	cmd.AddCommand(
		&cobra.Command{
			Use: "receive ADDRESS", Short: "Receive one transfer (the demo's own use)", Hidden: true, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error { return demo.Receive(args[0], cmd.OutOrStdout()) },
		},
		&cobra.Command{
			Use: "send ADDRESS MEGABYTES", Short: "Send one transfer (the demo's own use)", Hidden: true, Args: cobra.ExactArgs(2),
			RunE: func(cmd *cobra.Command, args []string) error {
				n, err := strconv.Atoi(args[1])
				if err != nil {
					return fmt.Errorf("megabytes: got %q, want a number", args[1])
				}
				return demo.Send(args[0], n, cmd.OutOrStdout())
			},
		},
	)
	return cmd
}
