package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/testudo-ipsec/testudo/ipsec"
	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
)

// raw is a message as JSON, with the field names of the contract.
func raw(m proto.Message) (json.RawMessage, error) {
	return protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
}

func (c *cli) saCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "sa", Short: "Show and steer IKE and CHILD SAs"}
	cmd.AddCommand(c.saList(), c.saInitiate(), c.saRekey(), c.saTerminate())
	return cmd
}

func (c *cli) saList() *cobra.Command {
	var node, peer string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List IKE SAs with their CHILD SAs, traffic and rates",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			kc, err := c.keymgr()
			if err != nil {
				return err
			}
			r, err := kc.ListSas(cmd.Context(), &keymgrv1.ListSasRequest{Node: node, Peer: peer})
			if err != nil {
				return err
			}
			v, err := raw(r)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), v, func(t *table) {
				if len(r.GetIkeSas()) == 0 {
					t.line("no SAs; they are made when traffic needs them, or by `testudo sa initiate`")
					return
				}
				for _, s := range r.GetIkeSas() {
					role := "responder"
					if s.GetInitiator() {
						role = "initiator"
					}
					t.line("%s -> %s  IKEv%d %s %s  spi %016x/%016x  %s  nat %s  up %s", s.GetNode(), s.GetPeer(), s.GetVersion(), s.GetState(), role,
						s.GetLocalSpi(), s.GetRemoteSpi(), s.GetSuite(), s.GetNat(), age(s.GetSince()))
					over := ""
					if s.GetTcp() {
						over = "  over TCP"
					}
					t.line("  %s [%s] ... %s [%s]%s", s.GetLocal(), s.GetLocalId(), s.GetRemote(), s.GetRemoteId(), over)
					if s.GetRemoteAuth() != "" {
						t.line("  %s", authenticated(s))
					}
					for _, ch := range s.GetChildren() {
						how := fmt.Sprintf("%s %s", ipsec.Protocol(ch.GetProtocol()), ipsec.Mode(ch.GetMode()))
						switch {
						case s.GetTcp():
							how += " in TCP"
						case ch.GetEncap():
							how += " in UDP"
						}
						if r := ch.GetResource(); r != 0 {
							how += fmt.Sprintf(" queue %d", r-1)
						}
						if n := ch.GetPadTo(); n != 0 {
							how += " padded to " + ipsec.PadName(uint16(n))
						}
						t.line("  child %d  %s  %s  %s  spi in %08x out %08x  rekeyed %d  up %s", ch.GetId(), ch.GetRule(), how,
							ch.GetSuite(), ch.GetSpiIn(), ch.GetSpiOut(), ch.GetRekeyed(), age(ch.GetSince()))
						t.line("    %s", strings.Join(ch.GetSelectors(), ", "))
						t.line("    in %d packets %d bytes %s   out %d packets %d bytes %s", ch.GetIn().GetPackets(), ch.GetIn().GetBytes(), bits(ch.GetInBps()),
							ch.GetOut().GetPackets(), ch.GetOut().GetBytes(), bits(ch.GetOutBps()))
					}
				}
			})
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "only this node's")
	cmd.Flags().StringVar(&peer, "peer", "", "only those with this peer profile")
	return cmd
}

