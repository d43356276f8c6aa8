// Command ssh-capture runs a command whose TCP connections are caught before they
// leave the host, judged by the broker's filter rules, and carried over SSH where a
// rule says so. See ssh-capture(1).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
	"sshbroker/broker/prompt"
	"sshbroker/capture/command"
	"sshbroker/capture/inherit"
	"sshbroker/capture/netns"
	"sshbroker/capture/probe"
)

// Exit codes that are ours; every other one is the command's.
const (
	exitFailed    = 125 // we could not do our part
	exitCannotRun = 126 // the command was found and cannot be run
	exitNotFound  = 127
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case netns.InsideArg:
			netns.Inside(os.Args[2:])
		case insideCgroupArg:
			becomeCommand(os.Args[2:])
		case probe.InsideArg:
			os.Exit(orFail(probe.Inside(os.Stdout)))
		case probe.ReportArg:
			os.Exit(report(os.Stdout))
		case prepareArg:
			os.Exit(prepareCommand(os.Args[2:]))
		case keepArg:
			os.Exit(keep(os.Args[2:]))
		}
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// report says what this program can do here, for ssh-broker-ctl doctor.
func report(w io.Writer) int {
	self, err := os.Executable()
	if err == nil {
		err = json.NewEncoder(w).Encode(probe.Here(context.Background(), self))
	}
	return orFail(err)
}

func orFail(err error) int {
	if err != nil {
		return failed(os.Stderr, err)
	}
	return 0
}

// options are what the command line says.
type options struct {
	via         string
	config      string
	address     string
	localhost   bool
	fallback    bool
	allowDirect bool
	udp         string
	debug       debugLevel
	backend     string
	pid         int // of the process to capture; 0: COMMAND
	strict      bool
	closed      bool // --close-sockets; see closeSockets
	command     []string
}

// debugLevel says how much is told; see control.CaptureEvent.
type debugLevel int

func (l *debugLevel) String() string { return strconv.Itoa(int(*l)) }
func (l *debugLevel) Type() string   { return "LEVEL" }

// Set takes any digit: between two levels, the lower one counts.
func (l *debugLevel) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 9 {
		return errors.New("it is 1, 3, 5 or 7")
	}
	*l = debugLevel(n)
	return nil
}

// run does everything and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o options
	code := 0
	cmd := newCommand(&o, func() {
		if o.pid != 0 {
			code = captureProcess(ctx, o, stdout, stderr)
		} else {
			code = captureCommand(ctx, o, stderr)
		}
	})
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	if err := cmd.ExecuteContext(ctx); err != nil {
		complain(stderr, err)
		return exitFailed
	}
	return code
}

func newCommand(o *options, do func()) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ssh-capture [options] COMMAND [ARGS]...\n  ssh-capture [options] --pid PID",
		Short: "Run a command with its TCP connections captured",
		Long: `Run COMMAND with every TCP connection that it and its children open caught before
it leaves the host. The filter rules of ssh-broker-config.xml decide what becomes of
each: carried over SSH, let through, or refused. With --via no configuration is
needed: everything goes through that server, and names are resolved there.

With --strict every way out that a program might take is tried first, as by
ssh-broker-ctl leak-test and by the command's own rules. Where something could go out in
clear, the command is not started: the exit code is 125, and the list is printed.

With --pid a process that runs already is captured from now on, with what it starts
from now on; its connections and children of before are not. It needs ssh-captured.

Options end at the first word that is none.`,
		Example: `  ssh-capture --via me@bastion psql -h db.internal
  ssh-capture telnet host.example.com
  ssh-capture bash`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch pid := cmd.Flags().Changed("pid"); {
			case pid && len(args) > 0:
				return errors.New("--pid captures a process that runs already: there is no command with it")
			case pid && o.pid <= 0:
				return fmt.Errorf("--pid %d: not the number of a process", o.pid)
			case !pid && len(args) == 0:
				return errors.New("no command to run; see ssh-capture --help")
			}
			return nil
		},
		PreRunE:       func(_ *cobra.Command, _ []string) error { return o.check() },
		Run:           func(_ *cobra.Command, args []string) { o.command = args; do() },
		SilenceErrors: true, SilenceUsage: true,
		Version: control.Version(),
	}
	cmd.CompletionOptions.DisableDefaultCmd = true // "completion" may be a command to run
	cmd.DisableFlagsInUseLine = true
	cmd.SetVersionTemplate("ssh-capture {{.Version}}\n")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fmt.Errorf("%w; see ssh-capture --help", err)
	})
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.SortFlags = false
	f.StringVar(&o.via, "via", "", "send everything through this SSH server, `[user@]host[:port]` or an alias of ~/.ssh/config")
	f.StringVarP(&o.config, "config-file", "f", "", "take the rules from this `FILE` for this command alone")
	f.StringVarP(&o.address, "broker-address", "a", "", "use the broker at this socket `PATH` (also "+control.EnvAddress+")")
	f.BoolVarP(&o.localhost, "localhost", "l", false, "judge connections to the local host by the rules as well")
	f.BoolVarP(&o.fallback, "fallback", "F", false, "run COMMAND uncaptured, with a warning, if no broker can be reached or started")
	f.BoolVar(&o.allowDirect, "allow-direct", false, "run COMMAND even if no filter rules exist: everything goes out in clear")
	f.StringVar(&o.udp, "udp", "refuse", "what becomes of UDP other than name queries: `refuse|direct`")
	f.VarP(&o.debug, "debug", "D", "tell on standard error: `LEVEL` 1 fatal errors, 3 start-up, 5 connections, 7 name queries")
	f.StringVar(&o.backend, "backend", backendAuto, "how to capture: `auto|cgroup|namespace`; auto: by cgroup where ssh-captured runs")
	f.BoolVar(&o.strict, "strict", false, "start COMMAND only after the capture was proved to hold; implies --close-sockets")
	f.BoolVar(&o.closed, "close-sockets", false, "close network sockets that COMMAND would inherit")
	f.IntVar(&o.pid, "pid", 0, "capture the running process `PID`, and what it starts from now on")
	f.BoolP("version", "V", false, "print the version")
	f.BoolP("help", "h", false, "print this help")
	return cmd
}

