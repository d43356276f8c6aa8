package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sshbroker/broker/control"
)

func (a *app) startCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "start",
		GroupID: groupBroker,
		Short:   "Start the broker in the background, unless it runs",
		Long: `Start the broker in the background, where it stays until it is stopped. It is the
ssh-broker beside this program, else the one on PATH.

One that was started on demand by ssh-capture is told to stay.`,
		Example: `  ssh-broker-ctl start
  ssh-broker-ctl -a /run/user/1000/test-broker start -f test.xml`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.system {
				return usageError{errors.New("start: " + noSystemBroker)}
			}
			return a.start(cmd.Context(), file)
		},
	}
	cmd.Flags().StringVarP(&file, "config-file", "f", "", "read this `FILE` in place of the user's")
	return cmd
}

func (a *app) start(ctx context.Context, file string) error {
	pid, err := control.Start(ctx, control.StartOptions{Address: a.address, ConfigFile: file, Daemon: true})
	if errors.Is(err, control.ErrRunning) {
		return a.stay(ctx, file)
	}
	if err != nil {
		return err
	}
	if !a.quiet {
		a.printf("broker started, process %d\n", pid)
	}
	return nil
}

// stay makes a broker that runs already one that start would have started.
func (a *app) stay(ctx context.Context, file string) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	rows, err := rowsOf[control.StatusRow](ctx, c, control.OpStatus, nil)
	if err != nil {
		return err
	}
	if file != "" {
		return &control.Error{Message: fmt.Sprintf("a broker runs already, process %d; %s was not read", c.PID, file),
			Hint: "ssh-broker-ctl stop, then start again; or choose another address with -a"}
	}
	how := "runs already"
	if len(rows) == 1 && rows[0].Mode == control.ModeOnDemand {
		if err := c.Call(ctx, control.OpStay, nil, nil, nil, nil); err != nil {
			return err
		}
		how = "ran on demand and stays now"
	}
	if !a.quiet {
		a.printf("the broker %s, process %d\n", how, c.PID)
	}
	return nil
}

func (a *app) stopCommand() *cobra.Command {
	var drain time.Duration
	cmd := &cobra.Command{
		Use:     "stop",
		GroupID: groupBroker,
		Short:   "Stop the broker",
		Long: `Stop the broker and wait until it has ended. Connections that it carries are cut,
unless --drain gives them time to end.

Programs that ssh-capture runs are not left alone: it starts a new broker.`,
		Example: `  ssh-broker-ctl stop
  ssh-broker-ctl stop --drain 30s`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if drain < 0 {
				return usageError{fmt.Errorf("--drain %v: a time from 0 on", drain)}
			}
			return a.stop(cmd.Context(), drain)
		},
	}
	cmd.Flags().DurationVar(&drain, "drain", 0, "let live connections go on for this `TIME`, such as 30s or 5m")
	return cmd
}

func (a *app) stop(ctx context.Context, drain time.Duration) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	// Before the call: afterwards the number may be another process's.
	pidfd, pidErr := unix.PidfdOpen(c.PID, 0)
	if pidErr == nil {
		defer unix.Close(pidfd)
	}
	err = c.Call(ctx, control.OpStop, control.StopArgs{DrainMS: drain.Milliseconds()}, nil, nil, nil)
	var answer *control.Error
	already := errors.As(err, &answer) && answer.Code == control.CodeStopping
	if err != nil && !errors.Is(err, control.ErrBrokerGone) && !already {
		return err
	}
	if pidErr == nil {
		if err := waitEnd(ctx, pidfd, drain+stopGrace); err != nil {
			return fmt.Errorf("process %d was told to stop: %w", c.PID, err)
		}
	}
	if !a.quiet {
		a.printf("broker stopped, process %d\n", c.PID)
	}
	return nil
}

// stopGrace is what a broker may take beyond the drain.
const stopGrace = 15 * time.Second

