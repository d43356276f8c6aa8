package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
)

func (a *app) explainCommand() *cobra.Command {
	var program, login, file string
	cmd := &cobra.Command{
		Use:     "explain HOST PORT",
		GroupID: groupConfig,
		Short:   "Say what would become of a connection, and by which rule",
		Long: `Say what would become of a connection to HOST, a name or an address, and why: each
rule that is tried, the first of its conditions that does not hold, the rule that
decides, and the way the connection would take. Nothing is connected.

The broker that runs is asked; with -f the rules of a file are, without a broker.`,
		Example: `  ssh-broker-ctl explain db.internal 5432
  ssh-broker-ctl explain --program /usr/bin/telnet 10.0.0.5 telnet
  ssh-broker-ctl explain -f new-rules.xml www.example.com 443`,
		Args: exactly("HOST", "PORT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			flow := control.ExplainArgs{Program: executable(program), User: login, Host: args[0]}
			port, err := net.DefaultResolver.LookupPort(cmd.Context(), "tcp", args[1])
			if err != nil || port == 0 {
				return usageError{fmt.Errorf("explain: %q is not a port from 1 to 65535, nor the name of a service", args[1])}
			}
			flow.Port = uint16(port)
			steps, result, err := a.explain(cmd.Context(), flow, file)
			if err != nil {
				return err
			}
			a.explained(flow, steps, result)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&program, "program", "p", "", "the `PROGRAM` that connects: a path, or a name that is looked up on PATH")
	f.StringVarP(&login, "user", "u", "", "the login `NAME` of who connects (default: the broker's user)")
	f.StringVarP(&file, "config-file", "f", "", "take the rules from this `FILE`, without a broker")
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

func (a *app) explain(ctx context.Context, flow control.ExplainArgs, file string) ([]control.ExplainStep, control.ExplainResult, error) {
	var rows []control.ExplainRow
	var err error
	if file != "" {
		rows, err = a.explainFile(file, flow)
	} else {
		rows, err = fetch[control.ExplainRow](ctx, a, control.OpExplain, flow)
	}
	if err != nil {
		return nil, control.ExplainResult{}, err
	}
	var steps []control.ExplainStep
	var result *control.ExplainResult
	for _, r := range rows {
		if r.Step != nil {
			steps = append(steps, *r.Step)
		}
		if r.Result != nil {
			result = r.Result
		}
	}
	if result == nil {
		return nil, control.ExplainResult{}, errors.New("explain: the broker answered without a result")
	}
	return steps, *result, nil
}

func (a *app) explained(flow control.ExplainArgs, steps []control.ExplainStep, r control.ExplainResult) {
	if a.short {
		for _, s := range steps {
			a.printJSON(control.ExplainRow{Step: &s})
		}
		a.printJSON(control.ExplainRow{Result: &r})
		return
	}
	if !a.quiet {
		a.printf("%s to %s\n", cmp.Or(flow.Program, "any program"), net.JoinHostPort(flow.Host, fmt.Sprint(flow.Port)))
		for _, s := range steps {
			a.line(fmt.Sprintf("  rule %-3d %s: %s", s.Rule, s.Source, stepText(s)))
		}
	}
	by := fmt.Sprintf("by rule %d, %s", r.Rule, r.Source)
	if r.Rule == 0 {
		by = "as no rule matches"
	}
	a.printf("%s %s\n", r.Action, by)
	field := func(name, value string) {
		if value != "" {
			a.printf("  %-12s %s\n", name, value)
		}
	}
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

func stepText(s control.ExplainStep) string {
	switch {
	case s.Matched:
		return "matches"
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
