package main

import (
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/testudo-ipsec/testudo/ipsec"
	workerv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/worker/v1"
	"github.com/testudo-ipsec/testudo/services/internal/convert"
	"github.com/testudo-ipsec/testudo/services/internal/rpc"
)

func (c *cli) workerCommand() *cobra.Command {
	var admin string
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Ask the worker of this host what it does with packets",
		Long:  "worker talks to workerd on its unix socket, on the host it runs on. It answers when policyd and keymgrd are away, too.",
	}
	cmd.PersistentFlags().StringVar(&admin, "admin", env("TESTUDO_WORKERD", "unix:///run/testudo/workerd.sock"), "unix socket of workerd")
	dial := func() (workerv1.WorkerServiceClient, error) {
		conn, err := c.dial(admin, rpc.RoleWorker)
		if err != nil {
			return nil, err
		}
		return workerv1.NewWorkerServiceClient(conn), nil
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "status",
		Short: "Show policy in force, connections, SAs, and packets by what became of them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := dial()
			if err != nil {
				return err
			}
			r, err := w.Status(cmd.Context(), &workerv1.StatusRequest{})
			if err != nil {
				return err
			}
			v, err := raw(r)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), v, func(t *table) {
				t.line("node %s, version %s, up %s", r.GetNode(), r.GetSoftware(), age(r.GetSince()))
				t.line("policy revision %d from %s; policyd connected: %s; keymgrd connected: %s", r.GetPolicyRevision(), r.GetPolicySource(), yesNo(r.GetPolicydConnected()), yesNo(r.GetKeymgrConnected()))
				t.row("SA", "PACKETS", "BYTES", "TOP", "ERRORS", "IDLE")
				for _, s := range r.GetSas() {
					t.row(ipsec.SAID(s.GetId()), s.GetPackets(), s.GetBytes(), s.GetTop(), s.GetErrors(), age(s.GetUsed()))
				}
				t.line("")
				t.row("PACKETS", "WHY")
				for _, why := range slices.Sorted(maps.Keys(r.GetCounters())) {
					t.row(r.GetCounters()[why], why)
				}
			})
		},
	})
	explain := &cobra.Command{
		Use:   "explain SRC DST [PROTOCOL [PORT]]",
		Short: "Tell what this host does with an outbound packet now",
		Args:  cobra.RangeArgs(2, 4),
	}
	sport := explain.Flags().Uint16("source-port", 40000, "source port of the packet")
	explain.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := parseFlow(args, *sport)
		if err != nil {
			return err
		}
		w, err := dial()
		if err != nil {
			return err
		}
		r, err := w.Explain(cmd.Context(), &workerv1.ExplainRequest{Flow: convert.ToFlow(f)})
		if err != nil {
			return err
		}
		v := map[string]string{"action": action(r.GetAction()), "rule": r.GetRule(), "why": r.GetWhy()}
		if r.GetSpiOut() != 0 {
			v["spiOut"] = ipsec.SPI(r.GetSpiOut()).String()
		}
		return c.print(cmd.OutOrStdout(), v, func(t *table) {
			for _, k := range []string{"action", "rule", "why", "spiOut"} {
				if v[k] != "" {
					fmt.Fprintf(t, "%s\t%s\n", k, v[k])
				}
			}
		})
	}
	cmd.AddCommand(explain)
	return cmd
}
