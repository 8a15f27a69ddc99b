// Package daemon is the command line that the three daemons share: run, check
// a configuration without touching the system, and say the version.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/testudo-ipsec/testudo/services/internal/config"
	"github.com/testudo-ipsec/testudo/services/internal/obs"
)

// Version is set by the linker.
var Version = "devel"

// Config is a daemon's configuration: a pointer to a struct of defaults.
type Config interface {
	// Validate checks all of it without touching the system beyond reading
	// files, and reports every problem.
	Validate() error
	// Logging is where the daemon's log options are.
	Logging() config.Log
}

// Daemon is one of the three.
type Daemon struct {
	Name   string
	Short  string
	Long   string
	Config Config
	Run    func(ctx context.Context, log *slog.Logger) error
}

// Command is the daemon's root command.
func (d *Daemon) Command() *cobra.Command {
	load := func(cmd *cobra.Command) error {
		if err := config.Load(d.Name, cmd.Flags(), d.Config); err != nil {
			return err
		}
		return d.Config.Validate()
	}
	root := &cobra.Command{
		Use:           d.Name,
		Short:         d.Short,
		Long:          d.Long,
		Version:       Version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := load(cmd); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return d.Run(ctx, obs.Logger(d.Config.Logging(), d.Name))
		},
	}
	config.Bind(root.Flags(), d.Config)
	check := &cobra.Command{
		Use:   "check",
		Short: "Validate the configuration and exit; the system is not touched",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := load(cmd); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "configuration ok")
			return nil
		},
	}
	config.Bind(check.Flags(), d.Config)
	group := &cobra.Command{Use: "config", Short: "Work with the configuration"}
	group.AddCommand(check)
	root.AddCommand(group)
	return root
}

// Strict makes a tree of commands say what it wants instead of what it got: a group
// knows its commands by name, and a count of arguments that is wrong shows the usage.
func Strict(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		Strict(sub)
	}
	if cmd.HasParent() && cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.Args, cmd.DisableFlagsInUseLine, cmd.SuggestionsMinimumDistance = cobra.ArbitraryArgs, true, 2
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			near := ""
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				near = ", such as " + s[0]
			}
			return fmt.Errorf("%q is not a command of %q: want one of those that %q lists%s", args[0], cmd.CommandPath(), cmd.CommandPath()+" --help", near)
		}
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return fmt.Errorf("%w; want: %s", err, cmd.UseLine())
			}
			return nil
		}
	}
}

// Execute runs a command as a process's main does.
func Execute(cmd *cobra.Command) {
	Strict(cmd)
	if err := cmd.Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", cmd.Name(), err)
		os.Exit(1)
	}
}

// RunAll runs the functions side by side until ctx ends or one of them fails,
// then waits for all. A function that returns before ctx ends must return an
// error.
func RunAll(ctx context.Context, fs ...func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range fs {
		g.Go(func() error { return f(ctx) })
	}
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
