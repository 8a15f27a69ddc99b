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
		v := viewVerdict(r)
		return c.print(cmd.OutOrStdout(), v, v.write)
	}
	cmd.AddCommand(explain)
	return cmd
}

// verdict is what a worker does with a packet, and with what its SA sends.
type verdict struct {
	Action string   `json:"action"`
	Rule   string   `json:"rule"`
	Why    string   `json:"why"`
	SPIOut string   `json:"spiOut,omitempty"`
	Around *verdict `json:"around,omitempty"`
}

func viewVerdict(r *workerv1.ExplainResponse) *verdict {
	v := &verdict{Action: action(r.GetAction()), Rule: r.GetRule(), Why: r.GetWhy()}
	if r.GetSpiOut() != 0 {
		v.SPIOut = ipsec.SPI(r.GetSpiOut()).String()
	}
	if r.GetAround() != nil {
		v.Around = viewVerdict(r.GetAround())
	}
	return v
}

func (v *verdict) write(t *table) {
	for _, line := range [][2]string{{"action", v.Action}, {"rule", v.Rule}, {"why", v.Why}, {"spiOut", v.SPIOut}} {
		if line[1] != "" {
			fmt.Fprintf(t, "%s\t%s\n", line[0], line[1])
		}
	}
	if v.Around != nil {
		t.line("around it")
		v.Around.write(t)
	}
}