func (c *cli) saInitiate() *cobra.Command {
	var timeout time.Duration
	var childless bool
	cmd := &cobra.Command{
		Use:   "initiate NODE RULE | --childless NODE PEER",
		Short: "Negotiate for a rule now instead of at the first packet",
		Long: "initiate negotiates for a rule of `testudo policy effective NODE` and waits until its CHILD SA is in place, or says why not.\n" +
			"With --childless it makes an IKE SA with a peer of that policy and no CHILD SA (RFC 6023), so that the first packet waits for less.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			kc, err := c.keymgr()
			if err != nil {
				return err
			}
			start := time.Now()
			req := &keymgrv1.InitiateRequest{Node: args[0], Rule: args[1], Timeout: durationpb.New(timeout)}
			if childless {
				req.Rule, req.Peer = "", args[1]
			}
			r, err := kc.Initiate(cmd.Context(), req)
			if err != nil {
				return err
			}
			v, err := raw(r)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), v, func(t *table) {
				if childless {
					t.line("IKE SA with %s up in %s", args[1], time.Since(start).Round(time.Millisecond))
					return
				}
				t.line("child %d up in %s: %s, %s", r.GetChild().GetId(), time.Since(start).Round(time.Millisecond), r.GetChild().GetSuite(), strings.Join(r.GetChild().GetSelectors(), ", "))
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long to wait")
	cmd.Flags().BoolVar(&childless, "childless", false, "make an IKE SA without a CHILD SA, with a peer instead of for a rule")
	return cmd
}

// target reads --child or --ike-spi.
type target struct {
	child uint64
	spi   string
}

func (t *target) bind(cmd *cobra.Command) {
	cmd.Flags().Uint64Var(&t.child, "child", 0, "CHILD SA number, as `testudo sa list` shows it")
	cmd.Flags().StringVar(&t.spi, "ike-spi", "", "this side's IKE SPI in hexadecimal")
}

func (t *target) ikeSPI() (uint64, error) {
	if t.spi == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(t.spi, "0x"), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("--ike-spi: got %q, want up to 16 hexadecimal digits", t.spi)
	}
	return n, nil
}

func (c *cli) saRekey() *cobra.Command {
	var t target
	cmd := &cobra.Command{
		Use:   "rekey NODE --child N | --ike-spi SPI",
		Short: "Replace an SA without losing a packet",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kc, err := c.keymgr()
			if err != nil {
				return err
			}
			spi, err := t.ikeSPI()
			if err != nil {
				return err
			}
			r := &keymgrv1.RekeyRequest{Node: args[0]}
			if spi != 0 {
				r.Target = &keymgrv1.RekeyRequest_IkeSpi{IkeSpi: spi}
			} else {
				r.Target = &keymgrv1.RekeyRequest_Child{Child: t.child}
			}
			_, err = kc.Rekey(cmd.Context(), r)
			return err
		},
	}
	t.bind(cmd)
	cmd.MarkFlagsOneRequired("child", "ike-spi")
	cmd.MarkFlagsMutuallyExclusive("child", "ike-spi")
	return cmd
}

func (c *cli) saTerminate() *cobra.Command {
	var t target
	var peer string
	cmd := &cobra.Command{
		Use:   "terminate NODE --child N | --ike-spi SPI | --peer PEER",
		Short: "Close an SA, with a delete to the peer",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kc, err := c.keymgr()
			if err != nil {
				return err
			}
			spi, err := t.ikeSPI()
			if err != nil {
				return err
			}
			r := &keymgrv1.TerminateRequest{Node: args[0]}
			switch {
			case peer != "":
				r.Target = &keymgrv1.TerminateRequest_Peer{Peer: peer}
			case spi != 0:
				r.Target = &keymgrv1.TerminateRequest_IkeSpi{IkeSpi: spi}
			default:
				r.Target = &keymgrv1.TerminateRequest_Child{Child: t.child}
			}
			resp, err := kc.Terminate(cmd.Context(), r)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), map[string]uint32{"closed": resp.GetClosed()}, func(t *table) { t.line("%d SA(s) closing", resp.GetClosed()) })
		},
	}
	t.bind(cmd)
	cmd.Flags().StringVar(&peer, "peer", "", "all IKE SAs with this peer profile")
	cmd.MarkFlagsOneRequired("child", "ike-spi", "peer")
	cmd.MarkFlagsMutuallyExclusive("child", "ike-spi", "peer")
	return cmd
}

// authenticated says how the ends of an IKE SA have proven who they are.
func authenticated(s *keymgrv1.IkeSa) string {
	out := fmt.Sprintf("authenticated with %s, peer with %s", s.GetLocalAuth(), s.GetRemoteAuth())
	if id := s.GetPpkId(); id != "" {
		out += ", ppk " + id
	}
	if s.GetRemoteAuth() == "null" {
		out += " (the peer's identity is not proven)"
	}
	if at := s.GetReauthAt(); at != nil {
		out += ", again in " + time.Until(at.AsTime()).Round(time.Second).String()
	}
	return out
}
