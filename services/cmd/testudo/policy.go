package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
)

func (c *cli) policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Apply, check and read policy"}
	cmd.AddCommand(c.policyApply(), c.policyValidate(), c.policyGet(), c.policyEffective())
	return cmd
}

// readFiles reads files, the YAML files of folders, and "-" for standard input.
func readFiles(paths []string, stdin io.Reader) ([]*policyv1.File, error) {
	var out []*policyv1.File
	add := func(path string) error {
		b, err := os.ReadFile(path)
		if err == nil {
			out = append(out, &policyv1.File{Name: path, Content: b})
		}
		return err
	}
	for _, p := range paths {
		if p == "-" {
			b, err := io.ReadAll(stdin)
			if err != nil {
				return nil, err
			}
			out = append(out, &policyv1.File{Name: "<stdin>", Content: b})
			continue
		}
		st, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if !st.IsDir() {
			if err := add(p); err != nil {
				return nil, err
			}
			continue
		}
		entries, err := os.ReadDir(p)
		if err != nil {
			return nil, err
		}
		n := len(out)
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
				if err := add(filepath.Join(p, e.Name())); err != nil {
					return nil, err
				}
			}
		}
		if len(out) == n {
			return nil, fmt.Errorf("%s: holds no .yaml or .yml file", p)
		}
	}
	return out, nil
}

func printProblems(w io.Writer, ps []*policyv1.Problem) (errors int) {
	for _, p := range ps {
		kind := "error"
		if p.GetWarning() {
			kind = "warning"
		} else {
			errors++
		}
		where := p.GetFile()
		if p.GetLine() != 0 {
			where = fmt.Sprintf("%s:%d", where, p.GetLine())
		}
		parts := slices.DeleteFunc([]string{where, kind, p.GetField(), p.GetMessage()}, func(s string) bool { return s == "" })
		fmt.Fprintln(w, strings.Join(parts, ": "))
	}
	return errors
}

func (c *cli) policyApply() *cobra.Command {
	var files, remove []string
	var replace, dryRun bool
	var message string
	var base uint64
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Put documents in force as one change",
		Long: `apply stores the documents of the files as one change: all of them or none.
Documents that are stored and not in the files stay, unless --replace is given.
policyd compiles the result for each node and sends what changed.`,
		Example: "  testudo policy apply -f policies/ --replace -m 'open the database to web'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fs, err := readFiles(files, cmd.InOrStdin())
			if err != nil {
				return err
			}
			cl, err := c.policy()
			if err != nil {
				return err
			}
			if dryRun {
				return c.validate(cmd, cl, &policyv1.ValidateRequest{Files: fs, Replace: replace})
			}
			r, err := cl.Apply(cmd.Context(), &policyv1.ApplyRequest{Files: fs, Replace: replace, Remove: remove, BaseRevision: base, Message: message})
			if err != nil {
				return err
			}
			if n := printProblems(cmd.ErrOrStderr(), r.GetProblems()); n > 0 {
				return fmt.Errorf("nothing was applied: %d error(s)", n)
			}
			return c.print(cmd.OutOrStdout(), r, func(t *table) {
				for _, d := range r.GetChanged() {
					t.row(d, "applied")
				}
				for _, d := range r.GetRemoved() {
					t.row(d, "removed")
				}
				t.line("revision %d, %d node(s) changed", r.GetVersion().GetRevision(), len(r.GetNodes()))
			})
		},
	}
	cmd.Flags().StringSliceVarP(&files, "file", "f", nil, "file or folder of YAML documents; - reads standard input")
	cmd.Flags().StringSliceVar(&remove, "remove", nil, "also remove this document, as Kind/name")
	cmd.Flags().BoolVar(&replace, "replace", false, "remove stored documents that the files do not have")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and say what would change, without changing it")
	cmd.Flags().StringVarP(&message, "message", "m", "", "why, for the history")
	cmd.Flags().Uint64Var(&base, "base-revision", 0, "refuse when the store has moved past this revision")
	return cmd
}

