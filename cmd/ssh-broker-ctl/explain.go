package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
	"sshbroker/filter"
)

func (a *app) explainCommand() *cobra.Command {
	var program, login, file string
	var names, groups []string
	var flow uint64
	cmd := &cobra.Command{
		Use:     "explain HOST PORT",
		GroupID: groupConfig,
		Short:   "Say what would become of a connection, and by which rule",
		Long: `Say what would become of a connection to HOST, a name or an address, and why: each
rule that is tried, the first of its conditions that does not hold, the rule that
decides, and the way the connection would take. Nothing is connected.

The broker that runs is asked; with -f the rules of a file are, without a broker.

With --flow it is a connection that is open: what was known of it, what decided it, and,
if the rules have changed since, what would become of it now.`,
		Example: `  ssh-broker-ctl explain db.internal 5432
  ssh-broker-ctl explain --program /usr/bin/telnet 10.0.0.5 telnet
  ssh-broker-ctl explain --name db.internal --user alice --group dba 10.0.0.5 5432
  ssh-broker-ctl explain -f new-rules.xml www.example.com 443
  ssh-broker-ctl explain --flow 17`,
		Args: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("flow") {
				return exactly("HOST", "PORT")(cmd, args)
			}
			for _, other := range []string{"program", "user", "group", "name", "config-file"} {
				if cmd.Flags().Changed(other) {
					return usageError{fmt.Errorf("explain: --flow and --%s: use one of the two", other)}
				}
			}
			if flow == 0 {
				return usageError{errors.New("explain: --flow 0: connections are counted from 1; see ssh-broker-ctl list-channels")}
			}
			return exactly()(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if flow != 0 {
				return a.explainFlow(cmd.Context(), flow)
			}
			ask := control.ExplainArgs{Program: executable(program), User: login, Groups: groups, Host: args[0], Names: names}
			port, err := net.DefaultResolver.LookupPort(cmd.Context(), "tcp", args[1])
			if err != nil || port == 0 {
				return usageError{fmt.Errorf("explain: %q is not a port from 1 to 65535, nor the name of a service", args[1])}
			}
			ask.Port = uint16(port)
			var rows []control.ExplainRow
			if file != "" {
				rows, err = a.explainFile(file, ask)
			} else {
				rows, err = fetch[control.ExplainRow](cmd.Context(), a, control.OpExplain, ask)
			}
			if err != nil {
				return err
			}
			e := takeApart(rows)
			if e.result == nil {
				return errors.New("explain: the broker answered without a result")
			}
			if a.system && e.result.Owner == "" {
				e.result.Owner = cmp.Or(login, ownEnv().User)
			}
			a.explained(rows, fmt.Sprintf("%s to %s\n", cmp.Or(ask.Program, "any program"), net.JoinHostPort(ask.Host, fmt.Sprint(ask.Port))), e)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&program, "program", "p", "", "the `PROGRAM` that connects: a path, or a name that is looked up on PATH")
	f.StringVarP(&login, "user", "u", "", "the login `NAME` of who connects (default: the broker's user)")
	f.StringArrayVar(&groups, "group", nil, "a `GROUP` of who connects, in place of those of the account; may be repeated")
	f.StringArrayVar(&names, "name", nil, "a `NAME` by which the host is known besides, the latest first; may be repeated")
	f.StringVarP(&file, "config-file", "f", "", "take the rules from this `FILE`, without a broker")
	f.Uint64Var(&flow, "flow", 0, "the open connection of this `ID`, as list-channels has it")
	return cmd
}

// executable is the path by which the broker would know a program.
func executable(name string) string {
	if name == "" {
		return ""
	}
	path := name
	if !strings.Contains(name, "/") {
		found, err := exec.LookPath(name)
		if err != nil {
			return name // rules match the base name too
		}
		path = found
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return path
}

// explanation is an answer taken apart.
type explanation struct {
	flow   *control.ExplainFlow
	steps  []control.ExplainStep
	result *control.ExplainResult
}

func takeApart(rows []control.ExplainRow) explanation {
	var e explanation
	for _, r := range rows {
		if r.Flow != nil {
			e.flow = r.Flow
		}
		if r.Step != nil {
			e.steps = append(e.steps, *r.Step)
		}
		if r.Result != nil {
			e.result = r.Result
		}
	}
	return e
}

// explained prints what would become of a connection that head describes.
func (a *app) explained(rows []control.ExplainRow, head string, e explanation) {
	if a.short {
		for _, row := range rows {
			a.printJSON(row)
		}
		return
	}
	r := e.result
	if !a.quiet {
		a.printf("%s", head)
		for _, s := range e.steps {
			a.line(fmt.Sprintf("  rule %-3d %s: %s", s.Rule, s.Source, stepText(s)))
		}
	}
	by := fmt.Sprintf("by rule %d, %s", r.Rule, r.Source)
	if r.Rule == 0 {
		by = "as no rule matches"
	}
	a.printf("%s %s\n", r.Action, by)
	field := a.explainField
	field("user", r.Owner)
	field("profile", r.Profile)
	server := r.Server
	if server != "" && r.User != "" {
		server = r.User + "@" + server
	}
	field("server", server)
	field("destination", r.Destination)
	if r.Fallback {
		field("fallback", "in clear if the tunnel fails, but never after a host key was refused")
	}
	field("note", r.Note)
}

func (a *app) explainField(name, value string) {
	if value != "" {
		a.printf("  %-12s %s\n", name, value)
	}
}

func stepText(s control.ExplainStep) string {
	switch {
	case s.Matched:
		return "matches"
	case s.Condition == filter.Network.String():
		return fmt.Sprintf("no, the host is not known to be on network %s", s.Pattern)
	case s.Value == "":
		return fmt.Sprintf("no, %s is not known here, the rule wants %s", subject(s.Condition), s.Pattern)
	}
	return fmt.Sprintf("no, %s is %s, the rule wants %s", subject(s.Condition), s.Value, s.Pattern)
}

// subject is what a condition looks at; the condition is an attribute of the rule.
func subject(condition string) string {
	switch condition {
	case "application":
		return "the program"
	case "host":
		return "the host"
	case "ip-address":
		return "the address"
	case "ports":
		return "the port"
	case "users":
		return "the user"
	case "groups":
		return "the user's groups"
	}
	return condition
}
