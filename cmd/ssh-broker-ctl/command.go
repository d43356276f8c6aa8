package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
)

// app is one run of the program.
type app struct {
	out    *output
	err    io.Writer
	getenv func(string) string
	width  int // of the terminal; 0: standard output is none

	globalFile string // config.DefaultGlobalFile, but for tests

	address    string
	system     bool
	quiet      bool
	short      bool
	verbose    bool
	wide       bool
	timeFormat string
	debug      string
	charset    string
}

// charsets are those that the option -e takes; ssh-broker-ctl(1) has the first latin1 misspelt.
var charsets = []string{"utf8", "utf-8", "iso-8895-1", "iso-8859-1", "latin1", "iso-8859-15", "latin9", "ascii"}

const (
	groupBroker = "broker"
	groupFlows  = "flows"
	groupKeys   = "keys"
	groupConfig = "config"
	groupSystem = "system"
)

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "ssh-broker-ctl [options] COMMAND [command options]",
		Short: "Control and inspect the broker",
		Long: `Control and inspect the broker, which carries captured connections over SSH.

Every command has its own help: ssh-broker-ctl status --help

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no broker (or, for connector and
capture, no ssh-captured) is running.`,
		Example: `  ssh-broker-ctl status
  ssh-broker-ctl list-connections -c
  ssh-broker-ctl check-config ~/.ssh2/ssh-broker-config.xml && ssh-broker-ctl reload
  ssh-broker-ctl explain db.internal 5432
  ssh-broker-ctl --system reload`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("no command given; see %s --help", cmd.Name())}
			}
			text := fmt.Sprintf("there is no command %q", args[0])
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				text += "; did you mean " + strings.Join(near, " or ") + "?"
			}
			return usageError{fmt.Errorf("%s; see %s --help", text, cmd.Name())}
		},
		RunE:          func(*cobra.Command, []string) error { return nil }, // Args never lets it run
		SilenceErrors: true, SilenceUsage: true,
		SuggestionsMinimumDistance: 2,
		Version:                    control.Version(),
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if !slices.Contains(charsets, strings.ToLower(a.charset)) {
				return usageError{fmt.Errorf("-e %s: it is one of %s", a.charset, strings.Join(charsets, ", "))}
			}
			if a.system && a.address != "" {
				return usageError{errors.New("--system and -a: use one of the two")}
			}
			return checkTimeFormat(a.timeFormat)
		},
	}
	root.SetVersionTemplate("ssh-broker-ctl {{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.Flags().BoolP("version", "V", false, "print the version")
	f := root.PersistentFlags()
	f.SortFlags = false
	f.StringVarP(&a.address, "broker-address", "a", "", "talk to the broker at this socket `PATH` (also "+control.EnvAddress+")")
	f.BoolVar(&a.system, "system", false, "talk to the broker of the whole system, at "+control.SystemAddress)
	f.BoolVarP(&a.short, "short", "s", false, "print JSON, one object a line")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print little or nothing")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "print more")
	f.BoolVarP(&a.wide, "wide", "w", false, "do not cut lines to the width of the terminal")
	f.StringVar(&a.timeFormat, "time-format", "%Y-%m-%d %H:%M:%S", "print times in this `FORMAT` of strftime(3)")
	f.StringVarP(&a.debug, "debug", "D", "", "accepted; the broker has the debug messages (`LEVEL`)")
	f.StringVarP(&a.charset, "charset", "e", "utf8", "accepted; the output is UTF-8 (`CHARSET`)")
	f.BoolP("help", "h", false, "print help for the command")

	root.AddGroup(&cobra.Group{ID: groupBroker, Title: "The broker:"},
		&cobra.Group{ID: groupFlows, Title: "What it carries:"},
		&cobra.Group{ID: groupKeys, Title: "Keys and questions:"},
		&cobra.Group{ID: groupConfig, Title: "Its configuration:"},
		&cobra.Group{ID: groupSystem, Title: "The whole system:"})
	root.AddCommand(a.startCommand(), a.stopCommand(), a.statusCommand(), a.reloadCommand(), a.metricsCommand(),
		a.topCommand(), a.watchable(a.listConnectionsCommand()), a.watchable(a.listChannelsCommand()),
		a.watchable(a.listListenersCommand()), a.openListenerCommand(), a.closeListenerCommand(), a.servicesCommand(), a.connectCommand(),
		a.connectionStatusCommand(), a.closeConnectionCommand(), a.closeChannelCommand(), a.watchable(a.listClientsCommand()), a.disconnectClientCommand(), a.watchable(a.listProfilesCommand()),
		a.watchable(a.listKeysCommand()), a.viewKeyCommand(), a.addKeyCommand(), a.removeKeyCommand(), a.keyPassphraseCommand(), a.probeKeyCommand(), a.authHandlerCommand(),
		a.captureCommand(), a.checkConfigCommand(), a.explainCommand(), a.configValueCommand(), a.ruleCommand(), a.kubeconfigCommand(), a.connectorCommand(), a.leakTestCommand(), leakInsideCommand(), a.doctorCommand(), connectInsideCommand())
	plain(root)
	a.completions(root)
	root.SetHelpCommand(helpCommand(root))
	root.SetUsageTemplate(usageTemplate)
	return root
}

