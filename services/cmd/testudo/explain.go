package main

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/testudo-ipsec/testudo/ipsec"
	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
	"github.com/testudo-ipsec/testudo/services/internal/convert"
)

// explanation is the answer of explain.
type explanation struct {
	Node       string       `json:"node"`
	Action     string       `json:"action"`
	Why        string       `json:"why"`
	Rule       *ruleView    `json:"rule,omitempty"`
	PassedOver []string     `json:"passedOver,omitempty"`
	Revision   uint64       `json:"revision"`
	SA         *explainedSA `json:"sa,omitempty"`
	Failure    string       `json:"failure,omitempty"`
	KeymgrErr  string       `json:"keymgrError,omitempty"`
	Around     *explanation `json:"around,omitempty"` // of what the SA sends, when a rule protects it once more

	flow ipsec.Flow
}

type explainedSA struct {
	Peer   string `json:"peer"`
	State  string `json:"ikeState"`
	Child  uint64 `json:"child"`
	SPIIn  string `json:"spiIn"`
	SPIOut string `json:"spiOut"`
	Suite  string `json:"suite"`
}

func (c *cli) explainCommand() *cobra.Command {
	var node string
	var sport uint16
	cmd := &cobra.Command{
		Use:   "explain SRC DST [PROTOCOL [PORT]]",
		Short: "Tell which rule a packet meets, which SA carries it, and why",
		Example: `  testudo explain 10.0.0.1 10.0.0.2 tcp 5432
  testudo explain --node gw-1 10.20.0.5 10.30.0.7 icmp`,
		Args: cobra.RangeArgs(2, 4),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFlow(args, sport)
			if err != nil {
				return err
			}
			v, err := c.explain(cmd, node, f, 1)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), v, v.write)
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "look from this node (default: the node that has the source address)")
	cmd.Flags().Uint16Var(&sport, "source-port", 40000, "source port of the packet")
	return cmd
}

func parseFlow(args []string, sport uint16) (f ipsec.Flow, err error) {
	if f.Local, err = netip.ParseAddr(args[0]); err != nil {
		return f, fmt.Errorf("source: %w", err)
	}
	if f.Remote, err = netip.ParseAddr(args[1]); err != nil {
		return f, fmt.Errorf("destination: %w", err)
	}
	if f.Local.Is4() != f.Remote.Is4() {
		return f, fmt.Errorf("source %s and destination %s are of different families", f.Local, f.Remote)
	}
	f.Protocol = 6
	if len(args) > 2 {
		if f.Protocol, err = ipsec.ParseProtocol(args[2]); err != nil {
			return f, err
		}
		if f.Protocol == 0 {
			return f, fmt.Errorf("protocol: a packet has one; name it, such as tcp")
		}
	}
	switch f.Protocol {
	case 6, 17, 132:
		f.LocalPort = sport
	case 1:
		f.LocalPort, f.RemotePort = 8<<8, 8<<8 // echo request
	case 58:
		f.LocalPort, f.RemotePort = 128<<8, 128<<8
	}
	if len(args) > 3 {
		n, err := strconv.ParseUint(args[3], 10, 16)
		if err != nil {
			return f, fmt.Errorf("port: got %q, want 0 to 65535", args[3])
		}
		f.RemotePort = uint16(n)
	}
	return f, nil
}

