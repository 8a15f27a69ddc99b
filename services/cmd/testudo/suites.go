package main

import (
	"cmp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/testudo-ipsec/testudo/ipsec"
)

type algorithmView struct {
	Name     string   `json:"name"`
	Type     string   `json:"type"`
	Use      []string `json:"use"`
	Standing string   `json:"standing"`
	ID       uint16   `json:"ianaId"`
	KeyBits  uint16   `json:"keyBits,omitempty"`
}

func (c *cli) suitesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "suites",
		Short: "List the algorithms that a suite may name, with their standing in RFC 8247 and RFC 8221",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var v []algorithmView
			for _, a := range ipsec.Algorithms() {
				x := algorithmView{Name: a.Name, Type: a.Type.String(), Standing: string(a.Standing), ID: a.ID, KeyBits: a.KeyBits}
				for _, u := range []struct {
					use  ipsec.Use
					name string
				}{{ipsec.UseIKE, "ike"}, {ipsec.UseESP, "esp"}, {ipsec.UseAH, "ah"}} {
					if a.Use&u.use != 0 {
						x.Use = append(x.Use, u.name)
					}
				}
				v = append(v, x)
			}
			slices.SortFunc(v, func(a, b algorithmView) int { return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name)) })
			return c.print(cmd.OutOrStdout(), v, func(t *table) {
				t.row("NAME", "TYPE", "USE", "STANDING", "IANA")
				for _, a := range v {
					t.row(a.Name, a.Type, strings.Join(a.Use, ","), a.Standing, a.ID)
				}
			})
		},
	}
}
