package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
)

// captureArgs are what capture hands on to ssh-capture.
type captureArgs struct {
	pid         int
	via         string
	config      string
	localhost   bool
	allowDirect bool
	udp         string
}

func (a *app) captureCommand() *cobra.Command {
	var c captureArgs
	cmd := &cobra.Command{
		Use:     "capture --pid PID [command options]",
		GroupID: groupFlows,
		Short:   "Capture a process that runs already",
		Long: `Capture a process that runs already, from now on, with what it starts from now on. Its
connections and children of before are not captured. The process must be yours, for
root too. It is ssh-capture --pid of the ssh-capture beside this program, and needs
ssh-captured: the exit code is 3 when that does not run.`,
		Example: `  ssh-broker-ctl capture --pid 4711
  ssh-broker-ctl capture --pid $(pidof -s firefox) --via me@bastion`,
		Args: exactly(),
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case !cmd.Flags().Changed("pid"):
				return usageError{errors.New("capture: --pid PID is missing; a new command is captured by ssh-capture")}
			case c.pid <= 0:
				return usageError{fmt.Errorf("capture: --pid %d: not the number of a process", c.pid)}
			case a.system:
				return usageError{errors.New("capture: the system broker takes no captures: leave out --system")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return a.capture(cmd.Context(), c) },
	}
	f := cmd.Flags()
	f.IntVar(&c.pid, "pid", 0, "the `PID` of the process")
	f.StringVar(&c.via, "via", "", "send everything through this SSH server, `[user@]host[:port]`")
	f.StringVarP(&c.config, "config-file", "f", "", "take the rules from this `FILE`")
	f.BoolVarP(&c.localhost, "localhost", "l", false, "judge connections to the local host by the rules as well")
	f.BoolVar(&c.allowDirect, "allow-direct", false, "capture even if no filter rules exist: everything goes out in clear")
	f.StringVar(&c.udp, "udp", "refuse", "what becomes of UDP other than name queries: `refuse|direct`")
	return cmd
}

// arguments are those of ssh-capture.
func (c captureArgs) arguments(address string) []string {
	args := []string{"--pid", strconv.Itoa(c.pid), "--udp", c.udp}
	for _, given := range []struct{ option, value string }{{"--via", c.via}, {"-f", c.config}, {"-a", address}} {
		if given.value != "" {
			args = append(args, given.option, given.value)
		}
	}
	if c.localhost {
		args = append(args, "-l")
	}
	if c.allowDirect {
		args = append(args, "--allow-direct")
	}
	return args
}

// captured is what capture -s prints.
type captured struct {
	PID     int    `json:"pid"`
	Capture string `json:"capture"`
}

func (a *app) capture(ctx context.Context, c captureArgs) error {
	there, err := dialCaptured(ctx) // for the exit code
	if err != nil {
		return err
	}
	there.Close()
	program, err := control.FindProgram("ssh-capture")
	if err != nil {
		return err
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, program, c.arguments(a.address)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, &out, a.err
	if err := cmd.Run(); err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
			return errSilent // it has said why
		}
		return fmt.Errorf("capture: %w", err)
	}
	row := captured{c.pid, strings.TrimSpace(out.String())}
	switch {
	case a.short:
		a.printJSON(row)
	case !a.quiet:
		a.printf("process %d is in capture %s\n", row.PID, row.Capture)
	}
	return nil
}