func (c *cli) explain(cmd *cobra.Command, node string, f ipsec.Flow, depth int) (*explanation, error) {
	pc, err := c.policy()
	if err != nil {
		return nil, err
	}
	r, err := pc.Explain(cmd.Context(), &policyv1.ExplainRequest{Node: node, Flow: convert.ToFlow(f)})
	if err != nil {
		return nil, err
	}
	v := &explanation{flow: f, Node: r.GetNode(), Action: action(r.GetAction()), Why: r.GetWhy(), PassedOver: r.GetPassedOver(), Revision: r.GetVersion().GetRevision()}
	if r.GetRule() == nil {
		return v, nil
	}
	rv, err := viewRule(r.GetRule())
	if err != nil {
		return nil, err
	}
	v.Rule = &rv
	if rv.Peer == "" {
		return v, nil
	}
	kc, err := c.keymgr()
	if err != nil {
		v.KeymgrErr = err.Error()
		return v, nil
	}
	sas, err := kc.ListSas(cmd.Context(), &keymgrv1.ListSasRequest{Node: v.Node, Peer: rv.Peer})
	if err != nil {
		v.KeymgrErr = err.Error()
		return v, nil
	}
	for _, ike := range sas.GetIkeSas() {
		for _, ch := range ike.GetChildren() {
			if ch.GetRule() == rv.Name {
				if v.Around, err = c.around(cmd, v.Node, ike, ch, depth); err != nil {
					return nil, err
				}
				v.SA = &explainedSA{
					Peer: ike.GetPeer(), State: ike.GetState(), Child: ch.GetId(), Suite: ch.GetSuite(),
					SPIIn: ipsec.SPI(ch.GetSpiIn()).String(), SPIOut: ipsec.SPI(ch.GetSpiOut()).String(),
				}
			}
		}
	}
	if v.SA == nil {
		fs, err := kc.ExplainFailures(cmd.Context(), &keymgrv1.ExplainFailuresRequest{Node: v.Node, Peer: rv.Peer})
		if err == nil && len(fs.GetFailures()) > 0 {
			l := fs.GetFailures()[0]
			v.Failure = fmt.Sprintf("last negotiation failed at %s: %s: %s", when(l.GetTime()), l.GetWhy(), l.GetDetail())
		}
	}
	return v, nil
}

// around explains what an SA sends, when a rule for packets of IPsec protects it once
// more; nil when none does.
func (c *cli) around(cmd *cobra.Command, node string, ike *keymgrv1.IkeSa, ch *keymgrv1.ChildSa, depth int) (*explanation, error) {
	local, err := netip.ParseAddrPort(ike.GetLocal())
	if err != nil {
		return nil, fmt.Errorf("address of IKE SA %016x: %w", ike.GetLocalSpi(), err)
	}
	remote, err := netip.ParseAddrPort(ike.GetRemote())
	if err != nil {
		return nil, fmt.Errorf("peer's address of IKE SA %016x: %w", ike.GetLocalSpi(), err)
	}
	f := ipsec.Flow{Local: local.Addr(), Remote: remote.Addr(), Protocol: uint8(ch.GetProtocol())}
	if ch.GetEncap() {
		f.Protocol, f.LocalPort, f.RemotePort = 17, local.Port(), remote.Port()
	}
	pc, err := c.policy()
	if err != nil {
		return nil, err
	}
	r, err := pc.Explain(cmd.Context(), &policyv1.ExplainRequest{Node: node, Flow: convert.ToFlow(f)})
	if err != nil || r.GetRule() == nil {
		return nil, err
	}
	rule, err := convert.FromRule(r.GetRule())
	if err != nil || depth == ipsec.MaxNesting || rule.Action != ipsec.ActionSecure || !rule.Selector.IPsec() {
		return nil, err
	}
	return c.explain(cmd, node, f, depth+1)
}

func (v *explanation) write(t *table) {
	t.line("%s", v.flow)
	t.line("node      %s, policy revision %d", v.Node, v.Revision)
	t.line("action    %s", v.Action)
	t.line("why       %s", v.Why)
	if r := v.Rule; r != nil {
		t.line("rule      %s (weight %d): %s <-> %s", r.Name, r.Weight, r.Local, r.Remote)
		if r.Mode != "" {
			t.line("protect   %s mode with %s", r.Mode, r.Peer)
		}
	}
	switch {
	case v.SA != nil:
		t.line("sa        child %d, %s, spi in %s out %s, IKE SA %s", v.SA.Child, v.SA.Suite, v.SA.SPIIn, v.SA.SPIOut, v.SA.State)
	case v.KeymgrErr != "":
		t.line("sa        unknown: %s", v.KeymgrErr)
	case v.Failure != "":
		t.line("sa        none; %s", v.Failure)
	case v.Rule != nil && v.Rule.Peer != "":
		t.line("sa        none yet; the first packet makes one")
	}
	for _, p := range v.PassedOver {
		t.line("passed    %s", p)
	}
	if v.Around != nil {
		t.line("around it")
		v.Around.write(t)
	}
}