func (c *cli) validate(cmd *cobra.Command, cl policyv1.PolicyServiceClient, r *policyv1.ValidateRequest) error {
	resp, err := cl.Validate(cmd.Context(), r)
	if err != nil {
		return err
	}
	if n := printProblems(cmd.ErrOrStderr(), resp.GetProblems()); n > 0 {
		return fmt.Errorf("%d error(s)", n)
	}
	return c.print(cmd.OutOrStdout(), resp, func(t *table) {
		if len(resp.GetNodes()) == 0 {
			t.line("ok; no node would change")
			return
		}
		t.line("ok; would change: %s", strings.Join(resp.GetNodes(), " "))
	})
}

func (c *cli) policyValidate() *cobra.Command {
	var files []string
	var replace bool
	cmd := &cobra.Command{
		Use:   "validate -f FILE",
		Short: "Check documents together with those stored; change nothing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fs, err := readFiles(files, cmd.InOrStdin())
			if err != nil {
				return err
			}
			cl, err := c.policy()
			if err != nil {
				return err
			}
			return c.validate(cmd, cl, &policyv1.ValidateRequest{Files: fs, Replace: replace})
		},
	}
	cmd.Flags().StringSliceVarP(&files, "file", "f", nil, "file or folder of YAML documents; - reads standard input")
	cmd.Flags().BoolVar(&replace, "replace", false, "check as if only these documents were stored")
	_ = cmd.MarkFlagRequired("file")
	return cmd
}

func (c *cli) policyGet() *cobra.Command {
	return &cobra.Command{
		Use:   "get [KIND [NAME]]",
		Short: "Show stored documents; -o yaml prints them as they were applied",
		Args:  cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.policy()
			if err != nil {
				return err
			}
			r := &policyv1.GetRequest{}
			if len(args) > 0 {
				r.Kind = args[0]
			}
			if len(args) > 1 {
				r.Name = args[1]
			}
			resp, err := cl.Get(cmd.Context(), r)
			if err != nil {
				return err
			}
			if c.output == "yaml" {
				for i, d := range resp.GetDocuments() {
					if i > 0 {
						fmt.Fprintln(cmd.OutOrStdout(), "---")
					}
					fmt.Fprintln(cmd.OutOrStdout(), strings.Trim(string(d.GetContent()), "\n"))
				}
				return nil
			}
			type doc struct {
				Kind    string `json:"kind"`
				Name    string `json:"name"`
				Content string `json:"content"`
			}
			docs := make([]doc, 0, len(resp.GetDocuments()))
			for _, d := range resp.GetDocuments() {
				docs = append(docs, doc{d.GetKind(), d.GetName(), string(d.GetContent())})
			}
			return c.print(cmd.OutOrStdout(), docs, func(t *table) {
				t.row("KIND", "NAME")
				for _, d := range docs {
					t.row(d.Kind, d.Name)
				}
			})
		},
	}
}

func (c *cli) policyEffective() *cobra.Command {
	return &cobra.Command{
		Use:   "effective NODE",
		Short: "Show what the compiler made for a node: its rules by falling weight, and its peers",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.policy()
			if err != nil {
				return err
			}
			r, err := cl.Effective(cmd.Context(), &policyv1.EffectiveRequest{Node: args[0]})
			if err != nil {
				return err
			}
			v, err := effectiveView(r)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), v, func(t *table) {
				t.line("node %s, revision %d, unmatched traffic: %s, without a worker: %s, TCP's MSS: %s", args[0], v.Revision, v.Default, v.withoutWorker(), v.mss())
				t.row("WEIGHT", "ACTION", "DIR", "LOCAL", "REMOTE", "MODE", "PEER", "RULE")
				for _, r := range v.Rules {
					t.row(r.Weight, r.Action, r.Direction, r.Local, r.Remote, r.Mode, r.Peer, r.Name)
				}
				t.line("")
				t.row("PEER", "LOCAL ID", "REMOTE ID", "REMOTE", "AUTHENTICATION", "SUITES")
				for _, p := range v.Peers {
					t.row(p.Name, p.LocalID, p.RemoteID, strings.Join(p.Remote, " "), strings.Join(p.Auth, ", "), strings.Join(p.Suites, " "))
				}
			})
		},
	}
}