// waitEnd waits until the process has ended.
func waitEnd(ctx context.Context, pidfd int, most time.Duration) error {
	const step = 100 * time.Millisecond // how late ctx is seen
	for left := most; left > 0; left -= step {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(step.Milliseconds()))
		switch {
		case n > 0:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && err != unix.EINTR:
			return err
		}
	}
	return fmt.Errorf("it has not ended within %v", most)
}

func (a *app) reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "reload",
		GroupID: groupBroker,
		Short:   "Have the broker read its configuration again",
		Long: `Have the broker read its configuration again. New connections follow the new rules;
those that are open go on as they are.

If something is wrong with a file, everything that is wrong is printed, the broker
keeps the configuration it has, and the exit code is 1.`,
		Example: `  ssh-broker-ctl check-config ~/.ssh2/ssh-broker-config.xml && ssh-broker-ctl reload`,
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			row, err := one[control.ReloadResult](cmd.Context(), a, control.OpReload, nil)
			switch {
			case err != nil:
				return err
			case a.short:
				a.printJSON(row)
			case !a.quiet:
				a.reloaded(row)
			}
			return nil
		},
	}
}

func (a *app) reloaded(row control.ReloadResult) {
	for _, w := range row.Warnings {
		a.printf("%s\n", w)
	}
	what := "read again, nothing has changed"
	if row.Changed {
		what = "the new one is in force"
	}
	a.printf("configuration %d: %s\n", row.Generation, what)
}

