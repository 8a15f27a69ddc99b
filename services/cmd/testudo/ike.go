package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
)

func (c *cli) ikeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ike", Short: "Follow negotiations and tell why they fail"}
	cmd.AddCommand(c.ikeExplain(), c.ikeTrace(), c.ikeWatch())
	return cmd
}

func (c *cli) ikeWatch() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Print events as they happen, until interrupted",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			kc, err := c.keymgr()
			if err != nil {
				return err
			}
			st, err := kc.Watch(cmd.Context(), &keymgrv1.WatchRequest{Node: node})
			if err != nil {
				return err
			}
			for {
				e, err := st.Recv()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				if c.output != "table" {
					v, err := raw(e)
					if err != nil {
						return err
					}
					line := string(v)
					if c.output == "yaml" {
						doc, err := yaml.JSONToYAML(v)
						if err != nil {
							return err
						}
						line = "---\n" + strings.TrimSpace(string(doc))
					}
					fmt.Fprintln(cmd.OutOrStdout(), line)
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s %-10s %s %s %s\n", when(e.GetTime()), e.GetKind(), e.GetNode(), e.GetPeer(), e.GetDetail())
			}
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "only this node's")
	return cmd
}

func (c *cli) ikeExplain() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use:   "explain [PEER]",
		Short: "Tell why negotiations failed: ours beside theirs, and the nearest fix",
		Long:  "explain shows the failed negotiations with a peer (its profile's name, address or identity), newest first.",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kc, err := c.keymgr()
			if err != nil {
				return err
			}
			r := &keymgrv1.ExplainFailuresRequest{Node: node}
			if len(args) > 0 {
				r.Peer = args[0]
			}
			resp, err := kc.ExplainFailures(cmd.Context(), r)
			if err != nil {
				return err
			}
			v, err := raw(resp)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), v, func(t *table) {
				if len(resp.GetFailures()) == 0 {
					t.line("no failed negotiation is known")
				}
				for _, f := range resp.GetFailures() {
					printFailure(t, f)
				}
			})
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "only failures on this node")
	return cmd
}

func printFailure(t *table, f *keymgrv1.Failure) {
	what := "IKE SA"
	if f.GetRule() != "" {
		what = "CHILD SA for " + f.GetRule()
	}
	again := ""
	if f.GetRepeatedCount() > 1 {
		again = fmt.Sprintf(" (%d times in a row)", f.GetRepeatedCount())
	}
	t.line("%s  %s: %s with %s at %s, as %s, in %s%s", when(f.GetTime()), f.GetNode(), what, f.GetPeer(), f.GetRemote(), f.GetRole(), f.GetExchange(), again)
	t.line("  why     %s", f.GetWhy())
	for _, l := range []struct{ name, text string }{{"identity", f.GetRemoteId()}, {"detail", f.GetDetail()}, {"ours", strings.Join(f.GetOurs(), ", ")}, {"theirs", strings.Join(f.GetTheirs(), ", ")}, {"nearest", f.GetNearest()}, {"fix", f.GetAdvice()}} {
		if l.text != "" {
			t.line("  %-8s%s", l.name, l.text)
		}
	}
	if len(f.GetDiff()) > 0 {
		t.row("  TRANSFORM", "OURS", "THEIRS", "IN COMMON")
		for _, d := range f.GetDiff() {
			t.row("  "+d.GetType(), strings.Join(d.GetOurs(), " "), strings.Join(d.GetTheirs(), " "), yesNo(d.GetMatches()))
		}
	}
}

func (c *cli) ikeTrace() *cobra.Command {
	r := &keymgrv1.TraceRequest{}
	cmd := &cobra.Command{
		Use:   "trace [PEER | SPI]",
		Short: "Follow a negotiation: each message and what was done, with times",
		Long: `trace shows what keymgrd remembers of an IKE SA and those that replaced it:
each message with its size, and what happened between them. The IKE SA is named
by the peer's profile, its address with or without the port, or this side's SPI.

keymgrd remembers the latest thousands of steps of all IKE SAs together, in
memory; times are its own. No key and no decrypted payload is in a trace.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kc, err := c.keymgr()
			if err != nil {
				return err
			}
			if len(args) > 0 {
				r.Peer = args[0]
			}
			resp, err := kc.Trace(cmd.Context(), r)
			if err != nil {
				return err
			}
			v, err := raw(resp)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), v, func(t *table) {
				if len(resp.GetTraces()) == 0 {
					t.line("nothing is remembered of such an IKE SA")
				}
				for _, x := range resp.GetTraces() {
					printTrace(t, x)
				}
			})
		},
	}
	cmd.Flags().StringVar(&r.Node, "node", "", "only IKE SAs of this node")
	cmd.Flags().Uint32Var(&r.Limit, "last", 1, "how many, the latest; 0 for all")
	return cmd
}

func printTrace(t *table, x *keymgrv1.IkeTrace) {
	peer := x.GetPeer()
	if peer == "" {
		peer = "a peer not known yet"
	}
	if len(x.GetSteps()) == 0 {
		return
	}
	begin := x.GetSteps()[0].GetTime()
	t.line("trace %d  %s: %s at %s, from %s", x.GetId(), x.GetNode(), peer, x.GetRemote(), when(begin))
	spi := uint64(0)
	for _, s := range x.GetSteps() {
		if s.GetSpi() != spi {
			spi = s.GetSpi()
			t.line("  spi %016x", spi)
		}
		sign, detail := "  ", s.GetDetail()
		switch s.GetWay() {
		case "received":
			sign = "<-"
		case "sent":
			sign = "->"
		}
		if s.GetOctets() > 0 {
			detail = fmt.Sprintf("%d octets", s.GetOctets())
		}
		after := s.GetTime().AsTime().Sub(begin.AsTime())
		fmt.Fprintf(t, "  +%.3f ms\t%s\t%s\t%s\n", float64(after)/float64(time.Millisecond), sign, s.GetWhat(), detail)
	}
}
