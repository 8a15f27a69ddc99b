package main

import (
	"fmt"

	"github.com/spf13/cobra"

	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
)

// nodeView is one line of status.
type nodeView struct {
	Node       string `json:"node"`
	External   bool   `json:"external"`
	Policy     string `json:"policy"`          // acknowledged revision, or what is wrong
	InSync     bool   `json:"policyInSync"`    // all that concerns it is in force
	PolicyUp   bool   `json:"policyConnected"` // the worker follows the feed
	KeymgrUp   bool   `json:"keymgrConnected"` // the worker is attached to the key manager
	Rules      uint32 `json:"rules"`
	IKESAs     int    `json:"ikeSas"`
	ChildSAs   int    `json:"childSas"`
	SAs        string `json:"sas"` // simplex SAs in place, of those desired
	LastRefuse string `json:"lastRefusal,omitempty"`
}

// managerView is a key manager as policyd sees it.
type managerView struct {
	Name      string `json:"name"`
	Connected bool   `json:"connected"`
	Revision  uint64 `json:"revision"`
	InSync    bool   `json:"inSync"`
}

func (m managerView) String() string {
	switch {
	case !m.Connected:
		return "key manager " + m.Name + " does not follow the feed"
	case !m.InSync:
		return fmt.Sprintf("key manager %s is behind, at revision %d", m.Name, m.Revision)
	}
	return "key manager " + m.Name + " follows the feed"
}

type statusView struct {
	Revision uint64        `json:"revision"`
	Keymgrs  []managerView `json:"keyManagers"`
	Nodes    []nodeView    `json:"nodes"`
	Problems []string      `json:"problems,omitempty"`
}

func (c *cli) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show every node: connected, policy revision in force, SAs up",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := c.status(cmd)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), v, func(t *table) {
				t.line("policy revision %d", v.Revision)
				for _, k := range v.Keymgrs {
					t.line("%s", k)
				}
				t.row("NODE", "POLICYD", "KEYMGRD", "POLICY", "RULES", "IKE SAS", "CHILD SAS", "SAS IN PLACE")
				for _, n := range v.Nodes {
					if n.External {
						t.row(n.Node, "external", "external", "", n.Rules, n.IKESAs, n.ChildSAs, "")
						continue
					}
					t.row(n.Node, yesNo(n.PolicyUp), yesNo(n.KeymgrUp), n.Policy, n.Rules, n.IKESAs, n.ChildSAs, n.SAs)
				}
				for _, p := range v.Problems {
					t.line("! %s", p)
				}
			})
		},
	}
}

func (c *cli) status(cmd *cobra.Command) (*statusView, error) {
	pc, err := c.policy()
	if err != nil {
		return nil, err
	}
	st, err := pc.Status(cmd.Context(), &policyv1.StatusRequest{})
	if err != nil {
		return nil, err
	}
	v := &statusView{Revision: st.GetVersion().GetRevision(), Nodes: []nodeView{}}
	for _, s := range st.GetSubscribers() {
		m := managerView{Name: s.GetName(), Connected: s.GetConnected(), Revision: s.GetAckedRevision(), InSync: s.GetInSync()}
		v.Keymgrs = append(v.Keymgrs, m)
		if s.GetLastNack() != "" {
			v.Problems = append(v.Problems, fmt.Sprintf("%s %s refused a policy change: %s", s.GetRole(), s.GetName(), s.GetLastNack()))
		}
	}
	workers, ikes := map[string]*keymgrv1.Worker{}, map[string][]*keymgrv1.IkeSa{}
	if kc, err := c.keymgr(); err != nil {
		v.Problems = append(v.Problems, err.Error())
	} else if err := c.keymgrStatus(cmd, kc, workers, ikes); err != nil {
		v.Problems = append(v.Problems, message(err))
	}
	for _, n := range st.GetNodes() {
		nv := nodeView{Node: n.GetNode(), External: n.GetExternal(), Rules: n.GetRules()}
		if s := n.GetSubscriber(); s != nil {
			nv.PolicyUp = s.GetConnected()
			nv.Policy = fmt.Sprint(s.GetAckedRevision())
			nv.InSync = s.GetInSync()
			if !s.GetInSync() {
				nv.Policy += " (behind)"
			}
			if s.GetLastNack() != "" {
				nv.LastRefuse = s.GetLastNack()
				v.Problems = append(v.Problems, fmt.Sprintf("%s refused a policy change: %s", nv.Node, s.GetLastNack()))
			}
		}
		for _, i := range ikes[nv.Node] {
			if i.GetState() != "connecting" {
				nv.IKESAs++
			}
			nv.ChildSAs += len(i.GetChildren())
		}
		if w := workers[nv.Node]; w != nil {
			nv.KeymgrUp = w.GetAttached()
			nv.SAs = fmt.Sprintf("%d/%d", w.GetSasInstalled(), w.GetSasDesired())
			if w.GetLastNack() != "" {
				v.Problems = append(v.Problems, fmt.Sprintf("%s refused an SA: %s", nv.Node, w.GetLastNack()))
			}
		}
		v.Nodes = append(v.Nodes, nv)
	}
	return v, nil
}

func (c *cli) keymgrStatus(cmd *cobra.Command, kc keymgrv1.KeyManagerServiceClient, workers map[string]*keymgrv1.Worker, ikes map[string][]*keymgrv1.IkeSa) error {
	ws, err := kc.ListWorkers(cmd.Context(), &keymgrv1.ListWorkersRequest{})
	if err != nil {
		return err
	}
	for _, w := range ws.GetWorkers() {
		workers[w.GetNode()] = w
	}
	sas, err := kc.ListSas(cmd.Context(), &keymgrv1.ListSasRequest{})
	if err != nil {
		return err
	}
	for _, s := range sas.GetIkeSas() {
		ikes[s.GetNode()] = append(ikes[s.GetNode()], s)
	}
	return nil
}