// check refuses options that contradict each other or cannot be served.
func (o *options) check() error {
	switch {
	case o.via != "" && o.config != "":
		return errors.New("--via needs no configuration: it cannot be used together with -f")
	case o.via != "" && o.fallback:
		return errors.New("-F would send in clear what --via promises to protect: use one of the two")
	case o.via != "" && o.allowDirect:
		return errors.New("--allow-direct has no meaning with --via")
	case !slices.Contains([]string{backendAuto, backendCgroup, backendNamespace}, o.backend):
		return fmt.Errorf("--backend %q: it is auto, cgroup or namespace", o.backend)
	case o.pid != 0 && o.backend == backendNamespace:
		return errors.New("--pid: a process cannot be moved into a namespace, only into a cgroup")
	case o.pid != 0 && o.fallback:
		return errors.New("--pid: -F has no meaning, the process runs uncaptured already")
	case o.pid != 0 && (o.strict || o.closed):
		return errors.New("--pid: --strict and --close-sockets are for a command that is yet to start")
	case o.strict && (o.fallback || o.allowDirect || o.udp == "direct"):
		return errors.New("--strict promises that nothing goes out but by the rules: it cannot be used together with -F, --allow-direct or --udp=direct")
	case o.udp != "refuse" && o.udp != "direct":
		return fmt.Errorf("--udp %q: it is refuse or direct", o.udp)
	}
	return nil
}

// complain prints an error, and its cure where there is one.
func complain(w io.Writer, err error) {
	fmt.Fprintf(w, "ssh-capture: %v\n", err)
	var answer *control.Error
	var forbidden *netns.ForbiddenError
	hint := ""
	switch {
	case errors.As(err, &answer):
		hint = answer.Hint
	case errors.As(err, &forbidden):
		hint = forbidden.Cure
	}
	if hint == "" {
		hint = cureOf(err)
	}
	if hint != "" {
		fmt.Fprintf(w, "ssh-capture: hint: %s\n", strings.ReplaceAll(hint, "\n", "\n                   "))
	}
}

// captureCommand runs the command inside a capture and returns its exit code.
func captureCommand(ctx context.Context, o options, stderr io.Writer) int {
	path, err := findCommand(o.command[0])
	if err != nil {
		complain(stderr, err)
		if errors.Is(err, errNotFound) {
			return exitNotFound
		}
		return exitCannotRun
	}
	o.trace(stderr, 3, "command is %s", path)

	started := inherit.Started()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	gate := newSignalGate(started, func(s syscall.Signal) { cancel(interrupted(s)) })
	person := prompt.NewPerson(ctx)
	defer person.Leave()

	var c *session
	if o.strict {
		err = tryCapture(ctx, o)
	}
	if err == nil {
		c, err = openCapture(ctx, o, path, started, person, stderr)
	}
	switch by, byUs := context.Cause(ctx).(interrupted); {
	case err == nil:
	case byUs:
		return 128 + int(by)
	case errors.Is(err, errNoBroker) && o.fallback:
		return runUncaptured(o, path, started, err, stderr)
	default:
		return failed(stderr, err)
	}
	person.Leave()
	if before := gate.toCommand(c.process); before != 0 {
		c.abort()
		return 128 + int(before)
	}
	if err := c.child.Release(); err != nil {
		c.close()
		return failed(stderr, err)
	}
	if o.strict {
		if err := c.prove(ctx); err != nil {
			return c.notStarted(err, stderr)
		}
	}
	o.trace(stderr, 3, "command runs as process %d in capture %s", c.process.Pid, c.args.ID)
	code := superviseJob(c.process.Pid)
	c.settle()
	if err := c.handOver(); err != nil {
		complain(stderr, fmt.Errorf("processes in the background lose their keeper: %w", err))
	}
	c.close()
	return code
}

// failed says why the command did not come to run, and returns the exit code.
func failed(stderr io.Writer, err error) int {
	var killed command.KilledError
	var exec *command.ExecError
	var id *setIDError
	switch {
	case errors.As(err, &killed): // Ctrl-C reaches the child as well, and sooner at times
		return 128 + int(killed)
	case errors.As(err, &exec) && errors.Is(err, syscall.ENOENT):
		complain(stderr, fmt.Errorf("%w: it, or the interpreter that it names, is missing", err))
		return exitNotFound
	case errors.As(err, &exec), errors.As(err, &id):
		complain(stderr, err)
		return exitCannotRun
	}
	complain(stderr, err)
	return exitFailed
}

// runUncaptured becomes the command, as -F allows where there is no broker.
func runUncaptured(o options, path string, started inherit.State, why error, stderr io.Writer) int {
	complain(stderr, fmt.Errorf("warning: %w", why))
	complain(stderr, fmt.Errorf("warning: %s runs UNCAPTURED, its connections are not protected (-F)", o.command[0]))
	var errno syscall.Errno
	errors.As(started.Exec(path, o.command, os.Environ()), &errno)
	return failed(stderr, &command.ExecError{Path: path, Errno: errno})
}

func (o *options) trace(w io.Writer, level debugLevel, format string, args ...any) {
	if o.debug >= level {
		fmt.Fprintf(w, "ssh-capture: "+format+"\n", args...)
	}
}