func (a *app) statusCommand() *cobra.Command {
	var pid bool
	cmd := &cobra.Command{
		Use:     "status",
		GroupID: groupBroker,
		Short:   "Show how the broker is",
		Long: `Show how the broker is: its configuration, what it carries, whether its audit record
keeps up. The exit code is 3 when no broker runs, so -q is enough for scripts.`,
		Example: `  ssh-broker-ctl status
  ssh-broker-ctl status -q || ssh-broker-ctl start
  kill -HUP $(ssh-broker-ctl status --pid)
  ssh-broker-ctl status -s | jq .flows_live`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			row, err := one[control.StatusRow](cmd.Context(), a, control.OpStatus, nil)
			switch {
			case err != nil:
				return err
			case pid:
				a.printf("%d\n", row.PID)
			case a.short:
				a.printJSON(row)
			case !a.quiet:
				a.status(row)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&pid, "pid", false, "print the process id and nothing else")
	return cmd
}

func (a *app) status(r control.StatusRow) {
	field := a.field
	field("broker", "running, process %d, %s, %s", r.PID, modeText(r.Mode), r.Version)
	field("since", "%s", a.time(r.Since))
	field("address", "%s", r.Address)
	if len(r.ConfigFiles) == 0 {
		field("configuration", "none: only ssh-capture --via and -f have rules")
	}
	for i, file := range r.ConfigFiles {
		name, generation := "", ""
		if i == 0 {
			name = "configuration"
			if r.Generation > 1 {
				generation = fmt.Sprintf(" (reloaded %d times)", r.Generation-1)
			}
		}
		field(name, "%s%s", file, generation)
	}
	for _, w := range r.Warnings {
		field("", "%s", w)
	}
	for _, g := range r.Generations {
		if g.Generation != r.Generation {
			field("", "the one of %s: %s", a.time(g.Since), stillUsed(g))
		}
	}
	if len(r.Networks) > 0 {
		field("on networks", "%s", networksText(r))
	}
	held := "held: connect() returns what is true"
	if !r.HeldSYN {
		held = "not held: this kernel cannot, so connect() succeeds before the far side has answered"
	}
	if r.Captured != nil && !r.Captured.Connected && r.Mode == control.ModeSystem {
		held = "not known before ssh-captured is connected"
	}
	field("SYN", "%s", held)
	field("captures", "%d", r.Captures)
	if r.Captured != nil {
		field("ssh-captured", "%s", capturedText(*r.Captured, r.Mode))
	}
	field("connections", "%d live, %d in all", r.FlowsLive, r.FlowsTotal)
	if r.Listeners > 0 || len(r.ListenerErrors) > 0 {
		field("listeners", "%d open", r.Listeners)
	}
	for _, e := range r.ListenerErrors {
		field("", "NOT OPEN: %s", e)
	}
	for _, e := range r.MetricsErrors {
		field("metrics", "NOT READABLE: %s", e)
	}
	audit := fmt.Sprintf("%s, %d records", r.Audit.Path, r.Audit.Written)
	switch {
	case r.Audit.Path == "":
		audit = "none"
	case r.Audit.Error != "":
		audit += fmt.Sprintf(", %d WAIT, %d COULD NOT BE WRITTEN: %s", r.Audit.Pending, r.Audit.Failed, r.Audit.Error)
	case r.Audit.Failed > 0:
		audit += fmt.Sprintf(", %d COULD NOT BE WRITTEN", r.Audit.Failed)
	}
	field("audit", "%s", audit)
	for i, t := range r.Log {
		name := ""
		if i == 0 {
			name = "events"
		}
		field(name, "%s", logText(t))
	}
	if r.Strangers > 0 {
		field("strangers", "%d connections straight to a capture's listener, reset", r.Strangers)
	}
	if a.verbose {
		field("memory", "%s", size(r.Memory))
		field("goroutines", "%d", r.Goroutines)
		field("descriptors", "%d", r.FDs)
	}
}

// logText is how one target of the element logging does.
func logText(t control.LogTarget) string {
	text := fmt.Sprintf("%s, %d events", t.Target, t.Written)
	if t.Lost > 0 {
		text += fmt.Sprintf(", %d LOST", t.Lost)
	}
	if t.Error != "" {
		text += fmt.Sprintf(", %d WAIT: %s", t.Pending, t.Error)
	}
	return text
}

// stillUsed says what goes by an older configuration.
func stillUsed(g control.GenerationStatus) string {
	var users []string
	for _, u := range []struct {
		n    int
		name string
	}{{g.Flows, "connection"}, {g.Captures, "capture"}} {
		switch {
		case u.n == 1:
			users = append(users, "1 "+u.name)
		case u.n > 1:
			users = append(users, fmt.Sprintf("%d %ss", u.n, u.name))
		}
	}
	return strings.Join(users, " and ") + " still"
}

// networksText says where the host is.
func networksText(r control.StatusRow) string {
	by := map[string][]string{}
	for _, n := range r.Networks {
		by[n.On] = append(by[n.On], n.ID)
	}
	text := "none"
	if here := by[control.NetworkHere]; len(here) > 0 {
		text = strings.Join(here, ", ")
	}
	if away := by[control.NetworkAway]; len(away) > 0 {
		text += "; not on " + strings.Join(away, ", ")
	}
	if unknown := by[control.NetworkUnknown]; len(unknown) > 0 {
		text += "; NOT KNOWN of " + strings.Join(unknown, ", ") + ": " + r.PlaceError
	}
	return text
}

// capturedText is how the broker stands with ssh-captured.
func capturedText(c control.CapturedStatus, mode control.Mode) string {
	switch {
	case !c.Connected && c.Error != "":
		return "not connected: " + c.Error
	case !c.Connected:
		return "not connected"
	case mode != control.ModeSystem:
		return "connected"
	case !c.Enabled:
		return "connected; capture for the whole system is off: ssh-broker-ctl connector enable"
	case c.Policy != "":
		return "connected; capture for the whole system is on, " + c.Policy + " when this broker is not there"
	}
	return "connected; capture for the whole system is on"
}

func modeText(m control.Mode) string {
	switch m {
	case control.ModeOnDemand:
		return "on demand (ends after its last client)"
	case control.ModeSystem:
		return "for the whole system"
	case control.ModeDaemon:
		return "until it is stopped"
	}
	return string(m)
}