// plain has the help of a command, and of those below it, look as ours does.
func plain(cmd *cobra.Command) {
	cmd.DisableFlagsInUseLine = true
	cmd.Flags().SortFlags = false
	for _, below := range cmd.Commands() {
		plain(below)
	}
}

// helpCommand is "help COMMAND". Unlike cobra's it fails for a command that does not exist.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:    "help [COMMAND]",
		Short:  "Print help for a command",
		Hidden: true,
		Args:   cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err == nil && len(rest) > 0 {
				err = cmd.Args(cmd, rest)
			}
			if err != nil {
				return err
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
	}
}

// usageTemplate is what follows the long text of a command in its help.
const usageTemplate = `Usage: {{.UseLine}}
{{- if and .HasAvailableSubCommands (not .Groups)}}

Commands:
{{- range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{- end}}
{{- range $group := .Groups}}

{{.Title}}
{{- range $.Commands}}{{if and (eq .GroupID $group.ID) .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{- end}}
{{- if .HasAvailableLocalFlags}}

Options:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}
{{- end}}
{{- if .HasAvailableInheritedFlags}}

General options:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}
{{- end}}
{{- if .HasExample}}

Examples:
{{.Example}}
{{- end}}
`

// exactly is an argument check whose failure is a usage error.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usageError{fmt.Errorf("%s: %s is missing; see %s --help", cmd.Name(), names[len(args)], cmd.CommandPath())}
		case len(args) > len(names):
			return usageError{fmt.Errorf("%s: %q is one argument too many; see %s --help", cmd.Name(), args[len(names)], cmd.CommandPath())}
		}
		return nil
	}
}

// dial connects to the broker. With -a or --system, root may talk to anybody's.
func (a *app) dial(ctx context.Context) (*control.Client, error) {
	given := a.address
	if a.system {
		given = control.SystemAddress
	}
	address, err := control.Address(given, a.getenv)
	if err != nil {
		return nil, err
	}
	return control.Dialer{Address: address, AnyOwner: given != ""}.Dial(ctx)
}

// call does one operation and hands each row to row.
func call[Row any](ctx context.Context, c *control.Client, op string, args any, row func(Row) error) error {
	return c.Call(ctx, op, args, nil, func(b json.RawMessage) error {
		var r Row
		if err := json.Unmarshal(b, &r); err != nil {
			return fmt.Errorf("the broker's answer: %w", err)
		}
		return row(r)
	}, nil)
}

// fetch does one operation on a connection of its own and returns the rows. They
// are collected before anything is printed: a pager that stops reading must not
// make the broker wait.
func fetch[Row any](ctx context.Context, a *app, op string, args any) ([]Row, error) {
	c, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return rowsOf[Row](ctx, c, op, args)
}

func rowsOf[Row any](ctx context.Context, c *control.Client, op string, args any) ([]Row, error) {
	var rows []Row
	err := call(ctx, c, op, args, func(r Row) error { rows = append(rows, r); return nil })
	return rows, err
}

// list prints rows: as JSON with -s, else as a table, or that there are none.
func list[Row any](a *app, rows []Row, table func([]Row), none string) {
	switch {
	case a.short:
		for _, r := range rows {
			a.printJSON(r)
		}
	case len(rows) > 0:
		table(rows)
	case !a.quiet:
		a.printf("%s\n", none)
	}
}

// one is fetch for an operation that answers with exactly one row.
func one[Row any](ctx context.Context, a *app, op string, args any) (Row, error) {
	rows, err := fetch[Row](ctx, a, op, args)
	if err == nil && len(rows) != 1 {
		err = fmt.Errorf("%s: the broker answered with %d rows, not one", op, len(rows))
	}
	if err != nil {
		return *new(Row), err
	}
	return rows[0], nil
}

// printJSON prints one object on one line.
func (a *app) printJSON(v any) {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // rows always encode; output keeps the write error
}

func (a *app) printf(format string, args ...any) {
	fmt.Fprint(a.out, printable(fmt.Sprintf(format, args...)))
}
